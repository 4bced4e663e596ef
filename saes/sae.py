"""A trained SAE: weights, encode, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.selection import TopKEncoder, block_rows
from saes.sparse import Slots, decode_sparse


class SparseActs(NamedTuple):
    """Latent activations of some tokens, k per token.

    A value of zero means that the slot is unused: the latent named beside it did not fire.
    """

    indices: Int[Tensor, "token k"]
    """Which latents, in no order."""
    values: Float[Tensor, "token k"]
    """Their activations, >= 0."""

    def to(self, device: torch.device | str) -> SparseActs:
        """The same on another device."""
        return SparseActs(self.indices.to(device), self.values.to(device))


class SAE:
    """h = (x - b_dec) W_enc + b_enc; z = f(h); x_hat = z W_dec + b_dec.

    f keeps the k largest positive entries of a token (TopK) or, where a threshold is given, the
    positive entries above it (JumpReLU; with a threshold of zero ReLU). The same functions as
    sae-lens' `TopKSAE`, `JumpReLUSAE` and `StandardSAE` with `apply_b_dec_to_input`.
    Source: Gao et al., arXiv 2406.04093, eq. 4-5; Rajamanoharan et al., arXiv 2407.14435, eq. 3.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
        k: int = 0,
        cfg: SAEConfig | None = None,
        metadata: dict[str, Any] | None = None,
        threshold: Float[Tensor, " d_sae"] | None = None,
    ) -> None:
        """`k` latents per token; 0 where `threshold` decides."""
        d_in, d_sae = W_enc.shape
        shapes = (tuple(W_dec.shape), tuple(b_enc.shape), tuple(b_dec.shape))
        if shapes != ((d_sae, d_in), (d_sae,), (d_in,)):
            raise SAEError(
                f"SAE weights disagree: W_enc {(d_in, d_sae)}, W_dec {shapes[0]}, "
                f"b_enc {shapes[1]}, b_dec {shapes[2]}; expected [d_in d_sae], [d_sae d_in], "
                "[d_sae], [d_in]"
            )
        if threshold is None and not 0 < k <= d_sae:
            raise SAEError(f"SAE k {k} is outside 1..d_sae {d_sae}; give a k inside")
        if threshold is not None and (k or tuple(threshold.shape) != (d_sae,)):
            raise SAEError(
                f"SAE threshold {tuple(threshold.shape)} beside k {k}; give [d_sae] and no k"
            )
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = W_enc, W_dec, b_enc, b_dec
        self.k = k
        self.threshold = threshold
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
            threshold=None if self.threshold is None else self.threshold.to(device),
        )

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "token d_in"]) -> SparseActs:
        """The active latents of every token. Raises SAEError where x has another width.

        `k` slots per token; under a threshold as many as the fullest token of `x` needs.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise SAEError(
                f"SAE got activations of shape {tuple(x.shape)} but d_in is {self.d_in}; "
                "give [token, d_in]"
            )
        centred = x.float() - self.b_dec
        if self.threshold is not None:
            return _above(self.threshold, centred, self.W_enc, self.b_enc)
        encoder = TopKEncoder(len(x), self.d_sae, self.k, device=x.device)
        encoder(centred, self.W_enc, self.b_enc)
        return SparseActs(encoder.indices, encoder.values)

    @torch.no_grad()
    def encode_dense(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """`encode` as a dense matrix; needs [token, d_sae] memory."""
        indices, values = self.encode(x)
        # Added, not written: an unused slot may name a latent that another slot uses.
        return values.new_zeros(len(x), self.d_sae).scatter_add_(1, indices, values)

    @torch.no_grad()
    def decode(self, acts: SparseActs) -> Float[Tensor, "token d_in"]:
        """x_hat of sparse activations."""
        return decode_sparse(Slots.from_topk(*acts), self.W_dec).add_(self.b_dec)

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """x_hat: decode(encode(x))."""
        return self.decode(self.encode(x))

    def __repr__(self) -> str:
        where = f", hook_point={self.cfg.hook_point!r}, seed={self.cfg.seed}" if self.cfg else ""
        status = f", status={self.metadata['status']!r}" if "status" in self.metadata else ""
        rule = f"k={self.k}" if self.threshold is None else "threshold"
        return f"SAE(d_in={self.d_in}, d_sae={self.d_sae}, {rule}{where}{status})"


def joined(parts: Sequence[SparseActs]) -> SparseActs:
    """The acts of consecutive tokens as one, with as many slots as the widest part has.

    Under a threshold parts differ in theirs. Raises ValueError without parts.
    """
    width = max(part.indices.shape[1] for part in parts)
    return SparseActs(
        indices=torch.cat([_widen(part.indices, width) for part in parts]),
        values=torch.cat([_widen(part.values, width) for part in parts]),
    )


def _above(
    threshold: Float[Tensor, " d_sae"],
    centred: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> SparseActs:
    """Entries of centred W_enc + b_enc above max(threshold, 0), left-aligned in every row."""
    floor = threshold.clamp_min(0.0)
    found = []
    for rows in centred.split(block_rows(len(centred), len(floor), centred.device)):
        pre = torch.addmm(b_enc, rows, W_enc)
        active = pre > floor
        counts = active.sum(1)
        tokens, latents = active.nonzero(as_tuple=True)
        slots = torch.arange(len(tokens), device=pre.device) - (counts.cumsum(0) - counts)[tokens]
        width = int(counts.max()) if len(counts) else 0
        indices = latents.new_zeros(len(rows), width)
        values = pre.new_zeros(len(rows), width)
        indices[tokens, slots] = latents
        values[tokens, slots] = pre[tokens, latents]
        found.append(SparseActs(indices, values))
    return joined(found)


def _widen(slots: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(slots, (0, width - slots.shape[1]))
