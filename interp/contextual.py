"""Token and position means of a stream: estimated on training documents, shrunk, removed.

Even an untrained transformer carries the identity of the current token and its position, which an
SAE reproduces very well. What is left once both are removed is *contextual*.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from interp import durable
from interp.errors import UserError

MAX_SWEEPS = 100
TOLERANCE = 1e-6
_DENSE_CELLS = 1 << 24
_TENSORS = ("mean", "token_mean", "pos_mean")


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

    def to(self, device: torch.device | str) -> ContextualMeans:
        """The same means on another device, for rows that are there."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **moved)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all; the same means are the same bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        numbers = {
            **asdict(self.variance_share),
            "token_prior_count": self.token_prior_count,
            "pos_prior_count": self.pos_prior_count,
            "n_tokens": self.n_tokens,
        }
        data = save(tensors, metadata={name: repr(value) for name, value in numbers.items()})
        durable.write(path, _with_sorted_header(data))

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


def _with_sorted_header(data: bytes) -> bytes:
    """The same file: safetensors writes its metadata in another order each time.

    Eight bytes of length and JSON, padded with blanks to a multiple of eight; then the tensors.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(data)[start:]))


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

        Minimises the squared residuals plus lambda_a sum ||a||^2 + lambda_b sum ||b||^2: each sweep
        sets a[v] = (sum of residuals of v) / (n_v + lambda_a), and likewise b. lambda is the
        variance of e over the variance of the effects, both by the method of moments from a first
        fit without shrinkage. Effects are reported averaging to zero over the data.

        Raises UserError below two tokens. Source: Henderson 1975 (best linear unbiased
        prediction); Searle, Casella, McCulloch, Variance Components, ch. 3 and 5 (moments).
        """
        n_tokens = int(self._pairs.sum())
        if n_tokens < 2 or self._shift is None:
            raise UserError(f"contextual means need at least 2 tokens and got {n_tokens}")
        # Of a vocabulary of 50,000 a short text has few tokens, and every sweep reads all rows.
        seen = np.flatnonzero(self._pairs.sum(axis=1))
        data = _Sums(self._pairs[seen], self._token_sums[seen], self._pos_sums, self._squares)
        plain = _backfit(data, 0.0, 0.0)
        prior_a, prior_b = _prior_counts(data, plain)
        fitted = _backfit(data, prior_a, prior_b)
        scale = 1.0 / data.total_variance if data.total_variance > 0 else 0.0
        token_mean = torch.zeros(self._token_sums.shape)
        token_mean[seen] = torch.from_numpy(fitted.a).float()
        return ContextualMeans(
            mean=self._shift + torch.from_numpy(fitted.mu).float(),
            token_mean=token_mean,
            pos_mean=torch.from_numpy(fitted.b).float(),
            variance_share=VarianceShare(
                token=_spread(data.n_tok, fitted.a) * scale,
                position=_spread(data.n_pos, fitted.b) * scale,
                residual=_squared_residuals(data, fitted) * scale,
            ),
            token_prior_count=prior_a,
            pos_prior_count=prior_b,
            n_tokens=n_tokens,
        )


class _Sums:
    """All a fit needs of the data: sums and counts per token that occurs, position and pair."""

    def __init__(self, pairs: sp.csr_array, s_tok: Tensor, s_pos: Tensor, squares: float) -> None:
        # Dense products are many times faster, and small for all but the largest vocabularies.
        small = pairs.shape[0] * pairs.shape[1] <= _DENSE_CELLS
        self.pairs = (pairs.toarray() if small else pairs).astype(np.float64)
        self.s_tok, self.s_pos = s_tok.numpy(), s_pos.numpy()
        self.n_tok = np.asarray(self.pairs.sum(axis=1)).ravel()
        self.n_pos = np.asarray(self.pairs.sum(axis=0)).ravel()
        self.n = float(self.n_tok.sum())
        self.total = self.s_tok.sum(axis=0)
        self.squares = squares
        self.total_variance = max(squares - float(self.total @ self.total) / self.n, 0.0)


@dataclass(frozen=True)
class _Fit:
    mu: np.ndarray  # [d]
    a: np.ndarray  # [token d], of the tokens that occur
    b: np.ndarray  # [position d]


def _backfit(data: _Sums, prior_a: float, prior_b: float) -> _Fit:
    """Sweeps until the fitted values move by less than 1e-6 of the data's standard deviation."""
    mu = data.total / data.n
    a, b = np.zeros_like(data.s_tok), np.zeros_like(data.s_pos)
    seen_a, seen_b = data.n_tok > 0, data.n_pos > 0
    weight_a, weight_b = _weights(data.n_tok, prior_a), _weights(data.n_pos, prior_b)
    for _ in range(MAX_SWEEPS):
        new_a = weight_a * (data.s_tok - data.n_tok[:, None] * mu - data.pairs @ b)
        new_b = weight_b * (data.s_pos - data.n_pos[:, None] * mu - data.pairs.T @ new_a)
        # A constant may move from the effects to mu without changing the fit; the penalty is least
        # where effects sum to zero. Going there at once saves hundreds of sweeps.
        for effects, seen in ((new_a, seen_a), (new_b, seen_b)):
            effects[seen] -= effects[seen].mean(axis=0)
        new_mu = (data.total - data.n_tok @ new_a - data.n_pos @ new_b) / data.n
        moved = (
            _spread(data.n_tok, new_a - a)
            + _spread(data.n_pos, new_b - b)
            + data.n * float((new_mu - mu) @ (new_mu - mu))
        )
        a, b, mu = new_a, new_b, new_mu
        if moved <= TOLERANCE**2 * data.total_variance:
            break
    a_mean, b_mean = data.n_tok @ a / data.n, data.n_pos @ b / data.n
    a[seen_a] -= a_mean
    b[seen_b] -= b_mean
    return _Fit(mu + a_mean + b_mean, a, b)


def _spread(counts: np.ndarray, effects: np.ndarray) -> float:
    """sum_g n_g ||effect_g||^2."""
    return float(counts @ (effects**2).sum(axis=1))


def _squared_residuals(data: _Sums, fit: _Fit) -> float:
    cross = 2 * float((fit.a * (data.pairs @ fit.b)).sum())
    fitted = (
        data.n * float(fit.mu @ fit.mu)
        + _spread(data.n_tok, fit.a)
        + _spread(data.n_pos, fit.b)
        + cross
    )
    explained = float(fit.mu @ data.total + (fit.a * data.s_tok).sum() + (fit.b * data.s_pos).sum())
    return max(data.squares - 2 * explained + fitted, 0.0)


def _prior_counts(data: _Sums, plain: _Fit) -> tuple[float, float]:
    """Residual variance over effect variance for tokens and positions; infinite without effects."""
    groups = [int((counts > 0).sum()) for counts in (data.n_tok, data.n_pos)]
    freedom = data.n - sum(groups) + 1
    if freedom < 1:  # as many effects as tokens: nothing can be told from noise
        return float("inf"), float("inf")
    noise = _squared_residuals(data, plain) / freedom
    priors = []
    for counts, effects, n_groups in (
        (data.n_tok, plain.a, groups[0]),
        (data.n_pos, plain.b, groups[1]),
    ):
        # E[sum n_g ||a_g||^2] = (n - sum n_g^2 / n) var(a) + (groups - 1) noise
        room = data.n - float(counts @ counts) / data.n
        effect = _spread(counts, effects) - (n_groups - 1) * noise
        priors.append(noise * room / effect if effect > 0 and room > 0 else float("inf"))
    return priors[0], priors[1]


def _weights(counts: np.ndarray, prior_count: float) -> np.ndarray:
    """1 / (n + prior) per group, as a column; 0 for a group that was never seen."""
    weights = np.zeros(len(counts))
    np.divide(1.0, counts + prior_count, out=weights, where=counts > 0)
    return weights[:, None]
