"""The `interp` command: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from interp import (
    cli_calibrate,
    cli_capture,
    cli_explore,
    cli_geometry,
    cli_labels,
    cli_ladder,
    cli_published,
    cli_saes,
    cli_scaling,
    cli_toy,
)
from interp.cli_parts import (
    LOSS_TOKENS,
    MODEL_HELP,
    TEXT_HELP,
    USER_ERROR,
    command,
    count,
    json_flag,
    load_options,
    model_options,
    print_costs,
    print_json,
    print_table,
)
from interp.errors import StudyFailedError, UserError
from saes.options import OneLineParser

if TYPE_CHECKING:
    from interp.config import StudyConfig
    from interp.run import Run

DEFECT = 1
INTERRUPTED = 130
_OF_THE_SYSTEM = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR,
    errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EMFILE,
}  # fmt: skip
"""Errors that say something of a path or a disk, and nothing of this program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Status: 0 done, 1 some of it failed, 2 wrong input, 130 interrupted.

    A defect raises, which is status 1 too. A file that may not be read or written, and memory that
    is not there, are no defects.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "call"):
        parser.print_help()
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return args.call(args) or 0
    except UserError as error:
        return _refuse(str(error))
    except StudyFailedError as error:
        return _refuse(str(error), DEFECT)
    except KeyboardInterrupt:
        if argv is None:  # whoever presses again wants what is already happening
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted; run the same line again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Of a write, which knows no name.
            return _refuse(f"{error.strerror}; make room, then run the same line again")
        if error.errno not in _OF_THE_SYSTEM or error.filename is None:
            raise
        return _refuse(
            f"{error.filename}: {error.strerror}; choose another place, or mend this one"
        )
    except Exception as error:
        # Both are named, so that `--help` need not import saes or torch.
        if type(error).__name__ == "SAEError":
            return _refuse(str(error))
        if type(error).__name__ == "OutOfMemoryError":
            return _refuse(f"{error}; use --dtype bfloat16, --device-map auto, or a smaller model")
        raise


def _refuse(message: str, exit_status: int = USER_ERROR) -> int:
    print(f"interp: {' '.join(message.split())}", file=sys.stderr)
    return exit_status


def build_parser() -> OneLineParser:
    """Every command with its options; nothing heavy is imported."""
    parser = OneLineParser(
        prog="interp",
        description="How many features each layer of a language model packs per dimension, and "
        "whether that packing explains the model's loss.",
    )
    commands = parser.add_subparsers(
        metavar="COMMAND", title="commands", parser_class=OneLineParser
    )

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

    cli_capture.add(commands)
    cli_saes.add(commands)
    cli_published.add(commands)
    cli_labels.add(commands)
    cli_explore.add(commands)
    cli_geometry.add(commands)
    cli_scaling.add(commands)
    cli_toy.add(commands)
    cli_calibrate.add(commands)

    study = command(
        commands,
        "study",
        _study,
        "the whole job: losses, SAEs, features per dimension, report; run again to resume",
        "interp study quick --out runs/quick",
    )
    study.add_argument("--out", type=Path, metavar="DIR", help="default: runs/PRESET")
    study.add_argument(
        "--redo",
        action="store_true",
        help="where DIR holds another study or its inputs have changed: do again what depends on "
        "that",
    )
    study.add_argument(
        "--executor",
        choices=("local", "ray"),
        help="where units run: here, one by one (default), or as tasks of a Ray cluster",
    )
    study.add_argument(
        "--address", metavar="HOST:PORT", help="the Ray cluster, or auto; implies --executor ray"
    )
    _study_options(study)

    plan = command(
        commands,
        "plan",
        _plan,
        "what a study would cost: units, operations, bytes, memory, time; or what would fit",
        "interp plan full --seeds 3",
    )
    plan.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where it would be written, whose disk must have room (default: %(default)s)",
    )
    _study_options(plan)
    json_flag(plan)

    report = command(
        commands,
        "report",
        _report,
        "write a finished study's report and figures again",
        "interp report runs/quick",
    )
    report.add_argument("dir", type=Path, metavar="DIR", help="a finished study")

    merging = command(
        commands,
        "merge",
        _merge,
        "one study from several of different models, measured apart",
        "interp merge runs/small runs/large --out runs/family",
    )
    merging.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="finished studies")
    merging.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier merge"
    )

    status = command(
        commands,
        "status",
        _status,
        "what of a study is done, running, failed and left, and why it would run again",
        "interp status runs/full",
    )
    status.add_argument("dir", type=Path, metavar="DIR", help="a study's folder, finished or not")
    json_flag(status)

    cli_ladder.add(commands)
    return parser


def _study_options(parser: argparse.ArgumentParser) -> None:
    """What determines a study: a config, and what to change in it."""
    parser.add_argument(
        "what",
        nargs="?",
        default="quick",
        metavar="PRESET|FAMILY|CONFIG.yaml",
        help="quick (the default: a preview, minutes), full (the result, many hours), referee "
        "(models of one width), a family with the settings of quick (ladder, gpt2, pythia, opt, "
        "qwen2.5, cerebras-gpt), or a YAML file",
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="these models instead of the preset's"
    )
    parser.add_argument("--text", metavar="SRC", help=TEXT_HELP)
    parser.add_argument(
        "--tokens", type=count, metavar="N", help="training tokens of each SAE (the preset's)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="SAEs of each size (the preset's)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "auto"),
        help="where models run and SAEs train (default: cpu); auto: cuda where there is one",
    )


def _study_config(args: argparse.Namespace) -> StudyConfig:
    from interp.config import resolve_config

    overrides = {
        "models": args.models,
        "text": args.text,
        "sae_tokens": args.tokens,
        "n_seeds": args.seeds,
        "threads": args.threads,
        "device": args.device,
        "executor": "ray" if getattr(args, "address", None) else getattr(args, "executor", None),
        "address": getattr(args, "address", None),
    }
    return resolve_config(args.what, {k: v for k, v in overrides.items() if v is not None})


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


def _study(args: argparse.Namespace) -> int:
    config = _study_config(args)
    out = args.out or Path("runs") / Path(args.what).stem
    from interp.study import run_study

    words = list(sys.argv[1:]) if sys.argv[0].endswith("interp") else ["study"]
    return _finished(run_study(config, out, command=shlex.join(["interp", *words]), redo=args.redo))


def _plan(args: argparse.Namespace) -> None:
    config = _study_config(args)
    from interp.budgets import require_fit
    from interp.plan import plan_study

    costs = plan_study(config)
    require_fit(costs, config, args.out)
    print_costs(costs, as_json=args.json)


def _report(args: argparse.Namespace) -> None:
    from interp.report import write_report
    from interp.run import open_run

    open_run(args.dir)
    print(f"report: {write_report(args.dir)}")


def _merge(args: argparse.Namespace) -> int:
    from interp.merge import merge

    return _finished(merge(args.dirs, args.out))


def _finished(run: Run) -> int:
    """Say what a study found and where to look, and what it lacks."""
    print(run.summary["headline"])
    print(f"report: {run.path / 'report.html'}")
    for lost in run.failures:
        print(
            f"interp: failed: {lost['model']} ({lost['control']}, {lost['unit']}): {lost['error']}",
            file=sys.stderr,
        )
    return DEFECT if run.failures else 0


def _status(args: argparse.Namespace) -> None:
    from interp.report.wording import CONTROLS
    from interp.status import ago, status

    found = status(args.dir)
    if args.json:
        parts = [
            vars(part) | {"units": [vars(unit) for unit in part.units]} for part in found.parts
        ]
        print_json(
            vars(found) | {"parts": parts, "n_done": found.n_done, "n_units": dict(found.n_units)}
        )
        return
    rows = [
        {
            "part": part.model
            if part.control == "trained"
            else f"{part.model}, {CONTROLS.get(part.control, part.control)}",
            "state": part.state,
            "what there is, or why it would run again": part.detail,
            "changed": ago(part.changed),
        }
        for part in found.parts
    ]
    state = "a process is at it" if found.running else "no process is at it"
    summary = "report written" if found.finished else "no report yet"
    done = f"{found.n_done} of {len(found.parts)} parts done"
    units = ", ".join(f"{n} {what}" for what, n in found.n_units.most_common())
    print(f"{done}; {summary}; {state}; {found.seconds / 60:.1f} minutes spent")
    print(f"units: {units or 'no records'}")
    print_table(rows, "")


if __name__ == "__main__":
    sys.exit(main())
