"""Token blocks: exact bytes, documents over block boundaries, splits by document."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.tokens import HELD_OUT_FRACTION, split_rows, tokens


def corpus_of(texts: list[str]) -> Corpus:
    from datasets import Dataset

    names = [f"doc{i}" for i in range(len(texts))]
    return Corpus("given", Dataset.from_dict({"text": texts, "doc_id": names}), "0")


def bytes_per_document(blocks: Any) -> dict[int, int]:
    docs, sizes = blocks.doc_ids.flatten(), blocks.n_bytes.flatten()
    return {int(d): int(sizes[docs == d].sum()) for d in blocks.documents}


def with_tokenizer(model: Any, backend: Any, **special: str) -> Any:
    """The model with another tokenizer, and a vocabulary that fits it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return dataclasses.replace(model, tokenizer=tokenizer, d_vocab=len(tokenizer))


def test_layout_by_hand(tiny_model: Any) -> None:
    """Two documents in blocks of 4: BOS before each, running over the boundary, padding last."""
    encode = tiny_model.tokenizer.encode
    blocks = tokens(corpus_of(["xyz", "qw"]), tiny_model, block_size=4)
    x, y, z, q, w = encode("xyz") + encode("qw")
    assert blocks.ids.tolist() == [[0, x, y, z], [0, q, w, 0]]
    assert blocks.doc_ids.tolist() == [[0, 0, 0, 0], [1, 1, 1, -1]]
    assert blocks.n_bytes.tolist() == [[0, 1, 1, 1], [0, 1, 1, 0]]
    assert blocks.is_text.tolist() == [[False, True, True, True], [False, True, True, False]]
    assert blocks.n_tokens == 7
    over = tokens(corpus_of(["xyz", "qw"]), tiny_model, block_size=3)
    assert over.ids.tolist() == [[0, x, y], [z, 0, q], [w, 0, 0]]
    # z and w stand at position 0: they are text, but nothing predicts them.
    assert over.is_target.tolist() == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]


def test_bytes_are_exact_for_every_document(tiny_tokens: Any, texts: tuple[str, ...]) -> None:
    expected = {i: len(t.encode()) for i, t in enumerate(texts)}
    assert bytes_per_document(tiny_tokens) == expected


def test_each_token_has_its_own_bytes(tiny_model: Any, texts: tuple[str, ...]) -> None:
    """Against the tokenizer's byte decoder, token by token."""
    from tokenizers.pre_tokenizers import ByteLevel

    blocks = tokens(corpus_of(list(texts)), tiny_model)
    alphabet = set(ByteLevel.alphabet())
    for token_id, n_bytes in zip(
        blocks.ids[blocks.is_text].tolist(), blocks.n_bytes[blocks.is_text].tolist(), strict=True
    ):
        token = tiny_model.tokenizer.convert_ids_to_tokens(token_id)
        assert set(token) <= alphabet
        assert n_bytes == len(token)


def test_text_that_spells_a_special_token_stays_text(
    tiny_model: Any, texts: tuple[str, ...]
) -> None:
    spelled = next(t for t in texts if "<|endoftext|>" in t)
    blocks = tokens(corpus_of([spelled]), tiny_model)
    assert (blocks.ids[blocks.is_text] != 0).all()
    assert tiny_model.tokenizer.decode(blocks.ids[blocks.is_text]) == spelled


def test_bytes_are_exact_under_a_normalizer(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """NFC shortens decomposed characters, so byte-level lengths would be wrong."""
    import copy

    from tokenizers import normalizers

    backend = copy.deepcopy(tiny_tokenizer.backend_tokenizer)
    backend.normalizer = normalizers.NFC()
    model = with_tokenizer(tiny_model, backend, bos_token="<|endoftext|>")
    text = "cafe\u0301 nai\u0308ve 🦉 x"
    assert bytes_per_document(tokens(corpus_of([text]), model)) == {0: len(text.encode())}


def test_bytes_are_exact_for_a_vocabulary_of_words(tiny_model: Any) -> None:
    """Not byte-level: spaces belong to no token, unknown words to one token of any length."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "el": 1, "ñandú": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = with_tokenizer(tiny_model, backend)
    text = "el  ñandú vió 東京 "
    blocks = tokens(corpus_of([text]), model, block_size=8)
    assert blocks.ids.flatten().tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    # A token takes the spaces before it, the last one those after it too.
    assert blocks.n_bytes.flatten().tolist() == [2, 9, 5, 8, 0, 0, 0, 0]
    assert blocks.is_text.sum() == 4  # this tokenizer has no BOS to put before the document


def test_n_tokens_cuts_exactly_and_reads_no_more(tiny_model: Any, texts: tuple[str, ...]) -> None:
    whole = tokens(corpus_of(list(texts)), tiny_model, block_size=8)
    part = tokens(corpus_of(list(texts)), tiny_model, block_size=8, n_tokens=60)
    assert part.n_tokens == 60
    assert part.warnings == ()
    assert torch.equal(part.ids.flatten()[:60], whole.ids.flatten()[:60])
    assert len(part.documents) < len(whole.documents)


def test_a_text_shorter_than_asked_is_a_warning(tiny_model: Any) -> None:
    blocks = tokens(corpus_of(["xyz"]), tiny_model, n_tokens=1000)
    assert blocks.n_tokens == 4
    assert "has 4 tokens" in blocks.warnings[0]


def test_splits_share_no_text_and_are_about_the_stated_share() -> None:
    texts = [f"text number {i % 900}" for i in range(1000)]
    corpus = corpus_of(texts)
    held, train = split_rows(corpus, "held_out"), split_rows(corpus, "train")
    assert sorted(held + train) == list(range(1000))
    assert abs(len(held) / 1000 - HELD_OUT_FRACTION) < 0.05
    assert {texts[i] for i in held}.isdisjoint({texts[i] for i in train})
    assert split_rows(corpus, "held_out", seed=1) != held
    assert split_rows(corpus, "all") == list(range(1000))


def test_a_document_stays_on_its_side_when_the_corpus_grows() -> None:
    texts = [f"text number {i}" for i in range(200)]
    few, many = corpus_of(texts[:100]), corpus_of(texts)
    assert split_rows(few, "held_out") == [i for i in split_rows(many, "held_out") if i < 100]


def test_tokens_come_from_the_split_asked_for(tiny_model: Any) -> None:
    corpus = corpus_of([f"text number {i}" for i in range(40)])
    blocks = tokens(corpus, tiny_model, split="held_out", seed=3)
    assert blocks.documents.tolist() == split_rows(corpus, "held_out", 3)
    lone = corpus_of(["x"])
    empty_split = "train" if split_rows(lone, "held_out") else "held_out"
    with pytest.raises(UserError, match=r"none of its 1 documents falls in.* or split all"):
        tokens(lone, tiny_model, split=empty_split)
    with pytest.raises(UserError, match="unknown split"):
        split_rows(corpus, "test")  # type: ignore[arg-type]


def test_ids_beyond_the_vocabulary_are_refused(tiny_model: Any) -> None:
    small = dataclasses.replace(tiny_model, d_vocab=50)
    with pytest.raises(UserError, match="beyond the 50 tokens") as error:
        tokens(corpus_of(["xyz"]), small)
    assert "\n" not in str(error.value)


def test_block_sizes_are_checked(tiny_model: Any) -> None:
    for size in (1, 33):
        with pytest.raises(UserError, match="use 2 to 32"):
            tokens(corpus_of(["xyz"]), tiny_model, block_size=size)
    long = dataclasses.replace(tiny_model, n_ctx=100_000)
    assert tokens(corpus_of(["xyz"]), long).n_ctx == 1024
    with pytest.raises(UserError, match="at least 2"):
        tokens(corpus_of(["xyz"]), tiny_model, n_tokens=1)


def test_sources_may_be_named(text_folder: Path, tiny_model: Any) -> None:
    by_name = tokens(str(text_folder), tiny_model)
    assert by_name.sha256 == tokens(load_text(text_folder), tiny_model).sha256


def test_the_hash_sees_ids_and_documents(tiny_tokens: Any) -> None:
    other = dataclasses.replace(tiny_tokens, doc_ids=tiny_tokens.doc_ids + 1)
    assert other.sha256 != tiny_tokens.sha256
    assert tiny_tokens[:2].sha256 != tiny_tokens.sha256


def test_slices_are_views(tiny_tokens: Any) -> None:
    part = tiny_tokens[2:5]
    assert len(part) == 3
    assert part.ids.data_ptr() == tiny_tokens.ids[2].data_ptr()


def test_the_tokenizer_is_left_as_it_was(tiny_model: Any) -> None:
    """Encoding special text as text is for us alone."""
    tokens(corpus_of(["xyz"]), tiny_model)
    assert tiny_model.tokenizer.encode("<|endoftext|>") == [0]


def test_empty_documents_between_others_are_harmless(tiny_model: Any) -> None:
    blocks = tokens(corpus_of(["xy", "", "z"]), tiny_model, block_size=8)
    assert blocks.ids.flatten()[[0, 3, 4]].tolist() == [0, 0, 0]
    assert np.array_equal(blocks.documents, [0, 1, 2])
