"""What is in the package and what loads there."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path


def modules(root: Path) -> str:
    """One line per module: its path and the first line of its docstring."""
    lines = []
    for package in ("interp", "saes"):
        for path in sorted((root / package).rglob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            if doc is None:
                raise SystemExit(f"{path} has no docstring; every module says what it is")
            first = re.split(r"\n\s*\n", doc)[0].replace("\n", " ")
            name = path.relative_to(root).as_posix()
            lines.append(f"- `{name}`: {first}")
    return "\n".join(lines)


def supported(root: Path) -> str:
    """The architectures that the tests load, capture and compare."""
    path = root / "tests" / "interp" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    rows = ["| Architecture | Models | Hook points |", "|---|---|---|"]
    for name, row in module.COVERED.items():
        points = "all but " + ", ".join(f"`{k}`" for k in row.lacks) if row.lacks else "all"
        rows.append(f"| `{name}` | {row.models} | {points} |")
    return "\n".join(rows)
