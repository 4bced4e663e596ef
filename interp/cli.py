"""The `interp` command: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from interp import cli_saes
from interp.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Status: 0 done, 2 wrong input, 130 interrupted; a defect raises."""
    parser = _build()
    args = parser.parse_args(argv)
    if not hasattr(args, "call"):
        parser.print_help()
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        args.call(args)
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted; run the same line again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "SAEError":  # named, so that `--help` need not import saes
            return _refuse(str(error))
        raise
    return 0


def _refuse(message: str) -> int:
    print(f"interp: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _build() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="interp",
        description="How many features each layer of a language model packs per dimension, and "
        "whether that packing explains the model's loss.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=_Parser)

    models = _command(commands, "models", _models, "what can be loaded here, with sizes")
    _json_flag(models)

    loss = _command(
        commands,
        "loss",
        _loss,
        "cross-entropy in nats per token and per byte, with intervals",
        "interp loss ladder/d064 ladder/d128 --text stdlib --json",
    )
    loss.add_argument("model", nargs="+", metavar="MODEL", help="ladder/dNNN, directory, hub name")
    loss.add_argument("--text", default="deps", metavar="SRC", help=_TEXT_HELP)
    loss.add_argument(
        "--tokens", type=_count, default=_LOSS_TOKENS, metavar="N", help="at most N tokens"
    )
    loss.add_argument(
        "--split", choices=("all", "train", "held_out"), default="held_out", help="of documents"
    )
    _json_flag(loss)

    cli_saes.add(commands, _command, _count)

    study = _command(
        commands,
        "study",
        _study,
        "the whole job: losses, SAEs, features per dimension, report; run again to resume",
        "interp study quick --out runs/quick",
    )
    study.add_argument(
        "what",
        nargs="?",
        default="quick",
        metavar="PRESET|CONFIG.yaml",
        help="quick (a preview, minutes), full (the result, hours), or a YAML file",
    )
    study.add_argument("--out", type=Path, metavar="DIR", help="default: runs/PRESET")
    study.add_argument(
        "--models", nargs="+", metavar="MODEL", help="these models instead of the preset's"
    )
    study.add_argument("--text", metavar="SRC", help=_TEXT_HELP)
    study.add_argument("--tokens", type=_count, metavar="N", help="training tokens of each SAE")
    study.add_argument("--seeds", type=int, metavar="N", help="SAE seeds")
    study.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")

    report = _command(
        commands, "report", _report, "write a finished study's report and figures again"
    )
    report.add_argument("dir", type=Path, metavar="DIR", help="a finished study")

    ladder = _command(commands, "ladder", None, "rebuild the embedded ladder from its recipe")
    steps = ladder.add_subparsers(metavar="STEP", parser_class=_Parser, required=True)
    for name, call, text in (
        ("corpus", _ladder_corpus, "fetch the pinned wheels, filter their source, make tokens"),
        ("bracket", _ladder_bracket, "short runs that bracket the learning rate"),
        ("train", _ladder_train, "train models; resumes after a kill"),
    ):
        step = _command(steps, name, call, text)
        step.add_argument(
            "--dir",
            type=Path,
            default=Path("runs/ladder"),
            help="working folder (default: %(default)s)",
        )
        if name != "corpus":
            step.add_argument("--widths", nargs="+", type=int, metavar="N", help="d_model")
        if name == "train":
            step.add_argument(
                "--ship", action="store_true", help="put finished models into the package"
            )
    return parser


_LOSS_TOKENS = 262_144
_TEXT_HELP = "deps (default), stdlib, a .txt/.jsonl file, a folder, or a hub data set"


def _command(
    commands: Any,
    name: str,
    call: Callable[[argparse.Namespace], None] | None,
    text: str,
    example: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}" if example else None
    )
    if call is not None:
        parser.set_defaults(call=call)
    return parser


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _count(text: str) -> int:
    """A number of tokens: 200000, 2e5, 200k, 1M."""
    units = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
    scale = units.get(text[-1:].lower(), 1)
    try:
        value = float(text[:-1] if scale != 1 else text) * scale
    except ValueError:
        value = -1.0
    if not 1 <= value < 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 200000 or 200k")
    return int(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column, value in rows[0].items() if rows else []:
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _models(args: argparse.Namespace) -> None:
    from interp.models import list_models

    found = [vars(info) for info in list_models()]
    if args.json:
        _print_json(found)
        return
    _print_table(found, "models that load here without a network")


def _loss(args: argparse.Namespace) -> None:
    from interp.corpora import load_text
    from interp.loss import loss
    from interp.models import load
    from interp.tokens import tokens

    corpus = None
    rows = []
    for name in args.model:
        model = load(name)
        corpus = corpus or load_text(args.text)  # a wrong model name is answered before reading
        blocks = tokens(corpus, model, n_tokens=args.tokens, split=args.split)
        result = loss(model, blocks)
        for warning in blocks.warnings:
            print(f"interp: warning: {warning}", file=sys.stderr)
        rows.append(
            {
                "model": name,
                "loss_nats_per_token": result.nats_per_token,
                "loss_nats_per_byte": result.nats_per_byte,
                "loss_ci_nats_per_token": result.ci_nats_per_token,
                "text": corpus.name,
                "split": args.split,
                "n_tokens": result.n_tokens,
                "n_documents": result.n_docs,
            }
            | ({} if result.ci_nats_per_token else {"reason": "no interval from one document"})
        )
        del model
    if args.json:
        _print_json(rows)
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
    _print_table(shown, f"loss on {corpus.name} ({args.split} documents)")


def _study(args: argparse.Namespace) -> None:
    from interp.config import resolve_config

    overrides = {
        "models": args.models,
        "text": args.text,
        "sae_tokens": args.tokens,
        "n_seeds": args.seeds,
        "threads": args.threads,
    }
    config = resolve_config(args.what, {k: v for k, v in overrides.items() if v is not None})
    out = args.out or Path("runs") / Path(args.what).stem
    from interp.study import run_study

    words = list(sys.argv[1:]) if sys.argv[0].endswith("interp") else ["study"]
    run = run_study(config, out, command=shlex.join(["interp", *words]))
    print(run.summary["headline"])
    print(f"report: {out / 'report.html'}")


def _report(args: argparse.Namespace) -> None:
    from interp.report import write_report
    from interp.run import open_run

    open_run(args.dir)
    print(f"report: {write_report(args.dir)}")


def _ladder_corpus(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.corpus(args.dir)


def _ladder_bracket(args: argparse.Namespace) -> None:
    from interp.ladder import build

    build.bracket(args.dir, args.widths)


def _ladder_train(args: argparse.Namespace) -> None:
    from interp.ladder import build

    def evaluate(name: str) -> dict[str, Any]:
        """Losses on the studies' evaluation texts, for the model card."""
        from interp.loss import loss
        from interp.models import load
        from interp.tokens import tokens

        model = load(name)
        losses = {}
        for text in ("deps", "stdlib"):
            blocks = tokens(text, model, n_tokens=_LOSS_TOKENS, split="held_out")
            losses[f"{text}_nats_per_token"] = loss(model, blocks).nats_per_token
            # A part that a test can measure again in a second.
            losses[f"{text}_first_blocks_nats_per_token"] = loss(model, blocks[:32]).nats_per_token
        return losses

    build.train_all(args.dir, args.widths, ship=args.ship, evaluate=evaluate)


if __name__ == "__main__":
    sys.exit(main())
