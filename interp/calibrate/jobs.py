"""The replicates of a calibration, one process per core: each a file of its own, written whole.

A replicate's parts are too small for threads, which wait for each other wherever another program
keeps a core busy.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from interp.calibrate.cells import CalibrationConfig, Cell
from interp.calibrate.replicate import run_replicate
from interp.calibrate.training import is_kept, keep, kept, train
from interp.errors import UserError
from interp.machine import threads
from interp.run import write_json
from saes.synthetic import SyntheticData


@dataclass(frozen=True)
class Job:
    """One replicate to be made."""

    cell: Cell
    replicate: int
    file: Path
    code_sha256: str
    """Of the code that makes it, as it was when the calibration began."""
    training_sha256: str = ""
    """Of that part of it which the SAEs come from."""

    @property
    def label(self) -> str:
        return f"{self.cell.name}, replicate {self.replicate}"

    @property
    def saes(self) -> Path:
        """Where its SAEs are kept."""
        return self.file.with_suffix(".safetensors")


def make(
    jobs: Sequence[Job],
    config: CalibrationConfig,
    n_processes: int,
    *,
    heartbeat: Callable[[Job, float], None] = lambda job, share: None,
    failed: Callable[[Job, Exception], None] | None = None,
) -> Iterator[Job]:
    """Write every job's file; each job as soon as its file is there, in the order they end.

    heartbeat: told the share of a job that is done, where the jobs run in this process.
    failed: told of a job that fails for itself, and the rest go on; without it, and where all would
    fail alike, the error is raised. Raises UserError where a process was lost, which is what a lack
    of memory looks like.
    """

    def ended(job: Job, result: Callable[[], None]) -> bool:
        try:
            result()
        except (UserError, BrokenProcessPool):
            raise
        except Exception as error:
            if failed is None:
                raise
            failed(job, error)
            return False
        return True

    if min(n_processes, len(jobs)) <= 1:
        for job in jobs:
            if ended(job, partial(_make, job, config, partial(heartbeat, job))):
                yield job
        return
    # Torch may have threads already, so no fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(n_processes, len(jobs)), mp_context=context, initializer=_alone
    ) as pool:

        def submit(job: Job) -> Future[None]:
            with _ctrl_c_held():  # it may start a process
                return pool.submit(_make, job, config)

        # No more than run at once: what is queued would have to be cancelled.
        left = iter(jobs)
        running: dict[Future[None], Job] = {}
        finished = False
        try:
            for job in islice(left, n_processes):
                running[submit(job)] = job
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    there = ended(running[future], future.result)
                    done = running.pop(future)
                    if (after := next(left, None)) is not None:
                        running[submit(after)] = after
                    if there:
                        yield done
            finished = True
        except BrokenProcessPool:
            raise UserError(
                "a process of the calibration was killed, perhaps for memory; run the same line "
                "again to go on, with fewer --processes if it happens again"
            ) from None
        finally:
            if not finished:
                for process in multiprocessing.active_children():
                    process.terminate()


def wall_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Time during which at least one of the spans (begin, end; seconds) ran."""
    total, until = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return total


def _make(
    job: Job, config: CalibrationConfig, heartbeat: Callable[[float], None] = lambda share: None
) -> None:
    began = time.time()
    with threads(1):
        data = SyntheticData(job.cell.data(seed=job.replicate))
        if is_kept(job.saes, job.training_sha256):
            trained = kept(job.saes, job.cell)
        else:
            trained = train(data, job.cell, job.replicate, config, workers=1, heartbeat=heartbeat)
            keep(trained, job.saes, job.training_sha256)
        rows = run_replicate(job.cell, job.replicate, config, data=data, trained=trained)
    record = {
        "cell": job.cell.name,
        "replicate": job.replicate,
        "n_features": job.cell.n_features,
        "code_sha256": job.code_sha256,
        "span": [round(began, 1), round(time.time(), 1)],
        "rows": rows,
    }
    write_json(job.file, record)


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Whatever is started meanwhile never hears of Ctrl-C, not even while it imports; this process
    hears of it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _alone() -> None:
    """In a process of the pool: no life after the parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
