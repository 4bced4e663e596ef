"""The token cache: found again, never wrong, and never in the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import token_cache
from interp.corpora import load_text
from interp.tokens import tokens

tokens_module = sys.modules["interp.tokens"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every time that text was really tokenized."""
    real, calls = tokens_module._encode, []

    def counting(corpus: Any, *args: Any) -> Any:
        calls.append(corpus.name)
        return real(corpus, *args)

    monkeypatch.setattr(tokens_module, "_encode", counting)
    return calls


def test_the_second_time_nothing_is_tokenized(
    cache: Path, encoded: list[str], tiny_model: Any, text_folder: Path
) -> None:
    first = tokens(text_folder, tiny_model, n_tokens=10_000)
    second = tokens(text_folder, tiny_model, n_tokens=10_000)
    assert len(encoded) == 1
    for field in ("ids", "doc_ids", "n_bytes", "is_text"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert first.warnings == second.warnings != ()
    assert [f.suffix for f in cache.iterdir()] == [".safetensors"]


def test_whatever_changes_the_tokens_changes_the_entry(
    cache: Path, encoded: list[str], tiny_model: Any, text_folder: Path
) -> None:
    corpus = load_text(text_folder)
    tokens(corpus, tiny_model)
    for options in ({"n_tokens": 50}, {"split": "train"}, {"seed": 1}, {"block_size": 8}):
        tokens(corpus, tiny_model, **options)
    (text_folder / "0.py").write_text("other text")
    tokens(text_folder, tiny_model)
    other = _with_bos(tiny_model, 7)
    assert tokens(corpus, other).ids[0, 0] == 7
    assert len(encoded) == 7


def _with_bos(model: Any, bos_id: int) -> Any:
    import copy
    import dataclasses

    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos_id)
    return dataclasses.replace(model, tokenizer=tokenizer)


def test_a_damaged_entry_is_made_anew(
    cache: Path, encoded: list[str], tiny_model: Any, text_folder: Path
) -> None:
    first = tokens(text_folder, tiny_model)
    [file] = cache.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert tokens(text_folder, tiny_model).sha256 == first.sha256
    assert len(encoded) == 2
    assert tokens(text_folder, tiny_model).sha256 == first.sha256
    assert len(encoded) == 2


def test_off_keeps_nothing(
    cache: Path, encoded: list[str], tiny_model: Any, text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SUPERSCOPE_CACHE", "off")
    tokens(text_folder, tiny_model)
    tokens(text_folder, tiny_model)
    assert len(encoded) == 2
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, encoded: list[str], tiny_model: Any, text_folder: Path
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    tokens(text_folder, tiny_model)
    tokens(text_folder, tiny_model)
    assert len(encoded) == 2


def test_the_oldest_entries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(token_cache, "MAX_BYTES", 2500)
    for i, name in enumerate(("a", "b", "c")):
        token_cache.keep(name, {"x": torch.full((250,), i, dtype=torch.int32)})
        for file in cache.glob(f"{name}-*"):
            os.utime(file, (i, i))
    assert token_cache.read("a") is None
    kept = token_cache.read("c")
    assert kept is not None
    assert kept["x"][0] == 2
