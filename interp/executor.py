"""Units done one after the other in this process, or wherever an executor takes them.

The loop knows what is ready; an executor knows where it runs. A unit that fails takes with it what
needs it and nothing else.
"""

from __future__ import annotations

import errno
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from interp import durable
from interp.corpora import Corpus
from interp.errors import NoSpaceError
from interp.graph import Graph
from interp.machine import peak_memory_bytes, processor, threads
from interp.measure import Measurement
from interp.progress import Progress
from interp.run import write_json
from interp.units import Record, Unit, failure_file, record_file, running_file, write_record

LINGERING_SECONDS = 60.0
"""How long a lost worker may hold its unit before the next one gives up waiting for it."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Failure:
    """Why a unit has no artifacts."""

    unit: Unit
    error: str
    """One line."""
    trace: str = ""
    no_space: bool = False

    def write(self, graph: Graph) -> None:
        """For `interp status`, until the unit is done."""
        path = failure_file(graph.folder, self.unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"error": self.error, "trace": self.trace})


class Executor(Protocol):
    """Where units run."""

    slots: int
    """Units it wants at a time; it queues by itself what it cannot start."""

    def submit(self, unit: Unit) -> None: ...

    def next(self) -> tuple[Unit, Failure | None]:
        """Wait for any of the submitted units."""
        ...

    def close(self) -> None:
        """Stop what runs; what it finished stays."""
        ...


class Worker:
    """Does units in one process, keeping the last part's model for the next unit of it."""

    def __init__(self, graph: Graph, corpus: Corpus, progress: Progress) -> None:
        self.graph, self.corpus, self.progress = graph, corpus, progress
        self._part: Measurement | None = None

    def run(self, unit: Unit) -> Failure | None:
        """Do a unit and write its record; an error of it, or a lack of memory, is a failure."""
        graph = self.graph
        running = running_file(graph.folder, unit)
        running.parent.mkdir(parents=True, exist_ok=True)
        running.touch()
        try:
            with durable.only_writer(running, wait_seconds=LINGERING_SECONDS):
                if not graph.is_done(unit):
                    self._do(unit)
                running.unlink(missing_ok=True)
        except Exception as error:
            running.unlink(missing_ok=True)
            failure = _failure(unit, error)
            if not failure.no_space:
                failure.write(graph)
            return failure
        failure_file(graph.folder, unit).unlink(missing_ok=True)
        return None

    def _do(self, unit: Unit) -> None:
        graph, started = self.graph, time.monotonic()
        with threads(graph.config.threads):
            if self._part is None or self._part.label != unit.label:
                self._part = None  # first, so that two models are never in memory at once
                self._part = Measurement(
                    graph, unit.model, unit.control, self.corpus, self.progress
                )
            kept = len(graph.kept(unit))
            self._part.run(unit)
        inputs = graph.inputs(unit)
        assert inputs is not None
        record = Record(
            inputs,
            {path: durable.sha256(file) for path, file in graph.files(unit).items()},
            seconds=round(time.monotonic() - started, 2),
            cpu=processor(graph.config.device),
            threads=graph.config.threads,
            peak_memory_bytes=peak_memory_bytes(),
            reused=kept,
        )
        write_record(record_file(graph.folder, unit), record)


class LocalExecutor:
    """In this process, one unit at a time."""

    slots = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._queue: list[Unit] = []

    def submit(self, unit: Unit) -> None:
        self._queue.append(unit)

    def next(self) -> tuple[Unit, Failure | None]:
        unit = self._queue.pop(0)
        return unit, self._worker.run(unit)

    def close(self) -> None:
        self._queue.clear()


def run_units(
    graph: Graph, left: Sequence[Unit], executor: Executor, progress: Progress
) -> list[Failure]:
    """Do all units that are left, each as soon as what it needs is; what failed, in order.

    Raises NoSpaceError when the disk is full, because no other unit could be kept either.
    """
    waiting, todo = list(left), set(left)
    works = {unit: graph.work(unit) for unit in graph.units}
    settled = sum(work for unit, work in works.items() if unit not in todo)
    progress.skip(settled)
    failures: list[Failure] = []
    running: list[Unit] = []
    try:
        while waiting or running:
            for unit in [u for u in waiting if not todo.intersection(graph.needs(u))]:
                if len(running) >= executor.slots:
                    break
                waiting.remove(unit)
                running.append(unit)
                executor.submit(unit)
            unit, failure = executor.next()
            running.remove(unit)
            settled += works[unit]
            if failure is None:
                todo.remove(unit)
            elif failure.no_space:
                raise NoSpaceError(failure.error)
            else:
                failures.append(failure)
                lost = _dependents(graph, unit, waiting)
                waiting = [u for u in waiting if u not in lost]
                settled += sum(works[u] for u in lost)
                progress.note(f"failed, the others go on: {unit}: {failure.error}")
            progress.settle(settled)
    finally:
        executor.close()
    return failures


def _dependents(graph: Graph, unit: Unit, among: Sequence[Unit]) -> set[Unit]:
    lost = {unit}
    for one in among:  # in an order in which each comes after what it needs
        if lost.intersection(graph.needs(one)):
            lost.add(one)
    return lost - {unit}


def _failure(unit: Unit, error: Exception) -> Failure:
    text = " ".join(str(error).split()) or "no message"
    known = isinstance(error, Exception) and type(error).__name__ in ("UserError", "SAEError")
    line = text if known else f"{type(error).__name__}: {text}"
    trace = "" if known else "".join(traceback.format_exception(error))
    return Failure(unit, line[:500], trace, _is_no_space(error))


def _is_no_space(error: BaseException | None) -> bool:
    """Whether the disk was full, whoever noticed; safetensors tells it in words alone."""
    while error is not None:
        told = isinstance(error, OSError) and error.errno in _NO_SPACE
        number = re.search(r"\(os error (\d+)\)", str(error))
        in_words = number is not None and int(number[1]) in _NO_SPACE
        if told or in_words or isinstance(error, NoSpaceError):
            return True
        error = error.__cause__ or error.__context__
    return False
