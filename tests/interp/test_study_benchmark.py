"""The benchmark of whole studies: its sides, and what its table says of the targets."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from interp import ladder
from interp.models import load

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    return importlib.import_module("study")


def figures(
    wall: float, *, memory: float = 1e9, fvu: float = 0.3, overhead: float = 5, sha: str = "a"
) -> Any:
    """Half of the time is training."""
    return {
        "results_sha256": sha,
        "wall_seconds": wall,
        "cpu_seconds": wall,
        "training_seconds": wall / 2,
        "peak_memory_bytes": memory,
        "fvu": fvu,
        "k": 8,
        "n_saes": 12,
        "n_units": 8,
        "overhead_ms_per_unit": overhead,
    }


def test_the_sides_are_the_sizes_that_they_say(benchmark: ModuleType, tmp_path: Path) -> None:
    sides = benchmark.growth_sides(65_536, 1, tmp_path)
    tokens = [sides[name].config.sae_tokens for name in ("base", "tokens x2", "tokens x4")]
    assert tokens == [65_536, 131_072, 262_144]
    of_models = [sides[name].config.models for name in ("base", "models x2", "models x4")]
    assert [len(models) for models in of_models] == [1, 2, 4]
    whole = load(benchmark.MODEL)
    copies = {load(name).weights_sha256 for name in of_models[-1][1:]}
    assert len(copies) == 1
    assert whole.n_layers == benchmark.N_LAYERS
    for n in (1, 2):
        [name] = sides[f"layers {n} of 4"].config.models
        part = load(name)
        assert (part.n_layers, part.d_model) == (n, 64)
        last = part.hf.transformer.h[n - 1].mlp.c_fc.weight
        assert torch.equal(last, whole.hf.transformer.h[n - 1].mlp.c_fc.weight)
    assert set(benchmark.FAMILY) <= set(ladder.names())
    peers = benchmark.sides_of("peer", 65_536, 1, tmp_path)
    assert list(peers) == [
        f"{side}, {shape}"
        for shape in ("64 x 256", "256 x 4,096")
        for side in ("superscope", "superscope bf16", "sae-lens")
    ]
    for ours, half, peer in zip(*[iter(peers.values())] * 3, strict=True):
        assert ours.config == peer.config
        assert ours.config == half.config.model_copy(update={"encoder_dtype": "float32"})
        shape = load(ours.config.models[0]).d_model, ours.config.d_sae_per_d_model
        assert shape in ((64, (4,)), (256, (16,)))
    local, one, two = benchmark.ray_sides(65_536).values()
    assert (local.config.executor, one.config.executor, two.config.executor) == (
        "local",
        "ray",
        "ray",
    )
    assert one.options != two.options


def test_every_target_is_held_against_its_figure(benchmark: ModuleType) -> None:
    runs = {
        "peer": {
            "superscope, 64 x 256": [figures(10, fvu=0.4)],
            "sae-lens, 64 x 256": [figures(60)],
            "superscope, 256 x 4,096": [figures(40)],
            "sae-lens, 256 x 4,096": [figures(80)],
        },
        "growth": {
            "base": [figures(10), figures(50), figures(9)],
            "tokens x2": [figures(22, memory=1.05e9, overhead=60)],
            "tokens x4": [figures(45)],
            "models x4": [figures(41)],
            "layers 1 of 4": [figures(4)],
        },
        "ray": {"local": [figures(10)], "ray": [figures(8)]},
    }
    for known_to_one_process in ("cpu_seconds", "training_seconds"):
        del runs["ray"]["ray"][0][known_to_one_process]
    about = {"command": "python x", "cores": 2, "cpu": "a CPU", "load_average": (0.1,), "note": ""}
    text = benchmark.markdown(about | {"runs": runs})
    assert (
        "- superscope, 64 x 256: target 5x less wall time: 6.0x (6.0x of CPU time), reached. 6.0x "
        "in training with its capture; all else, the same on both sides, is 50% of the peer's "
        "time. FVU 1.333 of the peer's, at most 1.01: missed; k 8, the peer's 8."
    ) in text
    assert "- superscope, 256 x 4,096: target 5x less wall time: 2.0x (2.0x of CPU t" in text
    assert "2.20x the time, at most 2.1: missed; 1.05x the memory, at most 1.1: reached" in text
    assert "at most 60 ms, target 50: missed" in text
    for what, times in (("tokens", "4.50"), ("models", "4.10"), ("layers", "2.50")):
        assert f"Four times the {what}: {times}x the time, 1.00x the memory." in text
    assert "| ray | 8.0 | - | - |" in text
    assert "ray: 0.80x the time of one process. The same tables in every run: yes." in text
    runs["ray"]["ray"].append(runs["ray"]["ray"][0] | {"results_sha256": "b"})
    assert "The same tables in every run: NO." in benchmark.markdown(about | {"runs": runs})


def test_a_killed_benchmark_goes_on_where_it_was(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def once(config: str, *_: str) -> Any:
        started.append(config)
        if len(started) == 4:
            raise KeyboardInterrupt
        return figures(len(started))

    monkeypatch.setattr(benchmark, "once", once)
    sides = {name: benchmark.Side(name) for name in ("a", "b")}

    def line(code: str = "s") -> dict[str, Any]:
        same = {"command": "x", "cores": 1, "cpu": "c", "code_sha256": code}
        return same | {"load_average": (0.1,), "note": "", "runs": {}}

    result = benchmark.held(line(), tmp_path)
    keep = lambda: benchmark.write(result, tmp_path)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        benchmark.alternate(sides, 2, result["runs"].setdefault("ray", {}), keep)
    assert started == ["a", "b", "b", "a"]
    result = benchmark.held(line(), tmp_path)
    benchmark.alternate(sides, 2, result["runs"]["ray"])
    assert started[4:] == ["a"]
    assert [len(runs) for runs in result["runs"]["ray"].values()] == [2, 2]
    assert benchmark.held(line("t"), tmp_path)["runs"] == {}
    (tmp_path / benchmark.TABLE).write_text("whole")
    assert benchmark.held(line(), tmp_path)["runs"] == {}
