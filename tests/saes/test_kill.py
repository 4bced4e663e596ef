"""`kill -9` at a random moment and the same command again: the same final bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

ARCHITECTURES = ["topk", "batchtopk", "matryoshka_batchtopk"]
KILLS = 24
"""Processes killed while they trained, over all architectures."""


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24,000 rows: about a second of training, in 24 chunks."""
    folder = tmp_path_factory.mktemp("acts")
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((96, 24)).astype(np.float32)
    for number in range(3):
        active = rng.random((8000, 96)) < 0.04
        np.save(folder / f"{number}.npy", active.astype(np.float32) @ directions)
    return folder


def command(acts: Path, out: Path, architecture: str) -> list[str]:
    options = "--d-sae 8x --k 3 --seeds 2 --batch-size 100 --tokens 40000 --chunk-rows 1000"
    line = [sys.executable, "-m", "saes.cli", "train", str(acts), "--out", str(out)]
    return [*line, *options.split(), "--checkpoint-seconds", "0", "--architecture", architecture]


def weights(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("resid/*/*"))}


def uninterrupted(acts: Path, out: Path, architecture: str) -> dict[str, bytes]:
    subprocess.run(command(acts, out, architecture), stdout=subprocess.DEVNULL, check=True)
    return weights(out)


def wait_for_checkpoints(process: subprocess.Popen[bytes], out: Path, n: int) -> None:
    """Until `n` new ones were seen: a load on the machine moves no kill out of the training."""

    def there() -> set[tuple[str, int]]:
        found = set()
        for file in (out / ".checkpoints").glob("*.safetensors"):
            with suppress(FileNotFoundError):
                found.add((file.name, file.stat().st_mtime_ns))
        return found

    old, new = there(), set[tuple[str, int]]()
    while process.poll() is None and len(new) < n:
        time.sleep(0.001)
        new |= there() - old


def kill_until_done(
    acts: Path, out: Path, architecture: str, n_kills: int, rng: random.Random
) -> int:
    """Kill up to `n_kills` processes within their training, then let one finish; kills done.

    Of some 80 checkpoints, one per chunk and SAE, each process gets to see fewer than 40.
    """
    kills = 0
    for _ in range(n_kills):
        process = subprocess.Popen(command(acts, out, architecture), stdout=subprocess.DEVNULL)
        wait_for_checkpoints(process, out, rng.randrange(1, 40))
        time.sleep(rng.uniform(0, 0.02))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    done = subprocess.run(command(acts, out, architecture), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return kills


def test_a_killed_run_ends_in_the_same_bytes(acts: Path, tmp_path: Path) -> None:
    expected = uninterrupted(acts, tmp_path / "plain", "topk")
    kills = kill_until_done(acts, tmp_path / "killed", "topk", 2, random.Random(1))
    assert kills >= 1
    assert len(expected) == 4
    assert weights(tmp_path / "killed") == expected
    lines = (tmp_path / "killed" / "resid" / "192-3-0.jsonl").read_text().splitlines()
    tokens = [int(line.split('"tokens": ')[1].split(",")[0]) for line in lines]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == 40_000


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_killed_runs_end_in_the_same_bytes(
    acts: Path, tmp_path: Path, architecture: str
) -> None:
    """`KILLS` over the three architectures, at moments spread over the whole run."""
    expected = uninterrupted(acts, tmp_path / "plain", architecture)
    rng = random.Random(architecture)
    kills = 0
    for attempt in range(12):
        out = tmp_path / f"killed-{attempt}"
        kills += kill_until_done(acts, out, architecture, 2, rng)
        assert weights(out) == expected, f"attempt {attempt}"
        if kills * len(ARCHITECTURES) >= KILLS:
            return
    pytest.fail(f"only {kills} kills hit a running process")
