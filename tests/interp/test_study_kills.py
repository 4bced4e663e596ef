"""A study killed at random moments, or moved to another clone, ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_study import tiny_study

import interp
from interp.config import StudyConfig
from interp.run import open_run
from interp.study import run_study

pytestmark = pytest.mark.slow
N_KILLS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    return tiny_study(tmp_path_factory.mktemp("family"), save_tiny, other_layers=True)


def start(config_file: Path, out: Path, package: Path) -> subprocess.Popen[str]:
    """`interp study`, from the package below a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "interp.cli", "study", str(config_file), "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(package), "SUPERSCOPE_CACHE": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=config_file.parent,
    )


def clone() -> Path:
    return Path(interp.__file__).parents[1]


@pytest.fixture(scope="module")
def whole(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config file, undisturbed run)"""
    root = tmp_path_factory.mktemp("whole")
    (root / "study.yaml").write_text(config.to_yaml())
    run_study(config, root / "out", quiet=True)
    return root / "study.yaml", root / "out"


def same(left: Path, right: Path) -> None:
    """Tables byte for byte, and what was concluded."""
    for name in ("results.parquet", "models.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    timed = {"wall_time_seconds", "command"}
    summaries = [open_run(path).summary for path in (left, right)]
    one, other = ({k: v for k, v in s.items() if k not in timed} for s in summaries)
    assert one == other


def test_twenty_kills_change_no_byte(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """Each a moment after the sitting made its first unit, so that all twenty hit work."""
    config_file, undisturbed = whole
    out = tmp_path / "out"
    chance = random.Random(0)
    n_kills = 0
    for _ in range(10 * N_KILLS):
        before = len(list(out.glob("work/*/units/*.json")))
        process = start(config_file, out, clone())
        while process.poll() is None:
            under_way = list(out.glob("work/*/units/*.running"))
            if under_way or len(list(out.glob("work/*/units/*.json"))) > before:
                time.sleep(chance.uniform(0, 1.0))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        process.communicate()
        n_kills += process.returncode == -signal.SIGKILL
        if n_kills == N_KILLS:
            break
        if (out / "summary.json").exists():
            # Done before all the kills were: some of it once more.
            for part in chance.sample(sorted((out / "work").glob("*/units")), 2):
                chance.choice(sorted(part.glob("*.json"))).unlink()
    assert n_kills == N_KILLS
    process = start(config_file, out, clone())
    _, told = process.communicate()
    assert process.returncode == 0, told
    same(out, undisturbed)
    assert not list(out.rglob("*.partial"))
    assert not list(out.glob("saes/*/*/.*"))


def test_one_clone_begins_and_another_finishes(whole: tuple[Path, Path], tmp_path: Path) -> None:
    config_file, undisturbed = whole
    other = tmp_path / "clone"
    for package in ("interp", "saes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(clone() / package, other / package, ignore=ignore)
    out = tmp_path / "out"
    process = start(config_file, out, clone())
    while process.poll() is None and len(list(out.glob("work/*/units/*.json"))) < 4:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    begun = {f: f.stat().st_mtime_ns for f in out.glob("work/*/units/*.json")}
    assert len(begun) >= 4
    process = start(config_file, out, other)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert {f: f.stat().st_mtime_ns for f in begun} == begun
    same(out, undisturbed)


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """Whoever runs in the background ignores it, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_twice_is_one_line(whole: tuple[Path, Path], tmp_path: Path) -> None:
    config_file, undisturbed = whole
    out = tmp_path / "out"
    process = start(config_file, out, clone())
    while process.poll() is None and not list(out.glob("work/*/units/saes.running")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "interrupted; run the same line again to go on"
    process = start(config_file, out, clone())
    process.communicate()
    assert process.returncode == 0
    same(out, undisturbed)
