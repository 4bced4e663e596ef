"""The progress line: what it says, and that it is silent when asked."""

from __future__ import annotations

import io
import time

import pytest

from interp.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_per_stage() -> None:
    log = io.StringIO()
    progress = Progress(10.0, stream=log)
    progress.at("one")
    progress.at("one", 2.0)  # the same stage within seconds: no second line
    progress.finish(5.0)
    progress.at("two")
    progress.close("done")
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["one", "two"]
    assert lines[1].strip().startswith("50%")
    assert lines[-1] == "done"


def test_work_found_finished_counts_as_done() -> None:
    log = io.StringIO()
    progress = Progress(10.0, stream=log)
    progress.skip(8.0)
    progress.at("rest")
    assert log.getvalue().strip().startswith("80%")


def test_a_terminal_rewrites_its_line() -> None:
    terminal = Terminal()
    progress = Progress(1.0, stream=terminal)
    progress.at("one")
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().startswith("\r")


def test_quiet_prints_nothing() -> None:
    log = io.StringIO()
    progress = Progress(1.0, stream=log, quiet=True)
    progress.at("one")
    progress.finish(1.0)
    progress.close("done")
    assert log.getvalue() == ""


def test_short_work_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = io.StringIO()
    progress = Progress(1.0, stream=log, patience=9.0)
    now += 8
    progress.at("one", 0.5)
    progress.close("done")
    assert log.getvalue() == ""
    now += 2
    progress.at("one", 0.9)
    progress.close("done")
    assert [line.split()[0] for line in log.getvalue().splitlines()] == ["90%", "done"]


def test_a_part_settles_what_its_pieces_did_not_add_up_to() -> None:
    log = io.StringIO()
    progress = Progress(10.0, stream=log)
    progress.skip(2.0)
    progress.finish(1.0)
    progress.settle(6.0)
    progress.at("next", 1.0)
    assert log.getvalue().splitlines()[-1].strip().startswith("70%")
    progress.settle(10.0)
    assert progress.seconds_left in (None, 0.0)
