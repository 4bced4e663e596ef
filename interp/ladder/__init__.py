"""The embedded ladder: small real GPT-2 language models of increasing width, by name.

`ladder/d064` is the model with d_model 64. Light to import: paths and records only.
"""

from __future__ import annotations

import json
import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

PREFIX = "ladder/"
_HERE = Path(__file__).parent
CHECKPOINTS = _HERE / "checkpoints"
RECORDS_FILE = _HERE / "models.json"
BUDGETS_FILE = _HERE / "budgets.json"
_NAME = re.compile(r"d\d{3}(-.+)?")


def names() -> list[str]:
    """The shipped models of the main arm, narrowest first: `ladder/d032`, `ladder/d048`, ..."""
    return [name for name in _shipped() if "-" not in name]


def arm_names() -> list[str]:
    """The shipped models of the constant-width arm: `ladder/d064-rows-neg1`, ...

    One of each lever in turn, so that a study cut short has some of each.
    """
    by_lever: dict[str, list[str]] = {}
    for name in _shipped():
        if "-" in name:
            by_lever.setdefault(name.split("-")[1], []).append(name)
    rounds = chain.from_iterable(zip_longest(*by_lever.values()))
    return [name for name in rounds if name is not None]


def _shipped() -> list[str]:
    if not CHECKPOINTS.is_dir():
        return []
    found = [p.parent.name for p in CHECKPOINTS.glob("*/model.safetensors")]
    # A killed export leaves a folder of another name.
    return [PREFIX + name for name in sorted(found) if _NAME.fullmatch(name)]


def checkpoint_path(name: str) -> Path:
    """Folder with `config.json` and `model.safetensors` (fp16) of `ladder/dNNN`.

    Raises KeyError when there is no such model.
    """
    if name not in _shipped():
        raise KeyError(name)
    return CHECKPOINTS / name.removeprefix(PREFIX)


def levers(name: str) -> dict[str, Any]:
    """What a study says of a model's place in the constant-width arm.

    `lever`: what was changed, {"name", "value"}, or None; `lever_base`, of the model that the arm
    varies: where it stands on each lever; `rows`, of both: the embedding's, as `geometry.row_facts`
    tells them.
    """
    from interp.ladder import arm

    if name in arm_names():
        found = {"lever": record(name)["lever"]}
    elif name == PREFIX + arm.BASE:
        found = {"lever": None, "lever_base": arm.base_values()}
    else:
        return {"lever": None}
    # A model whose shipping was cut short has none yet.
    return found | {key: value for key, value in record(name).items() if key == "rows"}


def budgets() -> list[dict[str, Any]]:
    """Recorded losses of every width after fewer tokens; empty where none were shipped."""
    return json.loads(BUDGETS_FILE.read_text()) if BUDGETS_FILE.exists() else []


def tokenizer_path() -> Path:
    """Folder with the tokenizer that all models of the ladder share."""
    return CHECKPOINTS / "tokenizer"


def record(name: str) -> dict[str, Any]:
    """What the model card says of one model: tokens, losses (nats per token), recipe.

    Raises KeyError when there is no such model.
    """
    return json.loads(RECORDS_FILE.read_text())[name]
