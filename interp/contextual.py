"""Token and position means of a stream: estimated on training documents, shrunk, removed.

Even an untrained transformer carries the identity of the current token and its position, which an
SAE reproduces very well. What is left once both are removed is *contextual*.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import UserError

MAX_SWEEPS = 100
TOLERANCE = 1e-6
_DENSE_CELLS = 1 << 24


@dataclass(frozen=True)
class VarianceShare:
    """Shares of the total variance sum ||x - mean||^2 of the fitted data.

    `token` and `position` are those of the fitted effects, `residual` is what remains; the three
    miss 1 by twice the covariance of the effects with each other and with the residual, which is
    small when every token occurs at every position.
    """

    token: float
    position: float
    residual: float


@dataclass(frozen=True, eq=False)
class ContextualMeans:
    """x is predicted as mean + token_mean[token] + pos_mean[position]; effects of unseen are 0."""

    mean: Float[Tensor, " d"]
    token_mean: Float[Tensor, "d_vocab d"]
    pos_mean: Float[Tensor, "n_ctx d"]
    variance_share: VarianceShare
    token_prior_count: float
    """A token seen n times keeps n / (n + this) of its mean."""
    pos_prior_count: float
    n_tokens: int

    def predict(
        self, token_ids: Int[Tensor, " token"], positions: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d"]:
        """The part of the stream that token and position alone explain."""
        out = self.token_mean.index_select(0, token_ids)
        return out.add_(self.pos_mean.index_select(0, positions)).add_(self.mean)

    def residual(
        self,
        x: Float[Tensor, "token d"],
        token_ids: Int[Tensor, " token"],
        positions: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d"]:
        """The contextual stream: x minus `predict`, as a new tensor."""
        return torch.sub(x, self.predict(token_ids, positions))

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {"mean": self.mean, "token_mean": self.token_mean, "pos_mean": self.pos_mean}
        numbers = {
            **asdict(self.variance_share),
            "token_prior_count": self.token_prior_count,
            "pos_prior_count": self.pos_prior_count,
            "n_tokens": self.n_tokens,
        }
        temporary = path.with_name(path.name + ".tmp")
        save_file(tensors, temporary, metadata={k: repr(v) for k, v in numbers.items()})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ContextualMeans:
        """Read what `save` wrote. Raises UserError when the file is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            tensors = load_file(path)
            with safe_open(path, framework="pt") as file:
                n = file.metadata()
            return cls(
                **tensors,
                variance_share=VarianceShare(
                    float(n["token"]), float(n["position"]), float(n["residual"])
                ),
                token_prior_count=float(n["token_prior_count"]),
                pos_prior_count=float(n["pos_prior_count"]),
                n_tokens=int(n["n_tokens"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no readable contextual means ({error}); remove it and fit again"
            ) from error


class ContextualFitter:
    """Accumulates sums per token, per position and per pair; `fit` turns them into means.

    Memory: (d_vocab + n_ctx) * d float64, and one count per (token, position) pair seen.
    """

    def __init__(self, d_vocab: int, n_ctx: int, d: int) -> None:
        self._token_sums = torch.zeros(d_vocab, d, dtype=torch.float64)
        self._pos_sums = torch.zeros(n_ctx, d, dtype=torch.float64)
        self._pairs = sp.csr_array((d_vocab, n_ctx), dtype=np.int64)
        self._squares = 0.0
        # Sums are taken about the first mean seen: a large common offset would otherwise drown
        # the variances in rounding.
        self._shift: Tensor | None = None

    def update(
        self,
        x: Float[Tensor, "token d"],
        token_ids: Int[Tensor, " token"],
        positions: Int[Tensor, " token"],
    ) -> None:
        """Add training tokens; leave out what no SAE will see (BOS, position 0, sinks)."""
        if len(x) == 0:
            return
        x = x.detach().float()
        if self._shift is None:
            self._shift = x.mean(0)
        centred = x - self._shift
        for sums, index in ((self._token_sums, token_ids), (self._pos_sums, positions)):
            # float32 within a call, float64 over all: float64 index_add_ is 100 times slower.
            sums += torch.zeros(sums.shape).index_add_(0, index, centred)
        self._squares += float(torch.linalg.vector_norm(centred, dtype=torch.float64)) ** 2
        ones = np.ones(len(x), dtype=np.int64)
        pairs = (token_ids.numpy(), positions.numpy())
        self._pairs = self._pairs + sp.coo_array((ones, pairs), shape=self._pairs.shape).tocsr()

    def fit(self) -> ContextualMeans:
        """Fit x = mean + a[token] + b[position] + e by backfitting with shrinkage.

        Effects are those of a random-effects model: minimise the squared residuals plus
        lambda_a sum ||a||^2 + lambda_b sum ||b||^2, with lambda = (variance within groups) /
        (variance between groups), both estimated by one-way analysis of variance (method of
        moments). Each sweep sets a[v] = (sum of residuals of v) / (n_v + lambda_a), and likewise b;
        sweeps end when the fit moves by less than 1e-6 of the total norm.

        Raises UserError below two tokens. Source: Henderson 1975 (best linear unbiased
        prediction); Searle, Casella, McCulloch, Variance Components, ch. 3 (moments).
        """
        n_tokens = int(self._pairs.sum())
        if n_tokens < 2 or self._shift is None:
            raise UserError(f"contextual means need at least 2 tokens and got {n_tokens}")
        small = self._pairs.shape[0] * self._pairs.shape[1] <= _DENSE_CELLS
        pairs = (self._pairs.toarray() if small else self._pairs).astype(np.float64)
        pairs_t = pairs.T
        s_tok, s_pos = self._token_sums.numpy(), self._pos_sums.numpy()
        n_tok = np.asarray(pairs.sum(axis=1)).ravel()
        n_pos = np.asarray(pairs.sum(axis=0)).ravel()
        prior_a = _prior_count(s_tok, n_tok, self._squares)
        prior_b = _prior_count(s_pos, n_pos, self._squares)

        total = s_tok.sum(axis=0)
        mu = total / n_tokens
        total_variance = self._squares - n_tokens * float(mu @ mu)
        a, b = np.zeros_like(s_tok), np.zeros_like(s_pos)
        weight_a, weight_b = _weights(n_tok, prior_a), _weights(n_pos, prior_b)
        for _ in range(MAX_SWEEPS):
            new_a = weight_a * (s_tok - n_tok[:, None] * mu - pairs @ b)
            new_b = weight_b * (s_pos - n_pos[:, None] * mu - pairs_t @ new_a)
            new_mu = (total - n_tok @ new_a - n_pos @ new_b) / n_tokens
            moved = (
                float(n_tok @ ((new_a - a) ** 2).sum(1) + n_pos @ ((new_b - b) ** 2).sum(1))
                + n_tokens * float((new_mu - mu) @ (new_mu - mu))
            )  # fmt: skip
            a, b, mu = new_a, new_b, new_mu
            if moved <= TOLERANCE**2 * max(total_variance, 1e-300):
                break
        # Effects average to zero over the data; the constant carries the rest.
        a_mean, b_mean = n_tok @ a / n_tokens, n_pos @ b / n_tokens
        a[n_tok > 0] -= a_mean
        b[n_pos > 0] -= b_mean
        mu = mu + a_mean + b_mean

        var_a = float(n_tok @ (a**2).sum(1))
        var_b = float(n_pos @ (b**2).sum(1))
        cross = 2 * float((a * (pairs @ b)).sum())
        fitted = n_tokens * float(mu @ mu) + var_a + var_b + cross
        explained = float(mu @ total + (a * s_tok).sum() + (b * s_pos).sum())
        left = max(self._squares - 2 * explained + fitted, 0.0)
        scale = 1.0 / total_variance if total_variance > 0 else 0.0
        return ContextualMeans(
            mean=self._shift + torch.from_numpy(mu).float(),
            token_mean=torch.from_numpy(a).float(),
            pos_mean=torch.from_numpy(b).float(),
            variance_share=VarianceShare(var_a * scale, var_b * scale, left * scale),
            token_prior_count=prior_a,
            pos_prior_count=prior_b,
            n_tokens=n_tokens,
        )


def _weights(counts: np.ndarray, prior_count: float) -> np.ndarray:
    """1 / (n + prior) per group, as a column; 0 for a group that was never seen."""
    weights = np.zeros(len(counts))
    np.divide(1.0, counts + prior_count, out=weights, where=counts > 0)
    return weights[:, None]


def _prior_count(sums: np.ndarray, counts: np.ndarray, squares: float) -> float:
    """Variance within groups over variance between them; infinite when there is none between."""
    seen = counts > 0
    n, groups = float(counts.sum()), int(seen.sum())
    if groups < 2 or n <= groups:
        # Every group once: within and between cannot be told apart, so nothing is attributed.
        return float("inf")
    group_part = float(((sums[seen] ** 2).sum(axis=1) / counts[seen]).sum())
    mean_part = float((sums.sum(axis=0) ** 2).sum()) / n
    within = max(squares - group_part, 0.0) / (n - groups)
    spread = n - float((counts**2).sum()) / n
    between = (group_part - mean_part - (groups - 1) * within) / spread
    return within / between if between > 0 else float("inf")
