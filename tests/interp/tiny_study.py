"""A study small enough for a test, and its texts: two widths, one stream each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.config import StudyConfig

WORDS = ("alpha", "beta", "gamma", "delta", "self.left", "return", "yield", "None", "x += 1")


def write_text(folder: Path, n_documents: int = 40) -> Path:
    """Documents of made-up statements."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_documents):
        lines = [
            f"def f{i}_{j}({WORDS[(i + j) % 9]}):\n    {WORDS[(i * j) % 9]} = {i * 37 + j}\n"
            for j in range(30)
        ]
        (folder / f"{i}.py").write_text("".join(lines))
    return folder


def tiny_study(
    root: Path, save_tiny: Callable[..., Path], widths: tuple[int, ...] = (16, 24), **more: Any
) -> StudyConfig:
    """Two seeds at half depth of models saved under `root`; the first has its twin."""
    text = write_text(root / "text")
    models = [str(save_tiny(root / f"w{d}", d_model=d, n_layers=2, seed=d)) for d in widths]
    settings: dict[str, Any] = {
        "preset": "tiny",
        "preview": True,
        "family": "custom",
        "models": tuple(models),
        "twins": (models[0],),
        "text": str(text),
        "loss_tokens": 2_048,
        "means_tokens": 4_096,
        "pilot_tokens": 2_048,
        "sae_tokens": 4_096,
        "held_out_tokens": 2_048,
        "splice_tokens": 1_024,
        "d_sae_per_d_model": (2,),
        "n_seeds": 2,
        "pilot_ks": (2,),
        "chunk_tokens": 1_024,
        "threads": 1,
    }
    return StudyConfig(**(settings | more))
