"""The constant-width arm: its levers, the signed decay, and runs that branch off one another."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import ladder
from interp.errors import UserError
from interp.ladder import build, card, records, signed_decay
from interp.ladder.arm import BASE, LEVERS, base_recipe, base_values, variants
from interp.ladder.recipe import Recipe
from interp.ladder.train import _optimizer, batch_at, build_model, train


def tiny(n_tokens: int, **more: object) -> Recipe:
    settings = {"warmup_fraction": 2048 / n_tokens, "batch_tokens": 512, "compile": False}
    return Recipe.model_validate(
        {"d_model": 16, "lr": 0.01, "lr_hidden": 0.005, "n_tokens": n_tokens} | settings | more
    )


@pytest.fixture
def stream() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, 40_000).astype(np.uint16)


# Signed decay


def test_negative_decay_pulls_norms_to_one_by_the_formula() -> None:
    weight = torch.nn.Parameter(torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.6, 0.8]]))
    group = {"params": [weight], **signed_decay.settings(-0.5)}
    optimizer = torch.optim.AdamW([group], lr=0.1)
    signed_decay.grow(optimizer)
    # w - lr gamma w (1/||w|| - 1) with lr gamma = -0.05: norms 0.5, 5 and 1 become
    # 0.5 (1 + 0.05 (2 - 1)), 5 (1 + 0.05 (0.2 - 1)) and 1.
    expected = torch.tensor([[0.315, 0.42], [2.88, 3.84], [0.6, 0.8]])
    torch.testing.assert_close(weight.data, expected)
    for _ in range(2_000):
        signed_decay.grow(optimizer)
    torch.testing.assert_close(weight.data.norm(dim=1), torch.ones(3))


def test_a_vector_of_length_zero_stays() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = torch.optim.AdamW([{"params": [weight], **signed_decay.settings(-1)}], lr=0.1)
    signed_decay.grow(optimizer)
    assert weight.eq(0).all()


def test_positive_decay_is_adamws_own() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([{"params": [weight], **signed_decay.settings(0.5)}], lr=0.1)
    signed_decay.grow(optimizer)
    assert weight.eq(1).all()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((3, 2), 0.95))


@pytest.mark.parametrize("d_model", [16, 64, 256])
def test_vectors_of_the_residual_stream_have_its_width(d_model: int) -> None:
    model = build_model(d_model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.shape[signed_decay.residual_axis(parameter.shape)] == d_model, name
            reads = "c_attn" in name or "c_fc" in name
            assert signed_decay.residual_axis(parameter.shape) == (0 if reads else 1), name


def test_the_decay_of_rows_reaches_the_token_embedding_alone() -> None:
    model = build_model(16)
    groups = _optimizer(model, tiny(4_096, row_decay=-1.0)).param_groups
    pulled = [p for g in groups if g[signed_decay.PULL] for p in g["params"]]
    assert [p is model.transformer.wte.weight for p in pulled] == [True]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    everywhere = _optimizer(model, tiny(4_096, weight_decay=-1.0)).param_groups
    assert {p.ndim for g in everywhere if g[signed_decay.PULL] for p in g["params"]} == {2}
    assert {p.ndim for g in everywhere if not g[signed_decay.PULL] for p in g["params"]} == {1}


def test_the_lever_moves_the_norms(tmp_path: Path, stream: np.ndarray) -> None:
    def mean_row_norm(row_decay: float) -> float:
        recipe = tiny(512 * 40, row_decay=row_decay)
        model = train(recipe, stream, stream, tmp_path / f"{row_decay}", log_every=64)
        return float(model.transformer.wte.weight.detach().norm(dim=1).mean())

    pulled, base, decayed = (mean_row_norm(g) for g in (-10.0, 0.0, 10.0))
    assert abs(pulled - 1) < 0.5 * abs(base - 1)
    assert decayed < 0.5 * base


# Branches


def test_a_smaller_budget_branches_off_with_the_same_weights(
    tmp_path: Path, stream: np.ndarray
) -> None:
    long = tiny(512 * 40)
    short = long.with_budget(512 * 20)
    assert [short.schedule(s) for s in range(16)] == [long.schedule(s) for s in range(16)]
    keep = [short.decay_start]
    train(long, stream, stream, tmp_path / "long", keep_at=keep, log_every=4)
    whole = train(short, stream, stream, tmp_path / "whole", log_every=4)
    steps: list[int] = []
    branched = train(
        short, stream, stream, tmp_path / "branched", trunks=[tmp_path / "long"], log_every=4,
        heartbeat=lambda line: steps.append(line.step),
    )  # fmt: skip
    assert steps[0] > short.decay_start == 16
    for a, b in zip(whole.parameters(), branched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_recipe_is_no_trunk(tmp_path: Path, stream: np.ndarray) -> None:
    train(tiny(512 * 40), stream, stream, tmp_path / "long", keep_at=[16], log_every=4)
    steps: list[int] = []
    train(
        tiny(512 * 20, seed=1), stream, stream, tmp_path / "other", trunks=[tmp_path / "long"],
        log_every=4, heartbeat=lambda line: steps.append(line.step),
    )  # fmt: skip
    assert steps[0] == 4
    assert not tiny(512 * 40).same_until(33, tiny(512 * 40).with_budget(512 * 20))


# The arm


def test_every_lever_has_enough_values_and_moves_one_thing() -> None:
    found = variants()
    base = base_recipe()
    assert len(found) + 1 >= 14
    assert len({v.name for v in found}) == len(found)
    assert {v.lever for v in found} == set(LEVERS)
    changed_by = {
        "row_decay": {"row_decay"},
        "matrix_decay": {"weight_decay"},
        "projects": {"n_projects"},
        "seed": {"seed"},
        "tokens": {"n_tokens", "warmup_fraction"},
    }
    for variant in found:
        fields = variant.recipe.model_dump().items() - base.model_dump().items()
        assert {name for name, _ in fields} == changed_by[variant.lever], variant.name
        assert variant.name.startswith(BASE + "-")
        assert "--" not in variant.name, "two dashes stand for a slash in a study's folders"
    for lever in ("row_decay", "matrix_decay"):
        values = [v.value for v in found if v.lever == lever]
        assert len(values) >= 5
        assert min(values) < 0 < max(values)
        assert base_values()[lever] not in values
    budgets = [v.value for v in found if v.lever == "tokens"] + [base_values()["tokens"]]
    assert len(set(budgets)) >= 4
    assert len([v for v in found if v.lever == "projects"]) >= 3
    # With three the spread of a lever would have to be nine times the seeds' to show.
    assert len([v for v in found if v.lever == "seed"]) + 1 >= 5


def test_the_first_models_already_move_every_lever() -> None:
    found = variants()
    assert {v.lever for v in found[: len(LEVERS)]} == set(LEVERS)
    order = [v.value for v in found if v.lever == "tokens"]
    smaller = [n for n in order if n < base_values()["tokens"]]
    assert smaller == sorted(smaller, reverse=True), "a smaller budget branches off a larger one"


def test_what_a_killed_export_leaves_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d064", "d064-rows-1", "tmp1x2y3z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    monkeypatch.setattr(ladder, "CHECKPOINTS", tmp_path)
    assert (ladder.names(), ladder.arm_names()) == (["ladder/d064"], ["ladder/d064-rows-1"])


def test_a_seed_has_an_order_of_its_own_and_leaves_no_batch_out() -> None:
    ids = np.arange(512 * 40 + 1).astype(np.uint16)

    def starts(recipe: Recipe) -> list[int]:
        return [int(batch_at(ids, s, recipe)[0][0, 0]) for s in range(recipe.n_steps)]

    as_they_come = [512 * step for step in range(40)]
    assert starts(tiny(512 * 40)) == as_they_come
    one, two = (starts(tiny(512 * 40, seed=seed)) for seed in (1, 2))
    assert sorted(one) == sorted(two) == as_they_come
    assert one != two != as_they_come != one
    # Neighbours stay neighbours: a shuffle trains another model, not the same by chance.
    for found in (one, two):
        begin = found.index(0)
        assert found[begin:] + found[:begin] == as_they_come
    assert not tiny(512 * 40, seed=1).same_until(4, tiny(512 * 40, seed=1).with_budget(512 * 20))


def test_arm_models_come_one_of_each_lever_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d064", "d064-rows-1", "d064-rows-3", "d064-seed-1", "d064-tokens-6m"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    monkeypatch.setattr(ladder, "CHECKPOINTS", tmp_path)
    levers = [name.split("-")[1] for name in ladder.arm_names()]
    assert levers == ["rows", "seed", "tokens", "rows"]


def test_few_projects_are_read_again_from_the_start() -> None:
    recipe = tiny(512 * 40, n_projects=1)
    ids = np.arange(512 * 3 + 1).astype(np.uint16)
    starts = [int(batch_at(ids, step, recipe)[0][0, 0]) for step in range(8)]
    assert all(0 <= s <= 512 * 2 for s in starts)
    assert len(set(starts)) > 3, "not always the same windows"
    x, y = batch_at(ids, 7, recipe)
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])


def test_a_name_outside_the_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="d064-rows-7"):
        build.train_arm(tmp_path, ["d064-rows-7"])


def test_losses_of_budgets_keep_their_order(tmp_path: Path) -> None:
    file = tmp_path / "budgets.json"
    entries = [
        {"d_model": d, "n_tokens": n, "held_out_projects_nats_per_token": d + 1 / n}
        for d, n in itertools.product((64, 32), (20, 10))
    ]
    for entry in [*entries, entries[0]]:
        records.merge_losses(file, [entry], records.BUDGET)
    found = json.loads(file.read_text())
    assert [(e["d_model"], e["n_tokens"]) for e in found] == [
        (32, 10),
        (32, 20),
        (64, 10),
        (64, 20),
    ]


def test_the_arm_is_not_the_main_arm() -> None:
    assert not set(ladder.names()) & set(ladder.arm_names())
    assert all(name.startswith(f"ladder/{BASE}-") for name in ladder.arm_names())
    recipes = {v.name: v.recipe for v in variants()}
    for name in ladder.arm_names():
        record = ladder.record(name)
        assert Recipe.model_validate(record["recipe"]) == recipes[name.removeprefix("ladder/")]
        assert record["lever"]["name"] in LEVERS


def test_a_variant_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        variants()[0].lever = "seed"  # type: ignore[misc]


def test_the_card_says_how_far_seeds_lie_apart() -> None:
    records = json.loads(ladder.RECORDS_FILE.read_text())
    base = records[f"ladder/{BASE}"] | {"held_out_projects_nats_per_token": 3.5}
    other = {"lever": {"name": "seed", "value": 7}, "held_out_projects_nats_per_token": 3.25}
    decayed = {"lever": {"name": "row_decay", "value": 1}, "held_out_projects_nats_per_token": 3.0}
    assert "2 seeds of the base recipe end at 3.2500 to 3.5000" in card._seeds(
        base, [other, decayed]
    )
    assert card._seeds(base, [decayed]) == ""


def test_the_card_shows_the_arm_and_the_budgets_beside_the_ladder() -> None:
    from interp.ladder.card import BRACKET_FILE, card_text
    from interp.ladder.corpus import MANIFEST_FILE

    records, manifest, bracket = (
        json.loads(f.read_text()) for f in (ladder.RECORDS_FILE, MANIFEST_FILE, BRACKET_FILE)
    )
    main = {name: r for name, r in records.items() if "lever" not in r}
    base = main[f"ladder/{BASE}"]
    plain = card_text(main, manifest, bracket, [])
    levers = [("tokens", 12_582_912), ("row_decay", 0.3), ("row_decay", -1)]
    arm = {
        f"ladder/{BASE}-{i}": base | {"lever": {"name": name, "value": value}}
        for i, (name, value) in enumerate(levers)
    }
    budgets = [{"d_model": 32, "n_tokens": 6_291_456, "held_out_projects_nats_per_token": 4.25}]
    whole = card_text(main | arm, manifest, bracket, budgets)
    added = [line for line in whole.splitlines() if line not in plain.splitlines()]
    table = [line for line in added if line.startswith("| `")]
    assert [line.split("|")[3].strip() for line in table] == ["", "-1", "0.3", "12,582,912"]
    assert "| 32 | 6,291,456 | 4.2500 |" in added
    assert "The constant-width arm" not in plain


def test_a_model_whose_shipping_was_cut_short_waits_for_the_same_line_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = json.loads(ladder.RECORDS_FILE.read_text())
    half = {"lever": {"name": "seed", "value": 1}, "held_out_projects_nats_per_token": 3.0}
    (tmp_path / "models.json").write_text(json.dumps(records | {f"ladder/{BASE}-seed-1": half}))
    monkeypatch.setattr(card, "RECORDS_FILE", tmp_path / "models.json")
    monkeypatch.setattr(card, "CARD_FILE", tmp_path / "card.md")
    card.write_card()
    assert "seed-1" not in (tmp_path / "card.md").read_text()
