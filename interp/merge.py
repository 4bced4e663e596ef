"""One study from several of different models: tables in, tables out, nothing measured again.

For a family measured on machines that share no folder, or in sittings with nothing kept between
them but the tables. What a model's rows are does not depend on its companions, so the merged tables
are those of one study of all its models; fits and tests are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp import durable
from interp.config import StudyConfig
from interp.errors import UserError
from interp.results import Measured, write_results
from interp.run import NO_RESULT, Run, is_merged, open_run

OF_MODELS = ("models", "twins", "shuffled", "gaussian", "loss_only_models")
"""Fields that name models; the merged study has those of all."""
OF_A_MACHINE = ("threads", "device", *NO_RESULT)
"""Fields that may differ: results agree within their intervals, and the summary tells of it."""


@dataclass(frozen=True)
class _Part:
    """One of the studies to merge."""

    run: Run
    facts: list[dict[str, Any]]
    manifest: dict[str, Any]
    counted: frozenset[str]
    """Models whose features were counted; the others have a loss alone."""


def merge(folders: Sequence[str | Path], out: str | Path, *, command: str | None = None) -> Run:
    """Write into `out` the study of all models that the studies in `folders` measured.

    They must agree in settings, text, code and versions, and no model may have been counted in two
    of them; a loss measured in several is taken once. SAEs stay where they are. `out` may be new,
    empty or an earlier merge. Raises UserError otherwise, and nothing is written then.
    """
    out = Path(out)
    parts = [_read(Path(folder)) for folder in folders]
    if len(parts) < 2:
        raise UserError("one study is nothing to merge; name two or more")
    _require_alike(parts)
    homes = _homes(parts)
    _require_room(out, parts)
    mine = [(part, {name for name, home in homes.items() if home is part}) for part in parts]
    measured = Measured(
        config=_config(parts),
        rows=pd.concat(
            [part.run.results[part.run.results["model"].isin(names)] for part, names in mine]
        ),
        facts=[fact for part, names in mine for fact in part.facts if fact["name"] in names],
        overlap=_overlap(mine),
        manifest=_manifest(parts),
        failures=[
            one for part, names in mine for one in part.run.failures if one["model"] in names
        ],
    )
    durable.make_folder(out)
    with durable.only_writer(out):
        command = command or f"interp merge {' '.join(map(str, folders))} --out {out}"
        write_results(out, measured, command)
    return open_run(out)


def _read(folder: Path) -> _Part:
    run = open_run(folder)
    found = []
    for name in ("models.json", "manifest.json"):
        try:
            found.append(json.loads((folder / name).read_text()))
        except (OSError, ValueError):
            raise UserError(
                f"{folder} has no {name} that can be read; run its study's line again"
            ) from None
    facts, manifest = found
    rows = run.results
    return _Part(run, facts, manifest, frozenset(rows.loc[rows["d_sae"].notna(), "model"]))


def _require_alike(parts: Sequence[_Part]) -> None:
    first = parts[0]
    free = {*OF_MODELS, *OF_A_MACHINE}
    for part in parts[1:]:
        for name in StudyConfig.model_fields:
            here, there = getattr(first.run.config, name), getattr(part.run.config, name)
            if name not in free and here != there:
                raise UserError(
                    f"{part.run.path} is another study than {first.run.path} ({name} is {there!r} "
                    f"there, {here!r} here); only studies that differ in their models can be merged"
                )
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    for part in parts:
        for fact in part.facts:
            where, like = known.setdefault(fact["name"], (part.run.path, fact))
            if fact["weights_sha256"] != like["weights_sha256"]:
                raise UserError(
                    f"{fact['name']} has other weights in {part.run.path} than in {where}; "
                    "measure one of them again with the same files"
                )
            _require_same_provenance(first, part, fact)


def _require_same_provenance(first: _Part, part: _Part, fact: Mapping[str, Any]) -> None:
    ours = first.facts[0]["provenance"]
    for name in sorted({*ours, *fact["provenance"]}):
        here, there = ours.get(name), fact["provenance"].get(name)
        if here != there:
            what = name.replace("_sha256", "")
            raise UserError(
                f"{fact['name']} in {part.run.path} was measured with other {what} than "
                f"{first.run.path} ({there} and {here}); measure one of them again"
            )


def _homes(parts: Sequence[_Part]) -> dict[str, _Part]:
    """Whose rows of a model are taken: those of the part that counted it, or else of the first."""
    homes: dict[str, _Part] = {}
    for part in parts:
        for name in sorted(part.counted):
            if name in homes:
                raise UserError(
                    f"{name} was counted in {homes[name].run.path} and in {part.run.path}; "
                    "merge studies of different models"
                )
            homes[name] = part
    for part in parts:
        for fact in part.facts:
            homes.setdefault(fact["name"], part)
    return homes


def _require_room(out: Path, parts: Sequence[_Part]) -> None:
    if any(out.resolve() == part.run.path.resolve() for part in parts):
        raise UserError(f"{out} is one of the studies to merge; choose another --out")
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or is_merged(out))):
        return
    raise UserError(f"{out} exists and holds no merged study; choose another --out or empty it")


def _config(parts: Sequence[_Part]) -> StudyConfig:
    configs = [part.run.config for part in parts]
    names = {
        # In the order of the parts, each once.
        field: tuple(dict.fromkeys(name for config in configs for name in getattr(config, field)))
        for field in OF_MODELS
    }
    counted = names["models"]
    names["loss_only_models"] = tuple(n for n in names["loss_only_models"] if n not in counted)
    return configs[0].model_copy(update=names)


def _overlap(mine: Sequence[tuple[_Part, set[str]]]) -> dict[str, list[dict[str, Any]]]:
    """As each study took it from its SAEs, the smaller models first."""
    width = {fact["name"]: fact["d_model"] for part, _ in mine for fact in part.facts}
    return {
        kind: sorted(
            (
                one
                for part, names in mine
                for one in part.run.summary.get("overlap", {}).get(kind, [])
                if one["model"] in names
            ),
            key=lambda one: (width[one["model"]], one["model"]),
        )
        for kind in ("dictionaries", "heads")
    }


def _manifest(parts: Sequence[_Part]) -> dict[str, Any]:
    manifests = [part.manifest for part in parts]
    merged = dict(manifests[0])
    merged.pop("cpu", None)  # of the last sitting, of which there are several
    for key in ("weights_sha256", "parity_error", "tokens_sha256", "units"):
        merged[key] = {name: of for one in manifests for name, of in one[key].items()}
    for key in ("processors", "text_warnings"):
        merged[key] = sorted({text for one in manifests for text in one.get(key, [])})
    merged["wall_time_seconds"] = round(sum(one["wall_time_seconds"] for one in manifests), 1)
    merged["peak_memory_bytes"] = max(one["peak_memory_bytes"] for one in manifests)
    merged["merged_from"] = [from_ for part in parts for from_ in _origin(part)]
    return merged


def _origin(part: _Part) -> list[dict[str, Any]]:
    """What was merged, itself where it was measured, or what it was merged from."""
    if "merged_from" in part.manifest:
        return list(part.manifest["merged_from"])
    return [
        {
            "command": part.run.summary["command"],
            "models": [fact["name"] for fact in part.facts if fact["name"] in part.counted],
            "wall_time_seconds": part.manifest["wall_time_seconds"],
        }
    ]
