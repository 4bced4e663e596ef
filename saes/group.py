"""Many SAEs advanced in lockstep on one stream.

Every SAE ("member") sees the same chunks in the same order, with its own initialization and its own
shuffle of each chunk. Members whose first steps are the same (see `saes.trunk`) are trained once
until they part. On a CPU members are spread over worker threads, one core each: an SAE's bits
then depend neither on its companions nor on how many cores there are, and small products, which
scale badly inside one step, scale perfectly across SAEs. Elsewhere members of equal shape are
stacked and share every product (see `saes.lockstep`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from saes.config import SAEConfig
from saes.first_rows import FirstRows, first_rows
from saes.lockstep import Lockstep
from saes.member import Draw, Member
from saes.stacked import ARCHITECTURES
from saes.trunk import trunks


class Group:
    """All members of a run. A context manager, because it owns the worker threads."""

    def __init__(
        self,
        configs: Sequence[SAEConfig],
        *,
        workers: int | None = None,
        stack: bool | None = None,
    ) -> None:
        """`workers`: threads over SAEs on a CPU; None: torch's own thread count.

        `stack`: whether SAEs of equal shape share their products; None: off the CPU they do.
        """
        self._stack = stack
        self._lockstep = Lockstep()
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
        """The stream is over for everyone: train on what is pending and stop."""
        for member in self.members:
            if member.trunk:
                member.part()
        left = [member for member in self.members if not member.finished]
        self._train([(member, member.rest()) for member in left if len(member.pending)], {})
        for member in left:
            member.stopped_early = True

    def advance(self, chunk: Mapping[str, Float[Tensor, "token d_in"]], index: int) -> None:
        """Advance every unfinished member that has not yet consumed chunk number `index`."""
        for member in self.members:
            n_rows = len(chunk[member.config.hook_point])
            if member.trunk and member.trunk.cursor == index and member.outlives_trunk(n_rows):
                member.part()
        waiting = self.waiting(index)
        served = [member for member in waiting if len(chunk[member.config.hook_point])]
        statistics: dict[tuple[str, str], FirstRows] = {}
        for member in served:
            hook_point, kind = member.config.hook_point, member.config.b_dec_init
            rows = chunk[hook_point]
            member.move(rows.device)
            if member.step is None:
                if (hook_point, kind) not in statistics:
                    statistics[hook_point, kind] = first_rows(rows, hook_point, kind)
                member.start(statistics[hook_point, kind])
        # Largest first, so that no long one is left running alone at the end.
        served.sort(key=lambda m: m.config.d_sae * m.config.d_in, reverse=True)
        self._train([(m, m.draw(len(chunk[m.config.hook_point]))) for m in served], chunk)
        for member in waiting:
            member.cursor += 1

    def _train(
        self,
        drawn: Sequence[tuple[Member, Draw]],
        chunk: Mapping[str, Float[Tensor, "token d_in"]],
    ) -> None:
        """Every member on its draw: stacked, in threads, or one after the other."""
        together = [(member, draw) for member, draw in drawn if self._is_stacked(member)]
        if together:
            self._lockstep.advance(together, chunk)
        futures = []
        for member, draw in drawn:
            if self._is_stacked(member):
                continue
            rows = chunk.get(member.config.hook_point, member.pending[:0])
            if rows.device.type == "cpu":
                futures.append(self._pool.submit(member.advance, draw, rows))
            else:
                member.advance(draw, rows)
        for future in futures:
            future.result()

    def _is_stacked(self, member: Member) -> bool:
        wanted = member.pending.device.type != "cpu" if self._stack is None else self._stack
        return wanted and member.config.architecture in ARCHITECTURES
