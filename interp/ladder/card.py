"""MODEL_CARD.md of the ladder, written from the records so that no figure is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp import durable
from interp.ladder import PREFIX, RECORDS_FILE, budgets
from interp.ladder.arm import BASE, LEVERS
from interp.ladder.bracket import best_run, open_sides
from interp.ladder.corpus import MANIFEST_FILE
from interp.ladder.recipe import HEAD_SIZE, N_CTX, N_LAYERS, VOCAB_SIZE, Recipe, learning_rates

CARD_FILE = Path(__file__).with_name("MODEL_CARD.md")
BRACKET_FILE = Path(__file__).with_name("bracket.json")

_HEAD = """# Model card: the superscope ladder

Small GPT-2-architecture language models of Python source, one family of increasing width, trained
by this project's own recipe so that a study of packing and loss runs on any machine, offline.

- **Architecture**: `GPT2LMHeadModel`, {n_layers} layers, context {n_ctx}, head size {head_size} at
  every width, tied embeddings, no dropout, tanh GELU; initial weights scaled with 1/sqrt(d_model).
- **Tokenizer**: one for all, byte-level BPE of {vocab} tokens, trained on the training split.
- **Data**: {train_mb:.0f} MB of Python source ({n_train} projects, permissive licences, pinned
  versions and SHA-256 in `corpus_manifest.json`); {n_held_out} more projects
  ({held_out_mb:.0f} MB) are held out whole. None is among this project's own locked dependencies.
  Dropped: {near:,} files that nearly duplicate the evaluation texts (at least
  {containment:.0%} of their sampled {shingle}-token shingles occur in the installed dependencies or
  the standard library), {duplicates:,} duplicates of other training files, {tables:,} generated
  tables, {short:,} files under {min_bytes} bytes, and {over:,} files of projects that had reached
  their cap of {cap_mb:.0f} MB. A document is cut at {max_kb} KB.
- **Recipe**: {n_tokens:,} tokens, the same in the same order for every model, batches of
  {batch:,}; AdamW ({beta1}, {beta2}), weight decay {decay}, gradient clip {clip}; warm-up
  {warmup:.0%}, stable, linear decay to zero over the last {fall:.0%}. Learning rate
  0.008 (32/d)^(1/3) for embeddings, biases and norms, 0.048/d inside the blocks. bf16 matrix
  products, fp32 weights and loss.
- **Hardware**: two CPU cores, two models at a time.
- **Shipped**: fp16 weights. `interp ladder corpus`, then `interp ladder train`, reproduce them.

## Losses

Nats per token. "Held-out projects" is what training was judged by; `deps` and `stdlib` are the
evaluation texts of the studies: their first 262,144 held-out tokens. A study may take more of them
(`full` takes 1,048,576, on which the losses are higher); compare losses at equal tokens only.

| model | parameters | held-out projects | deps | stdlib | loss spikes |
|---|---|---|---|---|---|
"""

_ARM = """
## The constant-width arm

Width 64, same architecture, tokenizer, data and recipe but for one lever at a time; the first row
is the ladder's own model. Signed decay gamma: W -= lr gamma W where it is not negative; where it
is, every vector of the residual stream is pulled to norm 1 (w -= lr gamma w (1/|w| - 1)). Rows of
the base model are longer than 1, so a negative gamma may shorten them too. The last columns are
what each value did to the embedding's rows: mean norm, share above 1/2, and mean squared cosine
(1/64 at random). A seed other than the base model's 0 changes the initial weights and the batch to
begin with, from which it goes around the same tokens; all other models share both with the base
model. (Batches follow one another as the text does. Shuffled they train another model: four seeds
ended at 3.32 to 3.35 nats on held-out projects, see `results/batch_order/`.) Models of fewer
projects read them
several times over, and each number of projects is one draw: that lever is variety, repetition and
choice at once.

| model | lever | value | held-out projects | deps | stdlib | spikes | norm | > 1/2 | cos² |
|---|---|---|---|---|---|---|---|---|---|
"""

_BUDGETS = """
## Fewer tokens

Held-out projects, nats per token, after a part of the tokens with a decay of its own over the last
fifth (recorded in `budgets.json`; these models are not shipped).

| d_model | tokens | held-out projects |
|---|---|---|
"""

_TAIL = """
A token bigram of the training text has {bigram:.4f} nats per token on the held-out projects. A
spike is a rise of the mean training loss of 64 steps by more than 0.2 nats. Losses are published as
they fell: where a wider model is not better, that is the result.

## Learning-rate bracket

Short runs with the same schedule; held-out loss in nats per token. They ran on the same corpus with
one more project in it, which was then dropped because it became a dependency. A side of the best
rate is closed by two runs that differ in that rate alone, one at the best value and a worse one
beyond it; their other rate need not be the best run's.

{sides}

| d_model | tokens | lr | lr inside blocks | held-out loss |
|---|---|---|---|---|
{bracket}

## Intended use and limits

For research on features, superposition and scaling, where knowing exactly what a model saw matters
more than its quality. They write no useful code, know only Python source, and inherit whatever
their sources contain. Equal tokens for every width mean that narrow models saw far more tokens per
parameter than wide ones: a loss-width exponent from this ladder is "alpha at fixed tokens".
"""


def card_text(
    records: Mapping[str, Any],
    manifest: Mapping[str, Any],
    bracket: Sequence[Mapping[str, Any]],
    budgets: Sequence[Mapping[str, Any]],
) -> str:
    """The whole card."""
    main = {name: r for name, r in records.items() if "lever" not in r}
    recipe = Recipe.model_validate(next(iter(main.values()))["recipe"])
    totals, rule = manifest["totals"], manifest["rule"]
    splits = [p["split"] for p in manifest["projects"]]
    head = _HEAD.format(
        n_layers=N_LAYERS, n_ctx=N_CTX, head_size=HEAD_SIZE, vocab=VOCAB_SIZE,
        train_mb=manifest["bytes"]["train"] / 1e6, held_out_mb=manifest["bytes"]["held_out"] / 1e6,
        n_train=splits.count("train"), n_held_out=splits.count("held_out"),
        near=totals["near evaluation text"], containment=rule["evaluation_containment"],
        shingle=rule["shingle_tokens"], duplicates=totals["near duplicate"] + totals["duplicate"],
        tables=totals["generated table"], short=totals["too short"], min_bytes=rule["min_bytes"],
        over=totals["over the project cap"], cap_mb=rule["project_bytes"] / 1e6,
        max_kb=rule["max_bytes"] // 1024, n_tokens=recipe.n_tokens, batch=recipe.batch_tokens,
        beta1=recipe.beta1, beta2=recipe.beta2, decay=recipe.weight_decay, clip=recipe.clip_norm,
        warmup=recipe.warmup_fraction, fall=recipe.decay_fraction,
    )  # fmt: skip
    rows = [f"| `{name}` | {r['n_params']:,} | {_losses(r)}" for name, r in main.items()]
    tries = [
        f"| {b['d_model']} | {b['n_tokens']:,} | {b['lr']:g} | {b['lr_hidden']:g} "
        f"| {b['held_out_loss_nats']:.4f} |"
        for b in sorted(bracket, key=lambda b: (b["d_model"], b["lr"], b["lr_hidden"]))
    ]
    bigram = next(iter(main.values()))["bigram_nats_per_token"]
    return (
        head
        + "\n".join(rows)
        + "\n"
        + _arm_table(records)
        + _budgets_table(budgets)
        + _TAIL.format(bigram=bigram, bracket="\n".join(tries), sides="\n".join(_sides(bracket)))
    )


def _losses(record: Mapping[str, Any]) -> str:
    return (
        f"{record['held_out_projects_nats_per_token']:.4f} | {record['deps_nats_per_token']:.4f} "
        f"| {record['stdlib_nats_per_token']:.4f} | {record['loss_spikes']} |"
    )


def _rows(record: Mapping[str, Any]) -> str:
    """Of the embedding; `interp.geometry.row_facts`."""
    rows = record["rows"]
    norm, represented = rows["norm_mean"], rows["represented"]
    return f"{norm:.2f} | {represented:.3f} | {rows['mean_squared_overlap']:.3f} |"


def _arm_table(records: Mapping[str, Any]) -> str:
    levers = {name: r["lever"] for name, r in records.items() if "lever" in r}
    if not levers:
        return ""
    base = records[PREFIX + BASE]
    rows = [f"| `{PREFIX}{BASE}` | nothing | | {_losses(base)} {_rows(base)}"]
    order = list(LEVERS)
    for name in sorted(levers, key=lambda n: (order.index(levers[n]["name"]), levers[n]["value"])):
        lever, value = levers[name]["name"], levers[name]["value"]
        shown = f"{value:,}" if lever == "tokens" else f"{value:g}"
        told = f"{_losses(records[name])} {_rows(records[name])}"
        rows.append(f"| `{name}` | {LEVERS[lever]} | {shown} | {told}")
    return _ARM + "\n".join(rows) + "\n" + _seeds(base, records.values())


def _seeds(base: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> str:
    """How far seeds of one recipe lie apart; empty where there is one."""
    others = [r for r in records if r.get("lever", {}).get("name") == "seed"]
    if not others:
        return ""
    losses = sorted(r["held_out_projects_nats_per_token"] for r in (base, *others))
    return (
        f"\n{len(losses)} seeds of the base recipe end at {losses[0]:.4f} to {losses[-1]:.4f} nats "
        "per token on the\nheld-out projects. Every width of the ladder is one seed: a difference "
        "between widths that is no\nlarger may be the seed's.\n"
    )


def _budgets_table(budgets: Sequence[Mapping[str, Any]]) -> str:
    if not budgets:
        return ""
    rows = [
        f"| {b['d_model']} | {b['n_tokens']:,} | {b['held_out_projects_nats_per_token']:.4f} |"
        for b in budgets
    ]
    return _BUDGETS + "\n".join(rows) + "\n"


def _sides(bracket: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for d_model in sorted({run["d_model"] for run in bracket}):
        best, still = best_run(bracket, d_model), open_sides(bracket, d_model)
        lr, lr_hidden = learning_rates(d_model)
        state = f"open: {'; '.join(still)}" if still else "closed on all sides"
        lines.append(
            f"- width {d_model}: best {best['lr']:g} and {best['lr_hidden']:g} inside the blocks "
            f"({state}); the ladder uses {lr:g} and {lr_hidden:g}"
        )
    return lines


def write_card() -> None:
    """Write the card from the committed records.

    Shipping that was cut short leaves a record without losses; the same line again completes it.
    """
    records, manifest, bracket = (
        json.loads(f.read_text()) for f in (RECORDS_FILE, MANIFEST_FILE, BRACKET_FILE)
    )
    records = {name: record for name, record in records.items() if "rows" in record}
    durable.write(CARD_FILE, card_text(records, manifest, bracket, budgets()).encode())
