"""Mediation by hand, by statsmodels, and its interval under a planted effect."""

import json
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from interp.mediation import Mediation, mediation

LEVERS: list[tuple[str, float] | None] = [
    None, None, None,
    *(("rows", v) for v in (-1.0, -0.5, 0.5, 1.0)),
    *(("tokens", v) for v in (-3.0, -2.0, -1.0)),
    *(("data", v) for v in (-2.0, -1.0)),
]  # fmt: skip
BASE = {"rows": 0.1, "tokens": 0.0, "data": 0.0}


def sample(rng: np.random.Generator, b: float = -0.1) -> tuple[np.ndarray, np.ndarray]:
    """Rows at -1 raise packing by .88 and so lower the loss by .088; tokens act on both."""
    rows = np.array([v - 0.1 if (name := lever) and name[0] == "rows" else 0.0
                     for lever in LEVERS for v in [lever[1] if lever else 0.0]])  # fmt: skip
    tokens = np.array([lever[1] if lever and lever[0] == "tokens" else 0.0 for lever in LEVERS])
    packing = 2 - 0.8 * rows + 0.1 * tokens + 0.2 * rng.normal(size=len(LEVERS))
    loss = 4 + b * packing - 0.05 * tokens + 0.03 * rng.normal(size=len(LEVERS))
    return packing, loss


def run(packing: Any, loss: Any, seed: int = 0, **changes: Any) -> Mediation:
    given = {"levers": LEVERS, "base_values": BASE} | changes
    return mediation(packing, loss, generator=torch.Generator().manual_seed(seed), **given)


def test_it_is_the_two_regressions() -> None:
    packing, loss = sample(np.random.default_rng(0))
    found = run(packing, loss)
    z = np.zeros((12, 4))
    z[3:5, 0] = (1.0, 6 / 11)  # below .1: 1.1 and .6 away
    z[5:7, 1] = (4 / 9, 1.0)
    z[7:10, 2] = (1.0, 2 / 3, 1 / 3)
    z[10:12, 3] = (1.0, 0.5)
    of_packing = sm.OLS(packing, sm.add_constant(z)).fit()
    of_loss = sm.OLS(loss, sm.add_constant(np.column_stack([z, packing]))).fit()
    assert found.loss_per_packing == pytest.approx(of_loss.params[-1])
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(of_loss.conf_int()[-1]))
    assert found.p == pytest.approx(of_loss.pvalues[-1])
    assert [(e.lever, e.side, e.value) for e in found.effects] == [
        ("rows", "below", -1.0), ("rows", "above", 1.0), ("tokens", "below", -3.0),
        ("data", "below", -2.0),
    ]  # fmt: skip
    for at, effect in enumerate(found.effects, start=1):
        assert effect.on_packing == pytest.approx(of_packing.params[at])
        assert effect.direct == pytest.approx(of_loss.params[at])
        assert effect.indirect == pytest.approx(of_packing.params[at] * of_loss.params[-1])
        # In linear models the total effect is the sum of the two ways.
        assert effect.total == pytest.approx(effect.direct + effect.indirect)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()
    assert "exploratory" in found.assumptions


def test_the_order_of_models_does_not_matter() -> None:
    packing, loss = sample(np.random.default_rng(1))
    order = np.array([11, 3, 7, 0, 1, 2, 10, 4, 8, 9, 5, 6])
    base, other = run(packing, loss), run(
        packing[order], loss[order], levers=[LEVERS[i] for i in order]
    )  # fmt: skip
    assert other.loss_per_packing == pytest.approx(base.loss_per_packing)
    by_side = {(e.lever, e.side): e.indirect for e in other.effects}
    assert by_side == pytest.approx({(e.lever, e.side): e.indirect for e in base.effects})


@pytest.mark.parametrize("b", [-0.1, 0.0])
def test_the_interval_of_the_indirect_effect_covers(b: float) -> None:
    """150 draws at 95%: 3 standard errors are 5.3 points; under no effect it covers more."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(150):
        effect = run(*sample(rng, b), seed=seed).effects[0]
        covered += effect.ci_low <= 0.88 * b <= effect.ci_high
    assert covered / 150 >= 0.897


def test_refusals_say_why() -> None:
    packing, loss = sample(np.random.default_rng(3))
    assert "rows" in str(run(packing, loss, base_values={"tokens": 0, "data": 0}).reason)
    few = run(packing[:6], loss[:6], levers=LEVERS[:6])
    assert few.loss_per_packing is None
    assert "parameters" in str(few.reason)
    nothing_moved = run(packing[:3], loss[:3], levers=LEVERS[:3])
    assert "no usable model in which a lever was moved" in str(nothing_moved.reason)
    assert "same in all" in str(run(np.ones(12), loss).reason)
    assert run(packing[:0], loss[:0], levers=[]).n_models == 0
    by_levers = np.array([0.0 if lever is None or lever[0] != "tokens" else lever[1]
                          for lever in LEVERS])  # fmt: skip
    assert "function of the levers" in str(run(by_levers, loss).reason)
