"""What Jupyter shows of our objects: facts and figures as HTML. Names from outside are escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path


def facts(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns under a title; a value of None is left out."""
    lines = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
        if value is not None
    )
    return f"<table><caption><b>{escape(title)}</b></caption>{lines}</table>"


def pictures(files: Iterable[Path]) -> str:
    """PNG files inline, so that a saved notebook keeps them; described by their names."""
    return "".join(
        f'<img style="max-width:800px;width:100%" alt="{escape(file.stem.replace("_", " "))}" '
        f'src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for file in files
    )


class Pictures(list[Path]):
    """Paths of PNG files, which Jupyter shows as the pictures that they are."""

    def _repr_html_(self) -> str:
        return pictures(self)
