"""A trained model goes into the package: checkpoint, record, model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from interp import durable
from interp.ladder import (
    BUDGETS_FILE,
    CHECKPOINTS,
    PREFIX,
    RECORDS_FILE,
    arm_names,
    tokenizer_path,
)
from interp.ladder.card import write_card
from interp.ladder.recipe import Recipe
from interp.ladder.records import BUDGET, add_to_record, merge_losses
from interp.ladder.train import build_model
from interp.ladder.work_folder import run_log

SHIPPING_SECONDS = 900
"""How long one process waits for another that ships: most of it is measuring losses."""
Evaluate = Callable[[str], dict[str, Any]]
"""A shipped model's name -> facts for its record."""


def ship_model(
    model: GPT2LMHeadModel,
    name: str,
    recipe: Recipe,
    baseline: float,
    run_dir: Path,
    work_dir: Path,
    evaluate: Evaluate,
    *,
    lever: dict[str, Any] | None = None,
) -> None:
    """Put a model with all that is said of it into the package.

    One process at a time: the records and the card are files of all models.
    """
    CHECKPOINTS.mkdir(exist_ok=True)
    with durable.only_writer(CHECKPOINTS, wait_seconds=SHIPPING_SECONDS):
        export(model, name, recipe, run_log(run_dir), baseline, work_dir, lever=lever)
        add_to_record(PREFIX + name, evaluate(PREFIX + name))
        write_card()


def export(
    model: GPT2LMHeadModel,
    name: str,
    recipe: Recipe,
    log: list[dict[str, Any]],
    baseline: float,
    work_dir: Path,
    *,
    lever: dict[str, Any] | None = None,
) -> None:
    """Put a finished model into the package: fp16 safetensors, config, and its record.

    `lever`: what was varied, of a model of the arm.

    The attention implementation used in training is not part of the model and is not saved.
    """
    tokenizer_path().mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(work_dir / "tokenizer" / file, tokenizer_path() / file)
    fresh = build_model(recipe.d_model)
    fresh.load_state_dict(model.state_dict())
    fresh.set_attn_implementation("sdpa")
    fresh.config.train_tokens = recipe.n_tokens
    losses = [line["train_loss_nats"] for line in log]
    record = {
        "d_model": recipe.d_model,
        "n_params": fresh.num_parameters(),
        "recipe": recipe.model_dump(),
        "held_out_projects_nats_per_token": log[-1]["held_out_loss_nats"],
        "bigram_nats_per_token": baseline,
        # A spike: a logged mean that rises by more than 0.2 nats over the one before.
        "loss_spikes": sum(b - a > 0.2 for a, b in pairwise(losses)),
        "train_loss_nats": [[line["n_tokens"], round(line["train_loss_nats"], 4)] for line in log],
        **({} if lever is None else {"lever": lever}),
    }
    # First the record: a model that is there without one would break whoever asks for its lever.
    # Nothing of an earlier model by that name stays: what is measured on it comes last.
    add_to_record(PREFIX + name, record, afresh=True)
    with tempfile.TemporaryDirectory(dir=CHECKPOINTS, prefix=".partial-") as partial:
        fresh.half().save_pretrained(partial)
        target = CHECKPOINTS / name
        target.mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            shutil.move(str(Path(partial) / file), target / file)
            (target / file).chmod(0o644)


def is_shipped(name: str, recipe: Recipe) -> bool:
    """Whether the package has this model of the arm, with all that is said of it."""
    record = json.loads(RECORDS_FILE.read_text()).get(PREFIX + name, {})
    there = PREFIX + name in arm_names() and "rows" in record
    return there and record["recipe"] == recipe.model_dump()


def ship_budgets(found: Sequence[dict[str, Any]]) -> None:
    with durable.only_writer(CHECKPOINTS, wait_seconds=SHIPPING_SECONDS):
        merge_losses(BUDGETS_FILE, found, BUDGET)
        write_card()
