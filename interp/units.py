"""A study as a graph of units, each redone only when something that it depends on has changed.

A part is a model, or a control of it. Its units, each with its artifacts, in the order of need:

  loss      held-out loss and sizes                            model.json
  streams   means of token and position, moments of the noise  means.*, moments.*
  pilots    one-seed SAEs that choose k                        pilots/
  saes      every SAE, trained on one pass over the text       saes/<model>/..., half/...
  rows      one spot's SAEs on held-out text                   rows/

All but loss follow one another; rows of different spots do not wait for one another. The analysis
(tables, summary, report) is the last unit and needs all of them.

A unit's record is written when its artifacts are whole: the inputs that determined them, and their
hashes. Inputs are settings and hashes of artifacts read, never times or places, so a unit is done
wherever its folder is. A group of SAEs may grow: an SAE's bits do not depend on its companions (on
a GPU the last ones do), so new seeds, sizes and rules for k are trained alone and the others stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from interp.run import RunFolder, folder_name, write_json
from interp.spots import HALF, Spot

Kind = Literal["loss", "streams", "pilots", "saes", "rows"]


@dataclass(frozen=True)
class Unit:
    """A piece of work that one process does at a time, and whose artifacts stand or fall whole."""

    model: str
    control: str
    kind: Kind
    spot: Spot | None = None
    """Of rows."""

    @property
    def label(self) -> str:
        """Of the part."""
        return folder_name(self.model, self.control)

    @property
    def name(self) -> str:
        """Within the part."""
        return self.kind if self.spot is None else f"{self.kind}.{self.spot.name}"

    def __str__(self) -> str:
        return f"{self.label}: {self.name}"


@dataclass(frozen=True)
class Inputs:
    """What determines a unit's artifacts."""

    settings: Mapping[str, Any]
    """Config, text, model, versions and code. Change one, and all artifacts change."""
    reads: Mapping[str, str]
    """Hashes of artifacts that all of its own rest on, by path."""
    items: Mapping[str, str]
    """What it makes, and the hash of what each alone is made from; more may come."""

    @property
    def sha256(self) -> str:
        return _digest([dict(self.settings), dict(self.reads), dict(self.items)])

    def in_common(self, other: Inputs) -> frozenset[str]:
        """Items that both make and that come out the same."""
        if (self.settings, self.reads) != (other.settings, other.reads):
            return frozenset()
        return frozenset(item for item, of in self.items.items() if other.items.get(item) == of)


@dataclass(frozen=True)
class Record:
    """The manifest's entry of a finished unit."""

    inputs: Inputs
    artifacts: Mapping[str, str]
    """SHA-256 by path inside the study's folder."""
    seconds: float
    """Of the last sitting."""
    cpu: str
    """What it ran on: the CPU's name, and the GPU's behind it where there was one."""
    threads: int
    peak_memory_bytes: int = 0
    """Of the process, whatever it did before."""
    reused: int = field(default=0)
    """Items found from before."""


def write_record(path: Path, record: Record) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = asdict(record)
    data["inputs"] = {"sha256": record.inputs.sha256, **data["inputs"]}
    write_json(path, data)


def read_record(path: Path) -> Record | None:
    """None where there is none that can be read: the unit is then done again."""
    try:
        data = json.loads(path.read_text())
        inputs = data.pop("inputs")
        return Record(Inputs(inputs["settings"], inputs["reads"], inputs["items"]), **data)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def files_of(folder: RunFolder, unit: Unit, item: str) -> list[Path]:
    """Where an item of a unit lies."""
    work = folder.work(unit.model, unit.control)
    if unit.kind == "saes":
        stream, name, role = item.split("/")
        sae = folder.sae(unit.model, unit.control, stream, name)
        if role == HALF:
            sae = work / "half" / stream / name
        return [sae / "cfg.json", sae / "sae_weights.safetensors"]
    places = {
        "loss": "model.json",
        "streams": f"{item}.safetensors",
        "pilots": f"pilots/{item}.json",
        "rows": f"rows/{item}.parquet",
    }
    return [work / places[unit.kind]]


def record_file(folder: RunFolder, unit: Unit) -> Path:
    return folder.work(unit.model, unit.control) / "units" / f"{unit.name}.json"


def failure_file(folder: RunFolder, unit: Unit) -> Path:
    """Says why the unit's last run failed; gone when it is done."""
    return record_file(folder, unit).with_suffix(".failed")


def running_file(folder: RunFolder, unit: Unit) -> Path:
    """Held by the process that is at the unit."""
    return record_file(folder, unit).with_suffix(".running")


def digest_of(hashes: Mapping[str, str]) -> str:
    """One short hash of several, for an item's inputs."""
    return _digest(dict(hashes))[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
