"""What the commands share: options, numbers with units, tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UserError
from saes.options import OneLineParser, with_unit
from saes.options import count as count

if TYPE_CHECKING:
    from interp.plan import Cost

DEFECT = 1
USER_ERROR = 2
LOSS_TOKENS = 262_144
"""What a loss is measured on where nothing else is said."""
DTYPES = ("float32", "bfloat16", "float16")
MODEL_HELP = "ladder/dNNN, a directory, a .gguf file, a hub name, or hub-name@revision"
FIGURE_HELP = "write it as .png or .svg too"
TEXT_HELP = (
    "deps (default), stdlib, a .txt/.jsonl/.parquet file, a folder, or a hub data set as "
    "name[:config][@revision]"
)


def command(
    commands: Any,
    name: str,
    call: Callable[[argparse.Namespace], int | None] | None,
    text: str,
    example: str,
) -> OneLineParser:
    """One command; `example` is a line of it that works."""
    parser: OneLineParser = commands.add_parser(name, help=text, description=text)
    parser.example = example
    if call is not None:
        parser.set_defaults(call=call)
    return parser


def model_options(parser: argparse.ArgumentParser) -> None:
    """How to load a model; `load_options` reads them."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the model's weights (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument(
        "--device-map", choices=("auto",), help="spread the model over all devices there are"
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `interp.models.load`."""
    import torch

    dtype = getattr(torch, args.dtype)
    return {"dtype": dtype, "device": args.device, "device_map": args.device_map}


def json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def size(text: str) -> int:
    """A number of bytes: 20GB, 500MB, 1.5TB, 4096; powers of ten."""
    value = with_unit(text, {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12})
    if not 1 <= value < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 20GB or 500MB")
    return int(value)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Brackets in titles, names and intervals are text, not markup.
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else []:
        numbers = all(_is_number(row[column]) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    if title:  # a title of the table itself would wrap at its width
        console.print(Text(title), soft_wrap=True)
    console.print(table)


def _is_number(cell: Any) -> bool:
    """Whether a cell lines up with numbers; `-` stands for one that is not there."""
    try:
        float(str(cell).replace(",", "").removesuffix("%"))
    except ValueError:
        return cell in ("", "-", "–")
    return True


def print_costs(costs: list[Cost], *, as_json: bool) -> None:
    """A plan, with its total."""
    seconds = [c.seconds for c in costs if c.seconds is not None]
    total = {
        "flops": sum(c.flops for c in costs),
        "n_bytes": sum(c.n_bytes for c in costs),
        "scratch_bytes": max(c.scratch_bytes for c in costs),
        "seconds": sum(seconds) if len(seconds) == len(costs) else None,
        "memory_bytes": max(c.memory_bytes for c in costs),
        "n_units": sum(c.n_units for c in costs),
        "gpu_bytes": max(c.gpu_bytes for c in costs),
    }
    if as_json:
        print_json({"parts": [vars(c) for c in costs], "total": total})
        return
    rows = [vars(c) for c in costs] + [{"what": "total"} | total]
    shown = [
        {
            "part": row["what"],
            **({"units": row["n_units"]} if total["n_units"] else {}),
            "TFLOP": f"{row['flops'] / 1e12:,.3g}",
            "MB": f"{row['n_bytes'] / 1e6:,.1f}",
            "scratch MB": f"{row['scratch_bytes'] / 1e6:,.1f}",
            **({"peak MB": f"{row['memory_bytes'] / 1e6:,.0f}"} if total["n_units"] else {}),
            **({"GPU MB": f"{row['gpu_bytes'] / 1e6:,.0f}"} if total["gpu_bytes"] else {}),
            "minutes": "not measured" if row["seconds"] is None else f"{row['seconds'] / 60:,.1f}",
        }
        for row in rows
    ]
    reason = costs[0].reason
    how = f"; minutes: {reason}" if reason else " of this machine as busy as it is now"
    print_table(shown, f"expected cost on device {costs[0].device}{how}")


def check_figure(path: Path | None) -> None:
    """Refuses a path that no figure can be written to, before the work, not after it."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path}: figures are written as .png or .svg; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")


def number(value: float | None, digits: int) -> str:
    """1.234, 1.2e+05; - where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """[1.2, 1.4]; an open side is …"""
    if low is None and high is None:
        return "-"
    ends = ["…" if v is None else f"{v:.4g}" for v in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"
