import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp import durable
from interp.errors import NoSpaceError
from interp.stopwatch import seconds_spent, sitting

KILLED = """
import sys, time
from pathlib import Path
from interp.stopwatch import sitting
with sitting(Path(sys.argv[1]), every=0.05):
    print("in", flush=True)
    time.sleep(60)
"""


def test_nothing_kept_is_no_time(tmp_path: Path) -> None:
    assert seconds_spent(tmp_path) == 0.0
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "seconds").write_text("half an hour")
    assert seconds_spent(tmp_path) == 0.0


def test_sittings_add_up_whatever_ends_them(tmp_path: Path) -> None:
    with sitting(tmp_path):
        time.sleep(0.15)
    first = seconds_spent(tmp_path)
    assert first >= 0.1
    with contextlib.suppress(KeyError), sitting(tmp_path):
        time.sleep(0.15)
        raise KeyError
    assert seconds_spent(tmp_path) >= first + 0.1


def test_what_the_work_complains_of_is_what_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise NoSpaceError(f"{path}: no space left")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(NoSpaceError, match="the work's"), sitting(tmp_path):
        raise NoSpaceError("the work's own file: no space left")


def test_a_killed_sitting_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "seconds").write_text("100.0\n")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        until = time.monotonic() + 60
        while seconds_spent(tmp_path) == 100.0 and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert seconds_spent(tmp_path) > 100.0
