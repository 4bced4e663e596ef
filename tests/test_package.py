"""What a wheel holds: every file in the packages that is no Python has a pattern that ships it."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = subprocess.run(
        ["git", "ls-files", "interp", "saes"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    data = {path for path in map(Path, listed.stdout.split()) if path.suffix != ".py"}
    shipped = {
        file.relative_to(ROOT)
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package).glob(pattern)
    }
    assert len(data) > 10
    assert data <= shipped, sorted(map(str, data - shipped))
