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
from interp.levers import value_of
from interp.models import load
from interp.recorded_lever import recorded_lever, recorded_levers
from interp.sources import ModelSource
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


def test_what_was_varied_is_no_part_of_what_was_measured(
    tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    """A lever that is corrected writes tables again and measures nothing."""
    folder = save_tiny(tmp_path / "model", d_model=16, n_layers=2)
    before = ModelSource.of(load(str(folder)))
    record(folder, lever={"name": "decay", "value": 0.1})
    assert ModelSource.of(load(str(folder))) == before
    record(folder, resid_pdrop=0.3)
    assert ModelSource.of(load(str(folder))) != before


def test_an_arm_has_one_base_that_knows_every_lever(tmp_path: Path) -> None:
    base = record(tmp_path / "base", lever_base={"decay": 0.1})
    more = record(tmp_path / "more", lever={"name": "decay", "value": 1})
    seed = record(tmp_path / "seed", lever={"name": "seed", "value": 1})
    assert list(recorded_levers((base, more, seed), in_arm=True)) == [base, more, seed]
    assert recorded_levers((more,), in_arm=True)[more]["lever"]["value"] == 1, "a part of an arm"
    second = record(tmp_path / "second", lever_base={"decay": 0.9})
    with pytest.raises(UserError, match="both have lever_base; an arm varies one recipe"):
        recorded_levers((base, second), in_arm=True)
    assert recorded_levers((base, second), in_arm=False)[base] == {"lever": None}
    for name in ("dekay", "tokens"):
        other = record(tmp_path / name, lever={"name": name, "value": 1})
        with pytest.raises(UserError, match=f"varies {name}, of which .*base has no value"):
            recorded_levers((base, other), in_arm=True)
    record(Path(base), train_tokens=1000)
    assert recorded_levers((base, other), in_arm=True)[other]["lever"]["name"] == "tokens"


@pytest.mark.parametrize("tokens", [None, 0])
def test_a_base_that_does_not_know_its_tokens_has_no_value(tokens: int | None) -> None:
    assert value_of({"lever": None, "lever_base": {}, "train_tokens": tokens}, "tokens") is None


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
        ({"lever": {"name": None, "value": 0}}, "None is no name of a lever"),
        ({"lever": {"name": " ", "value": 0}}, "' ' is no name of a lever"),
        ({"lever": {"name": "a\nb", "value": 0}}, "is no name of a lever"),
        ({"lever": {"name": "decay", "value": 10**400}}, "give a number"),
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
