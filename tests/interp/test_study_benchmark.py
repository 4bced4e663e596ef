"""The benchmark of whole studies: its sides, and what its table says of the targets."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from interp import ladder

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    return importlib.import_module("study")


def figures(wall: float, *, memory: float = 1e9, fvu: float = 0.3, overhead: float = 5) -> Any:
    return {
        "wall_seconds": wall,
        "cpu_seconds": wall,
        "peak_memory_bytes": memory,
        "fvu": fvu,
        "n_saes": 12,
        "n_units": 8,
        "overhead_ms_per_unit": overhead,
    }


def test_the_sides_are_the_sizes_that_they_say(benchmark: ModuleType) -> None:
    sides = benchmark.growth_sides(65_536, 1)
    assert [sides[f"tokens x{n}"].config.sae_tokens for n in (1, 2, 4)] == [
        65_536,
        131_072,
        262_144,
    ]
    assert [len(sides[f"models x{n}"].config.models) for n in (1, 2, 4)] == [1, 2, 4]
    assert not sides["layers x1/4"].config.other_layers
    assert set(benchmark.WIDTHS) <= set(ladder.names())
    local, one, two = benchmark.ray_sides(65_536).values()
    assert (local.config.executor, one.config.executor, two.config.executor) == (
        "local",
        "ray",
        "ray",
    )
    assert one.options != two.options


def test_every_target_is_held_against_its_figure(benchmark: ModuleType) -> None:
    parts = {
        "peer": {"superscope": figures(10, fvu=0.4), "sae-lens": figures(60)},
        "growth": {"tokens x1": figures(10), "tokens x2": figures(22, memory=1.05e9, overhead=60)},
        "ray": {"local": figures(10), "ray": figures(8)},
    }
    del parts["ray"]["ray"]["cpu_seconds"]
    about = {"command": "python x", "cores": 2, "cpu": "a CPU", "load_average": (0.1,), "note": ""}
    text = benchmark.markdown(about | {"parts": parts})
    assert "Target 5x less wall time: 6.0x (6.0x of CPU time), reached." in text
    assert "FVU 1.333 of the peer's, at most 1.01: missed" in text
    assert "2.20x the time, at most 2.1: missed; 1.05x the memory, at most 1.1: reached" in text
    assert "at most 60 ms, target 50: missed" in text
    assert "| ray | 8.0 | - |" in text
