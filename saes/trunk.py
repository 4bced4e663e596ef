"""Runs that begin alike: a shorter budget branches off a longer one instead of repeating it.

Two SAEs that differ in their budget alone take the same steps until the shorter one's learning rate
begins to decay. Training that common part once gives both, with the same bits as two runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from saes.config import SAEConfig

SCHEDULE = {
    "n_tokens",
    "lr",
    "lr_warmup_fraction",
    "lr_decay_fraction",
    "k_warmup_fraction",
    "dead_after_tokens",
}
"""Fields that may differ as long as the steps taken do not."""


def shared_tokens(longer: SAEConfig, shorter: SAEConfig) -> int:
    """Tokens from the start on which both configs take the same whole steps; 0 if none.

    For a half budget give both the same warm-up and dead threshold in tokens (twice the
    `lr_warmup_fraction` for the shorter one, one `dead_after_tokens` for both).
    """
    if longer.model_dump(exclude=SCHEDULE) != shorter.model_dump(exclude=SCHEDULE):
        return 0
    if longer.dead_threshold_tokens != shorter.dead_threshold_tokens:
        return 0
    batch = shorter.batch_size
    whole_steps = min(longer.n_tokens, shorter.n_tokens) // batch
    for step in range(whole_steps):
        tokens = step * batch
        same_lr = longer.lr_at(tokens) == shorter.lr_at(tokens)
        if not (same_lr and longer.k_at(tokens) == shorter.k_at(tokens)):
            return tokens
    return whole_steps * batch


def trunks(configs: Sequence[SAEConfig]) -> dict[int, tuple[int, int]]:
    """Number of a config -> number of the longer run it branches off, and the tokens shared.

    Only runs that stand on their own are branched off; where several serve, the first of those that
    share most.
    """
    found: dict[int, tuple[int, int]] = {}
    roots: list[int] = []
    for number in sorted(range(len(configs)), key=lambda i: -configs[i].n_tokens):
        best = max(
            ((shared_tokens(configs[root], configs[number]), -root) for root in roots),
            default=(0, 0),
        )
        if best[0] > 0 and configs[-best[1]].n_tokens > configs[number].n_tokens:
            found[number] = (-best[1], best[0])
        else:
            roots.append(number)
    return found
