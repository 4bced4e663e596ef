"""The stream that an SAE reads, and the token and position means that a contextual one lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.contextual import ContextualMeans
from interp.errors import UserError
from interp.hook_points import HookPoint, parse
from interp.models import Model
from interp.run import CONTEXTUAL, CONTROLS, SHUFFLED, TRAINED, folder_name
from saes.format import CONFIG_NAME, hook_name

BESIDE = "means.safetensors"
"""Of a published SAE: in the folder above its own."""


def stream_of(path: Path, hook_point: str | None = None) -> tuple[HookPoint, bool]:
    """(hook point, whether its means were taken off) of an SAE, by its file or by `hook_point`.

    Raises UserError where neither says a hook point, and where they contradict each other.
    """
    own = hook_name(path)
    if own is None and hook_point is None:
        raise UserError(f"{path}: says no hook point; give --hook-point")
    told = own or ""
    contextual = told.endswith(CONTEXTUAL) or _noted(path).get("stream") == "contextual"
    if hook_point is None:
        return parse(told.removesuffix(CONTEXTUAL)), contextual
    asked = parse(hook_point.removesuffix(CONTEXTUAL))
    asked_contextual = hook_point.endswith(CONTEXTUAL)
    if own is None:
        return asked, asked_contextual
    if _differ(told.removesuffix(CONTEXTUAL), asked) or (asked_contextual and not contextual):
        raise UserError(
            f"{path}: reads {told} by its file, not {hook_point}; leave out --hook-point"
        )
    return asked, contextual


def means_for(
    path: Path, model: Model, hook_point: HookPoint, given: Path | None
) -> ContextualMeans:
    """Of the file `given`, or of the one that lies where a study or `interp push` put it.

    Raises UserError where there is none, and for means of another shape than the model's.
    """
    file = given or next((f for f in _places(path, hook_point) if f.is_file()), None)
    if file is None:
        raise UserError(
            f"{path}: reads the contextual stream, and the token and position means that were "
            "taken off are not beside it; give their file with --means"
        )
    try:
        means = ContextualMeans.load(file)
    except UserError:
        raise UserError(
            f"{file}: holds no token and position means; give a study's "
            f"work/MODEL/means.{hook_point.layer}.safetensors"
        ) from None
    held = means.token_mean.shape[0], means.pos_mean.shape[0], means.mean.shape[0]
    if held != (model.d_vocab, model.n_ctx, model.d_model):
        raise UserError(
            f"{file}: means of {held[0]} tokens and {held[1]} positions of width {held[2]}; "
            f"{model.name} has {model.d_vocab}, {model.n_ctx} and {model.d_model}"
        )
    return means.to(model.device)


def refuse_control(path: Path) -> None:
    """Raises UserError for an SAE that a study trained on a control: what that read is not here."""
    folder = path.resolve().parent.parent.name
    by_folder = next((c for c in CONTROLS if folder == folder_name(folder[: -len(c) - 1], c)), None)
    control = _noted(path).get("control") or by_folder or TRAINED
    if control == TRAINED:
        return
    read = "the model on shuffled tokens" if control == SHUFFLED else "no trained model"
    raise UserError(
        f"{path}: was trained on a control ({control}), so on {read}; the study's results.parquet "
        "says what it reconstructs"
    )


def _noted(path: Path) -> dict[str, Any]:
    """What a study or `interp push` has written beside the hook point."""
    return json.loads((path / CONFIG_NAME).read_text("utf-8")).get("metadata") or {}


def _differ(own: str, asked: HookPoint) -> bool:
    """Whether a file's hook point is another; a name of some other library says nothing."""
    try:
        return parse(own) != asked
    except UserError:
        return False


def _places(path: Path, hook_point: HookPoint) -> list[Path]:
    found = []
    for stream in (path.resolve().parent, path.absolute().parent):  # links may lead to either
        study = stream.parent.parent.parent
        name = f"means.{hook_point.layer}.safetensors"
        found += [stream / BESIDE, study / "work" / stream.parent.name / name]
    return found
