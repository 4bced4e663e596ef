"""Metrics of a run as it goes, one JSON Lines file per SAE beside its folder.

A line: {"tokens", "fvu", "dead_fraction", "sae_tokens_per_second"}; `fvu` is null before the first
step. After a kill, lines that the resumed run will write again are dropped first.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from saes.durable import whole, writing
from saes.training import SAEStatus, TrainingStatus


class History:
    """A heartbeat for `train` that appends to <folder>/<hook point>/<name>.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[tuple[str, str], int] = {}
        """Tokens of each SAE's last line."""

    def __call__(self, status: TrainingStatus) -> None:
        for sae in status.saes:
            key = (sae.hook_point, sae.name)
            place = sae_folder(self.folder, *key)
            path = place.with_name(f"{place.name}.jsonl")
            if key not in self._written:
                _drop_lines_from(path, sae.tokens_done)
            if self._written.get(key) != sae.tokens_done:
                with writing(path), path.open("a") as file:
                    file.write(json.dumps(_line(sae, status)) + "\n")
                self._written[key] = sae.tokens_done


def sae_folder(out: Path, hook_point: str, name: str) -> Path:
    """Where an SAE of a run lies: <out>/<hook point>/<name>, "/" in a hook point becomes "--"."""
    return out / hook_point.replace("/", "--") / name


def _line(sae: SAEStatus, status: TrainingStatus) -> dict[str, Any]:
    return {
        "tokens": sae.tokens_done,
        "fvu": sae.fvu if math.isfinite(sae.fvu) else None,
        "dead_fraction": sae.dead_fraction,
        "sae_tokens_per_second": status.sae_tokens_per_second,
    }


def _drop_lines_from(path: Path, tokens: int) -> None:
    """Keep what an earlier process wrote about fewer tokens; a line cut by a kill goes too."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["tokens"] < tokens:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    with whole(path) as partial:
        partial.write_text("".join(kept))
