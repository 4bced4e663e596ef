"""What a wheel holds: every file in the packages that is no Python has a pattern that ships it."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {
        file.relative_to(ROOT)
        for package in ("interp", "saes")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    shipped = {
        file.relative_to(ROOT)
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package).glob(pattern)
    }
    assert len(data) > 10
    assert data <= shipped, sorted(map(str, data - shipped))
