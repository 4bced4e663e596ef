"""`interp toy`: the toy model of superposition, trained and measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.cli.parts import command, json_flag, print_json, print_table


def add(commands: Any) -> None:
    """The parser of the command."""
    parser = command(
        commands,
        "toy",
        _toy,
        "the toy model of superposition: both regimes, exponents, ours beside the published; "
        "run again to resume",
        "interp toy demo --out runs/toy-demo",
    )
    parser.add_argument(
        "preset",
        metavar="PRESET",
        help="demo (two minutes), reduced (under an hour), or of published size: small, large, "
        "density",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/toy-PRESET")
    parser.add_argument("--threads", type=int, metavar="N", help="models side by side")
    json_flag(parser)


def _toy(args: argparse.Namespace) -> None:
    from interp.toy.presets import preset

    chosen = preset(args.preset)
    out = args.out or Path("runs") / f"toy-{chosen.name}"
    from interp.toy.run import run_toy

    summary = run_toy(chosen, out, threads=args.threads, command=args.line)
    if args.json:
        print_json(summary["reproduction"])
        return
    shown = [
        {
            "quantity": row["quantity"],
            "published": row["published"],
            "ours": "-" if row["ours"] is None else f"{row['ours']:.3g}",
            "interval": "-"
            if row["low"] is None
            else f"{row['low']:.3g} to {row['high']:.3g} ({row['interval']})",
            "": row["verdict"],
        }
        for row in summary["reproduction"]
    ]
    print_table(shown, f"{chosen.name}: {chosen.about}")
    print(f"tables and figures: {out}")
