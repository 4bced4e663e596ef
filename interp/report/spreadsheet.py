"""A table of the page as CSV inside a link, for whoever wants to calculate with it."""

import base64
import csv
import io
import re

from interp.report.tables import Table
from interp.report.wording import ABSENT

_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)[\])]")
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")
_ENDS = " [95%]"
_FORMULA = ("=", "+", "-", "@", "\t")


def data_uri(table: Table) -> str:
    """What a link downloads: `as_csv` in UTF-8, with the mark that spreadsheets look for."""
    text = as_csv(table).encode("utf-8-sig")
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"


def as_csv(table: Table) -> str:
    """The cells as shown, columns that never change among them. Full precision is in the files.

    An interval becomes three columns, an absent number an empty cell. Text from data that a
    spreadsheet would take for a formula begins with an apostrophe.
    """
    names = [*table.columns, *(name for name, _ in table.shared)]
    shared = [value for _, value in table.shared]
    header = [part for name in names for part in _header(name)]
    rows = [
        [
            part
            for name, cell in zip(names, [*row, *shared], strict=True)
            for part in _cells(name, cell)
        ]
        for row in table.rows
    ]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def _header(name: str) -> list[str]:
    what = name.removesuffix(_ENDS)
    return [what] if what == name else [what, f"{what}, low", f"{what}, high"]


def _cells(name: str, cell: str) -> list[str]:
    if not name.endswith(_ENDS):
        return [_plain(cell)]
    found = _INTERVAL.fullmatch(cell)
    parts = found.groups() if found else (cell, "", "")
    return [_plain(part) for part in parts]


def _plain(cell: str) -> str:
    """A number as programs write it; other text as it is, and harmless."""
    if cell in (ABSENT, "…"):
        return ""
    number = cell.replace("−", "-")
    if _NUMBER.fullmatch(number):
        return number.replace(",", "")
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
