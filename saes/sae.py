"""A trained TopK SAE: weights, encode, decode."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.sparse import Encoder, decode_sparse


class SparseActs(NamedTuple):
    """Latent activations of some tokens, k per token.

    A value of zero means that the slot is unused: the latent named beside it did not fire.
    """

    indices: Int[Tensor, "token k"]
    """Which latents, in no order."""
    values: Float[Tensor, "token k"]
    """Their activations, >= 0."""


class SAE:
    """TopK SAE: z = TopK(ReLU((x - b_dec) W_enc + b_enc)), x_hat = z W_dec + b_dec.

    The same function as sae-lens' `TopKSAE` with `apply_b_dec_to_input`.
    Source: Gao et al., arXiv 2406.04093, eq. 4-5.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
        k: int,
        cfg: SAEConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        d_in, d_sae = W_enc.shape
        shapes = (tuple(W_dec.shape), tuple(b_enc.shape), tuple(b_dec.shape))
        if shapes != ((d_sae, d_in), (d_sae,), (d_in,)):
            raise SAEError(
                f"SAE weights disagree: W_enc {(d_in, d_sae)}, W_dec {shapes[0]}, "
                f"b_enc {shapes[1]}, b_dec {shapes[2]}; expected [d_in d_sae], [d_sae d_in], "
                "[d_sae], [d_in]"
            )
        if not 0 < k <= d_sae:
            raise SAEError(f"SAE k {k} is outside 1..d_sae {d_sae}; give a k inside")
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = W_enc, W_dec, b_enc, b_dec
        self.k = k
        self.cfg = cfg
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str) -> SAE:
        """The same SAE on another device."""
        return SAE(
            self.W_enc.to(device),
            self.W_dec.to(device),
            self.b_enc.to(device),
            self.b_dec.to(device),
            k=self.k,
            cfg=self.cfg,
            metadata=self.metadata,
        )

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "token d_in"]) -> SparseActs:
        """The k active latents of every token. Raises SAEError where x has another width."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise SAEError(
                f"SAE got activations of shape {tuple(x.shape)} but d_in is {self.d_in}; "
                "give [token, d_in]"
            )
        centred = x.float() - self.b_dec
        encoder = Encoder(len(x), self.d_sae, self.k, device=x.device)
        values, indices = encoder(centred, self.W_enc, self.b_enc)
        return SparseActs(indices, values)

    @torch.no_grad()
    def encode_dense(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """`encode` as a dense matrix; needs [token, d_sae] memory."""
        indices, values = self.encode(x)
        return values.new_zeros(len(x), self.d_sae).scatter_(1, indices, values)

    @torch.no_grad()
    def decode(self, acts: SparseActs) -> Float[Tensor, "token d_in"]:
        """x_hat of sparse activations."""
        return decode_sparse(acts.indices, acts.values, self.W_dec).add_(self.b_dec)

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """x_hat: decode(encode(x))."""
        return self.decode(self.encode(x))

    def __repr__(self) -> str:
        where = f", hook_point={self.cfg.hook_point!r}, seed={self.cfg.seed}" if self.cfg else ""
        status = f", status={self.metadata['status']!r}" if "status" in self.metadata else ""
        return f"SAE(d_in={self.d_in}, d_sae={self.d_sae}, k={self.k}{where}{status})"
