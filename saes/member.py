"""One SAE in training: its state, its own shuffle of every chunk, its schedule, its export."""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.first_rows import FirstRows
from saes.sae import SAE
from saes.steps import Step, new_step

DONE, STREAM_ENDED = "done", "stream ended"


def seeded_generator(seed: int, purpose: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose alone (0 init, i + 1 chunk i).

    Nothing has to be remembered between chunks, so the stream cursor is the whole RNG state.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Draw(NamedTuple):
    """What one SAE makes of the rows it holds and the first `n_taken` of a chunk."""

    n_taken: int
    order: Int[Tensor, " row"]
    """Its shuffle of both together, on the CPU."""
    n_now: int
    """Rows of that order to train on at once; the rest wait for the next chunk."""


class Batch(NamedTuple):
    """One step: rows start..stop of a draw's order."""

    start: int
    stop: int
    lr: float
    k: int


class Member:
    """One SAE in training. Works on scaled rows y = scale * x; `export` folds the scale back."""

    def __init__(self, config: SAEConfig) -> None:
        self.config = config
        self.step: Step | None = None
        """None until the first chunk fixes b_dec and the scale."""
        self.scale = 1.0
        self.row_variance = float(config.d_in)
        """Total variance of a row of the first chunk, in the units trained in."""
        self.cursor = 0
        """Chunks of the stream consumed."""
        self.tokens_done = 0
        """Tokens trained on (not counting `pending`)."""
        self.pending = torch.empty(0, config.d_in)
        """Rows received but not yet trained on: less than one batch, in raw units."""
        self.fvu = math.nan
        """Running FVU on the last chunk's batches, before their updates."""
        self.fingerprint = ""
        """Fingerprint of the stream up to `cursor`."""
        self.stopped_early = False
        self.paths: set[str] = set()
        """What computed the steps so far: a device, or SAEs stacked on one. See `saes.lockstep`."""
        self.trunk: Member | None = None
        """The longer run whose steps this one shares until `shared_tokens`; None once it parted."""
        self.shared_tokens = 0
        self.inherited_tokens = 0
        """Tokens of the trunk at the parting."""

    @property
    def finished(self) -> bool:
        """Whether the token budget is used up or the stream has ended."""
        return self.stopped_early or self.tokens_done >= self.config.n_tokens

    @property
    def dead_fraction(self) -> float:
        """Fraction of latents dead now."""
        return 0.0 if self.step is None else self.step.dead.float().mean().item()

    def start(self, first: FirstRows) -> None:
        """Initialize from the first chunk."""
        if self.config.scale_activations:
            self.scale = first.scale
        else:
            self.row_variance = self.config.d_in / first.scale**2
        generator = seeded_generator(self.config.seed, 0)
        b_dec = (first.centre * self.scale).float().to(self.pending.device)
        self.step = new_step(self.config, b_dec, generator=generator)

    @property
    def follows(self) -> Member:
        """The member that holds this one's present state: its trunk, or itself."""
        return self if self.trunk is None else self.trunk

    def outlives_trunk(self, n_rows: int) -> bool:
        """Whether `n_rows` more rows would take the trunk past what is shared."""
        trunk = self.follows
        seen = trunk.tokens_done + len(trunk.pending)
        return trunk.stopped_early or seen + n_rows > self.shared_tokens

    def part(self) -> None:
        """Leave the trunk with a copy of its state."""
        trunk, self.trunk = self.follows, None
        self.cursor, self.fingerprint = trunk.cursor, trunk.fingerprint
        if trunk.step is None:
            return
        self.pending = trunk.pending.clone()
        self.step = self._copy_of(trunk.step)
        self.paths = set(trunk.paths)
        self.scale, self.row_variance = trunk.scale, trunk.row_variance
        self.fvu = trunk.fvu
        self.tokens_done = self.inherited_tokens = trunk.tokens_done

    def move(self, device: torch.device) -> None:
        """Go on there: a checkpoint is read on the CPU, whatever the stream is on."""
        if self.pending.device != device:
            self.pending = self.pending.to(device)
            if self.step is not None:
                self.step = self._copy_of(self.step)

    def draw(self, n_rows: int) -> Draw:
        """Shuffle what is pending with as many of the next chunk's `n_rows` rows as are wanted."""
        wanted = self.config.n_tokens - self.tokens_done - len(self.pending)
        n_taken = min(n_rows, wanted)
        n = len(self.pending) + n_taken
        generator = seeded_generator(self.config.seed, self.cursor + 1)
        is_last = n_taken == wanted
        n_now = n if is_last else n - n % self.config.batch_size
        return Draw(n_taken, torch.randperm(n, generator=generator), n_now)

    def rest(self) -> Draw:
        """What is left at the end of the stream, in the order in which it waits."""
        n = len(self.pending)
        return Draw(0, torch.arange(n), n)

    def batches(self, n_rows: int) -> list[Batch]:
        """The steps that train on the next `n_rows` rows."""
        config, size = self.config, self.config.batch_size
        found = []
        for start in range(0, n_rows, size):
            done = self.tokens_done + start
            stop = min(start + size, n_rows)
            found.append(Batch(start, stop, config.lr_at(done), config.k_at(done)))
        return found

    def advance(self, draw: Draw, chunk: Float[Tensor, "token d_in"]) -> None:
        """Train on the whole batches of a draw, and keep the rest."""
        rows = chunk[: draw.n_taken]
        if len(self.pending):
            rows = torch.cat([self.pending, rows])
        order = draw.order.to(rows.device)
        squared_error = 0.0
        for batch in self.batches(draw.n_now):
            y = rows.index_select(0, order[batch.start : batch.stop]).mul_(self.scale)
            squared_error += self.started.step(y, batch.lr, batch.k)
        self.learned(draw, squared_error, rows[order[draw.n_now :]], rows.device.type)

    def learned(
        self, draw: Draw, squared_error: float, pending: Float[Tensor, "token d_in"], path: str
    ) -> None:
        """Take note of a draw's training: its error, the rows that wait, and what computed it."""
        self.pending = pending
        if draw.n_now:
            self.tokens_done += draw.n_now
            self.fvu = squared_error / (draw.n_now * self.row_variance)
            self.paths.add(path)

    @property
    def started(self) -> Step:
        """The step. Raises SAEError before the first row."""
        if self.step is None:
            raise SAEError(f"{self.config.hook_point}: the stream is empty; give at least one row")
        return self.step

    def export(self) -> SAE:
        """The SAE on raw activations."""
        step = self.started
        trained = step.dictionary().in_units(self.scale)
        return SAE(
            **trained._asdict(),
            k=self.config.k if trained.threshold is None else 0,
            cfg=self.config,
            metadata={
                "status": STREAM_ENDED if self.stopped_early else DONE,
                "tokens_trained": self.tokens_done,
                "n_steps": step.n_steps,
                "running_fvu": self.fvu if math.isfinite(self.fvu) else None,
                "running_dead_fraction": self.dead_fraction,
                "activation_scale": self.scale,
                "peak_lr": self.config.peak_lr,
                "computed_by": sorted(self.paths),
            },
        )

    def _copy_of(self, step: Step) -> Step:
        """The same state in memory of its own, where `pending` is."""
        origin = torch.zeros(self.config.d_in, device=self.pending.device)
        copy = new_step(self.config, origin, generator=torch.Generator())
        copy.load_state(step.state(), step.n_steps)
        return copy
