"""What tokens look like: the bytes they stand for, as text that keeps even broken UTF-8.

A token may be a part of a character. Its bytes are decoded with `surrogateescape`: the byte 0xE2
alone becomes the code unit U+DCE2, which JSON can write and the page shows as \\xE2.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from interp.corpora import Corpus
from interp.explore.records import HeldOutText
from interp.tokens import TokenBlocks

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def held_out_text(blocks: TokenBlocks, corpus: Corpus) -> HeldOutText:
    """Cut the documents into the bytes that each token of the blocks stands for."""
    docs = blocks.doc_ids.flatten().numpy()
    is_text, n_bytes = blocks.is_text.flatten().numpy(), blocks.n_bytes.flatten().numpy()
    number: dict[str, int] = {"": 0}
    ids = np.zeros(len(docs), dtype=np.int32)
    documents = []
    for document in dict.fromkeys(docs[docs >= 0].tolist()):
        mine = np.flatnonzero((docs == document) & is_text)
        if not len(mine):
            continue
        row = corpus.documents[int(document)]
        raw, ends = row["text"].encode(), np.cumsum(n_bytes[mine])
        for position, start, end in zip(mine, ends - n_bytes[mine], ends, strict=True):
            text = of_bytes(raw[start:end])
            ids[position] = number.setdefault(text, len(number))
        documents.append((int(mine[0]), int(mine[-1]) + 1, str(row["doc_id"])))
    return HeldOutText(list(number), ids, documents, blocks.n_ctx, blocks.sha256)


def of_bytes(raw: bytes) -> str:
    """Text in which every byte that is no part of a character is one code unit U+DC80 to U+DCFF."""
    return raw.decode("utf-8", "surrogateescape")


def vocabulary(tokenizer: Any, d_vocab: int) -> list[str]:
    """What each token id writes; the empty string for ids that the tokenizer does not have."""
    backend = tokenizer.backend_tokenizer
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    pieces = {i: piece for piece, i in backend.get_vocab(with_added_tokens=True).items()}
    table = _byte_level()
    plain = [piece for i, piece in pieces.items() if i not in added]
    byte_level = all(table.keys() >= set(piece) for piece in plain)
    out = []
    for i in range(d_vocab):
        piece = pieces.get(i, "")
        if i in added:
            out.append(added[i])
        elif byte_level:
            out.append(of_bytes(bytes(table[c] for c in piece)))
        elif (byte := _FALLBACK.fullmatch(piece)) is not None:
            out.append(of_bytes(bytes([int(byte[1], 16)])))
        else:
            out.append(piece.replace("▁", " "))
    return out


def _byte_level() -> dict[str, int]:
    """Printable character -> byte, the alphabet of byte-level BPE.

    Source: Radford et al. 2019, encoder.py: printable bytes stand for themselves, the others for
    the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
