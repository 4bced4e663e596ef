"""Which units a study has, what each is made from now, and what has become of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from interp import durable
from interp.config import MIN_SEEDS, StudyConfig
from interp.provenance import provenance
from interp.run import CONTROLS, GAUSSIAN, SHUFFLED, TRAINED, TWIN, RunFolder
from interp.sources import Sources
from interp.spots import (
    Spot,
    fixed_k,
    longest_budget,
    pilot_ks,
    sae_cost,
    sae_tokens,
    seed_configs,
    spots,
)
from interp.units import (
    Inputs,
    Record,
    Unit,
    digest_of,
    failure_file,
    files_of,
    read_record,
    record_file,
)


@dataclass(frozen=True)
class State:
    """What has become of a unit."""

    what: Literal["done", "left", "stale", "edited", "failed"]
    """stale: something it was made from has changed; edited: its artifacts have."""
    why: str = ""
    changed: str = ""
    """The first setting that differs; none where it only grows, or reads other artifacts."""


class Graph:
    """The units of one study, in an order in which each comes after what it needs."""

    def __init__(self, config: StudyConfig, folder: RunFolder, sources: Sources) -> None:
        self.config, self.folder, self.sources = config, folder, sources

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(unit for part in parts_of(self.config) for unit in self._part(*part))

    def needs(self, unit: Unit) -> list[Unit]:
        """The units of its part whose artifacts it reads."""
        earlier = {"loss": (), "streams": (), "pilots": ("streams",), "saes": ("streams", "pilots"),
                   "rows": ("streams", "pilots", "saes")}[unit.kind]  # fmt: skip
        return [
            Unit(unit.model, unit.control, kind)  # type: ignore[arg-type]
            for kind in earlier
            if kind != "streams" or self._stream_items(unit)
        ]

    def spots(self, unit: Unit) -> list[Spot]:
        """All spots of the unit's part."""
        source = self.sources.models[unit.model]
        return spots(self.config, source.d_model, source.n_layers, unit.control)

    def record(self, unit: Unit) -> Record | None:
        return read_record(record_file(self.folder, unit))

    def is_done(self, unit: Unit) -> bool:
        return self.state(unit).what == "done"

    def state(self, unit: Unit, *, verify: bool = False) -> State:
        """With `verify` the artifacts are hashed; without, they only have to be there."""
        record = self.record(unit)
        if record is None:
            failure = failure_file(self.folder, unit)
            if failure.exists():
                return State("failed", _error(failure))
            return State("left")
        if verify:
            for path, sha256 in record.artifacts.items():
                if _is_other(self.folder.root / path, sha256):
                    return State("edited", f"{path} is not what its unit wrote ({sha256[:12]})")
        settings = self.settings(unit)
        for key in sorted(record.inputs.settings.keys() | settings.keys()):
            old, new = record.inputs.settings.get(key), settings.get(key)
            if old != new:
                return State("stale", f"{key} was {short(old)}, now it is {short(new)}", key)
        inputs = self.inputs(unit)
        if inputs is None:
            return State("left", "what it needs is not done")
        if record.inputs.sha256 != inputs.sha256:
            return State("stale", _difference(record.inputs, inputs))
        for path in record.artifacts:
            if not (self.folder.root / path).exists():
                return State("left", f"{path} is gone")
        return State("done")

    def kept(self, unit: Unit) -> frozenset[str]:
        """Items found from an earlier run of the unit that come out as they are there."""
        record, inputs = self.record(unit), self.inputs(unit)
        if record is None or inputs is None:
            return frozenset()
        return frozenset(
            item
            for item in record.inputs.in_common(inputs)
            if all(self._path(f) in record.artifacts and f.exists()
                   for f in files_of(self.folder, unit, item))
        )  # fmt: skip

    def files(self, unit: Unit) -> dict[str, Path]:
        """Every artifact of a unit by its path inside the folder."""
        inputs = self.inputs(unit)
        assert inputs is not None
        found = [f for item in inputs.items for f in files_of(self.folder, unit, item)]
        return {self._path(file): file for file in found}

    def inputs(self, unit: Unit) -> Inputs | None:
        """What the unit would be made from now; None while a unit that it needs has no record."""
        needed = [self.record(one) for one in self.needs(unit)]
        if any(record is None for record in needed):
            return None
        hashes = {path: sha for r in needed if r is not None for path, sha in r.artifacts.items()}
        settings = self.settings(unit)
        if unit.kind == "rows":
            assert unit.spot is not None
            reads = self._read_by_rows(unit, unit.spot)
            if not all(path in hashes for path in reads):
                return None  # records from before something grew
            return Inputs(settings, {path: hashes[path] for path in reads}, {unit.spot.name: ""})
        if unit.kind == "loss":
            return Inputs(settings, {}, {"model": ""})
        if unit.kind == "streams":
            return Inputs(settings, {}, dict.fromkeys(self._stream_items(unit), ""))
        groups = self.spots(unit)
        if unit.kind == "pilots":
            by_fvu = [spot for spot in groups if spot.k_rule == "fvu"]
            found = {spot.name: self._stream_digest(unit, spot, hashes) for spot in by_fvu}
            return Inputs(settings, {}, found)
        pilots = Unit(unit.model, unit.control, "pilots")
        if not all(f.exists() for s in groups if s.k_rule == "fvu"
                   for f in files_of(self.folder, pilots, s.name)):  # fmt: skip
            return None
        items = {
            item: self._stream_digest(unit, spot, hashes)
            for spot in groups
            for item in self.sae_items(unit, spot)
        }
        return Inputs(settings, {}, items)

    def k_of(self, unit: Unit, spot: Spot) -> dict[str, Any]:
        """`k` of a spot, and what its pilots found; a fixed k shows what the rule changes."""
        if spot.k_rule != "fvu":
            k = fixed_k(self.config, spot.k_rule, self.sources.models[unit.model].d_model)
            return {"ks": [], "fvus": [], "k": k, "reached": False}
        [file] = files_of(self.folder, Unit(unit.model, unit.control, "pilots"), spot.name)
        return json.loads(file.read_text())

    def sae_items(self, unit: Unit, spot: Spot) -> dict[str, Any]:
        """The SAEs of a spot: their configs by item.

        Two rules that agree on k share them, trained for as long as the longer of the two asks.
        """
        k = self.k_of(unit, spot)["k"]
        sharing = [one for one in self._of_same_kind(unit, spot) if self.k_of(unit, one)["k"] == k]
        longest = max([spot, *sharing], key=lambda one: sae_tokens(self.config, one))
        d_model = self.sources.models[unit.model].d_model
        return {
            f"{spot.stream}/{one.name}/{role}": one
            for role, group in seed_configs(self.config, d_model, longest, k).items()
            for one in group
        }

    def _of_same_kind(self, unit: Unit, spot: Spot) -> list[Spot]:
        """The part's spots with dictionaries of this kind in this place, where k is known."""
        pilots = Unit(unit.model, unit.control, "pilots")
        return [
            one
            for one in self.spots(unit)
            if (one.stream, one.size(0)) == (spot.stream, spot.size(0))
            and (one.k_rule != "fvu"
                 or all(f.exists() for f in files_of(self.folder, pilots, one.name)))
        ]  # fmt: skip

    def work(self, unit: Unit) -> float:
        """Relative cost of a unit, about seconds, for the progress line."""
        config, d_model = self.config, self.sources.models[unit.model].d_model
        if unit.kind == "loss":
            return 2e-5 * config.loss_tokens
        if unit.kind == "streams":
            return 2e-6 * config.means_tokens * (1 + (unit.control == GAUSSIAN))
        if unit.spot is not None:
            tokens = config.held_out_tokens * config.n_seeds * (1 + config.check_convergence)
            return 8 * tokens * sae_cost(d_model, unit.spot.d_sae)
        groups = self.spots(unit)
        if unit.kind == "pilots":
            n_pilots = len(pilot_ks(config, d_model))
            costs = {s: sae_cost(d_model, s.d_sae) for s in groups if s.k_rule == "fvu"}
            confirming = sum(
                3 * config.sae_tokens * cost
                for spot, cost in costs.items()
                if config.confirm_k and spot.headline
            )
            return n_pilots * config.pilot_tokens * sum(costs.values()) + confirming
        share = config.n_seeds * (1.5 if config.check_convergence else 1.0)
        return share * sum(sae_tokens(config, s) * sae_cost(d_model, s.d_sae) for s in groups)

    def _part(self, model: str, control: str, with_saes: bool) -> Iterator[Unit]:
        yield Unit(model, control, "loss")
        if not with_saes:
            return
        saes = Unit(model, control, "saes")
        yield from self.needs(saes)
        yield saes
        for spot in self.spots(saes):
            yield Unit(model, control, "rows", spot)

    def settings(self, unit: Unit) -> dict[str, Any]:
        """Versions, code, text and model, and those fields of the config that the unit reads.

        A twin has nothing of its model but the config.
        """
        source = self.sources.models[unit.model]
        fields = {
            "loss": ("loss_tokens",),
            "streams": ("means_tokens", "chunk_tokens"),
            "pilots": ("pilot_tokens", "pilot_ks", "target_fvu", "held_out_tokens", "chunk_tokens",
                       "confirm_k"),
            "saes": ("sae_tokens", "primary_sae_tokens", "check_convergence", "chunk_tokens"),
            "rows": ("sae_tokens", "primary_sae_tokens", "target_fvu", "held_out_tokens",
                     "splice_tokens"),
        }[unit.kind]  # fmt: skip
        if unit.kind == "pilots" and self.config.confirm_k:
            fields += ("sae_tokens",)
        found: dict[str, Any] = dict(
            provenance(self.sources.text_sha256, counting=unit.kind == "rows")
        )
        found["config_sha256"] = source.config_sha256
        found["tokenizer_sha256"] = source.tokenizer_sha256
        if unit.control != TWIN:
            found["weights_sha256"] = source.weights_sha256
        found |= {field: getattr(self.config, field) for field in ("seed", "threads", *fields)}
        # Not named otherwise: records from before there was a choice have these.
        if self.config.device != "cpu":
            found["device"] = self.config.device
        if self.config.min_seeds != MIN_SEEDS and unit.kind == "rows":
            found["min_seeds"] = self.config.min_seeds
        if self.config.encoder_dtype != "float32" and unit.kind in ("pilots", "saes"):
            found["encoder_dtype"] = self.config.encoder_dtype
        if unit.kind in ("streams", "pilots", "saes"):
            # Which tokens count as sinks depends on all layers read at once.
            found["streams"] = list(dict.fromkeys(spot.stream for spot in self.spots(unit)))
        # A text is cut where the longest reader stops, and a cut document shuffles otherwise.
        if unit.kind in ("pilots", "saes") or (unit.kind, unit.control) == ("streams", SHUFFLED):
            found["longest_tokens"] = longest_budget(self.config)
        return json.loads(json.dumps(found))  # as a record has them when it is read again

    def _stream_items(self, unit: Unit) -> list[str]:
        """The files behind the streams of a part, by name."""
        groups = self.spots(unit)
        layers = sorted({spot.layer for spot in groups if spot.about == "contextual"})
        found = [f"means.{layer}" for layer in layers]
        if unit.control == GAUSSIAN:
            found += [f"moments.{stream}" for stream in dict.fromkeys(s.stream for s in groups)]
        return found

    def _stream_files(self, unit: Unit, spot: Spot) -> list[str]:
        streams = Unit(unit.model, unit.control, "streams")
        items = [f"means.{spot.layer}"] * (spot.about == "contextual")
        items += [f"moments.{spot.stream}"] * (unit.control == GAUSSIAN)
        return [self._path(f) for item in items for f in files_of(self.folder, streams, item)]

    def _stream_digest(self, unit: Unit, spot: Spot, hashes: Mapping[str, str]) -> str:
        return digest_of({path: hashes.get(path, "") for path in self._stream_files(unit, spot)})

    def _read_by_rows(self, unit: Unit, spot: Spot) -> list[str]:
        found = self._stream_files(unit, spot)
        if spot.k_rule == "fvu":
            pilots = Unit(unit.model, unit.control, "pilots")
            files = files_of(self.folder, pilots, spot.name)
            if not all(file.exists() for file in files):
                return ["-"]
            found += map(self._path, files)
        saes = Unit(unit.model, unit.control, "saes")
        for item in self.sae_items(unit, spot):
            found += map(self._path, files_of(self.folder, saes, item))
        return found

    def _path(self, file: Path) -> str:
        return file.relative_to(self.folder.root).as_posix()


def parts_of(config: StudyConfig) -> Iterator[tuple[str, str, bool]]:
    """(model, control, whether it gets SAEs) of everything a study measures, in order."""
    for name in config.loss_only_models:
        yield name, TRAINED, False
    among = dict(zip(CONTROLS, (config.twins, config.shuffled, config.gaussian), strict=True))
    for name in config.models:
        yield name, TRAINED, True
        for control, models in among.items():
            if name in models:
                yield name, control, True


def _is_other(file: Path, sha256: str) -> bool:
    """Whether a file is there, and with another content."""
    try:
        return durable.sha256(file) != sha256
    except FileNotFoundError:
        return False


def _difference(before: Inputs, now: Inputs) -> str:
    """In words, where the settings are the same."""
    for path in sorted(before.reads.keys() | now.reads.keys()):
        old, new = before.reads.get(path), now.reads.get(path)
        if old != new:
            return f"{path} was {short(old)}, now it is {short(new)}"
    more, fewer = now.items.keys() - before.items.keys(), before.items.keys() - now.items.keys()
    others = {i for i, of in now.items.items() if before.items.get(i, of) != of}
    counts = ((len(more), "more"), (len(fewer), "fewer"), (len(others), "from other streams"))
    return ", ".join(f"{n} {what}" for n, what in counts if n)


def short(value: Any) -> str:
    """A version or a number whole, a hash by its first digits."""
    if value is None:
        return "not there"
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _error(failure: Path) -> str:
    try:
        return json.loads(failure.read_text())["error"]
    except (OSError, ValueError, KeyError):
        return "its record cannot be read"
