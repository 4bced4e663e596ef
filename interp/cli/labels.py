"""`interp labels`: latents beside what Python says of every token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from interp.cli.parts import command, count, json_flag, print_json, print_table

_SHOWN = 12


def add(commands: Any) -> None:
    """The parser of the command."""
    labels = command(
        commands,
        "labels",
        _labels,
        "which facts of Python have a latent of their own, model beside twin",
        "interp labels runs/quick --models ladder/d064",
    )
    labels.add_argument("dir", type=Path, metavar="DIR", help="a finished study of Python text")
    labels.add_argument("--models", nargs="+", metavar="MODEL", help="some of its models")
    labels.add_argument(
        "--tokens",
        type=count,
        default=131_072,
        metavar="N",
        help="held-out tokens (default: %(default)s)",
    )
    json_flag(labels)


def _labels(args: argparse.Namespace) -> None:
    from interp.labelling import label_run
    from interp.report.wording import CONTROLS
    from interp.run import TWIN, open_run

    found = []
    for one in label_run(open_run(args.dir), args.models, n_tokens=args.tokens):
        found.append(one)
        weights = CONTROLS.get(one.control, one.control)
        print(f"{one.model}, {weights}, {one.spot.stream}: done", file=sys.stderr)
    if args.json:
        print_json([one.to_json() for one in found])
        return
    rows = []
    for one in found:
        low, high = min(one.n_dedicated), max(one.n_dedicated)
        rows.append(
            {
                "model": f"{one.model}, untrained twin" if one.control == TWIN else one.model,
                "layer": one.spot.layer,
                "about": one.spot.about,
                "D": one.spot.d_sae,
                "k": one.k,
                "with a latent": str(low) if low == high else f"{low} to {high}",
                "of labels": one.n_labels,
            }
        )
    print_table(rows, "labels of Python tokens that have a latent of their own, over seeds")
    best = next(one for one in found if one.control != TWIN)
    told = [
        {
            "label": score.label,
            "F1": f"{score.f1:.2f}",
            "F1, shifted": f"{score.null_f1:.2f}",
            "AUC": f"{score.auc:.3f}",
            "tokens": f"{score.n_tokens:,}",
            "latent": score.latent,
        }
        for score in sorted(best.by_seed[0], key=lambda s: -s.f1)[:_SHOWN]
    ]
    print_table(
        told, f"best told by seed 0 of {best.model}, {best.spot.stream}, D {best.spot.d_sae}"
    )
