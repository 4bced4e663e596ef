"""What a model's directory says of its place in a constant-width arm."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp import ladder
from interp.errors import UserError
from interp.levers import BASE, ON_A_LOG_SCALE, OTHER, SEED

LEVER, OF_BASE = "lever", "lever_base"


def recorded_levers(models: Sequence[str], *, in_arm: bool) -> dict[str, dict[str, Any]]:
    """`recorded_lever` of each; outside of an arm what directories say is not asked.

    Raises UserError for two base recipes, and for a lever that the base has no value of.
    """
    if not in_arm:
        return {name: ladder.levers(name) for name in models}
    found = {name: recorded_lever(name) for name in models}
    bases = [name for name, one in found.items() if OF_BASE in one]
    if len(bases) > 1:
        raise UserError(f"{' and '.join(bases)} both have {OF_BASE}; an arm varies one recipe")
    for base in bases:
        known = {SEED, *found[base][OF_BASE], *(["tokens"] if _tokens(base) else [])}
        for name, one in found.items():
            if one[LEVER] is not None and one[LEVER]["name"] not in known:
                raise UserError(
                    f"{name}: varies {one[LEVER]['name']}, of which {base} has no value in "
                    f"{OF_BASE}; add it there, or write both alike"
                )
    return found


def _tokens(model: str) -> bool:
    """Whether the base recipe's tokens are known without `lever_base`."""
    file = Path(model).expanduser() / "config.json"
    return file.is_file() and bool(json.loads(file.read_text("utf-8")).get("train_tokens"))


def recorded_lever(model: str) -> dict[str, Any]:
    """`lever` ({"name", "value"} or None) and, of the base recipe, `lever_base` (value by lever).

    A ladder model's are its record's (`ladder.levers`); a directory's are those keys of its
    config.json; any other model has none. Raises UserError, naming the file, for values of another
    form.
    """
    file = Path(model).expanduser() / "config.json"
    if model.startswith(ladder.PREFIX) or not file.is_file():
        return ladder.levers(model)
    config = json.loads(file.read_text("utf-8"))
    varied, base = config.get(LEVER), config.get(OF_BASE)
    if varied is not None and base is not None:
        raise UserError(f"{file}: has {LEVER} and {OF_BASE}; the base recipe has the second alone")
    if base is not None:
        values = base if isinstance(base, dict) else {"": None}
        return {LEVER: None, OF_BASE: {name: _number(file, name, v) for name, v in values.items()}}
    if varied is None:
        return {LEVER: None}
    if not isinstance(varied, dict) or set(varied) != {"name", "value"}:
        raise UserError(
            f'{file}: {LEVER} is {varied!r}; write {{"name": "decay", "value": 0.1}} for it'
        )
    name = varied["name"]
    return {LEVER: {"name": name, "value": _number(file, name, varied["value"])}}


def _number(file: Path, name: Any, value: Any) -> float:
    if not isinstance(name, str) or not name.isprintable() or name.strip() in ("", BASE, OTHER):
        raise UserError(f"{file}: {name!r} is no name of a lever; name what was varied")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not abs(value) <= sys.float_info.max
        or (name in ON_A_LOG_SCALE and value <= 0)
    ):
        raise UserError(
            f"{file}: the value of {name} is {value!r}; give a number"
            + (" above 0" if name in ON_A_LOG_SCALE else "")
        )
    return float(value)
