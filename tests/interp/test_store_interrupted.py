"""A store whose writing was interrupted: killed, damaged, out of room, or done by two at once."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import files

from interp import durable, recording
from interp.capture import capture
from interp.errors import UserError
from interp.store import MANIFEST, Store, acts_file, open_store, positions_file

pytestmark = pytest.mark.usefixtures("fast_disk")


class Killed(BaseException):
    """As a kill: no handler of ours catches it."""


def test_an_interruption_at_any_write_leaves_the_same_store(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops before and after the rename of every single file, then runs the same line again."""
    two_shards: Any = {"with_loss": True, "shard_bytes": 40_000}
    stored(tmp_path / "whole", **two_shards)
    whole = files(tmp_path / "whole")
    replace, calls = os.replace, 0
    stop_at = (0, "before")

    def dying(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at[0] and stop_at[1] == "before":
            raise Killed
        replace(source, target)
        if calls == stop_at[0]:
            raise Killed

    monkeypatch.setattr(os, "replace", dying)
    n_stops = 0
    for number in range(1, 100):
        for when in ("before", "after"):
            out = tmp_path / f"{number}-{when}"
            calls, stop_at = 0, (number, when)
            try:
                stored(out, **two_shards)
            except Killed:
                n_stops += 1
                stop_at = (0, "")
                stored(out, **two_shards)
            assert files(out) == whole
            shutil.rmtree(out)
        if calls < number:
            break
    assert n_stops == 2 * (2 + 3 * 2)  # manifest and tokens, then three files for each of 2 shards


SERVER = """
import os, sys, torch
torch.set_num_threads(1)
os.fsync = lambda handle: None
from interp.models import load
from interp.tokens import tokens
from interp.recording import prepare, record
model = load(sys.argv[1])
blocks = tokens(sys.argv[2], model, block_size=16)
points = "resid_post"
for out in map(str.strip, sys.stdin):
    child = os.fork()
    if child == 0:
        small = dict(with_loss=True, batch_size=1, shard_bytes=1)
        record(prepare(model, blocks, points, **small), out)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Captures to the folders named on its input, each in a process of its own; imports once."""


class Server:
    def __init__(self, model: Path, text: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model), str(text)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def capture(self, out: Path, *, kill_after: float | None = None) -> int:
        """The exit status; negative for a signal."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline())


def kill_and_resume(
    model: Path, text: Path, tmp_path: Path, n_kills: int, seed: int
) -> tuple[int, int]:
    """SIGKILL of real processes at random moments, again and again; the last is left alone.

    How many processes were killed, and how many went on from another's shards.
    """
    server = Server(model, text)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert server.capture(whole) == 0
    began = time.monotonic()
    shutil.rmtree(whole)
    assert server.capture(whole) == 0
    duration = time.monotonic() - began
    rng = random.Random(seed)
    kills = resumed = 0
    while kills < n_kills:
        shards_before = len(list(out.glob("acts-*")))
        # Short against the whole, so that kills find it at work and every run gets further.
        status = server.capture(out, kill_after=rng.uniform(0, 2 * duration / n_kills))
        kills += status == -signal.SIGKILL
        resumed += shards_before > 0
        if (out / MANIFEST).exists() and open_store(out).complete:
            assert files(out) == files(whole)
            shutil.rmtree(out)
    assert server.capture(out) == 0
    assert files(out) == files(whole)
    return kills, resumed


@pytest.fixture
def longer_text(tmp_path: Path) -> Path:
    file = tmp_path / "long.txt"
    file.write_text("\n".join(f"value_{i} = {i * i}" for i in range(150)))
    return file


def test_kill_9_and_the_same_line_again(tiny_dir: Path, longer_text: Path, tmp_path: Path) -> None:
    kills, resumed = kill_and_resume(tiny_dir, longer_text, tmp_path, n_kills=3, seed=0)
    assert kills == 3
    assert resumed > 0


@pytest.mark.slow
def test_kill_9_many_times(tiny_dir: Path, longer_text: Path, tmp_path: Path) -> None:
    kills, resumed = kill_and_resume(tiny_dir, longer_text, tmp_path, n_kills=24, seed=1)
    assert kills == 24
    assert resumed >= 12


def test_a_damaged_shard_is_named_and_captured_again(
    stored: Any, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    altered = bytearray(acts_file(out, 1).read_bytes())
    altered[-5] ^= 1
    acts_file(out, 1).write_bytes(altered)
    acts_file(out, 2).write_bytes(acts_file(out, 2).read_bytes()[:-1])
    positions_file(out, 3).unlink()
    store = open_store(out)
    assert store.damaged() == [1, 2, 3]
    store.shard(0)
    with pytest.raises(UserError, match=r"acts-000001\.safetensors.*--repair"):
        list(store.rows())
    # Without being asked it repairs nothing, and calls nothing finished that is not.
    with pytest.raises(UserError, match=r"acts-000002\.safetensors.*--repair"):
        stored(out)
    assert open_store(out).damaged() == [1, 2, 3]
    assert stored(out, into={"repair": True}).damaged() == []
    assert files(out) == whole


def test_a_missing_shard_is_not_passed_over(
    stored: Any, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    for file in (acts_file(out, 0), positions_file(out, 0)):
        file.unlink()
        with pytest.raises(UserError, match=r"acts-000000\.safetensors.*--repair"):
            stored(out)
    stored(out, into={"repair": True})
    assert files(out) == whole


def test_damaged_tokens_are_found_and_mended(
    stored: Any, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    file = out / "tokens" / "blocks.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"blocks\.safetensors is missing or damaged"):
        _ = open_store(out).tokens
    stored(out)
    assert files(out) == whole


def test_what_killed_writers_left_is_removed(
    stored: Any, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    for folder in (out, out / "positions"):
        (folder / ".old.partial").write_text("half a file")
    stored(out)
    assert files(out) == whole


def test_a_second_writer_is_refused(stored: Any, tmp_path: Path) -> None:
    out = tmp_path / "s"
    tried = []

    def second(store: Store) -> None:
        with pytest.raises(UserError, match="another process is writing there"):
            stored(out)
        tried.append(store.blocks_done)

    stored(out, into={"heartbeat": second})
    assert tried == [2, 4, 6, 8]
    stored(out)  # afterwards the lock is free


def test_a_full_disk_stops_cleanly_and_goes_on_later(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "whole")
    out, replace = tmp_path / "s", os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("acts-000002.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="no space left") as error:
            stored(out)
    assert "\n" not in str(error.value)
    store = open_store(out)
    assert (store.complete, store.damaged(), len(store.manifest.shards)) == (False, [], 2)
    assert sum(len(rows) for rows in store.rows()) == len(store)
    assert not list(out.rglob("*.partial"))
    stored(out)
    assert files(out) == files(tmp_path / "whole")


def test_the_next_shard_is_computed_while_one_is_written(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no further one: each that waits is memory."""
    computing = [threading.Event() for _ in range(5)]
    computed, written, ahead = 0, 0, []
    replace = os.replace

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal computed
        computing[computed].set()
        computed += 1
        ahead.append(computed - written)
        return capture(*args, **options)

    def slow(source: Any, target: Any) -> None:
        nonlocal written
        if Path(target).name.startswith("acts"):
            if written < 3:
                assert computing[written + 1].wait(timeout=60), "the next one waits for the disk"
            written += 1
        replace(source, target)

    monkeypatch.setattr(recording, "capture", counted)
    monkeypatch.setattr(os, "replace", slow)
    assert stored(tmp_path / "s").complete
    assert written == 4
    assert max(ahead) == 2


def test_bad_activations_do_not_lose_the_shard_that_is_being_written(
    stored: Any, tiny_tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, replace = threading.Event(), os.replace

    def failing(model: Any, tokens: Any, *args: Any, **options: Any) -> Any:
        if torch.equal(tokens.ids, tiny_tokens.ids[4:6]):
            failed.set()
            raise UserError("values that are not finite")
        return capture(model, tokens, *args, **options)

    def slow(source: Any, target: Any) -> None:
        if Path(target).name == acts_file(tmp_path, 1).name:
            assert failed.wait(timeout=60)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "capture", failing)
        patch.setattr(os, "replace", slow)
        with pytest.raises(UserError, match="not finite"):
            stored(tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert (len(store.manifest.shards), store.damaged()) == (2, [])
    assert stored(tmp_path / "s").complete


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write(tmp_path / "f", b"old")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        durable.write(tmp_path / "f", b"new")
    assert files(tmp_path) == {"f": b"old"}
