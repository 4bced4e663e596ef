"""What `interp ladder` keeps in its working folder: corpus, tokenizer, token streams, runs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from interp import durable
from interp.errors import UserError
from interp.ladder import corpus as corpus_module
from interp.ladder.records import write
from interp.ladder.tokenizer import TOKENIZER_DOCUMENTS, token_stream, train_tokenizer

SPLITS = ("train", "held_out")


def corpus(work_dir: Path) -> None:
    """Wheels -> text -> tokenizer -> token streams, in `work_dir`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    manifest = corpus_module.build(work_dir, say)
    write(work_dir / "corpus_manifest.json", manifest)
    texts = pq.read_table(work_dir / "train.parquet")["text"].to_pylist()
    tokenizer = train_tokenizer(texts[:TOKENIZER_DOCUMENTS], work_dir / "tokenizer")
    for split in SPLITS:
        texts = pq.read_table(work_dir / f"{split}.parquet")["text"].to_pylist()
        ids = np.concatenate(list(token_stream(tokenizer, texts)))
        np.save(work_dir / f"{split}.npy", ids)
        say(f"{split}: {len(ids):,} tokens")


def require_corpus(work_dir: Path) -> None:
    """Raise UserError where the working folder's corpus is not the one of the shipped models."""
    made, shipped = work_dir / "corpus_manifest.json", corpus_module.MANIFEST_FILE
    if not made.exists() or json.loads(made.read_text()) != json.loads(shipped.read_text()):
        raise UserError(
            f"{work_dir} holds another corpus than the one that the ladder's models were trained "
            f"on ({shipped.name} differs); run `interp ladder corpus` in a fresh folder"
        )


def token_ids(work_dir: Path) -> dict[str, np.ndarray]:
    """Token ids (uint16) of both splits, one stream each; raises UserError without them."""
    for split in SPLITS:
        if not (work_dir / f"{split}.npy").exists():
            raise UserError(f"{work_dir} has no {split}.npy; run `interp ladder corpus` first")
    return {
        "train": np.load(work_dir / "train.npy", mmap_mode="r"),
        "held_out": np.load(work_dir / "held_out.npy"),
    }


def projects_stream(work_dir: Path, n_projects: int) -> np.ndarray:
    """Training tokens of the first projects in an order fixed by their hashes; kept beside.

    The file's name says which corpus and tokenizer they are of, which may have been made again.
    """
    sources = (work_dir / "train.parquet", work_dir / "tokenizer" / "tokenizer.json")
    made_from = hashlib.sha256("".join(map(durable.sha256, sources)).encode()).hexdigest()
    file = work_dir / f"train-{n_projects}-{made_from[:12]}.npy"
    if not file.exists():
        table = pq.read_table(work_dir / "train.parquet", columns=["project", "text"])
        projects = sorted(
            set(table["project"].to_pylist()), key=lambda p: hashlib.sha256(p.encode()).digest()
        )
        chosen = pa.array(projects[:n_projects])
        texts = table.filter(pc.is_in(table["project"], chosen))["text"].to_pylist()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work_dir / "tokenizer")
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(list(token_stream(tokenizer, texts))))
        partial.replace(file)
    return np.load(file, mmap_mode="r")


def finished_log(run_dir: Path) -> list[dict[str, Any]] | None:
    """Loss by tokens seen of a run that ended, else None."""
    file = run_dir / "log.json"
    return json.loads(file.read_text()) if file.exists() else None


def run_log(run_dir: Path) -> list[dict[str, Any]]:
    """`finished_log` of a run that must have ended."""
    log = finished_log(run_dir)
    assert log is not None, run_dir
    return log


def say(text: str) -> None:
    """Progress goes to stderr, at once."""
    print(text, file=sys.stderr, flush=True)
