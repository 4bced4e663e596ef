"""`interp published`: families of SAEs that others have trained, counted alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.cli.parts import TEXT_HELP, command, count, json_flag, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from interp.models import Model
    from interp.published import PublishedSAE


def add(commands: Any) -> None:
    """The parser of the command."""
    published = command(
        commands,
        "published",
        _published,
        "count the latents of published SAEs (GPT-2 small, Gemma Scope, Qwen3, any that sae-lens "
        "loads); needs the Hugging Face hub",
        "interp published gpt2-small --tokens 250k",
    )
    published.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="a preset, or RELEASE:SAE_ID as sae-lens names it; without it the presets are listed",
    )
    published.add_argument("--model", metavar="MODEL", help="of RELEASE:SAE_ID; a hub name")
    published.add_argument("--hook-point", metavar="POINT", help="where the SAE does not say")
    published.add_argument("--text", default="deps", metavar="SRC", help=TEXT_HELP)
    published.add_argument(
        "--tokens",
        type=count,
        default=65_536,
        metavar="N",
        help="held-out tokens (default: %(default)s)",
    )
    json_flag(published)


def _published(args: argparse.Namespace) -> None:
    from interp.published import NEEDS_HUB, PRESETS, find

    if args.what is None:
        listed = [
            {"preset": name, "model": one.model, "SAE": str(one)}
            for name, ones in PRESETS.items()
            for one in ones
        ]
        if args.json:
            print_json(listed)
        else:
            print_table(listed, NEEDS_HUB)
        return
    rows = _counted(find(args.what, args.model), args)
    if args.json:
        print_json(rows)
        return
    print_table(
        [_shown(row) for row in rows], f"latents per dimension, raw stream; {rows[0]['reason']}"
    )


_COLUMNS = {"live / d": "live_latents_10", "Chao2 / d": "chao2_latents", "effective / d": "hill_1"}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """One SAE of the table."""
    per_dim = {e["estimator"]: e["per_dim"] for e in row["estimates"]}
    overlap = row["overlap"]
    return {
        "SAE": row["sae"],
        "D / d": f"{row['d_sae_per_dim']:.3g}",
        "L0": f"{row['l0']:.1f}",
        "FVU": f"{row['fvu']:.3f}",
        **{
            column: "-" if (value := per_dim[name]) is None else f"{value:.3g}"
            for column, name in _COLUMNS.items()
        },
        "overlap x d": "-" if overlap is None else f"{overlap * row['d_model']:.2f}",
    }


def _counted(chosen: Sequence[PublishedSAE], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per SAE; a model is loaded once, and the rows of a hook point are captured once."""
    from interp.errors import UserError
    from interp.models import load
    from interp.published import fetch
    from interp.sae_counts import count_sae, held_out_rows
    from interp.tokens import tokens

    rows = []
    # One of each at a time: SAEs of one place stand together, and the next may need the memory.
    models: dict[str, Model] = {}
    captured: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for one in chosen:
        if one.model not in models:  # first, because an architecture may not be known here
            models.clear()
            models[one.model] = load(one.model)
        fetched = fetch(one)
        point = args.hook_point or fetched.hook_point
        if point is None:
            raise UserError(f"{one}: says no hook point; give --hook-point")
        if (one.model, point) not in captured:
            captured.clear()
            model = models[one.model]
            blocks = tokens(args.text, model, n_tokens=args.tokens, split="held_out")
            captured[one.model, point] = held_out_rows(model, blocks, point)
        found = count_sae(fetched.sae, *captured[one.model, point], centred=fetched.centred)
        place = {"sae": str(one), "model": one.model, "hook_point": point}
        rows.append(place | {"about": "all", "centred": fetched.centred} | found.to_json())
        print(f"{one}: done", file=sys.stderr)
    return rows
