"""train(stream, configs) -> SAEs: one pass over a stream of activations, any number of SAEs."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saes import checkpoint
from saes.config import SAEConfig
from saes.errors import SAEError
from saes.group import Group
from saes.sae import SAE

CHECKPOINT_SECONDS = 30.0
FINGERPRINT_ROWS = 16


@dataclass(frozen=True)
class SAEStatus:
    """Where one SAE stands."""

    name: str
    hook_point: str
    tokens_done: int
    n_tokens: int
    fvu: float
    """FVU of the last chunk's batches, each before its update, over the first chunk's variance."""
    dead_fraction: float


@dataclass(frozen=True)
class TrainingStatus:
    """Progress of a whole run, handed to `heartbeat` after every chunk."""

    tokens_done: int
    """Tokens of the furthest SAE."""
    tokens_total: int
    """Largest budget among the SAEs; the stream may end earlier."""
    sae_tokens_per_second: float
    """Tokens times SAEs per second of training since this process started."""
    fvu: float
    """Mean over SAEs."""
    dead_fraction: float
    """Mean over SAEs."""
    saes: tuple[SAEStatus, ...]


def train(
    stream: Iterable[Mapping[str, Float[Tensor, "token d_in"]]],
    configs: Sequence[SAEConfig],
    *,
    heartbeat: Callable[[TrainingStatus], None] | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    workers: int | None = None,
    device: str | torch.device | None = None,
    stack: bool | None = None,
) -> list[SAE]:
    """Train one SAE per config on a stream of chunks keyed by hook point; SAEs in configs' order.

    Chunks may have any number of rows; larger ones shuffle better. Rows are consumed in order until
    every config has its `n_tokens`; a shorter stream trains on what there is, with a warning, and
    the SAE's metadata says status "stream ended" instead of "done". Configs that differ in their
    budget alone share their first steps (`saes.trunk`). On a CPU the result is determined by
    config, stream and CPU type, not by the companions or the number of cores.

    With `checkpoint_dir`, state is saved at chunk boundaries at least `checkpoint_seconds` apart
    and at the end; the same call with the same stream resumes with the same final bits. `workers`
    is the number of SAEs advanced at once on a CPU (default: torch's thread count).

    `device`: where to train and where the SAEs are then (default: where the rows are). On a GPU
    SAEs of equal shape are stacked and share their products (`saes.lockstep`); `stack` says so or
    not whatever the device. A stacked SAE is the same to rounding, but its last bits depend on its
    companions: it resumes bit for bit only where all checkpoints are of one moment. Checkpoints
    do not know devices or stacks; what computed a result is its metadata's `computed_by`.

    Raises SAEError: no configs, a device that is not there, an empty stream, a chunk without a
    needed hook point, rows of another width than d_in, NaN or infinite rows, checkpoints of other
    settings or another stream.
    """
    if not configs:
        raise SAEError("train got no configs; give at least one SAEConfig")
    configs = list(configs)
    hook_points = {config.hook_point: config.d_in for config in configs}
    for config in configs:
        if hook_points[config.hook_point] != config.d_in:
            raise SAEError(
                f"configs give hook point {config.hook_point!r} two widths, "
                f"d_in {hook_points[config.hook_point]} and {config.d_in}; give one"
            )
    place = None if device is None else device_named(device)
    with Group(configs, workers=workers, stack=stack) as group:
        members = group.members
        if checkpoint_dir is not None:
            checkpoint.claim(checkpoint_dir, configs)
            for number, member in enumerate(members):
                checkpoint.read(checkpoint_dir, number, member)
            group.resumed()
        checked = _Checked(hook_points, place)
        started = saved = time.monotonic()
        tokens_before = _tokens_trained(group)
        chunks = iter(stream)
        index = 0
        while not group.finished and (raw := next(chunks, None)) is not None:
            chunk = checked(raw)
            if chunk is None:
                continue
            for member in members:
                resumes_here = member.cursor == index + 1
                fingerprint = checked.fingerprints[member.config.hook_point]
                if resumes_here and member.fingerprint != fingerprint:
                    raise SAEError(
                        f"{checkpoint_dir}: its checkpoints saw another stream at "
                        f"{member.config.hook_point}; give the same stream or another folder"
                    )
            group.advance(chunk, index)
            moved = [m for m in members if m.trunk is None and m.cursor == index + 1]
            for member in moved:
                member.fingerprint = checked.fingerprints[member.config.hook_point]
            index += 1
            now = time.monotonic()
            if checkpoint_dir is not None and now - saved >= checkpoint_seconds:
                for number, member in enumerate(members):
                    checkpoint.write(checkpoint_dir, number, member)
                saved = time.monotonic()
            if heartbeat is not None and moved:
                done = _tokens_trained(group) - tokens_before
                heartbeat(_status(group, done / max(now - started, 1e-9)))
        group.end_stream()
        saes = [member.export() for member in members]
        if ended := [member for member in members if member.stopped_early]:
            done, total = ended[0].tokens_done, ended[0].config.n_tokens
            warnings.warn(
                f"the stream ended after {done:,} of {total:,} tokens; {len(ended)} of "
                f"{len(members)} SAEs are trained on what there was",
                stacklevel=2,
            )
        if place is not None:
            # Those that were finished before this call never left the CPU.
            saes = [sae.to(place) for sae in saes]
        if checkpoint_dir is not None:
            for number, member in enumerate(members):
                checkpoint.write(checkpoint_dir, number, member)
    return saes


class _Checked:
    """Validates chunks, converts them to float32, and fingerprints the stream as it passes."""

    def __init__(self, hook_points: Mapping[str, int], device: torch.device | None) -> None:
        self.hook_points = hook_points
        self._device = device
        self.fingerprints = dict.fromkeys(hook_points, "")
        self._rows_seen = dict.fromkeys(hook_points, 0)

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The chunk's needed tensors; None where it has no rows."""
        chunk = {}
        for hook_point, d_in in self.hook_points.items():
            if hook_point not in raw:
                raise SAEError(
                    f"the stream has no hook point {hook_point!r}, only {sorted(raw)}; "
                    "capture it or change the config"
                )
            rows = raw[hook_point]
            if rows.ndim != 2 or rows.shape[1] != d_in:
                raise SAEError(
                    f"{hook_point}: the stream gives rows of shape {tuple(rows.shape)} but the "
                    f"config says d_in {d_in}; make them agree"
                )
            device = self._device or device_named(rows.device)
            rows = rows.detach().float().contiguous()
            finite = torch.isfinite(rows).all(dim=1)
            if not finite.all():
                bad = int((~finite).nonzero()[0])
                raise SAEError(
                    f"{hook_point}: row {self._rows_seen[hook_point] + bad} of the stream is not "
                    "finite (NaN or infinity); drop such rows before training"
                )
            self._rows_seen[hook_point] += len(rows)
            chunk[hook_point] = rows.to(device)
        if all(len(rows) == 0 for rows in chunk.values()):
            return None
        for hook_point, rows in chunk.items():
            # A few rows tell streams apart; hashing all of them would cost as much as a small SAE.
            sample = rows[:: max(1, len(rows) // FINGERPRINT_ROWS)].cpu().numpy().tobytes()
            text = f"{self.fingerprints[hook_point]}/{tuple(rows.shape)}/".encode()
            self.fingerprints[hook_point] = hashlib.sha256(text + sample).hexdigest()
        return chunk


def device_named(name: str | torch.device) -> torch.device:
    """A device that can train. Raises SAEError for others."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SAEError(f"unknown device {str(name)!r}; use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise SAEError(f"device {str(name)!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SAEError(f"device {str(name)!r} is not available here; use cpu")
    return device


def _tokens_trained(group: Group) -> int:
    """Tokens times SAEs that steps were taken on; what a branch inherits counts once."""
    return sum(member.tokens_done - member.inherited_tokens for member in group.members)


def _status(group: Group, rate: float) -> TrainingStatus:
    saes = tuple(
        SAEStatus(
            name=member.config.name,
            hook_point=member.config.hook_point,
            tokens_done=member.follows.tokens_done,
            n_tokens=member.config.n_tokens,
            fvu=member.follows.fvu,
            dead_fraction=member.follows.dead_fraction,
        )
        for member in group.members
    )
    return TrainingStatus(
        tokens_done=max(sae.tokens_done for sae in saes),
        tokens_total=max(sae.n_tokens for sae in saes),
        sae_tokens_per_second=rate,
        fvu=sum(sae.fvu for sae in saes) / len(saes),
        dead_fraction=sum(sae.dead_fraction for sae in saes) / len(saes),
        saes=saes,
    )
