"""A folder of trained SAEs: train into it, follow the run, resume it.

Beside the SAEs `stream.json` says what they saw, so that another stream is refused even where all
of them are finished and nothing would be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saes.checkpoint import has_any
from saes.config import SAEConfig
from saes.durable import make_folder, whole
from saes.errors import SAEError
from saes.format import save
from saes.history import History, sae_folder
from saes.progress import TrainingProgress
from saes.trackers import Heartbeat, tracker
from saes.training import CHECKPOINT_SECONDS, TrainingStatus, device_named, train

CHECKPOINTS = ".checkpoints"
STREAM = "stream.json"


def train_into(
    out: Path,
    stream: Iterable[Mapping[str, Float[Tensor, "token d_in"]]],
    configs: Sequence[SAEConfig],
    *,
    identity: Mapping[str, Any],
    labels: Mapping[str, Any],
    log: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    device: str = "cpu",
) -> list[Path]:
    """Train, and save each SAE as <out>/<hook point>/<name>; the same call resumes after a kill.

    Progress goes to stderr, metrics to a .jsonl file beside each folder and to the tracker `log`.
    `identity`: all that determines the stream, for `stream.json`; `labels`: its names, for readers.
    Raises what `train` raises, and SAEError for two SAEs of one name, a missing tracker, or a
    folder of another stream.
    """
    device_named(device)
    paths = [sae_folder(out, config.hook_point, config.name) for config in configs]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise SAEError(f"two SAEs would both be {min(twice)}; ask for each only once")
    with tracker(log, out) as send:
        claim_stream(out, identity, labels)
        heartbeats: list[Heartbeat] = [TrainingProgress(), History(out), send]

        def heartbeat(status: TrainingStatus) -> None:
            for call in heartbeats:
                call(status)

        saes = train(
            stream,
            configs,
            heartbeat=heartbeat,
            checkpoint_dir=out / CHECKPOINTS,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
        )
    for sae, path in zip(saes, paths, strict=True):
        save(sae, path)
    return paths


def claim_stream(out: Path, identity: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Write what the SAEs of a folder see, or compare it with what those trained there saw."""
    file = out / STREAM
    if not (file.exists() and has_any(out / CHECKPOINTS)):
        make_folder(out)
        with whole(file) as partial:
            partial.write_text(json.dumps({**labels, **identity}, indent=1) + "\n")
        return
    try:
        held = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise SAEError(f"{file}: damaged; choose another --out") from None
    for name, value in identity.items():
        if held.get(name) != value:
            raise SAEError(
                f"{out} holds SAEs of another stream ({name} is {held.get(name)} there, {value} "
                "here); choose another --out"
            )
