"""What a unit of a study asks of a cluster, by Ray's names, and whether a machine there has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from interp.config import StudyConfig
from interp.errors import UserError


def needs(config: StudyConfig) -> dict[str, float]:
    """CPUs and GPUs of any unit: all kinds run the model, so all have its device."""
    gpus = 1 / config.units_per_gpu if config.device == "cuda" else 0.0
    return {"CPU": config.threads, "GPU": gpus}


def require(needs: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> None:
    """Raise UserError where no machine of a cluster could ever start a unit."""
    cpus = [one.get("CPU", 0) for one in machines if one.get("GPU", 0) >= needs["GPU"]]
    most = max(cpus, default=0)
    if most >= needs["CPU"]:
        return
    if needs["GPU"] and not cpus:
        raise UserError(
            "a unit takes a GPU and no machine of the Ray cluster has one; start Ray where one is, "
            "or use --device cpu"
        )
    machine = "machine with a GPU" if needs["GPU"] else "machine"
    raise UserError(
        f"a unit takes {needs['CPU']} threads and no {machine} of the Ray cluster has more than "
        f"{most:.0f} CPUs; use fewer --threads"
    )
