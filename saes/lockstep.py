"""Members of a run whose next steps are of one shape, stacked and advanced as one.

Stacked are SAEs of equal `saes.stacked.shape`, on any hook points and with any seeds, learning
rates and budgets, whose next rows make the same steps: as many tokens and the same k in each. A
stack stays as long as the same members are in it. Memory is bounded by cutting a stack into equal
parts, so that the scratch of a part fits a quarter of the device's memory: SAEs so large that this
happens fill a device one by one as well. Making a stack takes its state's memory once more, for a
moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.member import Draw, Member
from saes.stacked import StackedStep, new_stack, scratch_bytes, shape
from saes.topk import TopKStep

CPU_SCRATCH_BYTES = 1 << 30
Drawn = tuple[Member, Draw]


class Lockstep:
    """Stacks of members, kept from chunk to chunk."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[Member, ...], StackedStep] = {}

    def advance(
        self, drawn: Sequence[Drawn], chunk: Mapping[str, Float[Tensor, "token d_in"]]
    ) -> None:
        """Train every member on the whole batches of its draw; the rest is pending again."""
        parts = _parts(drawn)
        wanted = {tuple(member for member, _ in part) for part in parts}
        moving = {member for members in wanted - self._stacks.keys() for member in members}
        for members in [held for held in self._stacks if moving.intersection(held)]:
            self._stacks.pop(members).dissolve()
        for part in parts:
            self._train(part, chunk)

    def _train(
        self, part: Sequence[Drawn], chunk: Mapping[str, Float[Tensor, "token d_in"]]
    ) -> None:
        members = [member for member, _ in part]
        n_now = part[0][1].n_now
        device = members[0].pending.device
        runs = [list(run) for _, run in groupby(part, key=lambda drawn: _hook_point(drawn))]
        sources = [_source(run, chunk.get(_hook_point(run[0]))) for run in runs]
        scales = torch.tensor([member.scale for member in members], device=device)[:, None, None]
        errors = []
        for batches in zip(*(member.batches(n_now) for member in members), strict=True):
            start, stop, _, k = batches[0]
            rows = [source.rows_of(start, stop) for source in sources]
            y = torch.cat(rows).view(len(members), stop - start, -1).mul_(scales)
            errors.append(self._stack(members).step(y, [batch.lr for batch in batches], k))
        # Nobody waits for a sum before the chunk is done.
        totals = torch.stack(errors).cpu().double().sum(0).tolist() if errors else [0.0] * len(part)
        rest = [rows for source in sources for rows in source.rest(n_now)]
        for (member, draw), total, pending in zip(part, totals, rest, strict=True):
            member.learned(draw, total, pending, f"{device.type}, stacked")

    def _stack(self, members: Sequence[Member]) -> StackedStep:
        key = tuple(members)
        if key not in self._stacks:
            steps = [cast(TopKStep, member.started) for member in members]
            self._stacks[key] = new_stack(steps, device=members[0].pending.device)
        return self._stacks[key]


class Source(NamedTuple):
    """Rows of one hook point, and where each of its members finds its own among them."""

    rows: Float[Tensor, "row d_in"]
    """Everything pending, member by member, and then the chunk."""
    orders: list[Int[Tensor, " row"]]
    """Of each member, in its own order."""

    def rows_of(self, start: int, stop: int) -> Float[Tensor, "row d_in"]:
        """Rows start..stop of every member's order, one member after the other."""
        return self.rows.index_select(0, torch.cat([order[start:stop] for order in self.orders]))

    def rest(self, start: int) -> list[Float[Tensor, "row d_in"]]:
        """Every member's rows from `start` on."""
        return [self.rows.index_select(0, order[start:]) for order in self.orders]


def scratch_budget(device: torch.device) -> int:
    """Bytes that the scratch of one stack may take. Depends on the device, never on its load."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory // 4)
    return CPU_SCRATCH_BYTES


def _hook_point(drawn: Drawn) -> str:
    return drawn[0].config.hook_point


def _parts(drawn: Sequence[Drawn]) -> list[list[Drawn]]:
    """Members that can take their next steps together, in parts that fit into memory."""
    alike: dict[object, list[Drawn]] = defaultdict(list)
    for member, draw in sorted(drawn, key=_hook_point):
        ks = tuple(batch.k for batch in member.batches(draw.n_now))
        device = member.pending.device
        alike[device, shape(member.config), draw.n_now, ks].append((member, draw))
    parts = []
    for drawn in alike.values():
        member, _ = drawn[0]
        most = max(1, scratch_budget(member.pending.device) // scratch_bytes(member.config))
        n_parts = -(-len(drawn) // most)
        cuts = [number * len(drawn) // n_parts for number in range(n_parts + 1)]
        parts += [drawn[a:b] for a, b in pairwise(cuts)]
    return parts


def _source(run: Sequence[Drawn], chunk: Float[Tensor, "token d_in"] | None) -> Source:
    """What the members of one hook point read; `chunk` is None at the end of the stream."""
    pending = [member.pending for member, _ in run]
    n_pending = sum(map(len, pending))
    taken = [] if chunk is None else [chunk[: max(draw.n_taken for _, draw in run)]]
    rows = torch.cat([*pending, *taken]) if n_pending or not taken else taken[0]
    orders, start = [], 0
    for member, draw in run:
        own = len(member.pending)
        order = torch.where(draw.order < own, draw.order + start, draw.order - own + n_pending)
        orders.append(order.to(rows.device))
        start += own
    return Source(rows, orders)
