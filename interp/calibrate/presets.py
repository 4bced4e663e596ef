"""What `interp calibrate` can run: the cells of each preset and what is trained on them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from interp.calibrate.cells import CalibrationConfig, Cell


def _compact() -> Iterable[Cell]:
    """Every gate has cells, at the ends of its region where it most likely fails."""
    common = {"d_in": 32, "l0": 2.0}
    for n_per_dim, zipf in ((1, 0.0), (2, 1.0), (4, 0.5), (8, 0.5)):
        yield Cell(n_per_dim=n_per_dim, zipf=zipf, **common)
    for difficulty in (
        {"k_ratio": 0.5},
        {"k_ratio": 2.0},
        {"correlation": 0.5},
        {"children": 3},
        {"noise": 0.3},
    ):
        yield Cell(n_per_dim=4, zipf=0.5, **difficulty, **common)


def _gates() -> Iterable[Cell]:
    """The region of every gate at its ends, few enough to run each a hundred times."""
    common = {"d_in": 32, "l0": 2.0}
    for n_per_dim, zipf in ((1, 0.0), (2, 1.0), (4, 0.5), (8, 0.0), (8, 1.0)):
        yield Cell(n_per_dim=n_per_dim, zipf=zipf, **common)
    for difficulty in ({"k_ratio": 0.5}, {"k_ratio": 2.0}, {"correlation": 0.5}, {"children": 3}):
        yield Cell(n_per_dim=4, zipf=0.5, **difficulty, **common)


def _full() -> Iterable[Cell]:
    """Number and frequencies crossed; then each difficulty across them, alone.

    A row with twice the width and twice the active features has the same interference.
    """
    common = {"d_in": 32, "l0": 2.0}
    for n_per_dim, zipf in product((1, 2, 4, 8), (0.0, 0.5, 1.0, 1.5)):
        yield Cell(n_per_dim=n_per_dim, zipf=zipf, **common)
    for difficulty in (
        {"k_ratio": 0.5},
        {"k_ratio": 2.0},
        {"correlation": 0.5},
        {"children": 3},
        {"noise": 0.3},
        {"l0": 4.0},
        {"d_in": 64, "l0": 4.0},
    ):
        for n_per_dim, zipf in product((2, 4, 8), (0.0, 0.5, 1.0)):
            yield Cell(n_per_dim=n_per_dim, zipf=zipf, **(common | difficulty))


PRESETS: dict[str, CalibrationConfig] = {
    "compact": CalibrationConfig(preset="compact", cells=tuple(_compact()), n_replicates=1),
    "gates": CalibrationConfig(
        preset="gates",
        cells=tuple(_gates()),
        n_replicates=100,
        first_replicate=3_000,
        # N needs four converged sizes. The smallest miss the rule by chance (3 latents of 60 are
        # 5%), and where a dictionary holds about as many as there are features FVU still falls.
        d_sae_per_d_in=(1, 2, 3, 4, 6, 8),
        n_rows=262_144,
        rows_per_latent=8_192,
        largest_holds_twice=True,
    ),
    "full": CalibrationConfig(preset="full", cells=tuple(_full()), n_replicates=100),
}
