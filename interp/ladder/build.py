"""The steps behind `interp ladder`: learning-rate bracket, training, what is shipped of it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from interp import durable
from interp.errors import UserError
from interp.ladder import BUDGETS_FILE, PREFIX, budgets
from interp.ladder import corpus as corpus_module
from interp.ladder.arm import base_recipe, variants
from interp.ladder.bigram import bigram_loss
from interp.ladder.card import BRACKET_FILE
from interp.ladder.recipe import BRACKET, BRACKET_TOKENS, WIDTHS, Recipe
from interp.ladder.records import BUDGET, TRIED, known_losses, merge_losses
from interp.ladder.shipping import Evaluate, is_shipped, ship_budgets, ship_model
from interp.ladder.train import Progress, train
from interp.ladder.work_folder import (
    finished_log,
    projects_stream,
    require_corpus,
    run_log,
    say,
    token_ids,
)

BUDGET_SHARES = (0.25, 0.5)
"""Of the main arm's tokens: what every width's loss is also recorded after."""


def bracket(work_dir: Path, widths: Sequence[int] | None = None) -> None:
    """Short runs around the chosen learning rates, merged into `bracket.json` in `work_dir`.

    Raises UserError for a width that has none.
    """
    if unknown := sorted(set(widths or ()) - BRACKET.keys()):
        raise UserError(
            f"no learning rates are tried at width {', '.join(map(str, unknown))}; "
            f"give some of {', '.join(map(str, BRACKET))}"
        )
    ids = token_ids(work_dir)
    for d_model, pairs in BRACKET.items():
        if widths and d_model not in widths:
            continue
        for lr, lr_hidden in pairs:
            recipe = Recipe(
                d_model=d_model, lr=lr, lr_hidden=lr_hidden, n_tokens=BRACKET_TOKENS[d_model]
            )
            run_dir = work_dir / "bracket" / f"d{d_model:03d}-{lr:g}-{lr_hidden:g}"
            log = finished_log(run_dir)
            if log is None:
                heartbeat = _heartbeat(run_dir.name, recipe)
                train(recipe, ids["train"], ids["held_out"], run_dir, heartbeat=heartbeat)
                log = run_log(run_dir)
            found = {
                "d_model": d_model,
                "lr": lr,
                "lr_hidden": lr_hidden,
                "n_tokens": recipe.n_tokens,
                "held_out_loss_nats": log[-1]["held_out_loss_nats"],
            }
            merge_losses(work_dir / BRACKET_FILE.name, [found], TRIED)
            say(f"d_model {d_model}, lr {lr:g}, hidden {lr_hidden:g}: "
                 f"{found['held_out_loss_nats']:.4f} nats")  # fmt: skip


def train_all(
    work_dir: Path,
    widths: Sequence[int] | None = None,
    *,
    ship: bool = False,
    evaluate: Evaluate = lambda _: {},
) -> None:
    """Train each width (those that are finished are not trained again).

    `ship` puts them into the package, with a record and the model card; `evaluate` adds what it
    returns for a shipped model's name to its record.
    """
    ids = token_ids(work_dir)
    baseline = bigram_loss(ids["train"], ids["held_out"])
    say(f"token bigram on held-out projects: {baseline:.4f} nats per token")
    if ship:
        shutil.copyfile(work_dir / "corpus_manifest.json", corpus_module.MANIFEST_FILE)
        merge_losses(BRACKET_FILE, known_losses(work_dir / BRACKET_FILE.name), TRIED)
    for d_model in widths or WIDTHS:
        recipe, name = base_recipe(d_model), f"d{d_model:03d}"
        run_dir = work_dir / "main" / name
        model = train(
            recipe, ids["train"], ids["held_out"], run_dir, heartbeat=_heartbeat(name, recipe)
        )
        if ship:
            ship_model(model, name, recipe, baseline, run_dir, work_dir, evaluate)


def train_arm(
    work_dir: Path,
    only: Sequence[str] | None = None,
    *,
    ship: bool = False,
    evaluate: Evaluate = lambda _: {},
) -> None:
    """Train the models of the constant-width arm, or those of them that are named.

    In the arm's order; of runs that begin alike (token budgets) the common steps are taken once.
    What another process is training is left to it, and with `ship` what is in the package already
    is left as it is: so two processes share the work, and another machine goes on with it.
    Raises UserError for a name that is not in the arm, and for another corpus than the ladder's.
    """
    by_name = {variant.name: variant for variant in variants()}
    names = {name.removeprefix(PREFIX) for name in only or by_name}
    if unknown := names - by_name.keys():
        raise UserError(
            f"the arm has no {', '.join(sorted(unknown))}; there are: {', '.join(by_name)}"
        )
    ids = token_ids(work_dir)
    require_corpus(work_dir)
    baseline = bigram_loss(ids["train"], ids["held_out"])
    for name, variant in by_name.items():
        if name not in names:
            continue
        recipe = variant.recipe
        if ship and is_shipped(name, recipe):
            say(f"{name}: in the package already")
            continue
        run_dir = work_dir / "arm" / name
        with _unless_held(run_dir) as held:
            if held:
                continue
            train_ids = ids["train"]
            if recipe.n_projects is not None:
                train_ids = projects_stream(work_dir, recipe.n_projects)
            model = train(
                recipe,
                train_ids,
                ids["held_out"],
                run_dir,
                **_branches(work_dir, recipe),
                heartbeat=_heartbeat(name, recipe),
            )
            if ship:
                lever = {"name": variant.lever, "value": variant.value}
                ship_model(model, name, recipe, baseline, run_dir, work_dir, evaluate, lever=lever)


def train_budgets(
    work_dir: Path, widths: Sequence[int] | None = None, *, ship: bool = False
) -> None:
    """Loss of every width after fewer tokens, each with a decay of its own, into `budgets.json`.

    `ship` puts the losses into the package and the model card; these models stay behind. Widths
    that another process is at, or that are in the package, are left as by `train_arm`.
    Raises UserError for another corpus than the ladder's.
    """
    ids = token_ids(work_dir)
    require_corpus(work_dir)
    for d_model in widths or WIDTHS:
        whole = base_recipe(d_model)
        recipes = {
            f"d{d_model:03d}-{share:g}": whole.with_budget(int(whole.n_tokens * share))
            for share in sorted(BUDGET_SHARES, reverse=True)
        }
        told = [one.get("recipe") for one in budgets()]
        if ship and all(recipe.model_dump() in told for recipe in recipes.values()):
            say(f"d{d_model:03d}: in the package already")
            continue
        # The smaller budget branches off the larger, so one process takes both.
        with _unless_held(work_dir / "budgets" / next(iter(recipes))) as held:
            if held:
                continue
            found = [_budget(work_dir, name, recipe, ids) for name, recipe in recipes.items()]
            merge_losses(work_dir / BUDGETS_FILE.name, found, BUDGET)
            if ship:
                ship_budgets(found)


def _budget(
    work_dir: Path, name: str, recipe: Recipe, ids: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One loss after fewer tokens, trained unless it was."""
    run_dir = work_dir / "budgets" / name
    log = finished_log(run_dir)
    if log is None:
        train(
            recipe,
            ids["train"],
            ids["held_out"],
            run_dir,
            **_branches(work_dir, recipe),
            heartbeat=_heartbeat(name, recipe),
        )
        log = run_log(run_dir)
    return {
        "d_model": recipe.d_model,
        "n_tokens": recipe.n_tokens,
        "held_out_projects_nats_per_token": log[-1]["held_out_loss_nats"],
        "recipe": recipe.model_dump(),
    }


@contextmanager
def _unless_held(run_dir: Path) -> Iterator[bool]:
    """Hold a run's folder; True where another process does, which then finishes the run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(durable.only_writer(run_dir))
        except UserError:
            say(f"{run_dir.name}: another process is at it")
            yield True
            return
        yield False


def _branches(work_dir: Path, recipe: Recipe) -> dict[str, Any]:
    """Where a run may branch off, and what it keeps for smaller budgets to branch off it."""
    base = base_recipe(recipe.d_model)
    if recipe != base.with_budget(recipe.n_tokens):
        return {}
    budgets = [int(base.n_tokens * share) for share in BUDGET_SHARES]
    keep_at = [base.with_budget(n).decay_start for n in budgets]
    folders = [work_dir / "main" / f"d{recipe.d_model:03d}"]
    for parent in ("arm", "budgets"):
        folders += sorted((work_dir / parent).glob(f"d{recipe.d_model:03d}-*"))
    return {"keep_at": keep_at, "trunks": folders}


def _heartbeat(name: str, recipe: Recipe) -> Any:
    def report(line: Progress) -> None:
        left = (recipe.n_tokens - line.n_tokens) / max(line.tokens_per_second, 1e-9)
        held_out = line.held_out_loss_nats
        say(
            f"{name}: step {line.step}/{recipe.n_steps}, "
            f"train {line.train_loss_nats:.4f} nats"
            + ("" if held_out is None else f", held-out {held_out:.4f}")
            + f", {line.tokens_per_second / 1e3:.1f}k tokens/s, {math.ceil(left / 60)} min left"
        )

    return report
