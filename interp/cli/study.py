"""`interp study` and what goes with it: its plan, its state, its report, several made one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.parts import (
    DEFECT,
    TEXT_HELP,
    command,
    count,
    json_flag,
    print_costs,
    print_json,
    print_table,
)
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.config import StudyConfig
    from interp.run import Run


def add(commands: Any) -> None:
    """The parsers of all of them."""
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
        "--tokens",
        type=count,
        metavar="N",
        help="training tokens of each SAE, the headline's too (the preset's)",
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
        "n_seeds": args.seeds,
        "threads": args.threads,
        "device": args.device,
        "executor": "ray" if getattr(args, "address", None) else getattr(args, "executor", None),
        "address": getattr(args, "address", None),
    }
    given = {k: v for k, v in overrides.items() if v is not None}
    if args.tokens is not None:
        given |= {"sae_tokens": args.tokens, "primary_sae_tokens": None}
    return resolve_config(args.what, given)


def _study(args: argparse.Namespace) -> int:
    config = _study_config(args)
    out = args.out or Path("runs") / Path(args.what).stem
    from interp.study import run_study

    return _finished(run_study(config, out, command=args.line, redo=args.redo))


def _plan(args: argparse.Namespace) -> None:
    config = _study_config(args)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file; give --out a folder")
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
    stale = sum(part.state == "stale" for part in found.parts)
    if stale:
        # What was written of them stays as it is, report and tables too.
        done += f", {stale} measured in part or whole before something changed"
    units = ", ".join(f"{n} {what}" for what, n in found.n_units.most_common())
    print(f"{done}; {summary}; {state}; {found.seconds / 60:.1f} minutes spent")
    print(f"units: {units or 'no records'}")
    print_table(rows, "")
