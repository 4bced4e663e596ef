"""Sweeps: resume bit for bit, independence of company and threads, presets, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.cli import main
from interp.errors import UserError
from interp.progress import Progress
from interp.toy import sweep
from interp.toy.batches import Stream
from interp.toy.frequencies import Frequencies
from interp.toy.model import Scratch, ToyConfig, ToyModel
from interp.toy.presets import ABOUT, PRESETS, Preset, preset
from interp.toy.run import run_toy
from interp.toy.sweep import groups, train_group, workers

POWER = Frequencies("power", 1.5, 80)
CONFIGS = [
    ToyConfig(POWER, m, decay, batch_size=64, n_steps=130, warmup_steps=10, lr_W=0.01, lr_b=0.01,
              eps=1e-8)
    for decay in (-1.0, 0.1)
    for m in (3, 5, 9)
]  # fmt: skip
TINY = Preset(
    "tiny", "for tests",
    (*CONFIGS, *(replace(c, frequencies=Frequencies("power", 1.0, 80)) for c in CONFIGS)),
    eval_batches=4,
)  # fmt: skip


def trained(state: Path, threads: int = 2, configs=CONFIGS, **options) -> list[ToyModel]:
    with workers(threads) as pool:
        return train_group(configs, state, pool, Progress(1, quiet=True), **options)


def same(left: list[ToyModel], right: list[ToyModel]) -> bool:
    return all(
        a.n_steps == b.n_steps
        and np.array_equal(a.W, b.W)
        and np.array_equal(a.b, b.b)
        and all(np.array_equal(a.moments[k], b.moments[k]) for k in a.moments)
        for a, b in zip(left, right, strict=True)
    )


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    """Stopped after the second of three pieces, then on: the same bits as in one go."""
    whole = trained(tmp_path / "whole")
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        trained(state, checkpoint_seconds=0, saved=stop)
    before = state.read_bytes()
    resumed = trained(state)
    assert same(whole, resumed)
    assert resumed[0].n_steps == 130
    # What was resumed from was half-way, and half-way differs from the end.
    state.write_bytes(before)
    halfway = [ToyModel(c) for c in CONFIGS]
    sweep._restore(halfway, state)
    assert halfway[0].n_steps == 100
    assert not same(whole, halfway)


def test_company_and_threads_do_not_matter(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", threads=1)
    assert same(one, trained(tmp_path / "three", threads=3))
    assert same(one[4:5], trained(tmp_path / "alone", configs=CONFIGS[4:5]))
    # And the engine's walk is nothing but steps on the stream.
    model, stream, scratch = ToyModel(CONFIGS[4]), Stream(POWER, 64), Scratch()
    for number in range(130):
        model.step(stream.batch(number), scratch)
    assert same(one[4:5], [model])


def test_another_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        trained(state, checkpoint_seconds=0, saved=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(UserError, match="other models"):
        trained(state, configs=CONFIGS[:2])
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        trained(state)


def test_divergence_ends_the_sweep(tmp_path: Path) -> None:
    wild = [replace(CONFIGS[0], decay=1e6)]
    with pytest.raises(UserError, match="decay"):
        trained(tmp_path / "state", configs=wild)


def test_groups_share_inputs_and_length() -> None:
    found = groups(TINY.configs)
    assert [len(configs) for configs in found.values()] == [6, 6]
    for configs in found.values():
        assert len({(c.frequencies, c.batch_size, c.n_steps) for c in configs}) == 1


def test_run_is_whole_and_resumes_to_the_same_tables(tmp_path: Path) -> None:
    summary = run_toy(TINY, tmp_path / "a", threads=2, quiet=True)
    assert summary["n_models"] == 12
    assert summary["model_steps"] == 12 * 130
    results = pd.read_parquet(tmp_path / "a" / "results.parquet")
    assert results.groupby(["parameter", "decay", "m"]).quantity.nunique().min() >= 6
    features = pd.read_parquet(tmp_path / "a" / "features.parquet")
    assert len(features) == 12 * 80
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == summary
    figures = {file.name for file in (tmp_path / "a" / "figures").iterdir()}
    assert "loss_against_width_power_1.5-n80.png" in figures
    assert "weak_prediction.svg" in figures
    assert "not run" in (tmp_path / "a" / "reproduction.md").read_text()
    # A finished folder is read, not trained again.
    again = run_toy(TINY, tmp_path / "a", threads=1, quiet=True)
    assert again["reproduction"] == summary["reproduction"]
    # One killed between groups, in the middle of the second.
    other = tmp_path / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "CHECKPOINT_SECONDS", 0.0)
        steps = iter(range(16))
        plain = ToyModel.step

        def dying(self, batch, scratch):
            if self.config.frequencies.parameter == 1.0 and self.n_steps == 60:
                next(steps, None)
                raise KeyboardInterrupt
            return plain(self, batch, scratch)

        patch.setattr(ToyModel, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_toy(TINY, other, threads=1, quiet=True)
    assert not (other / "results.parquet").exists()
    run_toy(TINY, other, threads=2, quiet=True)
    pd.testing.assert_frame_equal(pd.read_parquet(other / "results.parquet"), results)
    assert (other / "features.parquet").read_bytes() == (
        tmp_path / "a" / "features.parquet"
    ).read_bytes()
    assert not list(other.rglob("*state*"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_toy_sweep import TINY
from interp.toy import sweep
from interp.toy.run import run_toy
from interp.toy.model import ToyModel
plain = ToyModel.step
def step(self, batch, scratch):
    if self.n_steps == 110:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batch, scratch)
ToyModel.step = step
sweep.train_group.__kwdefaults__["checkpoint_seconds"] = 0.0
run_toy(TINY, Path(sys.argv[1]), threads=2, quiet=True)
"""


def test_kill_nine_then_the_same_line(tmp_path: Path) -> None:
    """A killed process leaves whole files, and the next one goes on from its checkpoint."""
    line = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parent)]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    [state] = (tmp_path / "killed" / "models").glob("*.state.safetensors")
    halfway = [ToyModel(config) for config in CONFIGS]
    sweep._restore(halfway, state)
    assert halfway[0].n_steps == 100
    run_toy(TINY, tmp_path / "killed", quiet=True)
    run_toy(TINY, tmp_path / "whole", quiet=True)
    left, right = (tmp_path / n / "results.parquet" for n in ("killed", "whole"))
    assert left.read_bytes() == right.read_bytes()


def test_another_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="another sweep"):
        run_toy(TINY, tmp_path, quiet=True)


def test_presets_have_the_published_sizes() -> None:
    small, large = preset("small").configs, preset("large").configs
    assert len(small) == 10 * 9 * 6
    assert {c.n_steps for c in small} == {20_000}
    assert {(c.frequencies.n, c.batch_size, c.warmup_steps) for c in small} == {(1000, 2048, 2000)}
    assert len(large) == 3 * 2 * 8
    assert {(c.frequencies.n, c.warmup_steps) for c in large} == {(10_240, 1000)}
    wide = max(large, key=lambda c: c.m)
    assert wide.m == 1024
    assert wide.lr_W == pytest.approx(0.02 * (8 / 1024) ** 0.25)
    assert wide.lr_b == pytest.approx(2 / 1024)
    densities = sorted({c.frequencies.density for c in preset("density").configs})
    assert len(densities) == 9
    assert densities[0] == 1
    reduced = [c for c in preset("reduced").configs if c.frequencies.n == 1000]
    assert len({(c.decay, c.frequencies) for c in reduced if c.frequencies.density == 1}) == 15
    for name in PRESETS:
        names = [(c.name, c.n_steps) for c in preset(name).configs]
        assert len(set(names)) == len(names)


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys) -> None:
    for words, says in (
        (["toy", "tiny"], "choose from demo, reduced, small, large, density"),
        (["toy", "demo", "--threads", "0", "--out", str(tmp_path / "t")], "at least one"),
        (["toy", "demo", "--out", "/proc/toy"], "/proc/toy"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_the_command_prints_the_table(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", lambda: TINY.configs)
    monkeypatch.setitem(ABOUT, "tiny", "for tests")
    out = ["--out", str(tmp_path), "--threads", "2"]
    assert main(["toy", "tiny", *out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((tmp_path / "summary.json").read_text())["reproduction"]
    assert main(["toy", "tiny", *out]) == 0
    text = capsys.readouterr().out
    assert "phi_1/2" in text
    assert "not run" in text
