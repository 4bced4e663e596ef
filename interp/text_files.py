"""Local text: a text, JSONL or Parquet file, or a folder of them -> documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from interp.errors import UserError

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
MAX_DOCUMENT_BYTES = 64 * 1024
ADVICE = "use deps, stdlib, a text, .jsonl or .parquet file, a folder, or a hub data set"

Document = tuple[str, str]
"""(doc_id, text)"""


def folder_documents(folder: Path) -> Iterator[Document]:
    """The files with a known suffix, in the order of their paths. UserError without any."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder}: no text in it ({', '.join(SUFFIXES)}); {ADVICE}")
    for path in paths:
        yield from file_documents(path, path.relative_to(folder).as_posix())


def file_documents(path: Path, name: str) -> Iterator[Document]:
    """A file's documents: itself, the lines of JSONL, or the rows of Parquet.

    Raises UserError for text that is not UTF-8, and for lines or rows without a string `text`.
    """
    if path.suffix == ".parquet":
        yield from _parquet_documents(path, name)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")  # a byte-order mark is no text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); convert it or name another source"
        ) from error
    if path.suffix != ".jsonl":
        yield from pieces(name, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f'{path}: line {number} is no JSON object with a "text"; write one object a line'
            ) from error
        if not isinstance(value, str):
            raise UserError(f'{path}: line {number}: "text" is no string; quote it')
        if not _is_unicode(value):
            raise UserError(
                f'{path}: line {number}: "text" has half of a surrogate pair (\\ud800 to \\udfff), '
                "which no UTF-8 can hold; drop the line"
            )
        yield from pieces(f"{name}#{number}", value)


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON's escapes can spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_documents(path: Path, name: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            raise UserError(
                f'{path}: no column "text" (it has {", ".join(table.schema_arrow.names)}); '
                "rename the column that holds the text"
            )
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column("text").to_pylist():
                if not isinstance(text, str):
                    raise UserError(f'{path}: row {number}: "text" is no string; drop the row')
                yield from pieces(f"{name}#{number}", text)
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(f"{path}: no readable Parquet file ({reason}); copy it again") from error


def pieces(name: str, text: str) -> Iterator[Document]:
    """A document, or its numbered parts of at most 64 KiB."""
    parts = list(cut(text))
    for i, part in enumerate(parts):
        yield (name if len(parts) == 1 else f"{name}@{i}"), part


def cut(text: str) -> Iterator[str]:
    """Pieces of at most 64 KiB of UTF-8, cut after a line end where there is one."""
    if len(text) * 4 <= MAX_DOCUMENT_BYTES or len(text.encode()) <= MAX_DOCUMENT_BYTES:
        yield text
        return
    raw = text.encode()
    start = 0
    while start < len(raw):
        stop = min(start + MAX_DOCUMENT_BYTES, len(raw))
        if stop < len(raw):
            line_end = raw.rfind(b"\n", start, stop) + 1
            if line_end > start:
                stop = line_end
            else:
                while raw[stop] & 0xC0 == 0x80:  # inside a character
                    stop -= 1
        yield raw[start:stop].decode()
        start = stop
