"""The steps of `interp ladder` on recipes small enough for a test, outside the package.

As a program, `python tiny_ladder.py STEP WORK PACKAGE`: one step, so that it can be killed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from interp import ladder
from interp.geometry import row_facts
from interp.ladder import build, card, records, shipping, train, work_folder
from interp.ladder import corpus as corpus_module
from interp.ladder.arm import BASE, Variant
from interp.ladder.recipe import Recipe
from interp.ladder.tokenizer import token_stream
from interp.models import load

STEPS, BATCH = 96, 256
PROJECTS = 6


def base_recipe(d_model: int = 16) -> Recipe:
    return Recipe(
        d_model=d_model, lr=0.01, lr_hidden=0.005, n_tokens=STEPS * BATCH, batch_tokens=BATCH,
        compile=False,
    )  # fmt: skip


def variants() -> list[Variant]:
    base = base_recipe()
    return [
        Variant("row_decay", -1, base.model_copy(update={"row_decay": -1.0})),
        Variant("tokens", STEPS * BATCH // 2, base.with_budget(STEPS * BATCH // 2)),
        Variant("projects", 2, base.model_copy(update={"n_projects": 2})),
    ]


def evaluate(name: str) -> dict[str, Any]:
    """What the model card asks for, without the evaluation texts."""
    losses = dict.fromkeys(("deps_nats_per_token", "stdlib_nats_per_token"), 5.0)
    return losses | {"rows": row_facts(load(f"ladder/{name.removeprefix('ladder/')}").unembedding)}


def redirect(package: Path, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Tiny recipes, saved every few steps, and another folder in the package's place."""
    package.mkdir(parents=True, exist_ok=True)
    if not (package / "models.json").exists():
        shutil.copyfile(ladder.RECORDS_FILE, package / "models.json")
    (package / "checkpoints").mkdir(exist_ok=True)
    for module in (ladder, shipping):
        put(module, "CHECKPOINTS", package / "checkpoints")
        put(module, "BUDGETS_FILE", package / "budgets.json")
    for module in (ladder, records, shipping, card):
        put(module, "RECORDS_FILE", package / "models.json")
    put(card, "CARD_FILE", package / "MODEL_CARD.md")
    put(build, "base_recipe", base_recipe)
    put(build, "variants", variants)
    put(build, "WIDTHS", (16,))
    put(train, "CHECKPOINT_SECONDS", 0.0)
    put(corpus_module, "MANIFEST_FILE", _manifest(package / "corpus_manifest.json"))
    put(card, "MANIFEST_FILE", package / "corpus_manifest.json")


def _manifest(file: Path) -> Path:
    """The committed one, which the made-up corpus pretends to."""
    shutil.copyfile(Path(ladder.__file__).with_name("corpus_manifest.json"), file)
    return file


def write_corpus(work: Path) -> Path:
    """Made-up projects in the form that `interp ladder corpus` leaves."""
    work.mkdir(parents=True)
    _manifest(work / "corpus_manifest.json")
    shutil.copytree(ladder.tokenizer_path(), work / "tokenizer")
    rng = np.random.default_rng(0)
    words = [f"name_{i} = value_{i % 7}({i})\n" for i in range(50)]
    table = {"project": [], "text": []}
    for i in range(PROJECTS):
        for _ in range(40):
            table["project"].append(f"project {i}")
            table["text"].append("".join(rng.choice(words, 60)))
    pq.write_table(pa.table(table), work / "train.parquet")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    ids = np.concatenate(list(token_stream(tokenizer, table["text"])))
    np.save(work / "train.npy", np.tile(ids, 1 + STEPS * BATCH // len(ids)))
    np.save(work / "held_out.npy", ids[:2_000])
    return work


def ship_base(work: Path) -> None:
    """The main arm's model that the others vary, under its own name."""
    ids = work_folder.token_ids(work)
    run_dir = work / "main" / BASE
    model = train.train(base_recipe(), ids["train"], ids["held_out"], run_dir)
    shipping.export(model, BASE, base_recipe(), work_folder.run_log(run_dir), 6.0, work)
    records.add_to_record(f"ladder/{BASE}", evaluate(BASE))


def run(step: str, work: Path) -> None:
    if step == "arm":
        build.train_arm(work, ship=True, evaluate=evaluate)
    else:
        build.train_budgets(work, ship=True)


if __name__ == "__main__":
    redirect(Path(sys.argv[3]))
    run(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps("done"))
