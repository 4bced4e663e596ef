"""The steps behind `interp ladder`: corpus, learning-rate bracket, training, shipping."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from interp import durable
from interp.errors import UserError
from interp.ladder import (
    BUDGETS_FILE,
    CHECKPOINTS,
    PREFIX,
    RECORDS_FILE,
    arm_names,
    budgets,
    tokenizer_path,
)
from interp.ladder import corpus as corpus_module
from interp.ladder.arm import base_recipe, variants
from interp.ladder.card import BRACKET_FILE, write_card
from interp.ladder.recipe import BRACKET, BRACKET_TOKENS, WIDTHS, Recipe
from interp.ladder.tokenizer import TOKENIZER_DOCUMENTS, token_stream, train_tokenizer
from interp.ladder.train import Progress, build_model, train

SPLITS = ("train", "held_out")
BUDGET_SHARES = (0.25, 0.5)
"""Of the main arm's tokens: what every width's loss is also recorded after."""
_TRIED = ("d_model", "lr", "lr_hidden")
_BUDGET = ("d_model", "n_tokens")
"""What tells one loss from the others in `bracket.json` and in `budgets.json`."""
SHIPPING_SECONDS = 900
"""How long one process waits for another that ships: most of it is measuring losses."""


def corpus(work_dir: Path) -> None:
    """Wheels -> text -> tokenizer -> token streams, in `work_dir`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    manifest = corpus_module.build(work_dir, _say)
    _write(work_dir / "corpus_manifest.json", manifest)
    texts = pq.read_table(work_dir / "train.parquet")["text"].to_pylist()
    tokenizer = train_tokenizer(texts[:TOKENIZER_DOCUMENTS], work_dir / "tokenizer")
    for split in SPLITS:
        texts = pq.read_table(work_dir / f"{split}.parquet")["text"].to_pylist()
        ids = np.concatenate(list(token_stream(tokenizer, texts)))
        np.save(work_dir / f"{split}.npy", ids)
        _say(f"{split}: {len(ids):,} tokens")


def bracket(work_dir: Path, widths: Sequence[int] | None = None) -> None:
    """Short runs around the chosen learning rates, merged into `bracket.json` in `work_dir`.

    Raises UserError for a width that has none.
    """
    if unknown := sorted(set(widths or ()) - BRACKET.keys()):
        raise UserError(
            f"no learning rates are tried at width {', '.join(map(str, unknown))}; "
            f"give some of {', '.join(map(str, BRACKET))}"
        )
    ids = _ids(work_dir)
    for d_model, pairs in BRACKET.items():
        if widths and d_model not in widths:
            continue
        for lr, lr_hidden in pairs:
            recipe = Recipe(
                d_model=d_model, lr=lr, lr_hidden=lr_hidden, n_tokens=BRACKET_TOKENS[d_model]
            )
            run_dir = work_dir / "bracket" / f"d{d_model:03d}-{lr:g}-{lr_hidden:g}"
            log = _finished_log(run_dir)
            if log is None:
                heartbeat = _heartbeat(run_dir.name, recipe)
                train(recipe, ids["train"], ids["held_out"], run_dir, heartbeat=heartbeat)
                log = _log(run_dir)
            found = {
                "d_model": d_model,
                "lr": lr,
                "lr_hidden": lr_hidden,
                "n_tokens": recipe.n_tokens,
                "held_out_loss_nats": log[-1]["held_out_loss_nats"],
            }
            _merge(work_dir / BRACKET_FILE.name, [found], _TRIED)
            _say(f"d_model {d_model}, lr {lr:g}, hidden {lr_hidden:g}: "
                 f"{found['held_out_loss_nats']:.4f} nats")  # fmt: skip


Evaluate = Callable[[str], dict[str, Any]]
"""A shipped model's name -> facts for its record."""


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
    ids = _ids(work_dir)
    baseline = bigram_loss(ids["train"], ids["held_out"])
    _say(f"token bigram on held-out projects: {baseline:.4f} nats per token")
    if ship:
        shutil.copyfile(work_dir / "corpus_manifest.json", corpus_module.MANIFEST_FILE)
        _merge(BRACKET_FILE, _known(work_dir / BRACKET_FILE.name), _TRIED)
    for d_model in widths or WIDTHS:
        recipe, name = base_recipe(d_model), f"d{d_model:03d}"
        run_dir = work_dir / "main" / name
        model = train(
            recipe, ids["train"], ids["held_out"], run_dir, heartbeat=_heartbeat(name, recipe)
        )
        if ship:
            _ship(model, name, recipe, baseline, run_dir, work_dir, evaluate)


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
    ids = _ids(work_dir)
    _require_corpus(work_dir)
    baseline = bigram_loss(ids["train"], ids["held_out"])
    for name, variant in by_name.items():
        if name not in names:
            continue
        recipe = variant.recipe
        if ship and _is_shipped(name, recipe):
            _say(f"{name}: in the package already")
            continue
        run_dir = work_dir / "arm" / name
        with _unless_held(run_dir) as held:
            if held:
                continue
            train_ids = ids["train"]
            if recipe.n_projects is not None:
                train_ids = _projects_stream(work_dir, recipe.n_projects)
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
                _ship(model, name, recipe, baseline, run_dir, work_dir, evaluate, lever=lever)


def train_budgets(
    work_dir: Path, widths: Sequence[int] | None = None, *, ship: bool = False
) -> None:
    """Loss of every width after fewer tokens, each with a decay of its own, into `budgets.json`.

    `ship` puts the losses into the package and the model card; these models stay behind. Widths
    that another process is at, or that are in the package, are left as by `train_arm`.
    Raises UserError for another corpus than the ladder's.
    """
    ids = _ids(work_dir)
    _require_corpus(work_dir)
    for d_model in widths or WIDTHS:
        whole = base_recipe(d_model)
        recipes = {
            f"d{d_model:03d}-{share:g}": whole.with_budget(int(whole.n_tokens * share))
            for share in sorted(BUDGET_SHARES, reverse=True)
        }
        told = [one.get("recipe") for one in budgets()]
        if ship and all(recipe.model_dump() in told for recipe in recipes.values()):
            _say(f"d{d_model:03d}: in the package already")
            continue
        # The smaller budget branches off the larger, so one process takes both.
        with _unless_held(work_dir / "budgets" / next(iter(recipes))) as held:
            if held:
                continue
            found = [_budget(work_dir, name, recipe, ids) for name, recipe in recipes.items()]
            _merge(work_dir / BUDGETS_FILE.name, found, _BUDGET)
            if ship:
                _ship_budgets(found)


def _budget(
    work_dir: Path, name: str, recipe: Recipe, ids: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One loss after fewer tokens, trained unless it was."""
    run_dir = work_dir / "budgets" / name
    log = _finished_log(run_dir)
    if log is None:
        train(
            recipe,
            ids["train"],
            ids["held_out"],
            run_dir,
            **_branches(work_dir, recipe),
            heartbeat=_heartbeat(name, recipe),
        )
        log = _log(run_dir)
    return {
        "d_model": recipe.d_model,
        "n_tokens": recipe.n_tokens,
        "held_out_projects_nats_per_token": log[-1]["held_out_loss_nats"],
        "recipe": recipe.model_dump(),
    }


def _ship_budgets(found: Sequence[dict[str, Any]]) -> None:
    with durable.only_writer(CHECKPOINTS, wait_seconds=SHIPPING_SECONDS):
        _merge(BUDGETS_FILE, found, _BUDGET)
        write_card()


@contextmanager
def _unless_held(run_dir: Path) -> Iterator[bool]:
    """Hold a run's folder; True where another process does, which then finishes the run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(durable.only_writer(run_dir))
        except UserError:
            _say(f"{run_dir.name}: another process is at it")
            yield True
            return
        yield False


def _is_shipped(name: str, recipe: Recipe) -> bool:
    """Whether the package has this model of the arm, with all that is said of it."""
    record = json.loads(RECORDS_FILE.read_text()).get(PREFIX + name, {})
    there = PREFIX + name in arm_names() and "rows" in record
    return there and record["recipe"] == recipe.model_dump()


def _require_corpus(work_dir: Path) -> None:
    """Raise UserError where the working folder's corpus is not the one of the shipped models."""
    made, shipped = work_dir / "corpus_manifest.json", corpus_module.MANIFEST_FILE
    if not made.exists() or json.loads(made.read_text()) != json.loads(shipped.read_text()):
        raise UserError(
            f"{work_dir} holds another corpus than the one that the ladder's models were trained "
            f"on ({shipped.name} differs); run `interp ladder corpus` in a fresh folder"
        )


def _merge(file: Path, found: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Put losses into a file's list, each in the place of one with the same key, in its order."""
    by_key = {tuple(one[name] for name in key): one for one in [*_known(file), *found]}
    _write(file, [by_key[at] for at in sorted(by_key)])


def _known(file: Path) -> list[dict[str, Any]]:
    """A file's losses so far."""
    return json.loads(file.read_text()) if file.exists() else []


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


def _projects_stream(work_dir: Path, n_projects: int) -> np.ndarray:
    """Training tokens of the first projects in an order fixed by their hashes; kept beside.

    The file's name says which corpus and tokenizer they are of, which may have been made again.
    """
    sources = (work_dir / "train.parquet", work_dir / "tokenizer" / "tokenizer.json")
    made_from = hashlib.sha256("".join(map(durable.sha256, sources)).encode()).hexdigest()
    file = work_dir / f"train-{n_projects}-{made_from[:12]}.npy"
    if not file.exists():
        table = pq.read_table(work_dir / "train.parquet", columns=["project", "text"])
        projects = sorted(
            set(table["project"].to_pylist()), key=lambda p: hashlib.sha256(p.encode()).digest()
        )
        chosen = pa.array(projects[:n_projects])
        texts = table.filter(pc.is_in(table["project"], chosen))["text"].to_pylist()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work_dir / "tokenizer")
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(list(token_stream(tokenizer, texts))))
        partial.replace(file)
    return np.load(file, mmap_mode="r")


def bigram_loss(train_ids: np.ndarray, held_out_ids: np.ndarray, d_vocab: int = 1024) -> float:
    """Held-out loss of a token bigram of the training text, nats per token.

    Witten-Bell smoothing onto the unigram, itself with one count added to each token.
    """
    pairs = train_ids[:-1].astype(np.int64) * d_vocab + train_ids[1:]
    counts = np.bincount(pairs, minlength=d_vocab**2).reshape(d_vocab, d_vocab).astype(float)
    unigram = counts.sum(0) + 1
    unigram /= unigram.sum()
    rows, kinds = counts.sum(1, keepdims=True), (counts > 0).sum(1, keepdims=True)
    smoothed = (counts + kinds * unigram) / np.maximum(rows + kinds, 1)
    smoothed[rows[:, 0] == 0] = unigram
    return float(-np.log(smoothed[held_out_ids[:-1], held_out_ids[1:]]).mean())


def _ship(
    model: Any,
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
        export(model, name, recipe, _log(run_dir), baseline, work_dir, lever=lever)
        add_to_record(PREFIX + name, evaluate(PREFIX + name))
        write_card()


def export(
    model: Any,
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


def add_to_record(name: str, facts: dict[str, Any], *, afresh: bool = False) -> None:
    """Merge facts into the committed record of a shipped model, or put them in its place."""
    records = json.loads(RECORDS_FILE.read_text()) if RECORDS_FILE.exists() else {}
    records[name] = facts if afresh else records.get(name, {}) | facts
    _write(RECORDS_FILE, dict(sorted(records.items())))


def _ids(work_dir: Path) -> dict[str, np.ndarray]:
    for split in SPLITS:
        if not (work_dir / f"{split}.npy").exists():
            raise UserError(f"{work_dir} has no {split}.npy; run `interp ladder corpus` first")
    return {
        "train": np.load(work_dir / "train.npy", mmap_mode="r"),
        "held_out": np.load(work_dir / "held_out.npy"),
    }


def _finished_log(run_dir: Path) -> list[dict[str, Any]] | None:
    file = run_dir / "log.json"
    return json.loads(file.read_text()) if file.exists() else None


def _log(run_dir: Path) -> list[dict[str, Any]]:
    """Of a finished run."""
    log = _finished_log(run_dir)
    assert log is not None, run_dir
    return log


def _heartbeat(name: str, recipe: Recipe) -> Any:
    def say(line: Progress) -> None:
        left = (recipe.n_tokens - line.n_tokens) / max(line.tokens_per_second, 1e-9)
        held_out = line.held_out_loss_nats
        _say(
            f"{name}: step {line.step}/{recipe.n_steps}, "
            f"train {line.train_loss_nats:.4f} nats"
            + ("" if held_out is None else f", held-out {held_out:.4f}")
            + f", {line.tokens_per_second / 1e3:.1f}k tokens/s, {math.ceil(left / 60)} min left"
        )

    return say


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: Path, value: Any) -> None:
    durable.write(path, (json.dumps(value, indent=1) + "\n").encode())
