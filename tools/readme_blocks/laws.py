"""Fits of the ladder's losses: what the committed tables say, in a table and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        f"\n\n{_whether_they_differ(budgets)} Together, {fit['law']}: alpha "
        f"{alpha['value']:.2f} {_interval(alpha)}, b {b['value']:.2f} {_interval(b)}, residual sd "
        f"{fit['residual_sd']:.3f} nats. {_saved()}\n\n"
        "![The joint fit of width and tokens, with its residuals](ladder_fit/tokens.png)\n\n"
        "`interp fit ladder-tokens --figure results/ladder_fit/tokens.png --json > "
        "results/ladder_fit/tokens.json`; each width was trained once at each number of tokens, "
        "with the batches of the same text from its beginning."
    )


def _whether_they_differ(budgets: list[dict[str, Any]]) -> str:
    known = [
        b["alpha"] for b in budgets if None not in (b["alpha"]["ci_low"], b["alpha"]["ci_high"])
    ]
    if len(known) < len(budgets):
        return "Not every exponent has an interval that is closed."
    apart = max(a["ci_low"] for a in known) > min(a["ci_high"] for a in known)
    if apart:
        return "The exponents differ: not all of their intervals overlap."
    return "The intervals of all exponents overlap: these models cannot tell them apart."


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
