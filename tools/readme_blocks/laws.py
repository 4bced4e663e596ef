"""Fits of the ladder's losses: what the committed tables say, in a table and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from interp import ladder
from interp.loss_table import read_table


def fixed_tokens(root: Path) -> str:
    """Alpha at each number of training tokens, and the law with a term in tokens."""
    file = root / "results" / "ladder_fit" / "tokens.json"
    if not file.exists():
        return "*(`interp fit ladder-tokens` is not committed yet)*"
    fit = json.loads(file.read_text())
    budgets = fit["at_fixed_tokens"]
    lines = [
        "| training tokens | models | alpha | 95% interval | B |",
        "|---|---|---|---|---|",
        *(
            f"| {b['train_tokens']:,.0f} | {b['n_models']} | {_number(b['alpha']['value'])} | "
            f"{_interval(b['alpha'])} | {_number(b['B']['value'])} {_interval(b['B'])} |"
            for b in budgets
        ),
    ]
    alpha, b = fit["alpha"], fit["terms"]["b"]
    return "\n".join(lines) + (
        f"\n\n{_whether_they_differ(fit['one_alpha'][0])} Together, {fit['law']}: alpha "
        f"{alpha['value']:.2f} {_interval(alpha)}, b {b['value']:.2f} {_interval(b)}, residual sd "
        f"{fit['residual_sd']:.3f} nats{_at_bound(fit)}. {_saved()}\n\n"
        "![The joint fit of width and tokens, with its residuals](ladder_fit/tokens.png)\n\n"
        "`interp fit ladder-tokens --figure results/ladder_fit/tokens.png --json > "
        "results/ladder_fit/tokens.json`; each width was trained once at each number of tokens, "
        "with the batches of the same text from its beginning."
    )


def _whether_they_differ(common: dict[str, Any]) -> str:
    shown = common["p"] <= 0.05
    told = "differ beyond chance" if shown else "cannot be told apart"
    return (
        f"The exponents {told} (one for all of them, {common['alpha']:.2f}, against one each: "
        f"p {common['p']:.2g}, F test, losses taken for independent)."
    )


def _at_bound(fit: dict[str, Any]) -> str:
    """What tells that a law does not describe its losses."""
    seeds = [
        record["held_out_projects_nats_per_token"]
        for record in map(ladder.record, ["ladder/d064", *ladder.arm_names()])
        if (record.get("lever") or {"name": "seed"})["name"] == "seed"
    ]
    text = f", where {len(seeds)} seeds of one recipe have {np.std(seeds, ddof=1):.3f}"
    if any(b["value"] == 0 for b in fit["B"]):
        text += "; its offset B is at its bound, 0"
    return text


def _saved() -> str:
    """What the narrowest and the widest gained by going from the fewest tokens to the most."""
    rows = read_table("ladder-tokens").rows
    widths = sorted(rows["d_model"].unique())
    gains = {}
    for width in (widths[0], widths[-1]):
        losses = rows[rows["d_model"] == width].sort_values("train_tokens")["loss"]
        gains[width] = losses.iloc[0] - losses.iloc[-1]
    first, last = gains
    word = "more" if gains[last] > gains[first] else "less"
    return (
        f"From the fewest tokens to the most, width {first:.0f} gains {gains[first]:.2f} nats and "
        f"width {last:.0f} gains {gains[last]:.2f}: tokens help wide models {word}, which "
        "a term in width plus one in tokens cannot say."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(estimate: dict[str, Any]) -> str:
    return f"[{_number(estimate['ci_low'])}, {_number(estimate['ci_high'])}]"
