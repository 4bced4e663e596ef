"""`interp models` and `interp loss`: what loads here, and how well it predicts a text."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from interp.cli.parts import (
    LOSS_TOKENS,
    MODEL_HELP,
    TEXT_HELP,
    command,
    count,
    json_flag,
    load_options,
    model_options,
    print_json,
    print_table,
)


def add(commands: Any) -> None:
    """The parsers of both."""
    models = command(commands, "models", _models, "what can be loaded here, with sizes",
                     "interp models --json")  # fmt: skip
    json_flag(models)

    loss = command(
        commands,
        "loss",
        _loss,
        "cross-entropy in nats per token and per byte, with intervals",
        "interp loss ladder/d064 ladder/d128 --text stdlib --json",
    )
    loss.add_argument("model", nargs="+", metavar="MODEL", help=MODEL_HELP + ", or a family")
    loss.add_argument("--text", default="deps", metavar="SRC", help=TEXT_HELP)
    loss.add_argument(
        "--tokens",
        type=count,
        default=LOSS_TOKENS,
        metavar="N",
        help="at most N tokens (default: %(default)s)",
    )
    loss.add_argument(
        "--split",
        choices=("all", "train", "held_out"),
        default="held_out",
        help="which documents (default: %(default)s)",
    )
    loss.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="overlapping windows every N tokens, so that each token has nearly a full context",
    )
    model_options(loss)
    json_flag(loss)


def _models(args: argparse.Namespace) -> None:
    from interp.models import list_models

    found = [vars(info) for info in list_models()]
    if args.json:
        print_json(found)
        return
    print_table(found, "models that load here without a network")


def _loss(args: argparse.Namespace) -> None:
    from interp import families
    from interp.corpora import load_text
    from interp.loss import loss
    from interp.models import load
    from interp.progress import LOG_SECONDS, Progress
    from interp.tokens import tokens

    corpus = None
    rows = []
    warned: set[str] = set()
    for name in families.expand(args.model):
        model = load(name, **load_options(args))
        corpus = corpus or load_text(args.text)  # a wrong model name is answered before reading
        blocks = tokens(corpus, model, n_tokens=args.tokens, split=args.split)
        progress = Progress(1.0, patience=LOG_SECONDS)
        label = f"{name}: loss"
        result = loss(model, blocks, stride=args.stride, heartbeat=partial(progress.at, label))
        progress.close(f"{label} of {result.n_tokens:,} tokens")
        for warning in blocks.warnings:
            if warning not in warned:  # models of one tokenizer share them
                print(f"interp: warning: {warning}", file=sys.stderr)
        warned.update(blocks.warnings)
        rows.append(
            {
                "model": name,
                "loss_nats_per_token": result.nats_per_token,
                "loss_nats_per_byte": result.nats_per_byte,
                "loss_ci_nats_per_token": result.ci_nats_per_token,
                "text": corpus.name,
                "split": args.split,
                "stride": args.stride,
                "n_tokens": result.n_tokens,
                "n_documents": result.n_docs,
            }
            | ({} if result.ci_nats_per_token else {"reason": "no interval from one document"})
        )
        del model
    if args.json:
        print_json(rows)
        return
    assert corpus is not None
    shown = [
        {
            "model": r["model"],
            "nats/token": f"{r['loss_nats_per_token']:.4f}",
            "95% interval": "-"
            if r["loss_ci_nats_per_token"] is None
            else "{:.4f} to {:.4f}".format(*r["loss_ci_nats_per_token"]),
            "nats/byte": f"{r['loss_nats_per_byte']:.4f}",
            "tokens": r["n_tokens"],
            "documents": r["n_documents"],
        }
        for r in rows
    ]
    print_table(shown, f"loss on {corpus.name} ({args.split} documents)")
