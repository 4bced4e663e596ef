"""Training text of the ladder: Python source of pinned, permissively licensed wheels.

None of the projects is in our lock, so the evaluation texts `deps` (the pinned dependencies'
source) and `stdlib` stay unseen; files that nearly duplicate either are excluded all the same.
"""

from __future__ import annotations

import email
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.errors import UserError

PROJECTS_FILE = Path(__file__).with_name("corpus_projects.json")
MANIFEST_FILE = Path(__file__).with_name("corpus_manifest.json")

MIN_BYTES = 200
MAX_BYTES = 65_536  # a document is cut at the last line end before this
PROJECT_BYTES = 12_000_000  # no project may dominate
SHINGLE = 10  # tokens
SHINGLE_SAMPLE = 16  # one shingle hash in 16 is kept
EVALUATION_CONTAINMENT = 0.3  # excluded when this share of its shingles is in evaluation text
TRAINING_CONTAINMENT = 0.7  # ... or this share in earlier training files

_WORD = re.compile(r"\w+|[^\w\s]")


def load_projects() -> dict[str, list[str]]:
    """Pinned requirement lines: `train`, and `held_out` (whole projects nobody trains on)."""
    return json.loads(PROJECTS_FILE.read_text())


def download(requirements: Iterable[str], wheel_dir: Path) -> Iterator[Path]:
    """Fetch each pinned wheel with pip unless it is there already; yields its path.

    Raises UserError when pip cannot deliver a wheel.
    """
    wheel_dir.mkdir(parents=True, exist_ok=True)
    for requirement in requirements:
        name, version = requirement.split("==")
        stem = re.sub(r"[-_.]+", "_", name)
        pattern = re.compile(rf"{re.escape(stem)}-{re.escape(version)}-.*\.whl", re.IGNORECASE)
        for _attempt in (0, 1):
            found = [p for p in wheel_dir.iterdir() if pattern.fullmatch(p.name)]
            if found:
                yield sorted(found)[0]
                break
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--dest", str(wheel_dir), requirement]
            subprocess.run(command, check=False, capture_output=True)
        else:
            raise UserError(
                f"cannot fetch the wheel of {requirement}; check that pip reaches its package index"
            )


def licence_of(wheel: zipfile.ZipFile) -> str:
    """The licence as the wheel's own metadata states it, on one line."""
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    meta = email.message_from_bytes(wheel.read(name))
    classifiers = [str(c) for c in meta.get_all("Classifier", []) if str(c).startswith("License")]
    stated = str(meta.get("License-Expression") or "")
    if not stated and classifiers:
        stated = "; ".join(c.split("::")[-1].strip() for c in classifiers)
    return (stated or str(meta.get("License") or "see wheel")).splitlines()[0][:80]


def is_generated_table(text: str) -> bool:
    """Data in Python's clothes: mostly digits and punctuation, or very long lines."""
    lines = text.count("\n") + 1
    letters = sum(c.isalpha() for c in text)
    return len(text) / lines > 120 or letters < 0.35 * len(text.replace(" ", ""))


def cap(text: str) -> str:
    """The document cut at the last line end before `MAX_BYTES` bytes."""
    data = text.encode()
    if len(data) <= MAX_BYTES:
        return text
    head = data[:MAX_BYTES].decode(errors="ignore")
    return head[: head.rfind("\n") + 1]


def shingle_hashes(text: str, _codes: dict[str, int] | None = None) -> np.ndarray:
    """Sampled 64-bit hashes of the text's `SHINGLE`-token windows (uint64, unique)."""
    codes = _CODES if _codes is None else _codes
    tokens = _WORD.findall(text)
    if len(tokens) < SHINGLE:
        return np.zeros(0, np.uint64)
    for token in set(tokens).difference(codes):
        codes[token] = (
            zlib.crc32(token.encode("utf-8", "surrogatepass")) * 0x9E3779B97F4A7C15 % 2**64
        )
    values = np.fromiter((codes[t] for t in tokens), np.uint64, len(tokens))
    n = len(values) - SHINGLE + 1
    rolled = np.zeros(n, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(SHINGLE):
            rolled = rolled * np.uint64(0x100000001B3) + values[offset : offset + n]
        rolled ^= rolled >> np.uint64(29)
        rolled *= np.uint64(0xBF58476D1CE4E5B9)
        rolled ^= rolled >> np.uint64(32)
    return np.unique(rolled[rolled % np.uint64(SHINGLE_SAMPLE) == 0])


_CODES: dict[str, int] = {}


def evaluation_shingles() -> np.ndarray:
    """Sorted shingle hashes of everything installed beside us and of the standard library."""
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    roots |= {sysconfig.get_path("stdlib")}
    seen: set[Path] = set()
    parts = []
    for root in sorted(roots):
        for path in sorted(Path(root).rglob("*.py")):
            # An environment's base interpreter keeps other people's packages below its library.
            stray = "site-packages" in path.relative_to(root).parts
            if path not in seen and not stray:
                seen.add(path)
                parts.append(shingle_hashes(path.read_text(errors="replace")))
    return np.unique(np.concatenate(parts))


def _contained(hashes: np.ndarray, among: np.ndarray) -> float:
    if not len(hashes) or not len(among):
        return 0.0
    at = np.searchsorted(among, hashes).clip(max=len(among) - 1)
    return float((among[at] == hashes).mean())


def _files(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """The wheel's .py files in an order that is random but fixed by their names."""
    names = [n for n in wheel.namelist() if n.endswith(".py")]
    for name in sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest()):
        try:
            yield name, wheel.read(name).decode()
        except UnicodeDecodeError:
            continue


def build(work_dir: Path, progress: Callable[[str], None] = lambda _: None) -> dict[str, object]:
    """Fetch, filter and write `train.parquet` and `held_out.parquet`; returns the manifest.

    Columns: project, path, text. Rows are in a random order fixed by the documents' hashes.
    """
    evaluation = evaluation_shingles()
    progress(f"evaluation text: {len(evaluation):,} shingles")
    seen_text: set[bytes] = set()
    seen_shingles: set[int] = set()
    projects = []
    splits: dict[str, list[dict[str, str]]] = {"train": [], "held_out": []}
    totals: Counter[str] = Counter()
    # Held-out projects come first, so that a training file that copies one is the one to go.
    listing = load_projects()
    for split in ("held_out", "train"):
        for path in download(listing[split], work_dir / "wheels"):
            wheel = zipfile.ZipFile(path)
            kept: Counter[str] = Counter()
            for name, raw in _files(wheel):
                if kept["bytes"] >= PROJECT_BYTES:
                    kept["over the project cap"] += 1
                    continue
                text = cap(raw.replace("\r\n", "\n"))
                verdict = _verdict(text, evaluation, seen_text, seen_shingles)
                kept[verdict] += 1
                if verdict == "files":
                    kept["bytes"] += len(text.encode())
                    splits[split].append({"project": path.name, "path": name, "text": text})
            totals.update(kept)
            projects.append(
                {
                    "wheel": path.name,
                    "split": split,
                    "licence": licence_of(wheel),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    **dict(sorted(kept.items())),
                }
            )
            progress(f"{path.name}: {kept['files']} files, {kept['bytes'] / 1e6:.1f} MB")
    for split, rows in splits.items():
        rows.sort(key=lambda r: hashlib.sha256((r["project"] + r["path"]).encode()).digest())
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, work_dir / f"{split}.parquet", compression="zstd")
    return {
        "rule": {
            "min_bytes": MIN_BYTES,
            "max_bytes": MAX_BYTES,
            "project_bytes": PROJECT_BYTES,
            "shingle_tokens": SHINGLE,
            "evaluation_containment": EVALUATION_CONTAINMENT,
            "training_containment": TRAINING_CONTAINMENT,
        },
        "totals": dict(sorted(totals.items())),
        "bytes": {s: sum(len(r["text"].encode()) for r in rows) for s, rows in splits.items()},
        "projects": projects,
    }


def _verdict(
    text: str, evaluation: np.ndarray, seen_text: set[bytes], seen_shingles: set[int]
) -> str:
    """Why a file is kept (`files`) or not; remembers the files it keeps."""
    if len(text.encode()) < MIN_BYTES:
        return "too short"
    if is_generated_table(text):
        return "generated table"
    digest = hashlib.sha256("".join(text.split()).encode()).digest()
    if digest in seen_text:
        return "duplicate"
    hashes = shingle_hashes(text)
    if _contained(hashes, evaluation) >= EVALUATION_CONTAINMENT:
        return "near evaluation text"
    values = hashes.tolist()
    if values and sum(h in seen_shingles for h in values) >= TRAINING_CONTAINMENT * len(values):
        return "near duplicate"
    seen_text.add(digest)
    seen_shingles.update(values)
    return "files"
