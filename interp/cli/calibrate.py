"""`interp calibrate` and `interp bridge`: counts beside a known truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from interp.cli.parts import command, count, json_flag, print_json, print_table


def add(commands: Any) -> None:
    """The parser of the command."""
    calibrate = command(
        commands,
        "calibrate",
        _calibrate,
        "estimators against known feature counts, and whether the gates hold; run again to resume",
        "interp calibrate compact --out runs/calibrate",
    )
    calibrate.add_argument(
        "preset",
        nargs="?",
        default="compact",
        metavar="PRESET",
        help="compact (the default: nine cells once, minutes), gates (nine cells 100 times, "
        "many hours) or full (a grid 100 times, days)",
    )
    calibrate.add_argument("--out", type=Path, metavar="DIR", help="default: runs/calibrate-PRESET")
    calibrate.add_argument(
        "--replicates", type=int, metavar="N", help="replicates of every cell (the preset's)"
    )
    calibrate.add_argument(
        "--rows", type=count, metavar="N", help="training rows of each SAE (the preset's)"
    )
    calibrate.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        metavar="N",
        help="dictionary sizes per dimension (the preset's)",
    )
    calibrate.add_argument("--cells", nargs="+", metavar="CELL", help="some of its cells")
    calibrate.add_argument(
        "--processes", type=count, metavar="N", help="replicates at once (default: the cores)"
    )
    calibrate.add_argument(
        "--ship", action="store_true", help="put the result into the package, for reports"
    )
    json_flag(calibrate)

    bridge = command(
        commands,
        "bridge",
        _bridge,
        "the count of a toy model's hidden states beside what it represents and loses; resumes",
        "interp bridge --out runs/bridge",
    )
    bridge.add_argument(
        "--out",
        type=Path,
        default=Path("runs/bridge"),
        metavar="DIR",
        help="default: %(default)s",
    )
    bridge.add_argument(
        "--steps", type=count, metavar="N", help="training steps of each toy model (10000)"
    )
    bridge.add_argument(
        "--rows",
        type=count,
        metavar="N",
        help="training rows of each SAE, at least (262144; larger ones have 8192 per latent)",
    )
    bridge.add_argument("--seeds", type=int, metavar="N", help="SAEs of each size (5)")
    bridge.add_argument("--per-dim", nargs="+", type=int, metavar="N", help="features (2 4 8)")
    bridge.add_argument("--decays", nargs="+", type=float, metavar="G", help="signed decays")
    bridge.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (2)")
    json_flag(bridge)


def _bridge(args: argparse.Namespace) -> None:
    from interp.bridge import BridgeConfig, bridge

    given = {
        "n_steps": args.steps,
        "n_rows": args.rows,
        "n_seeds": args.seeds,
        "per_dim": args.per_dim and tuple(args.per_dim),
        "decays": args.decays and tuple(args.decays),
    }
    config = BridgeConfig(**{key: value for key, value in given.items() if value is not None})
    summary = bridge(config, args.out, command=args.line, threads=args.threads)
    if args.json:
        print_json(summary)
        return
    shown = [
        {
            "n / m": cell["n_per_dim"],
            "decay": f"{cell['decay']:+g}",
            "represented / m": f"{cell['represented_per_dim']:.2f}",
            "counted / m": "-"
            if cell["counted_per_dim"] is None
            else f"{'>= ' if cell['bound'] else ''}{cell['counted_per_dim']:.2f}",
            "loss": f"{cell['loss']:.4f}",
            "note": cell["reason"] or "",
        }
        for cell in summary["cells"]
    ]
    print_table(
        shown, "toy models: what they represent, and what is counted in their hidden states"
    )
    for name in ("counted_with_represented", "counted_with_loss", "represented_with_loss"):
        found = summary[name]
        value = "-" if found["value"] is None else f"{found['value']:+.2f} (p {found['p']:.2g})"
        print(
            f"{name.replace('_', ' ')}: {value}{'; ' + found['reason'] if found['reason'] else ''}"
        )
    print(f"verdict: {summary['verdict']}")
    print(f"\nsummary and figures: {args.out}")


def _calibrate(args: argparse.Namespace) -> None:
    from interp.calibrate import run
    from interp.calibrate.tables import gate_table, level_tables, one_size_table, sayings

    config = run.resolve(
        args.preset,
        cells=args.cells,
        n_replicates=args.replicates,
        n_rows=args.rows,
        sizes=args.sizes,
    )
    out = args.out or Path("runs") / f"calibrate-{args.preset}"
    summary = run.calibrate(config, out, command=args.line, processes=args.processes)
    if args.ship:
        print(f"shipped: {run.ship(summary)}", file=sys.stderr)
    if args.json:
        print_json({"cells": summary["cells"], "gates": summary["gates"]})
        return
    cells, gates = summary["cells"], summary["gates"]
    for called, rows in level_tables(cells).items():
        print_table(rows, f"known feature counts: {called}, per dimension, beside the true n/d")
        print()
    print_table(one_size_table(cells), "what the largest dictionary alone gives")
    print()
    print_table(gate_table(gates, short=True), "gates")
    for said in sayings(gates):
        print(f"\n{said}")
    print(f"\ntable, summary and figure: {out}")
