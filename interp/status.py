"""What a study's folder has, what is under way, what is left and why, without touching any of it.

Models and text are taken to be those of the last sitting; code and versions are those of now.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interp import durable
from interp.config import StudyConfig, read_config
from interp.errors import UserError
from interp.graph import Graph, parts_of
from interp.run import CONFIG, RunFolder, is_merged
from interp.sources import Sources
from interp.stopwatch import seconds_spent
from interp.units import Unit, record_file, running_file


@dataclass(frozen=True)
class UnitStatus:
    """One unit of a part."""

    unit: str
    state: str
    """done, running, left, stale, edited or failed."""
    why: str
    """Why it would run again, or what it waits for."""
    seconds: float | None
    """It took, in its last sitting."""


@dataclass(frozen=True)
class PartStatus:
    """One model, or one control of it."""

    model: str
    control: str
    state: str
    """The gravest of its units': failed, edited, stale, running, begun, left or done."""
    detail: str
    """What of it there is."""
    changed: float | None
    """When its files last changed, in seconds since 1970; None before it began."""
    units: tuple[UnitStatus, ...]


@dataclass(frozen=True)
class Status:
    """A whole study."""

    parts: tuple[PartStatus, ...]
    finished: bool
    """Summary and report are there."""
    running: bool
    """A process holds the folder."""
    seconds: float
    """Spent measuring, over all sittings."""

    @property
    def n_done(self) -> int:
        return sum(part.state == "done" for part in self.parts)

    @property
    def n_units(self) -> Counter[str]:
        """How many units are in each state."""
        return Counter(unit.state for part in self.parts for unit in part.units)


def status(root: Path) -> Status:
    """Raises UserError for a folder that holds no study."""
    if not (root / CONFIG).is_file():
        raise UserError(f"{root} holds no study ({CONFIG} is missing); give a study's folder")
    if is_merged(root):
        raise UserError(
            f"{root} was merged from other studies and has no units; ask for the status of those"
        )
    folder = RunFolder(root)
    config = read_config(folder.under_way if folder.under_way.is_file() else root / CONFIG)
    return Status(
        parts=tuple(_parts(config, folder)),
        finished=all((root / name).is_file() for name in ("summary.json", "report.html")),
        running=durable.is_held(root),
        seconds=seconds_spent(root),
    )


def _parts(config: StudyConfig, folder: RunFolder) -> list[PartStatus]:
    sources = Sources.read(folder)
    if sources is None:
        return [_unrecorded(folder, model, control) for model, control, _ in parts_of(config)]
    graph = Graph(config, folder, sources)
    found = []
    for model, control, _ in parts_of(config):
        units = [u for u in graph.units if (u.model, u.control) == (model, control)]
        states = tuple(_unit(graph, unit) for unit in units)
        found.append(
            PartStatus(
                model, control, _gravest(states), _detail(graph, units, states),
                _changed(folder.work(model, control)), states,
            )
        )  # fmt: skip
    return found


def _changed(work: Path) -> float | None:
    """When the last of a part's files changed."""
    times = []
    for file in _files_below(work):
        with suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return max(times, default=None)


def _files_below(folder: Path) -> Iterator[Path]:
    """All there are; a folder that a running study takes away meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _unrecorded(folder: RunFolder, model: str, control: str) -> PartStatus:
    """Of a folder whose units have no records: new, or of an earlier version."""
    if not (folder.work(model, control) / "model.json").exists():
        return PartStatus(model, control, "left", "", None, ())
    detail = "measured by a version that kept no records of units"
    return PartStatus(model, control, "no record", detail, None, ())


def _unit(graph: Graph, unit: Unit) -> UnitStatus:
    state = graph.state(unit, verify=True)
    record = graph.record(unit)
    running = running_file(graph.folder, unit)
    what, why = state.what, state.why
    if state.what != "done" and durable.is_held(running):
        return UnitStatus(unit.name, "running", why, None)
    if what == "left" and not why:
        waits = [
            one.name for one in graph.needs(unit) if not record_file(graph.folder, one).exists()
        ]
        why = f"waits for {', '.join(waits)}" if waits else ""
    return UnitStatus(unit.name, what, why, record.seconds if record else None)


def _gravest(units: Sequence[UnitStatus]) -> str:
    states = [unit.state for unit in units]
    for state in ("failed", "edited", "stale", "running"):
        if state in states:
            return state
    if "left" not in states:
        return "done"
    return "begun" if "done" in states else "left"


def _detail(graph: Graph, units: Sequence[Unit], states: Sequence[UnitStatus]) -> str:
    """The reason where there is one to tell, else how far it is."""
    for state in states:
        if state.state in ("failed", "edited", "stale"):
            return f"{state.unit}: {state.why}"
    saes = next((unit for unit in units if unit.kind == "saes"), None)
    if saes is None:
        return "loss" if states[0].state == "done" else ""
    n_done = sum(state.state == "done" for state in states)
    said = [f"{n_done} of {len(states)} units"] if n_done else []
    spots = [spot for spot in graph.spots(saes) if spot.k_rule == "fvu"]
    if any(u.kind == "pilots" and s.state == "done" for u, s in zip(units, states, strict=True)):
        said.append(f"k {', '.join(str(graph.k_of(saes, spot)['k']) for spot in spots)}")
    record = graph.record(saes)
    if record is not None:
        said.append(f"{sum(item.endswith('/main') for item in record.inputs.items)} SAEs")
    else:
        training = _files_below(graph.folder.work(saes.model, saes.control) / "training")
        if any(file.suffix == ".safetensors" for file in training):
            said.append("training checkpointed")
    return "; ".join(said)


def ago(changed: float | None) -> str:
    """`3 minutes ago`; a clock that was set back tells 0."""
    if changed is None:
        return ""
    minutes = max(time.time() - changed, 0) / 60
    return f"{minutes:.0f} minutes ago" if minutes < 120 else f"{minutes / 60:.0f} hours ago"
