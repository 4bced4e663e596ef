"""Checkpoints of a run: one safetensors file per SAE, written atomically, resumed bit for bit.

SAEs do not influence one another, so each file stands alone: after a kill every SAE continues from
its own last chunk boundary. A file holds weights, optimizer moments, step count, dead-latent
counters, pending rows and the stream cursor; shuffles follow from seed and cursor, so there is no
other random state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saes.config import SAEConfig
from saes.durable import make_folder, whole
from saes.errors import SAEError
from saes.member import Member
from saes.steps import new_step

CONFIGS_NAME = "configs.json"
PREFIX = "sae-"


def claim(folder: Path, configs: list[SAEConfig]) -> None:
    """Make `folder` the checkpoint folder of exactly these configs.

    Raises SAEError, naming the first difference, where it belongs to others.
    """
    ours: list[dict[str, Any]] = [config.model_dump(mode="json") for config in configs]
    path = folder / CONFIGS_NAME
    # Before the first checkpoint there is nothing that other settings could spoil.
    if path.exists() and has_any(folder):
        try:
            theirs = _with_defaults(json.loads(path.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise SAEError(
                f"{path}: damaged ({error}); delete {folder} to train these SAEs again"
            ) from None
        if theirs != ours:
            raise SAEError(
                f"{folder} holds checkpoints of other settings ({_difference(theirs, ours)}); "
                "use those settings or another folder"
            )
        return
    make_folder(folder)
    with whole(path) as partial:
        partial.write_text(json.dumps(ours, indent=1))


def has_any(folder: Path) -> bool:
    """Whether some SAE's state is there."""
    return any(folder.glob(f"{PREFIX}*.safetensors"))


def write(folder: Path, number: int, member: Member) -> None:
    """Save member `number`; the previous file stays valid until the new one is complete."""
    if member.step is None:
        return
    record = {
        "cursor": member.cursor,
        "tokens_done": member.tokens_done,
        "n_steps": member.step.n_steps,
        "scale": member.scale,
        "row_variance": member.row_variance,
        "fvu": member.fvu,
        "fingerprint": member.fingerprint,
        "stopped_early": member.stopped_early,
        "computed_by": sorted(member.paths),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in member.step.state().items()
    }
    tensors["pending"] = member.pending.cpu().contiguous()
    path = _path(folder, number)
    with whole(path) as partial:
        save_file(tensors, partial, metadata={"record": json.dumps(record)})


def read(folder: Path, number: int, member: Member) -> None:
    """Put member `number` back where its checkpoint was written, on the CPU; no file, no change.

    Raises SAEError for a damaged file.
    """
    path = _path(folder, number)
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SAEError(
            f"{path}: damaged checkpoint ({error}); delete it to train this SAE again"
        ) from None
    config = member.config
    origin = torch.zeros(config.d_in)
    member.step = new_step(config, origin, generator=torch.Generator())
    member.step.load_state(tensors, record["n_steps"])
    member.pending = tensors["pending"]
    member.cursor = record["cursor"]
    member.tokens_done = record["tokens_done"]
    member.scale = record["scale"]
    member.row_variance = record.get("row_variance", float(config.d_in))
    member.fvu = record["fvu"]
    member.fingerprint = record["fingerprint"]
    member.stopped_early = record["stopped_early"]
    member.paths = set(record.get("computed_by", ["cpu"]))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:04d}.safetensors"


def _with_defaults(configs: Any) -> Any:
    """Configs written before a field existed had its default."""
    try:
        return [SAEConfig(**config).model_dump(mode="json") for config in configs]
    except (SAEError, TypeError):
        return configs


def _difference(theirs: Any, ours: list[dict[str, Any]]) -> str:
    """The first disagreement of two lists of configs, in words."""
    if not isinstance(theirs, list) or len(theirs) != len(ours):
        return f"{len(theirs)} SAEs there, {len(ours)} here"
    for number, (there, here) in enumerate(zip(theirs, ours, strict=True)):
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                return f"SAE {number}: {key} {there.get(key)!r} there, {here.get(key)!r} here"
    return "unknown difference"
