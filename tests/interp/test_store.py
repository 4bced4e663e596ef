"""The store: what is written is what capture gave; what cannot be stored is refused."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import POINTS, SMALL, files, recorded

from interp.capture import capture
from interp.errors import UserError
from interp.loss import loss
from interp.recording import prepare, record
from interp.store import MANIFEST, open_store

pytestmark = pytest.mark.usefixtures("fast_disk")


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
