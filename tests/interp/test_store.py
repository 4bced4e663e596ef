"""The store: what is written is what capture gave, however often the writer was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import durable, recording
from interp.capture import capture
from interp.errors import UserError
from interp.loss import loss
from interp.recording import prepare, record
from interp.store import MANIFEST, Store, acts_file, open_store, positions_file

POINTS = ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"]
SMALL = {"batch_size": 2, "shard_bytes": 20_000}
"""Shards of 2 blocks of 32 positions: 2 x 32 x 2 hook points x 32 x 4 bytes = 16 KiB."""


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk itself: these tests kill processes, they do not cut the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def recorded(model: Any, tokens: Any, out: Path, *, into: Any = None, **options: Any) -> Store:
    return record(prepare(model, tokens, POINTS, **(SMALL | options)), out, **(into or {}))


@pytest.fixture
def stored(tiny_model: Any, tiny_tokens: Any) -> Callable[..., Store]:
    """stored(folder, **options): the tiny text, captured there."""
    return functools.partial(recorded, tiny_model, tiny_tokens)


@pytest.fixture
def whole(stored: Any, tmp_path: Path) -> dict[str, bytes]:
    """The files of a finished store in tmp_path / "s"."""
    stored(tmp_path / "s")
    return files(tmp_path / "s")


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("positions", ["sae", "all"])
def test_what_is_read_is_what_was_captured(
    stored: Any, tiny_model: Any, tiny_tokens: Any, tmp_path: Path, positions: Any
) -> None:
    store = stored(tmp_path / "s", positions=positions, with_loss=True)
    [chunk] = capture(tiny_model, tiny_tokens, POINTS, batch_size=2, with_loss=True)
    rows = chunk.keep if positions == "sae" else chunk.doc_ids >= 0
    parts = list(store.rows())
    assert len(parts) == -(-len(tiny_tokens) // 2) > 2
    assert len(store) == int(rows.sum())
    for name in POINTS:
        assert torch.equal(torch.cat([p.acts[name] for p in parts]), chunk.acts[name][rows])
    for field in ("token_ids", "positions", "doc_ids", "keep"):
        mine = torch.cat([getattr(p, field) for p in parts])
        assert torch.equal(mine.to(torch.int64), getattr(chunk, field)[rows].to(torch.int64))
    assert torch.equal(torch.cat([p.nll for p in parts]), chunk.nll[rows])
    kept = chunk.acts[POINTS[1]][chunk.keep]
    for buffer in (1, 7, 50, len(kept), 10_000):
        chunks = [x[POINTS[1]] for x in store.stream([POINTS[1]], shuffle_buffer=buffer)]
        assert all(len(x) == buffer for x in chunks[:-1])
        assert 0 < len(chunks[-1]) <= buffer
        assert torch.equal(torch.cat(chunks), kept)
    whole = loss(tiny_model, tiny_tokens, batch_size=2)
    assert store.loss().nats_per_token == pytest.approx(whole.nats_per_token, abs=1e-12)
    stored = 1 - store.dropped_fraction
    assert stored == pytest.approx(int(rows.sum()) / tiny_tokens.n_tokens)


def test_it_opens_without_model_or_text(tiny_dir: Path, text_folder: Path, tmp_path: Path) -> None:
    from interp.models import load
    from interp.tokens import tokens

    copy = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    model = load(str(copy))
    blocks = tokens(text_folder, model)
    recorded(model, blocks, tmp_path / "s")
    shutil.rmtree(copy)
    shutil.rmtree(text_folder)
    moved = shutil.move(tmp_path / "s", tmp_path / "moved")
    store = open_store(moved)
    assert store.complete
    assert store.tokens.sha256 == blocks.sha256
    assert store.manifest.origin.weights_sha256 == model.weights_sha256
    assert sum(len(rows) for rows in store.rows()) == len(store) > 0


def test_the_sae_engine_reads_the_folder(stored: Any, tmp_path: Path) -> None:
    from saes.folder import ActivationFolder

    store = stored(tmp_path / "s")
    folder = ActivationFolder(tmp_path / "s")
    assert folder.widths == dict.fromkeys(POINTS, 32)
    assert folder.n_rows == len(store)


def test_two_captures_are_the_same_bytes(stored: Any, tmp_path: Path) -> None:
    stored(tmp_path / "a", with_loss=True)
    stored(tmp_path / "b", with_loss=True)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_is_the_rounded_value(
    stored: Any, tiny_model: Any, tiny_tokens: Any, tmp_path: Path, dtype: str
) -> None:
    store = stored(tmp_path / "s", dtype=dtype)
    [chunk] = capture(tiny_model, tiny_tokens, POINTS, batch_size=2)
    got = torch.cat([rows.acts[POINTS[1]] for rows in store.rows()])
    exact = chunk.acts[POINTS[1]][chunk.keep]
    assert torch.equal(got, exact.to(getattr(torch, dtype)).float())


def test_the_size_is_known_beforehand(tiny_model: Any, tiny_tokens: Any, tmp_path: Path) -> None:
    for i, options in enumerate(({}, {"with_loss": True, "positions": "all"})):
        recording = prepare(tiny_model, tiny_tokens, POINTS, **options)
        record(recording, tmp_path / str(i))
        actual = sum(len(data) for data in files(tmp_path / str(i)).values())
        assert actual == pytest.approx(recording.n_bytes, rel=0.1)


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


def test_a_folder_of_something_else_is_refused(stored: Any, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no store"):
        stored(tmp_path / "s")
    assert list(files(tmp_path / "s")) == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        stored(tmp_path / "s" / "thesis.txt")
    with pytest.raises(UserError, match="interp capture"):
        open_store(tmp_path / "s")


def test_another_capture_is_refused_by_its_first_difference(
    stored: Any, tiny_model: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    stored(out)
    before = files(out)
    with pytest.raises(UserError, match=r"dtype is float32 there, bfloat16 here"):
        stored(out, dtype="bfloat16")
    other = dataclasses.replace(tiny_model, weights_sha256="0")
    with pytest.raises(UserError, match="weights_sha256"):
        recorded(other, tiny_tokens, out)
    with pytest.raises(UserError, match="n_blocks is 8 there, 2 here"):
        recorded(tiny_model, tiny_tokens[:2], out)
    ids = tiny_tokens.ids.roll(1)
    with pytest.raises(UserError, match="tokens_sha256"):
        recorded(tiny_model, dataclasses.replace(tiny_tokens, ids=ids), out)
    assert files(out) == before
    moved = dataclasses.replace(tiny_model, name="the same model elsewhere")
    recorded(moved, tiny_tokens, out)


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


def test_a_capture_that_cannot_fit_is_refused_with_what_would(
    tiny_model: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    from interp.tokens import tokens

    recording = prepare(tiny_model, tiny_tokens, POINTS, **SMALL)
    budget = recording.n_bytes * 2 // 3
    with pytest.raises(UserError, match=r"--tokens \d+ would fit") as error:
        record(recording, tmp_path / "s", budget_bytes=budget)
    assert not (tmp_path / "s").exists()
    fitting = int(str(error.value).split("--tokens ")[1].split()[0])
    assert fitting > recording.origin.n_tokens // 2
    fewer = tokens(tmp_path / "text", tiny_model, n_tokens=fitting)
    record(prepare(tiny_model, fewer, POINTS, **SMALL), tmp_path / "s", budget_bytes=budget)
    assert sum(map(len, files(tmp_path / "s").values())) <= budget
    with pytest.raises(UserError, match="nothing would fit"):
        record(recording, tmp_path / "t", budget_bytes=10)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match="has room for 0"):
        stored(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_bad_activations_leave_no_folder_behind(
    save_tiny: Any, tmp_path: Path, tiny_tokens: Any
) -> None:
    from interp.models import load

    model = load(str(save_tiny(tmp_path / "nan")))
    with torch.no_grad():
        model.hf.transformer.wte.weight[int(tiny_tokens.ids[0, 3])] = float("inf")
    with pytest.raises(UserError, match=r"blocks\.0\.hook_resid_pre.*document 0 "):
        recorded(model, tiny_tokens, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()  # a folder that was there stays, empty
    with pytest.raises(UserError, match=r"blocks\.0\.hook_resid_pre.*document 0 "):
        recorded(model, tiny_tokens, tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_values_beyond_float16_are_refused_and_not_stored_as_infinity(
    save_tiny: Any, tmp_path: Path, tiny_tokens: Any
) -> None:
    from interp.models import load

    model = load(str(save_tiny(tmp_path / "large")))
    model.hf.transformer.wte.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"float16.*use float32"):
        recorded(model, tiny_tokens, tmp_path / "s", dtype="float16")
    assert recorded(model, tiny_tokens, tmp_path / "s", dtype="float32").complete


def test_norms_beyond_float16_are_no_infinities(
    save_tiny: Any, tmp_path: Path, tiny_tokens: Any
) -> None:
    """Every value fits, the root of the sum of their squares does not."""
    from interp.models import load

    model = load(str(save_tiny(tmp_path / "large")))
    largest = model.hf.transformer.wte.weight.abs().max()
    model.hf.transformer.wte.weight.mul_(60_000 / largest)
    record(prepare(model, tiny_tokens, "blocks.0.hook_resid_pre", dtype="float16"), tmp_path / "s")
    [rows] = open_store(tmp_path / "s").rows()
    assert rows.acts["blocks.0.hook_resid_pre"].norm(dim=1).max() > 65_504


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"dtype": "int8"}, "int8"), ({"positions": "odd"}, "odd"), ({"batch_size": 0}, "batch_size")],
)
def test_wrong_options_are_refused(
    tiny_model: Any, tiny_tokens: Any, options: Any, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        prepare(tiny_model, tiny_tokens, POINTS, **options)
    with pytest.raises(UserError, match="no hook points"):
        prepare(tiny_model, tiny_tokens, [])


def test_an_unknown_hook_point_of_a_store_is_refused(stored: Any, tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    with pytest.raises(UserError, match=r"holds no blocks\.1\.hook_resid_post; it has blocks\.0"):
        store.shard(0, ["blocks.1.hook_resid_post"])
    with pytest.raises(UserError, match="without the loss"):
        store.loss()


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 7}')
    with pytest.raises(UserError, match="no manifest of format 1") as error:
        open_store(tmp_path)
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_hold_a_store_is_refused(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/s cannot be made \(Not a directory\)"):
        stored(tmp_path / "file" / "s")

    def read_only(source: Any, target: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(UserError, match="may not be written"):
        stored(tmp_path / "s")
    assert not (tmp_path / "s").exists()


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
