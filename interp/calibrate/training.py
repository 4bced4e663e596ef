"""The SAEs of a calibration's replicate: trained once and kept, since counting them takes minutes.

What is counted in them may change (what is merged, which threshold, which estimator); then they are
read again, as a study's are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import saes
from interp import durable
from interp.calibrate.cells import CalibrationConfig, Cell
from saes.config import MAX_DEAD_AFTER_TOKENS, SAEConfig
from saes.sae import SAE

WARM_UP = 0.05
STREAM = "synthetic"
WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")
CODE = "training_sha256"


class RowSource(Protocol):
    """Where rows come from: an endless supply, determined by the generator."""

    def rows(
        self, n: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row d_in"], Tensor]:
        """n rows, and what they were made of."""
        ...

    def stream(
        self, n_rows: int, *, generator: torch.Generator
    ) -> Iterator[Float[Tensor, "row d_in"]]:
        """The same in pieces."""
        ...


class Trained(NamedTuple):
    """SAEs of every size, one per seed: by d_sae."""

    main: Mapping[int, list[SAE]]
    """On all rows."""
    half: Mapping[int, list[SAE]]
    """On half of them; they branch off the others' training (see `saes.trunk`)."""


def train(
    data: RowSource,
    cell: Cell,
    replicate: int,
    config: CalibrationConfig,
    *,
    workers: int | None = None,
    heartbeat: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Determined by data, cell, replicate and config. `heartbeat`: see `run_replicate`."""
    plan = [
        SAEConfig(
            d_in=cell.d_in,
            d_sae=d_sae,
            k=cell.k,
            hook_point=STREAM,
            seed=replicate * config.n_seeds + seed,
            dead_after_tokens=max(1, min(MAX_DEAD_AFTER_TOKENS, config.rows(d_sae) // 20)),
            n_tokens=config.rows(d_sae) // share,
            lr_warmup_fraction=share * WARM_UP,
        )
        for d_sae in config.sizes(cell)
        for share in (1, 2)
        for seed in range(config.n_seeds)
    ]
    n_rows = max(one.n_tokens for one in plan)

    def stream() -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(2 * replicate)
        for rows in data.stream(n_rows, generator=generator):
            yield {STREAM: rows}

    fitted = iter(
        saes.train(
            stream(),
            plan,
            heartbeat=lambda status: heartbeat(status.tokens_done / n_rows),
            workers=workers,
        )
    )
    main: dict[int, list[SAE]] = {}
    half: dict[int, list[SAE]] = {}
    for d_sae in config.sizes(cell):
        for by_size in (main, half):
            by_size[d_sae] = [next(fitted) for _ in range(config.n_seeds)]
    return Trained(main, half)


def keep(trained: Trained, file: Path, training_sha256: str) -> None:
    """Write all of them into one file; the hash is that of the code that trained them."""
    tensors = {
        f"{role}.{d_sae}.{name}": torch.stack([getattr(sae, name) for sae in group]).contiguous()
        for role, by_size in trained._asdict().items()
        for d_sae, group in by_size.items()
        for name in WEIGHTS
    }
    durable.write(file, save(tensors, metadata={CODE: training_sha256}))


def is_kept(file: Path, training_sha256: str) -> bool:
    """Whether `keep` wrote there what this code trained."""
    if not file.exists():
        return False
    with safe_open(file, framework="pt") as held:
        return bool((held.metadata() or {}).get(CODE) == training_sha256)


def kept(file: Path, cell: Cell) -> Trained:
    """What `keep` wrote."""
    tensors = load_file(file)
    found = Trained({}, {})
    for name in tensors:
        role, d_sae, what = name.split(".")
        if what == WEIGHTS[0]:
            stacks = [tensors[f"{role}.{d_sae}.{weight}"] for weight in WEIGHTS]
            getattr(found, role)[int(d_sae)] = [
                SAE(W_enc, W_dec, b_enc, b_dec, k=cell.k)
                for W_enc, W_dec, b_enc, b_dec in zip(*stacks, strict=True)
            ]
    return found
