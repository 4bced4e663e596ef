"""The benchmark scripts run, and their tables say what was measured. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("sae_training", "contenders", "step_profile"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("sae_training")


def test_sae_training_on_a_tiny_shape(benchmark: ModuleType) -> None:
    from contenders import Shape
    from step_profile import PARTS, floor, profile

    shape = Shape(8, 32, 2, 64)
    names = ["superscope", "superscope bf16", "sae-lens"]
    rows = benchmark.race(shape, names, 1, 2, [1])
    assert {row["n_steps"] for row in rows.values()} == {6}
    assert {row["threads"] for row in rows.values()} == {1}
    assert all(0 < row["fvu"] < 2 for row in rows.values())
    x = benchmark.activations(shape, 128, 1)[0]
    parts = profile(shape, x, "float32", 1)
    assert set(PARTS) < set(parts)
    assert parts["Adam"] > 0, "the stopwatch reaches what the step calls"
    assert parts["selection"] > 0
    assert floor(shape, "float32").keys() == {"encoder product", "Adam at copy bandwidth"}
    equal = benchmark.equal_training(shape, names, [2, 6], n_seeds=2)
    assert [part["n_steps"] for part in equal] == [2, 6]
    assert all(
        row["fvu_of_seeds"][0] != row["fvu_of_seeds"][1] for row in equal[1]["contenders"].values()
    )
    peer, ours = (equal[1]["contenders"][name] for name in ("sae-lens", "superscope"))
    peer |= {"fvu": 0.5 * ours["fvu"], "dead_fraction": 1.0}
    result = {"key": "128", "label": shape.label, "contenders": rows}
    rows["sae-lens"]["cpu_us_per_token"] = 40 * min(r["cpu_us_per_token"] for r in rows.values())
    text = benchmark.markdown(
        {
            "command": "python x",
            "cores": 1,
            "clock": "cpu",
            "cpu": "a CPU",
            "device": "a GPU",
            "torch": "2",
            "load_average": (1.0, 1.0, 1.0),
            "note": "",
            "left_out": ["sparsify"],
            "shapes": [result],
            "equal_training": equal,
        }
    )
    assert "Target 8x sae-lens: 40.0x, reached." in text
    assert "1 core(s) of a CPU, a GPU, torch 2" in text
    assert "left out: sparsify" in text
    assert "superscope: FVU at most 1.01 of sae-lens's missed by 98.0%, no more dead held." in text


def test_a_peer_is_timed_at_its_best_number_of_threads(benchmark: ModuleType) -> None:
    from contenders import Shape

    before = torch.get_num_threads()
    try:
        rows = benchmark.race(Shape(8, 32, 2, 64), ["superscope", "sae-lens"], 2, 2, [1, 2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {row["n_steps"] for row in rows.values()} == {10}, "equal steps, however timed"
    ours, peer = rows["superscope"], rows["sae-lens"]
    assert (list(ours["by_threads"]), list(peer["by_threads"])) == ([1], [1, 2])
    assert ours["n_saes"] == 2
    least = min(times["wall_us_per_token"] for times in peer["by_threads"].values())
    assert peer["wall_us_per_token"] == least
    for best, text in ((1, "1 (2: 1,000)"), (2, "2 (1: 500)")):
        peer["threads"] = best
        peer["by_threads"] = {n: {"wall_us_per_token": 2000 / n} for n in (1, 2)}
        assert benchmark._threads("sae-lens", peer, 2, "wall") == text
    assert benchmark._threads("superscope", ours, 2, "wall") == "2, one per SAE"


def test_stacked_and_looped_saes_of_a_benchmark_learn_alike(benchmark: ModuleType) -> None:
    """What a GPU would be timed with, on a CPU: many SAEs on several hook points."""
    from contenders import Shape

    shape = Shape(8, 32, 2, 64, n_hook_points=3, n_seeds=2)
    rows = {
        stack: benchmark.race(shape, ["superscope"], 1, 2, [1], stack=stack)["superscope"]
        for stack in (False, True)
    }
    assert rows[True]["n_saes"] == 6
    assert rows[True]["fvu"] == pytest.approx(rows[False]["fvu"], rel=1e-4)


def test_data_has_the_stated_variance_and_is_not_trivial(benchmark: ModuleType) -> None:
    from contenders import Shape

    (x,) = benchmark.activations(Shape(16, 64, 4, 32), 4000, 1)
    assert float(x.var(0).sum()) == pytest.approx(16, rel=0.01)
    assert float(x.mean(0).norm()) > 0.5


@pytest.fixture
def capture_benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("capture", "capture_sides", "capture_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("capture")


def test_capture_on_a_tiny_model(
    capture_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every side but sae-lens's, which takes seconds to import; both sides compute the same."""
    line = ["capture.py", "--model", "ladder/d032", "--blocks", "2", "--batch", "1", "--n-ctx", "8"]
    line += ["--repeats", "2", "--threads", "0", "--only", "core", "bridge", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    capture_benchmark.main()
    core, bridge = capture_benchmark.table.results(tmp_path)
    assert (core["piece"], bridge["piece"]) == ("core", "bridge")
    assert len(core["sides"]) == 6
    assert {len(t) for side in core["sides"].values() for t in side.values()} == {2}
    assert max([*core["checks"].values(), *bridge["checks"].values()]) < 1e-4
    table = (tmp_path / "table.md").read_text()
    assert table.count("ladder/d032, ") == 2
    assert "R_loss, RAM" in table


def test_memory_of_capture_on_a_tiny_model(
    capture_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process and not in fresh ones, so that peaks mean little; the rest is the same."""

    def here(line: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", line[1:])
            found = capture_benchmark._one_memory(capture_benchmark._arguments())
        found["peak_bytes"] += 2**20  # so small a capture need not raise the peak at all
        return subprocess.CompletedProcess(line, 0, stdout=json.dumps(found))

    line = ["capture.py", "--model", "ladder/d032", "--n-ctx", "8", "--only", "memory"]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(tmp_path), "--threads", "0"])
    monkeypatch.setattr(capture_benchmark, "POINT_BYTES", 3 * 8 * 32 * 4)
    monkeypatch.setattr(capture_benchmark, "subprocess", SimpleNamespace(run=here))
    capture_benchmark.main()
    [memory] = capture_benchmark.table.results(tmp_path)
    assert memory["chunk_tokens"] == 3 * 8
    assert memory["n_tokens_of"] == [72, 288, 1152]
    assert [len(peaks) for peaks in memory["peak_bytes"].values()] == [3, 3]
    assert memory["peak_bytes"].keys() == {"ram", "disk"}
    memory["peak_bytes"] = {"ram": [2**20, 2**20, 2**20 + 1080 * 13]}
    text = capture_benchmark.table.markdown([memory])
    assert "| to ram | 1.0 | 1.0 | 1.0 | 1.01 | 13 |" in text
    assert "A token's activations are 512 bytes" in text


def test_a_missed_target_is_said(capture_benchmark: ModuleType) -> None:
    def sides(**wall: float) -> dict[str, dict[str, list[float]]]:
        return {
            getattr(table, k): {"wall": [s, s, 9.0], "cpu": [2 * s] * 3} for k, s in wall.items()
        }

    table = capture_benchmark.table
    head = {"device": "cpu", "threads": 1}
    times = sides(BACKBONE=1.0, FULL=2.0, NULL=1.0, RAM=1.04, DISK=3.0, LOSS=2.2)
    [text] = table._verdicts(head | {"piece": "core", "sides": times})
    assert "R_core, RAM: 1.040; target at most 1.05, reached." in text
    assert "R_loss, RAM: 1.100; target at most 1.05, missed by 0.050." in text
    [text] = table._verdicts(head | {"piece": "runner", "sides": sides(DISK=1.0, RUNNER=2.4)})
    assert text.endswith(": 2.4; target at least 3, missed by 20%.")


def test_an_interrupted_run_keeps_its_finished_shapes(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    same = {
        "command": "python x",
        "cpu": "a CPU",
        "device": "cpu",
        "torch": "2",
        "versions": {"sae-lens": "6"},
    }
    fresh = same | {"finished": False, "shapes": []}
    assert benchmark.held(fresh, tmp_path) is fresh
    for finished, kept in ((False, 1), (True, 0)):
        table = same | {"finished": finished, "shapes": [{"key": "128"}]}
        (tmp_path / "table.json").write_text(json.dumps(table))
        assert len(benchmark.held(fresh, tmp_path)["shapes"]) == kept
        assert benchmark.held(fresh | {"torch": "3"}, tmp_path)["shapes"] == []


def test_toy_step_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides come to the same weights, the stopwatch sees every part, the table says it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    toy = importlib.import_module("toy")
    for name, value in {"N": 40, "BATCH": 32, "N_STEPS": 60, "WIDTHS": (3, 5)}.items():
        monkeypatch.setattr(toy, name, value)
    for config in toy.configs(1.5):
        check = toy.largest_difference(config, 30)
        assert check["loss_relative"] < 1e-4
        assert check["W_largest"] < 1e-3
    from interp.toy.sweep import workers

    with workers(1) as pool:
        found = toy.race(1.5, pool, 1)
    assert found.keys() == {"engine", "dense loop"}
    parts = toy.profile(1.5, 2)
    assert all(parts[part] > 0 for part in toy.PARTS)
    row = {
        "exponent": 1.5, **found, "wall_ratio": 5.0, "cpu_ratio": 5.0, "parts": parts,
        "check": check,
    }  # fmt: skip
    text = toy.as_text(
        {
            "command": "python x", "cores": 1, "cpu": "a CPU", "torch": "2", "load_average": 1.0,
            "note": "", "rounds": 1, "rows": [row],
        }
    )  # fmt: skip
    assert "Target 6x: 5.0x at worst, missed." in text


@pytest.fixture
def matching(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "matching", raising=False)
    return importlib.import_module("matching")


def test_matching_counts_what_is_planted_and_agrees_with_the_dense_way(
    matching: ModuleType,
) -> None:
    assert matching.agreement(300, 12)
    found = matching.measure(400, 48, 3, 4_000)
    assert found["counted"] == found["planted"] == int(matching.SHARED * 400)
    table = {"command": "python x", "threads": 2, "cpu": "a CPU", "torch": "2", "small": 300,
             "agrees": True, "load_average": (1.0, 1.0, 1.0), "large": found}  # fmt: skip
    text = matching.markdown(table)
    assert "missed" not in text
    slow = found | {"seconds": 3_600.0, "peak_bytes": 9_000_000_000, "counted": 239}
    assert matching.markdown(table | {"large": slow, "agrees": False}).count("missed") == 4


@pytest.mark.slow
def test_matching_at_its_full_size_is_exact_in_bounded_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory is the matching's. Its time is not judged."""
    line = [sys.executable, str(FOLDER / "matching.py"), "--out", str(tmp_path)]
    subprocess.run(line, check=True, timeout=7_200)
    found = json.loads((tmp_path / "table.json").read_text())
    large = found["large"]
    assert (large["n_latents"], large["d"], large["n_seeds"]) == (32_768, 768, 5)
    assert large["counted"] == large["planted"]
    assert large["peak_bytes"] < 4e9, "one matrix of cosines alone would take 4.3 GB"
    assert found["agrees"]


def test_learning_rates_on_a_short_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    learning_rate = importlib.import_module("learning_rate")
    out = tmp_path / "out"
    line = ["learning_rate.py", "--widths", "32", "--tokens", "16384", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    learning_rate.main()
    cases = json.loads((out / "raw.json").read_text())
    assert [(c["stream"], c["rate"]) for c in cases[:3]] == [
        ("model", "rule alone"), ("model", "default"), ("model", "half")
    ]  # fmt: skip
    # So few steps are not bounded: the same rate, and the same SAEs.
    assert cases[0]["lr"] == cases[1]["lr"] == 2 * cases[2]["lr"]
    assert cases[0]["fvu"] == cases[1]["fvu"] != cases[2]["fvu"]
    assert all(0 < fvu < 1.5 for case in cases for fvu in case["fvu"])
    assert (out / "table.md").read_text().count("\n| 32 |") == 6
    capsys.readouterr()
    learning_rate.main()
    assert capsys.readouterr().err == "", "what is done is not done again"
