"""The rule that sets k, the number of active latents: one FVU for every model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose_k(
    pilot_ks: Sequence[int],
    pilot_fvus: Sequence[float],
    target_fvu: float,
    k_max: int,
) -> tuple[int, bool]:
    """The k <= k_max whose interpolated FVU is nearest to the target; whether that is reached.

    Nearest, not the first below it: at narrow widths one more latent lowers FVU by a tenth, and all
    models are to be compared at one FVU.
    log FVU is interpolated linearly in log k between the pilots; it may not rise with k (a pilot
    above an earlier one is training noise and takes the earlier value). Never extrapolated: below
    the smallest pilot the answer is that pilot, and where the target is not reached by
    min(k_max, largest pilot) that k is returned with False ("cannot reach the FVU").
    k_max is d_in // 4 by SCIENCE section 4. Raises ValueError on pilots that are empty, unequal in
    number, repeated or not positive.
    """
    if not 0 < len(pilot_ks) == len(set(pilot_ks)) == len(pilot_fvus):
        raise ValueError(f"choose_k needs distinct pilot k, one FVU each: {pilot_ks}, {pilot_fvus}")
    order = np.argsort(pilot_ks)
    ks, fvus = np.asarray(pilot_ks, float)[order], np.asarray(pilot_fvus, float)[order]
    if not ((ks >= 1).all() and np.isfinite(fvus).all() and (fvus > 0).all() and target_fvu > 0):
        raise ValueError(f"choose_k needs k >= 1 and FVU > 0: {pilot_ks}, {pilot_fvus}")
    log_fvus = np.log(np.minimum.accumulate(fvus))
    last = max(1, min(k_max, int(ks[-1])))
    first = min(last, int(ks[0]))
    candidates = np.arange(first, last + 1)
    above_target = np.interp(np.log(candidates), np.log(ks), log_fvus) - np.log(target_fvu)
    chosen = int(candidates[np.argmin(np.abs(above_target))])
    return chosen, bool((above_target <= 1e-12).any())
