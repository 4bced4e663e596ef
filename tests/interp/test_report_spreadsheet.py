"""Tables of the page as CSV: every cell, numbers as programs write them, nothing that acts."""

import base64
import csv
import io

import report_run

from interp.report.reading import read_summary
from interp.report.spreadsheet import as_csv, data_uri
from interp.report.tables import Table, packing_table


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_cell_and_every_folded_column_is_there() -> None:
    table = packing_table(read_summary(report_run.summary()).primary_rows)
    rows = read(as_csv(table))
    assert [row["Model"] for row in rows] == [row[0] for row in table.rows]
    for name, value in table.shared:
        assert {row[name] for row in rows} == {value.replace(",", "")}, name
    first, last = rows[0], rows[-1]
    ends = ("Per dimension", "Per dimension, low", "Per dimension, high")
    assert [first[name] for name in ends] == ["1.83", "1.70", "1.94"]
    assert [last[name] for name in ends] == ["2.86", "2.66", ""]
    assert last["D"] == "2048"
    assert last["Identified"] == "no: censored at D"


def test_numbers_are_numbers_and_formulas_are_text() -> None:
    cells = (
        "−0.96",
        "12,000",
        "–",
        "=1+1",
        "-2+3",
        "@x",
        "+1",
        'a, b\n"c"',
        "3.4%",
        "not measured",
    )
    names = (*map(str, range(len(cells) - 1)), "Twin [95%]")
    [row] = read(as_csv(Table(names, (cells,))))
    assert list(row.values()) == [
        "-0.96", "12000", "", "'=1+1", "'-2+3", "'@x", "'+1", "a, b\n\"c\"", "3.4%",
        "not measured", "", "",
    ]  # fmt: skip


def test_the_link_holds_the_same_text() -> None:
    table = Table(("Model", "Größe"), (("ladder/d032", "1"),))
    kind, _, data = data_uri(table).partition(";base64,")
    assert kind == "data:text/csv;charset=utf-8"
    assert base64.b64decode(data).decode("utf-8-sig") == as_csv(table)
