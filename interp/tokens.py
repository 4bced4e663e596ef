"""Text -> packed blocks of token ids that know their document and their exact bytes.

Documents follow each other, each preceded by the model's BOS (or EOS) token, and run over block
boundaries; only the last block is padded. A split is by document, so that no text is on both sides.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from interp import token_cache
from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.models import Model

Split = Literal["all", "train", "held_out"]

HELD_OUT_FRACTION = 0.15
MAX_BLOCK_TOKENS = 1024
"""Blocks are as long as the model's context, but no longer than this."""

_DOCUMENTS_PER_BATCH = 64


@dataclass(frozen=True, eq=False)
class TokenBlocks:
    """Token ids in blocks. All tensors are int32 or bool of the same shape, on the CPU.

    A *target* is a token whose loss counts: real text, not at position 0 of its block. The token
    before a document and padding are never targets.
    """

    ids: Int[Tensor, "block pos"]
    doc_ids: Int[Tensor, "block pos"]
    """Row of the document in its corpus; -1 for padding."""
    n_bytes: Int[Tensor, "block pos"]
    """UTF-8 bytes of text this token stands for. Over a whole document they sum to its length."""
    is_text: Bool[Tensor, "block pos"]
    """False for the token before a document and for padding."""
    corpus: str
    split: Split
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def is_target(self) -> Bool[Tensor, "block pos"]:
        mask = self.is_text.clone()
        mask[:, 0] = False
        return mask

    @property
    def n_tokens(self) -> int:
        """Positions in use: padding is not counted, the tokens before documents are."""
        return int((self.doc_ids >= 0).sum())

    @property
    def n_ctx(self) -> int:
        return self.ids.shape[1]

    @property
    def documents(self) -> Int[Tensor, " doc"]:
        """The document ids that occur, ascending."""
        found = torch.unique(self.doc_ids)
        return found[found >= 0]

    @property
    def sha256(self) -> str:
        """Of shape, ids and document ids: what a result that used these tokens should record."""
        digest = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.doc_ids):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """The number of blocks."""
        return self.ids.shape[0]

    def __getitem__(self, blocks: slice) -> TokenBlocks:
        """Some of the blocks, as views."""
        return replace(
            self,
            ids=self.ids[blocks],
            doc_ids=self.doc_ids[blocks],
            n_bytes=self.n_bytes[blocks],
            is_text=self.is_text[blocks],
        )

    def __repr__(self) -> str:
        return (
            f"TokenBlocks({len(self)} blocks of {self.n_ctx}, {self.n_tokens:,} tokens, "
            f"{len(self.documents):,} documents of {self.corpus!r}, split {self.split!r})"
        )


def tokens(
    source: str | Path | Corpus,
    model: Model,
    *,
    n_tokens: int | None = None,
    split: Split = "all",
    seed: int = 0,
    block_size: int | None = None,
) -> TokenBlocks:
    """Tokenize documents in corpus order into blocks for `model`.

    `n_tokens` counts positions, the tokens before documents included: the text is cut there, and a
    shorter text gives a warning in the result. `split` takes the documents whose hash of (seed,
    text) falls in the lowest 15% (`held_out`), the others (`train`), or both (`all`).
    `block_size` is at most the model's context; by default the context, at most 1,024.

    Raises UserError for a source without text, an empty split, ids beyond the model's vocabulary,
    or a block size that does not fit.
    """
    corpus = source if isinstance(source, Corpus) else load_text(source)
    block_size = _block_size(model, block_size)
    if n_tokens is not None and n_tokens < 2:
        raise UserError(f"n_tokens is {n_tokens}; ask for at least 2")
    rows = split_rows(corpus, split, seed)
    if not rows:
        raise UserError(
            f"{corpus.name}: none of its {len(corpus)} documents falls in split {split!r}; "
            "use a larger text, another seed, or split all"
        )
    key = _key(corpus, model, n_tokens, split, seed, block_size)
    columns = token_cache.read(key)
    if columns is None:
        columns = _columns(corpus, rows, model, n_tokens, block_size)
        token_cache.keep(key, columns)
    blocks = TokenBlocks(**columns, corpus=corpus.name, split=split, seed=seed, warnings=())
    _check_vocabulary(blocks.ids, corpus.name, model)
    warnings = corpus.warnings
    if n_tokens is not None and blocks.n_tokens < n_tokens:
        warnings = (
            *warnings,
            f"{corpus.name}: split {split!r} has {blocks.n_tokens:,} tokens, not the "
            f"{n_tokens:,} asked for",
        )
    return replace(blocks, warnings=tuple(warnings))


def _key(corpus: Corpus, model: Model, *settings: int | str | None) -> str:
    """Of all that determines the blocks: text, tokenizer, settings, and the code itself."""
    facts = {
        "text": corpus.sha256,
        "tokenizer": model.tokenizer.backend_tokenizer.to_str(),
        "bos": model.bos_id,
        "settings": settings,
        "code": Path(__file__).read_bytes(),
        "tokenizers": metadata.version("tokenizers"),
    }
    return token_cache.key(facts)


def _columns(
    corpus: Corpus, rows: Sequence[int], model: Model, n_tokens: int | None, block_size: int
) -> dict[str, Tensor]:
    """The fields of `TokenBlocks`, [block pos] each."""
    parts: list[tuple[int, np.ndarray, np.ndarray]] = []
    have = 0
    for row, ids, n_bytes in _encode(corpus, rows, model):
        parts.append((row, ids, n_bytes))
        have += len(ids) + (model.bos_id is not None)
        if n_tokens is not None and have >= n_tokens:
            break
    return _to_blocks(_concatenate(parts, model.bos_id, n_tokens), block_size)


def split_rows(corpus: Corpus, split: Split, seed: int = 0) -> list[int]:
    """The rows of a corpus in a split, ascending. Equal texts always fall on the same side."""
    if split not in ("all", "train", "held_out"):
        raise UserError(f"unknown split {split!r}; use all, train or held_out")
    if split == "all":
        return list(range(len(corpus)))
    limit = int(HELD_OUT_FRACTION * 2**64)
    key = seed.to_bytes(8, "little", signed=True)
    texts = corpus.documents["text"]
    held_out = (
        int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8, key=key).digest(), "little")
        < limit
        for t in texts
    )
    return [row for row, held in enumerate(held_out) if held == (split == "held_out")]


def _block_size(model: Model, block_size: int | None) -> int:
    if block_size is None:
        return min(model.n_ctx, MAX_BLOCK_TOKENS)
    if not 2 <= block_size <= model.n_ctx:
        raise UserError(
            f"block size {block_size}: {model.name} has a context of {model.n_ctx} tokens; "
            f"use 2 to {model.n_ctx}"
        )
    return block_size


def _encode(
    corpus: Corpus, rows: Sequence[int], model: Model
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, ids, bytes per token) of each document, in order."""
    backend = copy.deepcopy(model.tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    # Text that spells a special token is text: source code about tokenizers is full of it.
    backend.encode_special_tokens = True
    table = _byte_level_lengths(backend)
    for start in range(0, len(rows), _DOCUMENTS_PER_BATCH):
        batch = list(rows[start : start + _DOCUMENTS_PER_BATCH])
        texts = corpus.documents[batch]["text"]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        for row, text, encoding in zip(batch, texts, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            n_bytes = None if table is None else table[ids]
            # A normalizer or an added space changes the bytes; offsets then tell the truth.
            if n_bytes is None or n_bytes.sum() != len(text.encode()):
                n_bytes = _lengths_from_offsets(
                    text, backend.encode(text, add_special_tokens=False)
                )
            yield row, ids, n_bytes


def _byte_level_lengths(backend: Any) -> np.ndarray | None:
    """Bytes of each token id of a byte-level vocabulary; None for any other.

    Byte-level BPE writes every byte as one printable character, so a token has as many bytes as
    characters. Added tokens are written as they are.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=False)
    table = np.zeros(max([*vocabulary.values(), *added]) + 1, dtype=np.int32)
    for token, i in vocabulary.items():
        if i not in added and not alphabet.issuperset(token):
            return None
        table[i] = len(token)
    for i, content in added.items():
        table[i] = len(content.encode())
    return table


def _lengths_from_offsets(text: str, encoding: Any) -> np.ndarray:
    """Bytes per token from character spans; they sum to the length of the text.

    Characters that no token spans go to the next token, those after the last to the last; of
    tokens that share one character the first has its bytes.
    """
    n = len(encoding.ids)
    if n == 0:
        return np.zeros(0, dtype=np.int32)
    cumulative = np.zeros(len(text) + 1, dtype=np.int64)
    np.cumsum([len(c.encode()) for c in text], out=cumulative[1:])
    ends = np.maximum.accumulate([end for _, end in encoding.offsets])
    ends[-1] = len(text)
    return np.diff(cumulative[ends], prepend=0).astype(np.int32)


def _concatenate(
    parts: list[tuple[int, np.ndarray, np.ndarray]], bos_id: int | None, n_tokens: int | None
) -> dict[str, np.ndarray]:
    lead = bos_id is not None
    total = sum(len(ids) + lead for _, ids, _ in parts)
    flat = {
        "ids": np.full(total, bos_id if lead else 0, dtype=np.int32),
        "doc_ids": np.empty(total, dtype=np.int32),
        "n_bytes": np.zeros(total, dtype=np.int32),
        "is_text": np.zeros(total, dtype=bool),
    }
    at = 0
    for row, ids, n_bytes in parts:
        text = slice(at + lead, at + lead + len(ids))
        flat["ids"][text] = ids
        flat["n_bytes"][text] = n_bytes
        flat["is_text"][text] = True
        flat["doc_ids"][at : text.stop] = row
        at = text.stop
    return {key: value[:n_tokens] for key, value in flat.items()}


def _check_vocabulary(ids: Tensor, name: str, model: Model) -> None:
    if ids.numel() and int(ids.max()) >= model.d_vocab:
        raise UserError(
            f"{name}: token id {int(ids.max())} is beyond the {model.d_vocab} tokens that "
            f"{model.name} knows; use the tokenizer that belongs to the model"
        )


_PADDING: dict[str, int] = {"ids": 0, "doc_ids": -1, "n_bytes": 0, "is_text": False}


def _to_blocks(flat: dict[str, np.ndarray], block_size: int) -> dict[str, Tensor]:
    """Pad the end to a whole block. Padding comes last, so causal models never see it."""
    missing = -len(flat["ids"]) % block_size
    return {
        key: rearrange(
            torch.from_numpy(np.pad(value, (0, missing), constant_values=_PADDING[key])),
            "(block pos) -> block pos",
            pos=block_size,
        )
        for key, value in flat.items()
    }
