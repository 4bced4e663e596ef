"""One study from several of different models: tables in, tables out, nothing measured again.

For a family measured on machines that share no folder, or in sittings with nothing kept between
them but the tables. What a model's rows are does not depend on its companions, so the merged tables
are those of one study of all its models; fits and tests are made anew.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp import durable
from interp.config import StudyConfig
from interp.errors import UserError
from interp.results import Measured, write_results
from interp.run import CONTROLS, NO_RESULT, TRAINED, Run, folder_name, is_merged, open_run

OF_MODELS = ("models", "twins", "shuffled", "gaussian", "loss_only_models")
"""Fields that name models; the merged study has those of all."""
NAMES = ("preset", "family")
"""Fields that name the study. Each model keeps the family that it was measured in."""
OF_A_MACHINE = ("threads", "device", *NO_RESULT)
"""Fields that may differ: results agree within their intervals. The summary tells of threads and
device."""
_OF_FACT = ("name", "family", "arm", "d_model", "n_layers", "n_params", "train_tokens", "warnings",
            "loss_nats_per_token", "loss_nats_per_byte", "loss_ci_nats_per_token",
            "loss_ci_nats_per_byte", "parity_error", "weights_sha256", "tokens_sha256")  # fmt: skip
_OF_MANIFEST: dict[str, Any] = {
    "code_sha256": str, "text_sha256": str, "text_warnings": list, "versions": dict,
    "weights_sha256": dict, "parity_error": dict, "tokens_sha256": dict, "units": dict,
    "processors": list, "platform": str, "wall_time_seconds": (int, float),
    "peak_memory_bytes": int,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """One of the studies to merge."""

    run: Run
    facts: dict[str, dict[str, Any]]
    """By model."""
    manifest: dict[str, Any]
    counted: frozenset[str]
    """Models whose features were counted; the others have a loss alone."""

    @property
    def path(self) -> Path:
        return self.run.path


def merge(folders: Sequence[str | Path], out: str | Path) -> Run:
    """Write into `out` the study of all models that the studies in `folders` measured.

    They must agree in settings, text, code and versions, and no model may have been counted in two
    of them; a loss measured in several is taken once. SAEs stay where they are. `out` may be new or
    empty, or hold a merge of some of these models, which is replaced: whole, or not at all.
    Raises UserError otherwise.
    """
    out = Path(out)
    if len(folders) < 2:
        raise UserError("one study is nothing to merge; name two or more")
    parts = [_read(Path(folder)) for folder in folders]
    _require_alike(parts)
    homes = _homes(parts)
    with ExitStack() as held:
        if out.is_dir():
            held.enter_context(durable.only_writer(out))
        _require_room(out, parts, homes)
        command = shlex.join(["interp", "merge", *map(str, folders), "--out", str(out)])
        with durable.whole_folder(out) as fresh:
            write_results(fresh, _merged(parts, homes), command)
    return open_run(out)


def _read(folder: Path) -> _Part:
    """Raises UserError for anything that a finished study's folder does not hold."""
    run = open_run(folder)
    if durable.is_held(folder):
        raise UserError(f"{folder}: a process is writing there; wait for it")
    facts = _json(folder, "models.json", list)
    manifest = _json(folder, "manifest.json", dict)
    summary = _json(folder, "summary.json", dict)
    try:
        rows = run.results
        counted = rows.loc[rows["d_sae"].notna() & (rows["control"] == TRAINED), "model"]
    except (OSError, ValueError) as error:
        raise _damaged(folder, "results.parquet", "cannot be read") from error
    except KeyError as error:
        raise _damaged(folder, "results.parquet", f"has no column {error}") from error
    for fact in facts:
        for key in _OF_FACT:
            if not isinstance(fact, dict) or key not in fact:
                raise _damaged(folder, "models.json", f"has a model without {key}")
    for key, kind in _OF_MANIFEST.items():
        if not isinstance(manifest.get(key), kind):
            raise _damaged(folder, "manifest.json", f"has no {key} of the kind expected")
    if not isinstance(summary.get("command"), str):
        raise _damaged(folder, "summary.json", "has no command")
    by_name = {fact["name"]: fact for fact in facts}
    if unknown := sorted(set(rows["model"]) - by_name.keys()):
        raise _damaged(folder, "models.json", f"does not know {unknown[0]}")
    return _Part(run, by_name, manifest, frozenset(counted))


def _json(folder: Path, name: str, kind: type) -> Any:
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, name, "cannot be read") from error
    if not isinstance(found, kind) or not found:
        raise _damaged(folder, name, "holds something else than a study's")
    return found


def _damaged(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{folder / name} {what}; have the study's own line, or its merge, write the tables again"
    )


def _require_alike(parts: Sequence[_Part]) -> None:
    """Raise UserError where results of two studies do not belong into one table."""
    first = parts[0]
    free = {*OF_MODELS, *NAMES, *OF_A_MACHINE}
    for part in parts[1:]:
        for name in StudyConfig.model_fields:
            here, there = getattr(first.run.config, name), getattr(part.run.config, name)
            if name not in free and here != there:
                raise UserError(
                    f"{part.path} is another study than {first.path} ({name} is {there!r} there, "
                    f"{here!r} here); only studies that differ in their models can be merged"
                )
        ours, theirs = _depends_on(first), _depends_on(part)
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"{part.path} was measured with other {name} than {first.path} "
                    f"({theirs.get(name)} there, {ours.get(name)} here); measure one of them again"
                )
    _require_known_models(parts)


def _depends_on(part: _Part) -> dict[str, str]:
    """What every result of a study rests on, beside its config and models.

    Python's own version is left out: nothing is computed with it.
    """
    manifest = part.manifest
    return {
        "code": manifest["code_sha256"],
        "text": manifest["text_sha256"],
        **{name: of for name, of in manifest["versions"].items() if name != "python"},
    }


def _require_known_models(parts: Sequence[_Part]) -> None:
    """One name, one model; one model, one name."""
    by_name: dict[str, _Part] = {}
    by_weights: dict[str, str] = {}
    for part in parts:
        for name, fact in part.facts.items():
            other = by_name.setdefault(name, part)
            if fact["weights_sha256"] != other.facts[name]["weights_sha256"]:
                raise UserError(
                    f"{name} is another model in {part.path} than in {other.path}; measure one of "
                    "them again under another name, or with the other's files"
                )
            if fact["tokens_sha256"] != other.facts[name]["tokens_sha256"]:
                raise UserError(
                    f"{name} read other tokens in {part.path} than in {other.path}, so it has "
                    "another tokenizer there; measure one of them again with the other's files"
                )
            known_as = by_weights.setdefault(fact["weights_sha256"], name)
            if known_as != name:
                raise UserError(
                    f"{name} in {part.path} has the weights of {known_as}; leave out one of the "
                    "two, or measure it again under the other's name"
                )


def _homes(parts: Sequence[_Part]) -> dict[str, _Part]:
    """Whose rows of a model are taken, by model.

    Those of the part that counted it, or else of the first that was to, or else of the first that
    has its loss.
    """
    homes: dict[str, _Part] = {}
    for part in parts:
        for name in sorted(part.counted):
            if name in homes:
                raise UserError(
                    f"{name} was counted in {homes[name].path} and in {part.path}; merge studies "
                    "of different models"
                )
            homes[name] = part
    for part in parts:
        for name in part.run.config.models:
            homes.setdefault(name, part)
    for part in parts:
        for name in (*part.facts, *part.run.config.loss_only_models):
            homes.setdefault(name, part)
    return homes


def _require_room(out: Path, parts: Sequence[_Part], homes: Mapping[str, _Part]) -> None:
    place = out.resolve()
    for part in parts:
        held = part.path.resolve()
        if place.is_relative_to(held) or held.is_relative_to(place):
            raise UserError(f"{out}: {part.path} is to be merged; choose an --out apart from it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_merged(out):
        raise UserError(f"{out} exists and holds no merged study; choose another --out or empty it")
    if lost := sorted(set(_read_names(out)) - homes.keys()):
        raise UserError(
            f"{out} holds a merged study with {lost[0]}, which is not in this one; choose another "
            "--out, or merge that one in"
        )


def _read_names(merged: Path) -> list[str]:
    return [str(one.get("name")) for one in _json(merged, "models.json", list)]


def _merged(parts: Sequence[_Part], homes: Mapping[str, _Part]) -> Measured:
    facts = sorted(
        (home.facts[name] for name, home in homes.items() if name in home.facts),
        key=lambda fact: (fact["d_model"], fact["name"]),
    )
    config = _config(parts, {fact["name"]: fact["d_model"] for fact in facts})
    mine = [(part, {name for name, home in homes.items() if home is part}) for part in parts]
    return Measured(
        config=config,
        rows=pd.concat(
            [part.run.results[part.run.results["model"].isin(names)] for part, names in mine]
        ),
        facts=facts,
        overlap=_overlap(mine, config, [fact["name"] for fact in facts]),
        manifest=_manifest(mine),
        failures=[
            one for part, names in mine for one in part.run.failures if one["model"] in names
        ],
    )


def _config(parts: Sequence[_Part], widths: Mapping[str, int]) -> StudyConfig:
    """That of the first, with the models of all in increasing size."""
    configs = [part.run.config for part in parts]
    changed: dict[str, Any] = {}
    for field in OF_MODELS:
        named = dict.fromkeys(name for config in configs for name in getattr(config, field))
        changed[field] = tuple(sorted(named, key=lambda name: widths.get(name, 1 << 60)))
    counted = set(changed["models"])
    changed["loss_only_models"] = tuple(n for n in changed["loss_only_models"] if n not in counted)
    for field, several in zip(NAMES, ("merged", "custom"), strict=True):
        values = {getattr(config, field) for config in configs}
        changed[field] = values.pop() if len(values) == 1 else several
    return configs[0].model_copy(update=changed)


def _overlap(
    mine: Sequence[tuple[_Part, set[str]]], config: StudyConfig, names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """As each study took it from its SAEs, in the order of a study of all."""
    order = {"dictionaries": config.models, "heads": names}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, models in order.items():
        records = [
            one
            for part, kept in mine
            for one in part.run.summary.get("overlap", {}).get(kind, [])
            if one["model"] in kept
        ]
        found[kind] = [one for name in models for one in records if one["model"] == name]
    return found


def _manifest(mine: Sequence[tuple[_Part, set[str]]]) -> dict[str, Any]:
    """What is the same in all of the first, the rest of each model's own study."""
    manifests = [part.manifest for part, _ in mine]
    merged = dict(manifests[0])
    merged.pop("cpu", None)  # of a study's last sitting
    for key in ("weights_sha256", "parity_error", "tokens_sha256", "units"):
        merged[key] = {
            label: value
            for part, names in mine
            for label, value in part.manifest[key].items()
            if label.partition(": ")[0] in _labels(names)
        }
    for key in ("processors", "text_warnings"):
        merged[key] = sorted({text for one in manifests for text in one[key]})
    for key in ("threads", "device", "platform"):
        merged[key] = _all_of([one.get(key) for one in manifests])
    pythons = [one["versions"].get("python") for one in manifests]
    merged["versions"] = merged["versions"] | {"python": _all_of(pythons)}
    merged["wall_time_seconds"] = round(sum(one["wall_time_seconds"] for one in manifests), 1)
    merged["peak_memory_bytes"] = max(one["peak_memory_bytes"] for one in manifests)
    merged["merged_from"] = [origin for part, _ in mine for origin in _origins(part)]
    return merged


def _labels(names: set[str]) -> set[str]:
    return {folder_name(name, control) for name in names for control in (TRAINED, *CONTROLS)}


def _all_of(values: Sequence[Any]) -> Any:
    """The value, or every one there is."""
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = list(dict.fromkeys(flat))
    return found[0] if len(found) == 1 else found


def _origins(part: _Part) -> list[dict[str, Any]]:
    """What was measured: this study, or those that it was merged from."""
    if "merged_from" in part.manifest:
        return list(part.manifest["merged_from"])
    return [
        {
            "command": part.run.summary["command"],
            "models": [name for name in part.facts if name in part.counted],
            "wall_time_seconds": part.manifest["wall_time_seconds"],
        }
    ]
