"""What is recorded of the ladder's models: a record by name, and lists of losses by recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp import durable
from interp.ladder import RECORDS_FILE

TRIED = ("d_model", "lr", "lr_hidden")
BUDGET = ("d_model", "n_tokens")
"""What tells one loss from the others in `bracket.json` and in `budgets.json`."""


def add_to_record(name: str, facts: dict[str, Any], *, afresh: bool = False) -> None:
    """Merge facts into the committed record of a shipped model, or put them in its place."""
    records = json.loads(RECORDS_FILE.read_text()) if RECORDS_FILE.exists() else {}
    records[name] = facts if afresh else records.get(name, {}) | facts
    write(RECORDS_FILE, dict(sorted(records.items())))


def merge_losses(file: Path, found: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Put losses into a file's list, each in the place of one with the same key, in its order."""
    by_key = {tuple(one[name] for name in key): one for one in [*known_losses(file), *found]}
    write(file, [by_key[at] for at in sorted(by_key)])


def known_losses(file: Path) -> list[dict[str, Any]]:
    """A file's losses so far."""
    return json.loads(file.read_text()) if file.exists() else []


def write(path: Path, value: Any) -> None:
    """As `interp.run.write_json`, which stands above this package."""
    durable.write(path, (json.dumps(value, indent=1) + "\n").encode())
