"""A folder of trained SAEs: train into it, follow the run, resume it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.format import save
from saes.history import History, sae_folder
from saes.progress import TrainingProgress
from saes.trackers import Heartbeat, tracker
from saes.training import CHECKPOINT_SECONDS, TrainingStatus, train

CHECKPOINTS = ".checkpoints"


def train_into(
    out: Path,
    stream: Iterable[Mapping[str, Float[Tensor, "token d_in"]]],
    configs: Sequence[SAEConfig],
    *,
    log: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    device: str = "cpu",
) -> list[Path]:
    """Train, and save each SAE as <out>/<hook point>/<name>; the same call resumes after a kill.

    Progress goes to stderr, metrics to a .jsonl file beside each folder and to the tracker `log`.
    Raises what `train` raises, and SAEError for two SAEs of one name or a missing tracker.
    """
    paths = [sae_folder(out, config.hook_point, config.name) for config in configs]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise SAEError(f"two SAEs would both be {min(twice)}; ask for each only once")
    with tracker(log, out) as send:
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
