"""`interp published`; thin, like `interp.cli`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from interp.cli_parts import TEXT_HELP, command, count, json_flag, print_json, print_table


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
        "--tokens", type=count, default=65_536, metavar="N", help="held-out tokens"
    )
    json_flag(published)


def _published(args: argparse.Namespace) -> None:
    from interp.published import NEEDS_HUB, PRESETS, find

    if args.what is None:
        rows = [
            {"preset": name, "model": one.model, "SAE": str(one)}
            for name, ones in PRESETS.items()
            for one in ones
        ]
        if args.json:
            print_json(rows)
        else:
            print_table(rows, NEEDS_HUB)
        return
    chosen = find(args.what, args.model)
    rows = _counted(chosen, args)
    if args.json:
        print_json(rows)
        return
    shown = []
    for row in rows:
        values = {e["estimator"]: e for e in row["estimates"]}
        shown.append(
            {
                "SAE": row["sae"],
                "D / d": f"{row['d_sae_per_dim']:.3g}",
                "L0": f"{row['l0']:.1f}",
                "FVU": f"{row['fvu']:.3f}",
                **{
                    name: f"{values[key]['per_dim']:.3g}" if values[key]["per_dim"] else "-"
                    for name, key in (
                        ("live / d", "live_latents_10"),
                        ("Chao2 / d", "chao2_latents"),
                        ("effective / d", "hill_1"),
                    )
                },
                "overlap x d": "-"
                if (o := row["overlap"]) is None
                else f"{o * row['d_model']:.2f}",
            }
        )
    print_table(shown, f"latents per dimension, raw stream; {rows[0]['reason']}")


def _counted(chosen: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per SAE; a model is loaded once, and the rows of a hook point are captured once."""
    from interp.errors import UserError
    from interp.models import load
    from interp.published import fetch
    from interp.sae_counts import count_sae, held_out_rows
    from interp.tokens import tokens

    rows, at, x, docs = [], None, None, None
    for one in chosen:
        fetched = fetch(one)
        point = args.hook_point or fetched.hook_point
        if point is None:
            raise UserError(f"{one}: says no hook point; give --hook-point")
        if at != (one.model, point):
            model = load(one.model)
            blocks = tokens(args.text, model, n_tokens=args.tokens, split="held_out")
            x, docs = held_out_rows(model, blocks, point)
            at = (one.model, point)
        found = count_sae(fetched.sae, x, docs, centred=fetched.centred)
        place = {"sae": str(one), "model": one.model, "hook_point": point}
        rows.append(place | {"about": "all", "centred": fetched.centred} | found.to_json())
        print(f"{one}: done", file=sys.stderr)
    return rows
