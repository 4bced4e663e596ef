"""`interp ladder`: the embedded models trained again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.cli.parts import LOSS_TOKENS, command
from saes.options import OneLineParser

_SHIPPED = {
    "train": "put finished models into the package, with their records and the card",
    "arm": "put finished models into the package, with their records and the card",
    "budgets": "put the losses into the package and the card",
}


def add(commands: Any) -> None:
    """The parsers of the command and its steps."""
    ladder = command(
        commands,
        "ladder",
        None,
        "rebuild the embedded ladder from its recipe",
        "interp ladder corpus --dir runs/ladder",
    )
    steps = ladder.add_subparsers(metavar="STEP", parser_class=OneLineParser, required=True)
    for name, call, text, more in (
        ("corpus", _corpus, "fetch the pinned wheels, filter their source, make tokens", ""),
        ("bracket", _bracket, "short runs that bracket the learning rate", " --widths 32"),
        ("train", _train, "train models; resumes after a kill", " --widths 32 64"),
        ("arm", _arm, "train the models of the constant-width arm; resumes", ""),
        ("budgets", _budgets, "losses of every width after fewer tokens; resumes", ""),
    ):
        example = f"interp ladder {name} --dir runs/ladder{more}"
        step = command(steps, name, call, text, example)
        step.add_argument(
            "--dir",
            type=Path,
            default=Path("runs/ladder"),
            help="working folder (default: %(default)s)",
        )
        if name == "arm":
            step.add_argument("--only", nargs="+", metavar="MODEL", help="some of them")
        elif name != "corpus":
            step.add_argument("--widths", nargs="+", type=int, metavar="N", help="d_model")
        if name in _SHIPPED:
            step.add_argument("--ship", action="store_true", help=_SHIPPED[name])


def _corpus(args: argparse.Namespace) -> None:
    from interp.ladder import work_folder

    work_folder.corpus(args.dir)


def _bracket(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.bracket(args.dir, args.widths)


def _train(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.train_all(args.dir, args.widths, ship=args.ship, evaluate=_card_facts)


def _arm(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.train_arm(args.dir, args.only, ship=args.ship, evaluate=_card_facts)


def _budgets(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.train_budgets(args.dir, args.widths, ship=args.ship)


def _card_facts(name: str) -> dict[str, Any]:
    """Losses on the studies' evaluation texts and the embedding's rows, for the model card."""
    from interp.geometry import row_facts
    from interp.loss import loss
    from interp.models import load
    from interp.tokens import tokens

    model = load(name)
    facts: dict[str, Any] = {"rows": row_facts(model.unembedding)}
    for text in ("deps", "stdlib"):
        blocks = tokens(text, model, n_tokens=LOSS_TOKENS, split="held_out")
        facts[f"{text}_nats_per_token"] = loss(model, blocks).nats_per_token
        # A part that a test can measure again in a second.
        facts[f"{text}_first_blocks_nats_per_token"] = loss(model, blocks[:32]).nats_per_token
    return facts
