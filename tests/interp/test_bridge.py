"""The bridge: rows are the toy model's own, verdicts follow planted counts, a run resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.bridge import (
    DOES_NOT_FOLLOW,
    FOLLOWS,
    FOLLOWS_IN_ORDER,
    TOO_FEW,
    BridgeConfig,
    HiddenStates,
    bridge,
    judge,
)
from interp.cli import main
from interp.errors import UserError

TINY = BridgeConfig(
    m=8, density=2.0, n_steps=200, batch_size=256, per_dim=(2,), decays=(-1.0, 0.5), n_rows=4_096,
    rows_per_latent=0, held_out_rows=2_560, n_seeds=3, sizes=(1, 2, 3, 4),
)  # fmt: skip


def test_rows_are_the_hidden_states_of_what_is_active() -> None:
    rng = np.random.default_rng(0)
    W, p = rng.normal(size=(6, 3)), np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
    source = HiddenStates(W, p)
    h, x = source.rows(40_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(h, x @ torch.from_numpy(W).float())
    assert (x > 0).any(dim=1).all(), "a row without a feature says nothing"
    # Given that something is active: p_i / (1 - prod (1 - p_j)); values are U(0, 2).
    expected = p / (1 - np.prod(1 - p))
    np.testing.assert_allclose((x > 0).float().mean(0).numpy(), expected, atol=0.012)
    assert x[x > 0].mean() == pytest.approx(1.0, abs=0.01)
    again, _ = source.rows(40_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(h, again)
    pieces = list(source.stream(20_000, generator=torch.Generator().manual_seed(1)))
    assert len(torch.cat(pieces)) == 20_000
    assert torch.equal(torch.cat(pieces), h[:20_000])


def record(represented: int, counted: float | None, *, bound: bool = False) -> dict[str, Any]:
    fit = {"estimator": "saturation", "value": counted, "ci_low": counted, "ci_high": counted,
           "identified": not bound, "reason": "censored" if bound else None}  # fmt: skip
    one = {"estimator": "reproducible", "d_sae": 64, "value": counted, "converged": True}
    return {
        "m": 32, "n": 256, "n_per_dim": 8, "decay": 0.0, "represented": represented,
        "phi_half": represented / 256, "loss": 1 / represented, "loss_se": 0.0,
        "rows": [one | {"fvu": 0.1}, fit, fit | {"estimator": "saturation_atoms"}],
    }  # fmt: skip


TRUTH = (32, 48, 64, 96, 128, 192, 256)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ([1.05 * n for n in TRUTH], FOLLOWS),
        ([1.8 * n for n in TRUTH], FOLLOWS_IN_ORDER),
        (list(reversed(TRUTH)), DOES_NOT_FOLLOW),
        ([100.0] * 7, TOO_FEW),
        ([40.0, 30.0, 200.0, 35.0, 220.0, 60.0, 33.0], DOES_NOT_FOLLOW),
    ],
)
def test_the_verdict_is_that_of_the_planted_counts(counts: list[float], verdict: str) -> None:
    found = judge([record(n, float(c)) for n, c in zip(TRUTH, counts, strict=True)])
    assert found["verdict"] == verdict
    assert found["n_counted"] == 7
    assert found["represented_with_loss"]["value"] == pytest.approx(-1)


def test_what_was_not_counted_is_left_out_and_a_bound_stays_one() -> None:
    found = judge([record(32, None), record(48, 40.0, bound=True), record(64, 64.0)])
    assert found["n_counted"] == 2
    assert [c["bound"] for c in found["cells"]] == [False, True, False]
    assert found["cells"][0]["relative_error"] is None
    assert found["verdict"] == TOO_FEW
    assert found["counted_with_represented"]["reason"]


def test_a_run_leaves_summary_and_figures_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "bridge"
    found = bridge(TINY, out, command="interp bridge", quiet=True)
    strong, weak = found["cells"]
    assert strong["n"] == weak["n"] == 16
    assert strong["represented"] > weak["represented"], "negative decay keeps every feature"
    assert found["verdict"] == TOO_FEW
    files = {p.name for p in out.rglob("*.*")}
    assert {"summary.json", "config.json", "n2-decay-1.json", "n2-decay+0.5.json"} <= files
    for name in ("bridge_true_against_counted", "bridge_packing_against_loss"):
        if found["n_counted"]:
            assert {f"{name}.svg", f"{name}.png"} <= files
    kept, lost = out / "n2-decay-1.json", out / "n2-decay+0.5.json"
    content, mark = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert bridge(TINY, out, command="interp bridge", quiet=True)["cells"][0] == strong
    assert kept.stat().st_mtime_ns == mark
    # The same but for the time it took.
    assert lost.read_bytes().split(b'"seconds"')[0] == content.split(b'"seconds"')[0]
    with pytest.raises(UserError, match="n_steps is 200 there"):
        bridge(replace(TINY, n_steps=100), out, command="", quiet=True)


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["bridge", "--out", str(tmp_path)]) == 2
    assert "holds no bridge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "2"], "bridge: n_seeds: Input should be greater than or equal to 3 (got 2)"),
        (["--seeds", "0"], "bridge: n_seeds: Input should be greater than or equal to 3 (got 0)"),
        (["--rows", "2000"], "bridge: n_rows: Input should be greater than or equal to 4096"),
        (["--per-dim", "2", "0"], "0 features of density 4.0"),
        (["--decays", "0", "nan"], "decay=nan"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_anything_is_made(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("interp.bridge._cell", lambda *_: pytest.fail("it trains"))
    out = tmp_path / "bridge"
    assert main(["bridge", *words, "--out", str(out)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert not out.exists()
