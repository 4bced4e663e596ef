"""A study's folder: where each artifact lies, who owns it, and reading a finished one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import saes
from interp import durable
from interp.config import StudyConfig, read_config
from interp.errors import UserError
from interp.jupyter import Pictures, facts, pictures

CONFIG = "config.resolved.yaml"
CONTEXTUAL = ".contextual"
"""Ends the name of a stream whose token and position means were removed."""
TRAINED = "trained"
TWIN = "random_init"
SHUFFLED = "shuffled_tokens"
GAUSSIAN = "matched_gaussian"
CONTROLS = (TWIN, SHUFFLED, GAUSSIAN)
MAY_GROW = ("models", "twins", "shuffled", "gaussian", "loss_only_models", "n_seeds",
            "d_sae_per_d_model", "other_k_rules", "other_architectures")  # fmt: skip
"""More of these leave what was measured as it is, and add units of their own."""
NO_RESULT = ("executor", "address", "units_per_gpu", "max_memory_gb", "max_disk_gb", "max_hours")
"""Fields that say where and whether a study runs, not what comes out."""
HEADLINE_FIGURE = "packing_against_loss"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one study's folder. Everything is written beside its place, then moved there."""

    root: Path

    @property
    def under_way(self) -> Path:
        """The config of the last sitting, which may have grown since the results were written."""
        return self.root / "work" / CONFIG

    def claim(self, config: StudyConfig, *, redo: bool = False) -> StudyConfig:
        """Make the folder this study's, or confirm that it is. Returns the config it runs under.

        A run that is being resumed keeps the threads and device it began with, where `config`
        leaves them to the machine. The same study with more
        models or seeds is taken too: what is measured stays, and the caller writes the config with
        the results. With `redo` any other study is taken, and the folder is that study's from now.
        Raises UserError when the folder holds another study or someone else's files; nothing is
        written then.
        """
        path = self.root / CONFIG
        if is_merged(self.root):
            raise UserError(
                f"{self.root} was merged from other studies; run this one in another --out, then "
                "merge that with them"
            )
        if path.exists():
            held = read_config(path)
            asked = {"threads": config.threads, "device": config.device}
            left_open = [field for field, value in asked.items() if value in (0, "auto")]
            wanted = config.model_copy(update={name: getattr(held, name) for name in left_open})
            differing = [
                field
                for field in StudyConfig.model_fields
                if field not in NO_RESULT and getattr(held, field) != getattr(wanted, field)
            ]
            grown = [field for field in MAY_GROW if _grows(field, held, wanted)]
            if set(differing) <= {*grown, *(["preset"] if grown else [])}:
                return wanted
            if not redo:
                field = differing[0]
                raise UserError(
                    f"{self.root} holds another study ({field} is {getattr(held, field)!r} there, "
                    f"{getattr(wanted, field)!r} here); choose another --out, or make it this one, "
                    "doing again what depends on that, with --redo"
                )
            write_text(path, wanted.to_yaml())
            return wanted
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(
                f"{self.root} exists and holds no study; choose another --out or empty it"
            )
        resolved = config.resolved()
        durable.make_folder(self.root)
        write_text(path, resolved.to_yaml())
        return resolved

    def work(self, model: str, control: str) -> Path:
        """Folder of what one model's measurement has finished so far."""
        return self.root / "work" / folder_name(model, control)

    def sae(self, model: str, control: str, stream: str, name: str) -> Path:
        """Folder of one trained SAE, in sae-lens format."""
        return self.root / "saes" / folder_name(model, control) / stream / name


def _grows(field: str, held: StudyConfig, wanted: StudyConfig) -> bool:
    """Whether `wanted` has all that `held` has and more. The first size is where twins are."""
    old, new = getattr(held, field), getattr(wanted, field)
    if isinstance(old, int):
        return new > old
    return set(new) > set(old) and (field != "d_sae_per_d_model" or new[0] == old[0])


def is_merged(folder: Path) -> bool:
    """Whether a folder holds a study merged from others, which has no units of its own."""
    return "merged_from" in _manifest(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    """Empty where there is none that can be read."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def advice_without_saes(root: Path) -> str:
    """What to do where a study's SAEs, or the means they were trained without, are not there."""
    if is_merged(root):
        return "a merged study has none; give one of those that it was merged from"
    return "run the study again into a new folder"


def folder_name(model: str, control: str) -> str:
    """`ladder/d064` -> `ladder--d064`; its random twin `ladder--d064.random_init`."""
    base = model.strip("/").replace("/", "--").replace(os.sep, "--")
    return base if control == TRAINED else f"{base}.{control}"


def write_text(path: Path, text: str) -> None:
    """Atomically: the file is whole or not there. Raises UserError when the disk is full."""
    durable.write(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented, without NaN (ValueError if there is one)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Parquet, atomically."""
    durable.write(path, table.to_parquet(index=False))


def with_architectures(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows, those of SAEs that name no architecture as `topk`.

    A spot's rows name others alone, and tables from before there was a choice none.
    """
    named = rows.reindex(columns=[*rows.columns, *({"architecture"} - set(rows.columns))])
    unnamed = named["d_sae"].notna() & named["architecture"].isna()
    return named.assign(architecture=named["architecture"].astype(object).mask(unnamed, "topk"))


@dataclass(frozen=True)
class Run:
    """A finished study, read from its folder."""

    path: Path

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row = model x layer x hook point x dictionary x seed x quantity."""
        return with_architectures(pd.read_parquet(self.path / "results.parquet"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the report says, machine-readable."""
        return json.loads((self.path / "summary.json").read_text())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the results depend on beside the config; empty where none was kept."""
        return _manifest(self.path)

    @cached_property
    def config(self) -> StudyConfig:
        return read_config(self.path / CONFIG)

    @property
    def models(self) -> pd.DataFrame:
        """One row per model: sizes and losses."""
        return pd.DataFrame(self.summary["models"])

    @property
    def packing(self) -> pd.DataFrame:
        """One row per estimate; `controls` holds the twin's."""
        return pd.DataFrame(self.summary["packing"])

    @property
    def failures(self) -> list[dict[str, str]]:
        """What could not be measured and why: `model`, `control`, `unit`, `error`."""
        return self.summary.get("failures", [])

    @property
    def figures(self) -> Pictures:
        """The static figures (PNG), which Jupyter shows."""
        return Pictures(sorted((self.path / "figures").glob("*.png")))

    def saes(self, model: str, *, control: str = TRAINED) -> dict[str, saes.SAE]:
        """The kept SAEs of one model, by `hook point/name`. Empty where it has none."""
        from saes.format import sae_folders  # imports torch, which reading tables does not need

        folder = self.path / "saes" / folder_name(model, control)
        paths = sae_folders(folder) if folder.is_dir() else []
        return {str(path.relative_to(folder)): saes.load(path) for path in paths}

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}: {self.summary.get('preset')}, "
            f"{len(self.summary['models'])} models, {len(self.results):,} results)"
        )

    def _repr_html_(self) -> str:
        """The answer, its figure and the models."""
        columns = ["name", "d_model", "n_layers", "n_params", "loss_nats_per_token"]
        models = self.models[columns].to_html(
            index=False,
            border=0,
            formatters={"n_params": "{:,}".format, "loss_nats_per_token": "{:.4f}".format},
        )
        shown = [file for file in self.figures if file.stem == HEADLINE_FIGURE]
        answer = facts(str(self.path), {"answer": self.summary["headline"]})
        return answer + pictures(shown) + models


def open_run(path: str | Path) -> Run:
    """A finished study's folder. Raises UserError when there is none or it is not finished."""
    path = Path(path)
    for name in (CONFIG, "results.parquet", "summary.json"):
        if not (path / name).is_file():
            raise UserError(
                f"{path} has no {name}, so it is no finished study; "
                "run `interp study ... --out` with that folder to finish it"
            )
    return Run(path)
