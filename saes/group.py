"""Many SAEs advanced in lockstep on one stream.

Every SAE ("member") sees the same chunks in the same order, with its own initialization and its own
shuffle of each chunk. Members whose first steps are the same (see `saes.trunk`) are trained once
until they part. On a CPU members are spread over worker threads, one core each: an SAE's bits
then depend neither on its companions nor on how many cores there are, and small products, which
scale badly inside one step, scale perfectly across SAEs.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.first_rows import FirstRows, first_rows
from saes.sae import SAE
from saes.steps import Step, new_step
from saes.trunk import trunks

DONE, STREAM_ENDED = "done", "stream ended"


def seeded_generator(seed: int, purpose: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose alone (0 init, i + 1 chunk i).

    Nothing has to be remembered between chunks, so the stream cursor is the whole RNG state.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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
        self.step = new_step(self.config, (first.centre * self.scale).float(), generator=generator)

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
        state = trunk.step.state()
        origin = torch.zeros(self.config.d_in, device=trunk.pending.device)
        self.step = new_step(self.config, origin, generator=torch.Generator())
        self.step.load_state(state, trunk.step.n_steps)
        self.pending = trunk.pending.clone()
        self.scale, self.row_variance = trunk.scale, trunk.row_variance
        self.fvu = trunk.fvu
        self.tokens_done = self.inherited_tokens = trunk.tokens_done

    def advance(self, chunk: Float[Tensor, "token d_in"]) -> None:
        """Train on one chunk: whole batches now, the rest with the next chunk."""
        wanted = self.config.n_tokens - self.tokens_done - len(self.pending)
        chunk = chunk[:wanted]
        if len(chunk) == 0:
            self.cursor += 1
            return
        rows = torch.cat([self.pending.to(chunk.device), chunk]) if len(self.pending) else chunk
        generator = seeded_generator(self.config.seed, self.cursor + 1)
        order = torch.randperm(len(rows), generator=generator).to(chunk.device)
        is_last = len(chunk) == wanted
        n_now = len(rows) if is_last else len(rows) - len(rows) % self.config.batch_size
        self._train(rows, order[:n_now])
        self.pending = rows[order[n_now:]]
        self.cursor += 1

    def end_stream(self) -> None:
        """The stream is over: train on what is pending and stop."""
        if not self.finished:
            self._train(self.pending, torch.arange(len(self.pending), device=self.pending.device))
            self.pending = self.pending[:0]
            self.stopped_early = True

    def export(self) -> SAE:
        """The SAE on raw activations."""
        step = self._started()
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
            },
        )

    def _train(self, rows: Tensor, order: Tensor) -> None:
        if not len(order):
            return
        step = self._started()
        squared_error = 0.0
        for batch in order.split(self.config.batch_size):
            y = rows.index_select(0, batch).mul_(self.scale)
            lr, k = self.config.lr_at(self.tokens_done), self.config.k_at(self.tokens_done)
            squared_error += step.step(y, lr, k)
            self.tokens_done += len(batch)
        self.fvu = squared_error / (len(order) * self.row_variance)

    def _started(self) -> Step:
        if self.step is None:
            raise SAEError(f"{self.config.hook_point}: the stream is empty; give at least one row")
        return self.step


class Group:
    """All members of a run. A context manager, because it owns the worker threads."""

    def __init__(self, configs: Sequence[SAEConfig], *, workers: int | None = None) -> None:
        """`workers`: threads over SAEs on a CPU; None: torch's own thread count."""
        self.members = [Member(config) for config in configs]
        for number, (root, shared) in trunks(configs).items():
            member = self.members[number]
            member.trunk, member.shared_tokens = self.members[root], shared
        n_threads = torch.get_num_threads()
        n_workers = max(1, min(workers or n_threads, len(self.members)))
        barrier = threading.Barrier(n_workers)

        def one_core() -> None:
            # Asking first makes torch initialize this thread, which would undo the setting later.
            torch.get_num_threads()
            torch.set_num_threads(1)
            barrier.wait()

        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="sae", initializer=one_core)
        # Thread counts are per thread, but new threads inherit the last one set anywhere: start
        # every worker now, then put the caller's count back.
        for future in [self._pool.submit(torch.get_num_threads) for _ in range(n_workers)]:
            assert future.result() == 1
        torch.set_num_threads(n_threads)

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def finished(self) -> bool:
        """Whether no member wants more."""
        return all(member.finished for member in self.members)

    def waiting(self, index: int) -> list[Member]:
        """Members on their own feet that have not yet consumed chunk number `index`."""
        return [m for m in self.members if not (m.trunk or m.finished) and m.cursor == index]

    def resumed(self) -> None:
        """After checkpoints were read: nobody waits for a parting that is already past."""
        for member in self.members:
            if member.trunk and (member.step is not None or member.outlives_trunk(0)):
                member.trunk = None

    def end_stream(self) -> None:
        """The stream is over for everyone."""
        for member in self.members:
            if member.trunk:
                member.part()
        for member in self.members:
            member.end_stream()

    def advance(self, chunk: Mapping[str, Float[Tensor, "token d_in"]], index: int) -> None:
        """Advance every unfinished member that has not yet consumed chunk number `index`."""
        for member in self.members:
            n_rows = len(chunk[member.config.hook_point])
            if member.trunk and member.trunk.cursor == index and member.outlives_trunk(n_rows):
                member.part()
        waiting = self.waiting(index)
        statistics: dict[tuple[str, str], FirstRows] = {}
        for member in waiting:
            hook_point, kind = member.config.hook_point, member.config.b_dec_init
            if member.step is None and len(rows := chunk[hook_point]):
                if (hook_point, kind) not in statistics:
                    statistics[hook_point, kind] = first_rows(rows, hook_point, kind)
                member.start(statistics[hook_point, kind])
        # Largest first, so that no long one is left running alone at the end.
        waiting.sort(key=lambda m: m.config.d_sae * m.config.d_in, reverse=True)
        if any(rows.device.type != "cpu" for rows in chunk.values()):
            for member in waiting:
                member.advance(chunk[member.config.hook_point])
            return
        futures = [self._pool.submit(m.advance, chunk[m.config.hook_point]) for m in waiting]
        for future in futures:
            future.result()
