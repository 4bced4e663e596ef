"""Makes the helpers beside this file importable, and a finished study of a tiny model."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from interp.store import Store

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def finished_study(
    tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]
) -> Path:
    """A study of a two-layer model and its random twin on Python text. Copy it to write into it."""
    from interp.config import StudyConfig
    from interp.study import run_study

    folder = tmp_path_factory.mktemp("study")
    source = folder / "source"
    source.mkdir()
    for i in range(400):
        body = "".join(
            f"def f{j}(x, y={j}):\n    # note {i * j}: naïve 東京 🦉\n    return x + y * {i}\n\n\n"
            for j in range(5)
        )
        (source / f"{i:03d}.py").write_text(body, "utf-8")
    model = str(save_tiny(folder / "model", d_model=16, n_layers=2))
    config = StudyConfig(
        models=(model,), twins=(model,), text=str(source), loss_tokens=2_048, means_tokens=4_096,
        pilot_tokens=4_096, sae_tokens=131_072, held_out_tokens=8_192, splice_tokens=1_024,
        streams=("contextual", "all"), other_layers=True, d_sae_per_d_model=(2, 3), n_seeds=3,
        pilot_ks=(2,), check_convergence=False, threads=1,
    )  # fmt: skip
    return run_study(config, folder / "run", quiet=True).path


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk itself: tests kill processes, they do not cut the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def stored(tiny_model: Any, tiny_tokens: Any) -> Callable[..., Store]:
    """stored(folder, **options): the tiny text, captured there."""
    from stores import recorded

    return functools.partial(recorded, tiny_model, tiny_tokens)


@pytest.fixture
def whole(stored: Any, tmp_path: Path) -> dict[str, bytes]:
    """The files of a finished store in tmp_path / "s"."""
    from stores import files

    stored(tmp_path / "s")
    return files(tmp_path / "s")
