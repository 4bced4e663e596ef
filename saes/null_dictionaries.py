"""Random dictionaries with the covariance of the data: what matching finds where nothing is."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saes.edges import COSINE_BLOCK_ELEMENTS, unit_rows
from saes.errors import SAEError
from saes.latent_set import LatentSet
from saes.sae import SAE

FALSE_MATCH_RATE = 0.01
COSINE_FLOOR = 0.7
N_PROBES = 4096
N_NULL_DICTIONARIES = 8


def covariance_root(x: Float[Tensor, "token d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Symmetric R with R R = covariance of x (about its mean), float64.

    Raises SAEError on fewer than two rows, on NaN and on data that do not vary.
    """
    if x.ndim != 2 or len(x) < 2:
        raise SAEError(
            f"null dictionaries need [token, d_in] with >= 2 tokens, got {list(x.shape)}"
        )
    if not torch.isfinite(x).all():
        raise SAEError("held-out activations have NaN or infinite rows; drop them before matching")
    centred = x.detach().double() - x.detach().double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    if values[-1] <= 0:
        raise SAEError("held-out activations do not vary; capture more tokens before matching")
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).cpu()


def random_directions(
    root: Float[Tensor, "d_in d_in"], n: int, *, generator: torch.Generator
) -> Float[Tensor, "n d_in"]:
    """n draws of N(0, R R) scaled to length 1, float32."""
    draws = torch.randn(n, len(root), generator=generator, dtype=torch.float32)
    return unit_rows(draws @ root.float())


def null_max_cosines(
    x_held: Float[Tensor, "token d_in"],
    n: int,
    *,
    generator: torch.Generator,
    n_probes: int = N_PROBES,
    n_dictionaries: int = N_NULL_DICTIONARIES,
) -> Float[np.ndarray, " probe"]:
    """Greatest cosine of a random direction with n others, for many probes.

    Probe and dictionary both come from N(0, covariance of x_held), so that a stream whose variance
    sits in few dimensions has the crowding it really has. Several dictionaries, because one of a
    hundred directions in 16 dimensions is not like the next. 2 * probes * n * d_in FLOPs.
    """
    root = covariance_root(x_held)
    per_dictionary = -(-n_probes // n_dictionaries)
    height = max(1, COSINE_BLOCK_ELEMENTS // n)
    best = []
    for _ in range(n_dictionaries):
        dictionary = random_directions(root, n, generator=generator)
        probes = random_directions(root, per_dictionary, generator=generator)
        best += [(part @ dictionary.T).amax(dim=1) for part in probes.split(height)]
    return torch.cat(best).double().numpy()


def null_threshold(
    x_held: Float[Tensor, "token d_in"],
    n_a: int,
    n_b: int,
    *,
    generator: torch.Generator,
    false_match_rate: float = FALSE_MATCH_RATE,
    floor: float = COSINE_FLOOR,
    n_probes: int = N_PROBES,
) -> float:
    """Smallest cosine t >= floor at which a random direction meets any of the others at a rate
    of at most `false_match_rate`.

    n_a, n_b: live latents of the two dictionaries; the larger is used, so that the threshold is
    the same whichever comes first and errs to the strict side. The floor, 0.7 (half of a
    direction's energy shared), is there for comparisons: from about 32 isotropic dimensions on the
    null alone would allow a looser match at every greater width, and counts along a ladder of
    widths would grow because the tolerance did. Monte Carlo with `n_probes` probes: at the
    default the rate's own standard error is 0.16 percentage points.

    Source: rule of Paulo & Belrose, arXiv 2501.16615 (0.7 as a habit), calibrated here by a null.
    """
    n = max(n_a, n_b)
    if n < 1:
        return floor
    if not 0 < false_match_rate < 1:
        raise SAEError(f"false_match_rate {false_match_rate} is outside (0, 1)")
    best = np.sort(null_max_cosines(x_held, n, generator=generator, n_probes=n_probes))[::-1]
    return max(floor, min(1.0, float(best[int(false_match_rate * len(best))])))


def random_latent_set(
    x_held: Float[Tensor, "token d_in"],
    directions: Float[Tensor, "n d_in"],
    k: int,
) -> LatentSet:
    """Random directions as an SAE: tied encoder, the data's mean as bias, TopK like the trained.

    Every latent counts as live, so that the null errs to the side of more matches.
    """
    n = len(directions)
    x = x_held.detach().float().cpu()
    mean = x.double().mean(dim=0).float()
    sae = SAE(directions.T.contiguous(), directions, torch.zeros(n), mean, k=min(k, n))
    acts = sae.encode(x)
    return LatentSet(directions, acts, np.ones(n, dtype=bool))
