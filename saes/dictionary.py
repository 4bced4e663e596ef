"""What every way of training hands over at its end: weights and the rule that makes them sparse."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Dictionary(NamedTuple):
    """Weights of a trained SAE, whatever trained it. Owned by the receiver."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    threshold: Float[Tensor, " d_sae"] | None = None
    """Entries above it are active; None: the k largest of a token are."""

    def in_units(self, scale: float) -> Dictionary:
        """The same SAE on rows x, when this one was trained on scale * x.

        With the biases and the threshold divided by the scale, pre-activations and activations
        shrink alike, so the same latents are active and x_hat is the old one over the scale.
        """
        return self._replace(
            b_enc=self.b_enc / scale,
            b_dec=self.b_dec / scale,
            threshold=None if self.threshold is None else self.threshold / scale,
        )


def without_gate(
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    b_gate: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
    r_mag: Float[Tensor, " d_sae"],
) -> Dictionary:
    """A gated SAE as the threshold rule that it is, since both its paths share W_enc.

    Its activation is m = x W_enc exp(r_mag) + b_mag where x W_enc + b_gate > 0; and that is where
    m > b_mag - exp(r_mag) b_gate. Source: Rajamanoharan et al., arXiv 2404.16014, section 3.2.
    """
    gain = r_mag.exp()
    threshold = (b_mag - gain * b_gate).clamp_min(0.0)
    return Dictionary(W_enc * gain, W_dec, b_enc=b_mag, b_dec=b_dec, threshold=threshold)
