"""The token and position means that a contextual SAE's stream lacks, and where they lie."""

from __future__ import annotations

import json
from pathlib import Path

from interp.contextual import ContextualMeans
from interp.errors import UserError
from interp.hook_points import parse
from interp.models import Model
from interp.run import CONTEXTUAL, CONTROLS, folder_name
from saes.format import CONFIG_NAME, hook_name

BESIDE = "means.safetensors"
"""Of a published SAE: in the folder above its own."""


def of_contextual_stream(path: Path) -> bool:
    """Whether the SAE reads the stream less its means, as a study or `interp push` has noted it."""
    noted = json.loads((path / CONFIG_NAME).read_text("utf-8")).get("metadata") or {}
    return (hook_name(path) or "").endswith(CONTEXTUAL) or noted.get("stream") == "contextual"


def means_for(path: Path, model: Model, hook_point: str, given: Path | None) -> ContextualMeans:
    """Of the file `given`, or of the one that lies where a study or `interp push` put it.

    Raises UserError where there is none, and for means of another model.
    """
    file = given or next((f for f in _places(path, hook_point) if f.is_file()), None)
    if file is None:
        raise UserError(
            f"{path}: reads the contextual stream, and the token and position means that were "
            "taken off are not beside it; give their file with --means"
        )
    means = ContextualMeans.load(file)
    held = means.token_mean.shape[0], means.pos_mean.shape[0], means.mean.shape[0]
    if held[0] < model.d_vocab or held[1] < model.n_ctx or held[2] != model.d_model:
        raise UserError(
            f"{file}: means of {held[0]} tokens and {held[1]} positions of width {held[2]}; "
            f"{model.name} has {model.d_vocab}, {model.n_ctx} and {model.d_model}"
        )
    return means.to(model.device)


def refuse_control(path: Path) -> None:
    """Raises UserError for an SAE that a study trained on a control: no name gives that model."""
    folder = path.absolute().parent.parent.name
    control = next((c for c in CONTROLS if folder == folder_name(folder[: -len(c) - 1], c)), None)
    if control is not None:
        raise UserError(
            f"{path}: was trained on a control ({control}), not on a model; the study's "
            "results.parquet says what it reconstructs"
        )


def _places(path: Path, hook_point: str) -> list[Path]:
    stream = path.absolute().parent
    saes = stream.parent.parent
    name = f"means.{parse(hook_point).layer}.safetensors"
    return [stream / BESIDE, saes.parent / "work" / stream.parent.name / name]
