"""What Jupyter shows of our objects: facts and figures as HTML. Names from outside are escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
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


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line per row; columns that are empty in all of them are left out."""
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    head = "".join(f'<th scope="col" style="text-align:left">{escape(c)}</th>' for c in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left">{escape(row[name])}</td>' for name in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


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
