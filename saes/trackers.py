"""Experiment trackers for `--log`: Weights & Biases, trackio or TensorBoard; none by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from saes.errors import SAEError
from saes.training import TrainingStatus

PROJECT = "superscope"
Heartbeat = Callable[[TrainingStatus], None]


@contextmanager
def tracker(kind: str | None, out: Path) -> Iterator[Heartbeat]:
    """A heartbeat that sends every SAE's FVU and dead fraction; None sends nothing.

    wandb and trackio take their account and place from their own settings; TensorBoard's files lie
    in <out>/tensorboard. Raises SAEError, before anything runs, where the package is missing
    or will not begin (not logged in, no network).
    """
    if kind is None:
        yield lambda status: None
    elif kind == "tensorboard":
        # torch's writer needs the tensorboard package and says so with an ImportError.
        writer = _import("torch.utils.tensorboard", kind).SummaryWriter(str(out / "tensorboard"))
        try:
            yield lambda status: _each(
                status, lambda name, value: writer.add_scalar(name, value, status.tokens_done)
            )
        finally:
            writer.close()
    else:
        library = _import(kind, kind)
        try:
            library.init(project=PROJECT, name=out.name)
        except Exception as error:  # of no common class: not logged in, no network, a full disk
            told = " ".join(str(error).split())[:200]
            raise SAEError(
                f"--log {kind}: {told or type(error).__name__}; mend that, or leave the option out"
            ) from None
        try:
            yield lambda status: library.log(_values(status), step=status.tokens_done)
        finally:
            library.finish()


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise SAEError(
            f"--log {package}: the package {package} is not installed; "
            f"pip install {package}, or leave the option out"
        ) from None


def _values(status: TrainingStatus) -> dict[str, float]:
    values: dict[str, float] = {"sae_tokens_per_second": status.sae_tokens_per_second}
    for sae in status.saes:
        place = f"{sae.hook_point}/{sae.name}"
        values[f"{place}/dead_fraction"] = sae.dead_fraction
        if math.isfinite(sae.fvu):
            values[f"{place}/fvu"] = sae.fvu
    return values


def _each(status: TrainingStatus, send: Callable[[str, float], None]) -> None:
    for name, value in _values(status).items():
        send(name, value)
