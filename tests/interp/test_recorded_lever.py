"""An arm of one's own models: levers recorded in config.json, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_study

from interp import ladder
from interp.errors import UserError
from interp.recorded_lever import recorded_lever
from interp.study import run_study

RECORDS: tuple[dict[str, Any], ...] = (
    {"lever_base": {"drop_out": 0.1}},
    {"lever": {"name": "seed", "value": 1}},
    {"lever": {"name": "drop_out", "value": 0.0}},
    {"lever": {"name": "drop_out", "value": 0.3}},
    {},
)


def record(folder: Path, **keys: Any) -> str:
    """Adds the keys to a model's config.json, or makes one with them alone."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(config | keys))
    return str(folder)


def test_an_arm_of_ones_own_models_has_its_levers(
    tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    models = [
        record(save_tiny(tmp_path / f"m{i}", d_model=16, n_layers=2, seed=i), **keys)
        for i, keys in enumerate(RECORDS)
    ]
    config = tiny_study(tmp_path, save_tiny, widths=(16,), models=tuple(models), twins=(),
                        arm="constant_width")  # fmt: skip
    run = run_study(config, tmp_path / "run", quiet=True)
    found = {m["name"]: m["lever"] for m in run.summary["models"]}
    assert list(found.values()) == [keys.get("lever") for keys in RECORDS]
    [base] = [m for m in run.summary["models"] if "lever_base" in m]
    assert base["lever_base"] == {"drop_out": 0.1}
    responses = run.summary["arm"]["dose_response"]
    [of_loss] = [r for r in responses if r["outcome"] == "loss"]
    # The base, its second seed at the same dose, and two more; the fifth is of no recipe.
    assert (of_loss["lever"], of_loss["n_models"], of_loss["n_doses"]) == ("drop_out", 4, 3)
    assert "drop out" in (tmp_path / "run" / "report.html").read_text()


def test_a_ladder_model_and_one_of_the_hub_are_as_before(tmp_path: Path) -> None:
    assert recorded_lever("ladder/d064") == ladder.levers("ladder/d064")
    assert recorded_lever("ladder/d064-rows-1") == ladder.levers("ladder/d064-rows-1")
    assert recorded_lever("someone/some-model") == {"lever": None}
    assert recorded_lever(record(tmp_path / "plain")) == {"lever": None}


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"lever": 0.1}, 'lever is 0.1; write {"name": "decay", "value": 0.1}'),
        ({"lever": {"name": "decay"}}, "write {"),
        ({"lever": {"name": "decay", "value": "strong"}}, "value of decay is 'strong'; give a num"),
        ({"lever": {"name": "decay", "value": True}}, "value of decay is True"),
        ({"lever": {"name": "tokens", "value": 0}}, "tokens is 0; give a number above 0"),
        ({"lever": {"name": "base", "value": 0}}, "'base' is no name of a lever"),
        ({"lever_base": [1]}, "is no name of a lever"),
        ({"lever_base": {"decay": None}}, "value of decay is None"),
        ({"lever": {"name": "decay", "value": 1}, "lever_base": {}}, "has lever and lever_base"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, keys: dict[str, Any], complaint: str) -> None:
    name = record(tmp_path / "model", **keys)
    with pytest.raises(UserError) as error:
        recorded_lever(name)
    assert complaint in str(error.value)
    assert str(Path(name) / "config.json") in str(error.value)
    assert "\n" not in str(error.value)
