"""Whether a planned study fits disk, memory and time, and what would."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from interp.config import StudyConfig
from interp.errors import UserError
from interp.plan import Cost
from interp.recording import SPARE_BYTES, nearest_folder


def require_fit(costs: Sequence[Cost], config: StudyConfig, out: Path) -> None:
    """Raise UserError where the study exceeds a budget of its config, or the machine."""
    require_room(costs, out, config.n_seeds, config.max_disk_gb)
    require_memory(costs, config)
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
        advice = f"--seeds {fitting} would fit" if fitting >= 2 else "use fewer models"
        raise UserError(f"the study needs {needed:,} bytes and {what} {room:,}; {advice}")


def require_memory(costs: Sequence[Cost], config: StudyConfig) -> None:
    """Raise UserError, with the models that would fit, when memory is too small."""
    room, what = psutil.virtual_memory().total, "this machine has"
    if config.max_memory_gb is not None and config.max_memory_gb * 1e9 < room:
        room, what = int(config.max_memory_gb * 1e9), "max_memory_gb allows"
    worst = max(costs, key=lambda cost: cost.memory_bytes)
    if worst.memory_bytes > room:
        fitting = [c.what for c in costs if c.memory_bytes <= room and c.what in config.models]
        advice = (
            f"--models {' '.join(fitting)} would fit"
            if fitting
            else ("use a smaller chunk_tokens, held_out_tokens or n_seeds")
        )
        raise UserError(
            f"{worst.what} needs {worst.memory_bytes:,} bytes of memory and {what} {room:,}; "
            f"{advice}"
        )


def require_time(costs: Sequence[Cost], config: StudyConfig) -> None:
    """Raise UserError, with the tokens that would fit, when the budget of time is too small."""
    seconds = sum(cost.seconds for cost in costs)
    if config.max_hours is not None and seconds > config.max_hours * 3600:
        share = config.max_hours * 3600 / seconds
        # Two digits: it is an estimate, and all but the report is in proportion to the tokens.
        fitting = float(f"{share * config.sae_tokens:.1e}")
        raise UserError(
            f"the study would take {seconds / 3600:.2f} hours here and max_hours is "
            f"{config.max_hours:g}; sae_tokens and pilot_tokens of {share:.0%} would fit "
            f"(--tokens {fitting:.0f})"
        )
