"""How replicates are run: processes that die, parents that die, and the time it took."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import interp.calibrate.jobs
from interp.calibrate.cells import CalibrationConfig
from interp.calibrate.jobs import Job, make, wall_seconds
from interp.calibrate.presets import PRESETS
from interp.errors import UserError

GATES = PRESETS["gates"]
SECONDS = 60


def jobs(folder: Path, n: int) -> list[Job]:
    return [Job(GATES.cells[0], i, folder / f"{i}.json", "code") for i in range(n)]


def dies_at_the_third(job: Job, config: CalibrationConfig) -> None:
    if job.replicate >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    job.file.write_text("made")


def test_nothing_to_make_starts_nothing(tmp_path: Path) -> None:
    assert list(make([], GATES, 2)) == []


def test_a_lost_process_loses_no_more_than_what_was_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.calibrate.jobs, "_make", dies_at_the_third)
    told = []
    with pytest.raises(UserError, match="a process of the calibration was killed"):
        told += make(jobs(tmp_path, 6), GATES, 2)
    made = {file.name for file in tmp_path.iterdir()}
    # A third is only begun when one of the first two is there.
    assert made
    assert made <= {"0.json", "1.json"}
    assert not multiprocessing.active_children()


def test_an_error_of_a_replicate_is_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.calibrate.jobs, "_make", refuses)
    with pytest.raises(UserError, match="no room for 0"):
        list(make(jobs(tmp_path, 2), GATES, 2))
    assert not multiprocessing.active_children()


def refuses(job: Job, config: CalibrationConfig) -> None:
    if job.replicate:
        time.sleep(SECONDS)
    raise UserError(f"no room for {job.replicate}")


@pytest.mark.slow
def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = f"""
import multiprocessing, threading, time
from pathlib import Path
from interp.calibrate.jobs import Job, make
from interp.calibrate.presets import PRESETS

def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.1)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

threading.Thread(target=tell).start()
cell = PRESETS["gates"].cells[3]
jobs = [Job(cell, i, Path({str(tmp_path)!r}) / str(i), "") for i in range(2)]
list(make(jobs, PRESETS["gates"], 2))
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    # They are at work, and would be for longer than is waited below.
    _until(lambda: all(_cpu_seconds(pid) > 15 for pid in children), 4 * SECONDS)
    parent.kill()
    parent.wait()
    _until(lambda: not any(map(_alive, children)), SECONDS)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_processes_start_is_one_error_the_parents(tmp_path: Path) -> None:
    program = f"""
import multiprocessing, os, signal, threading, time
from pathlib import Path
from interp.calibrate.jobs import Job, make
from interp.calibrate.presets import PRESETS

def interrupt():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.001)
    for _ in range(20):  # while they import
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
cell = PRESETS["gates"].cells[3]
jobs = [Job(cell, i, Path({str(tmp_path)!r}) / str(i), "") for i in range(2)]
try:
    list(make(jobs, PRESETS["gates"], 2))
except KeyboardInterrupt:
    print("interrupted", len(multiprocessing.active_children()))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("interrupted 0\n", "", 0)
    assert not list(tmp_path.iterdir())


def sleeps(job: Job, config: CalibrationConfig) -> None:
    time.sleep(10 * SECONDS)


def test_ctrl_c_while_a_job_is_handed_over_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised when the hold ends, before anyone has written down what was begun."""

    @contextmanager
    def interrupted() -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(interp.calibrate.jobs, "_make", sleeps)
    monkeypatch.setattr(interp.calibrate.jobs, "_ctrl_c_held", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(make(jobs(tmp_path, 2), GATES, 2))
    assert not multiprocessing.active_children()


def _until(there, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except FileNotFoundError:
        return False


def _cpu_seconds(pid: int) -> float:
    user, system = map(int, _stat(pid)[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [([], 0), ([(1, 3)], 2), ([(1, 3), (2, 5)], 4), ([(1, 9), (2, 5), (20, 21)], 9)],
)
def test_wall_time_counts_no_moment_twice(spans: list[tuple[float, float]], seconds: float) -> None:
    assert wall_seconds(spans) == seconds
