"""Whether a planned study fits disk, memory and time, and what would."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from interp.config import StudyConfig
from interp.errors import UserError
from interp.plan import Cost
from interp.recording import SPARE_BYTES, nearest_folder


def require_fit(costs: Sequence[Cost], config: StudyConfig, out: Path) -> None:
    """Raise UserError where the study exceeds a budget of its config, or the machine."""
    require_room(costs, out, config.n_seeds, config.max_disk_gb)
    require_memory(costs, config)
    require_gpu_memory(costs, config)
    require_time(costs, config)


def require_room(
    costs: Sequence[Cost], out: Path, n_seeds: int, max_disk_gb: float | None = None
) -> None:
    """Raise UserError, with the number of seeds that would fit, when the disk is too small."""
    parent = nearest_folder(out)
    room, what = max(shutil.disk_usage(parent).free - SPARE_BYTES, 0), f"{parent} has room for"
    if max_disk_gb is not None and max_disk_gb * 1e9 < room:
        room, what = int(max_disk_gb * 1e9), "max_disk_gb allows"
    needed = sum(c.n_bytes for c in costs) + max(c.scratch_bytes for c in costs)
    if needed > room:
        # Means and report are a small part; all else is proportional to the seeds.
        fitting = int(room / needed * n_seeds)
        # From two seeds a count has no interval, and enters no fit.
        advice = f"--seeds {fitting} would fit" if fitting >= 3 else "use fewer models"
        raise UserError(f"the study needs {needed:,} bytes and {what} {room:,}; {advice}")


def require_memory(costs: Sequence[Cost], config: StudyConfig) -> None:
    """Raise UserError, with the models that would fit, when memory is too small."""
    room, what = psutil.virtual_memory().total, "this machine has"
    if config.max_memory_gb is not None and config.max_memory_gb * 1e9 < room:
        room, what = int(config.max_memory_gb * 1e9), "max_memory_gb allows"
    worst = max(costs, key=lambda cost: cost.memory_bytes)
    if worst.memory_bytes > room:
        fitting = [c.what for c in costs if c.memory_bytes <= room and c.what in config.models]
        raise UserError(
            f"{worst.what} needs {worst.memory_bytes:,} bytes of memory and {what} {room:,}; "
            f"{_fitting_models(fitting)}"
        )


def require_gpu_memory(costs: Sequence[Cost], config: StudyConfig) -> None:
    """Raise UserError, with the models that would fit, when the card here is too small.

    A quarter of it is for what stacks of SAEs compute in.
    """
    worst = max(costs, key=lambda cost: cost.gpu_bytes)
    if not worst.gpu_bytes or not torch.cuda.is_available():
        return
    room = torch.cuda.get_device_properties(0).total_memory * 3 // 4
    if worst.gpu_bytes > room:
        fitting = [c.what for c in costs if c.gpu_bytes <= room and c.what in config.models]
        raise UserError(
            f"{worst.what} needs {worst.gpu_bytes:,} bytes of the GPU's memory and three quarters "
            f"of the card here are {room:,}; {_fitting_models(fitting)}"
        )


def _fitting_models(fitting: Sequence[str]) -> str:
    if fitting:
        return f"--models {' '.join(fitting)} would fit"
    return "use a smaller chunk_tokens, held_out_tokens or n_seeds"


def require_time(costs: Sequence[Cost], config: StudyConfig) -> None:
    """Raise UserError, with the tokens that would fit, when the budget of time is too small.

    Or where nobody can say: on a device that is not here.
    """
    if config.max_hours is not None and any(cost.seconds is None for cost in costs):
        raise UserError(
            f"max_hours is {config.max_hours:g} and the study's time on {config.device} is not "
            "measured, because this machine has none; plan where there is one, or remove max_hours"
        )
    seconds = sum(cost.seconds or 0.0 for cost in costs)
    if config.max_hours is not None and seconds > config.max_hours * 3600:
        share = config.max_hours * 3600 / seconds
        # Two digits: it is an estimate, and all but the report is in proportion to the tokens.
        fitting = float(f"{share * config.sae_tokens:.1e}")
        raise UserError(
            f"the study would take {seconds / 3600:.2f} hours here and max_hours is "
            f"{config.max_hours:g}; sae_tokens and pilot_tokens of {share:.0%} would fit "
            f"(--tokens {fitting:.0f})"
        )
