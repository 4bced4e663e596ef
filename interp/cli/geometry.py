"""`interp geometry`: how the rows of embeddings and heads overlap."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.parts import (
    FIGURE_HELP,
    MODEL_HELP,
    TEXT_HELP,
    check_figure,
    command,
    count,
    json_flag,
    number,
    print_json,
    print_table,
)
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.head_matrix import Matrix

_BAND_TOKENS = 262_144


def add(commands: Any) -> None:
    """The command's parser."""
    geometry = command(
        commands,
        "geometry",
        _geometry,
        "overlap of output-head rows, embeddings or SAE decoders; reads that one tensor alone",
        "interp geometry ladder/d064 path/to/checkpoint runs/quick/saes --json",
    )
    geometry.add_argument(
        "model", nargs="+", metavar="MODEL", help=MODEL_HELP + ", a family, or a folder of SAEs"
    )
    geometry.add_argument(
        "--matrix",
        choices=("unembedding", "embedding", "all"),
        default="unembedding",
        help="of a model (default: unembedding, which is the embedding where they are tied)",
    )
    geometry.add_argument(
        "--text",
        metavar="SRC",
        help="token frequencies, loss and overlap by frequency; " + TEXT_HELP,
    )
    geometry.add_argument(
        "--tokens",
        type=count,
        default=_BAND_TOKENS,
        metavar="N",
        help="of each split of --text (default: %(default)s)",
    )
    geometry.add_argument(
        "--histogram", action="store_true", help="with --json: the overlaps of sampled pairs"
    )
    geometry.add_argument("--figure", type=Path, metavar="FILE", help=FIGURE_HELP)
    json_flag(geometry)


def _geometry(args: argparse.Namespace) -> None:
    from interp import families
    from interp.head_matrix import Which, matrices_of
    from interp.progress import Progress

    check_figure(args.figure)
    which: tuple[Which, ...] = (args.matrix,)
    if args.matrix == "all":
        which = ("embedding", "unembedding")
    names = families.expand(args.model)
    progress = Progress(len(names))
    rows: list[dict[str, Any]] = []
    shown_names: list[str] = []
    for name in names:
        found = matrices_of(name, which)
        for place, matrix in enumerate(found):

            def heartbeat(share: float, done: int = place, n: int = len(found)) -> None:
                progress.at(name, (done + share) / n)  # noqa: B023

            rows.append(_overlaps(args, matrix, heartbeat))
            # SAEs of one folder differ in the end of their paths, which a table cuts off.
            inner = matrix.name.removeprefix(f"{Path(name).expanduser()}/")
            shown_names.append(inner if matrix.matrix == "decoder" else matrix.name)
        progress.finish(1)
    if args.figure is not None:
        from interp.report.geometry_figure import geometry_figure
        from interp.report.panels import save

        save(geometry_figure(rows), args.figure)
    if args.json:
        print_json(rows)
        return
    shown = [
        {
            "model": name,
            "matrix": r["matrix"] + (" (tied)" if r["tied"] else ""),
            "rows": r["n"],
            "zero": r["n_zero_rows"],
            "d": r["d_model"],
            "overlap": f"{r['mean_squared_overlap']:.4f}",
            "/ random": f"{r['ratio_to_random']:.2f}",
            "/ Welch": number(r["ratio_to_welch"], 2),
            "centred": number(r["mean_squared_overlap_centred"], 4),
            f"top {r['n_removed']} off": number(r["mean_squared_overlap_top_removed"], 4),
            "dimensions": number(r["participation_ratio"], 1),
            "norms": f"{r['norm_mean']:.3g} ± {r['norm_std']:.2g}",
        }
        for name, r in zip(shown_names, rows, strict=True)
    ]
    if len({r["n_removed"] for r in rows}) > 1:  # one heading for all rows of the table
        shown = [
            {("top off" if k.startswith("top ") else k): v for k, v in row.items()} for row in shown
        ]
    print_table(shown, "mean squared overlap of rows; random rows: 1/d; dimensions: participation")
    for row in rows:
        if "bands" in row:
            _print_bands(row)


def _overlaps(
    args: argparse.Namespace, matrix: Matrix, heartbeat: Callable[[float], None]
) -> dict[str, Any]:
    """One object of the answer."""
    from interp.geometry import geometry

    try:
        found = geometry(matrix.rows, heartbeat=heartbeat).to_json()
    except ValueError as error:
        raise UserError(
            f"{matrix.name}: its {matrix.matrix} cannot be measured ({error}); check the checkpoint"
        ) from error
    if not args.histogram:
        for bins in ("bins", "fraction", "random_fraction"):
            del found["sample"][bins]
    bands = {} if args.text is None else _bands(args, matrix)
    head = {"model": matrix.name, "matrix": matrix.matrix, "tied": matrix.tied}
    return head | found | bands


def _bands(args: argparse.Namespace, matrix: Matrix) -> dict[str, Any]:
    from interp.frequency_bands import frequency_bands
    from interp.models import load
    from interp.tokens import tokens

    if matrix.matrix == "decoder":
        raise UserError(f"{matrix.name}: an SAE has no tokens; give --text with models only")
    model = load(matrix.name)
    ranking, held_out = (
        tokens(args.text, model, n_tokens=args.tokens, split=split)
        for split in ("train", "held_out")
    )
    for warning in (*ranking.warnings, *held_out.warnings):
        print(f"interp: warning: {warning}", file=sys.stderr)
    return frequency_bands(model, matrix.rows, ranking, held_out).to_json()


def _print_bands(row: dict[str, Any]) -> None:
    found = row["frequencies"]
    law = f"no exponent: {found['reason']}"
    if found["exponent"] is not None:
        law = (
            f"frequency ~ rank^-{found['exponent']:.3f} [{found['ci_low']:.3f}, "
            f"{found['ci_high']:.3f}] (head {found['exponent_head']:.2f}, "
            f"tail {found['exponent_tail']:.2f})"
        )
    shown = [
        {
            "ranks": f"{b['first_rank']:,}-{b['last_rank']:,}" if b["first_rank"] else "unseen",
            "tokens": b["n_types"],
            "of text": f"{b['token_fraction']:.1%}",
            "nats/token": number(b["loss_nats_per_token"], 3),
            "95% interval": "-"
            if b["ci_low"] is None
            else f"{b['ci_low']:.3f} to {b['ci_high']:.3f}",
            "of loss": f"{b['loss_fraction']:.1%}",
            "norm": f"{b['norm_mean']:.3g}",
            "overlap": number(b["mean_squared_overlap"], 4),
        }
        for b in row["bands"]
    ]
    print_table(shown, f"{row['model']}, {row['matrix']}, on {row['text']}")
    print(law)
