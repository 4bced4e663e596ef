"""`report.html`: one file that opens offline, from a template, with nothing fetched.

Every string that comes from data is escaped: by Jinja in the text, and as JSON whose `<`, `>` and
`&` are written as code points inside scripts. A content policy stands behind that: it lets exactly
two scripts run, by their hashes, and no request leave the page.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from interp import durable
from interp.report import static
from interp.report.agreement import agreement_table
from interp.report.answering import QUESTION, answer
from interp.report.arm_tables import dose_table, mediation_table, secondary_table
from interp.report.caveats import caveats, remaining_warnings
from interp.report.class_tables import strictness_table, token_sentence, token_table
from interp.report.figures import all_figures
from interp.report.marks import Figure
from interp.report.meaning import estimators, meaning
from interp.report.objections import objections
from interp.report.overlap_tables import dictionary_overlap_table, head_overlap_table
from interp.report.reading import RunRecords, read_run
from interp.report.records import Mixed, Summary
from interp.report.spreadsheet import data_uri
from interp.report.tables import (
    ablation_note,
    correlation_table,
    dictionary_table,
    packing_table,
    record_table,
    sensitivity_table,
)
from interp.report.theme import dark, light
from interp.report.unconverged import unconverged_tables
from interp.report.wording import duration, in_prose, listed, plural, significant, size, span, whole


def write_report(run_dir: Path) -> Path:
    """Draw `figures/*.png|svg` and `report.html` in `run_dir`; returns the page's path.

    Files are replaced whole, never left half-written. The same run gives the same bytes.
    Raises `UserError` if the folder holds no readable `summary.json`, and when the disk is full.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    drawn = all_figures(run.summary)
    vectors = {name: static.svg(figure) for name, figure in drawn.items()}
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    for name, vector in vectors.items():
        durable.write(folder / f"{name}.svg", vector.encode())
        durable.write(folder / f"{name}.png", static.png(vector))
    page = run_dir / "report.html"
    durable.write(page, render(run, drawn, vectors).encode())
    return page


def render(run: RunRecords, drawn: Mapping[str, Figure], vectors: Mapping[str, str]) -> str:
    """The page as text; `vectors` holds each figure as SVG."""
    folder = files("interp.report")
    source = folder.joinpath("page.html").read_text("utf-8")
    bundle = _vega()
    summary = run.summary
    primary = summary.primary_rows
    rest = [row for row in summary.packing if row not in primary]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["as_csv"] = data_uri
    return environment.from_string(source).render(
        policy=_policy(bundle, _own_script(source)),
        style=Markup(folder.joinpath("style.css").read_text("utf-8")),
        bundle=Markup(bundle),
        specs={name: {**figure.spec, "description": figure.alt} for name, figure in drawn.items()},
        themes={"light": light(), "dark": dark()},
        figures=drawn,
        images={name: _data_uri(vector) for name, vector in vectors.items()},
        question=QUESTION,
        answer=answer(summary),
        caveats=caveats(summary),
        warnings=remaining_warnings(summary),
        glance=_glance(run),
        meaning=meaning(summary),
        estimators=estimators(summary),
        objections=objections(summary),
        summary=summary,
        scaling=_scaling_lines(summary),
        mixed=_mixed_line(summary.mixed),
        arm=summary.arm,
        dose_table=dose_table(summary.arm) if summary.arm else None,
        unconverged_tables=unconverged_tables(summary.arm.unconverged) if summary.arm else {},
        mediation_table=mediation_table(summary.arm) if summary.arm else None,
        secondary_table=secondary_table(summary.arm) if summary.arm else None,
        any_bound=any(row.censored for row in primary),
        primary_table=packing_table(primary) if primary else None,
        rest_table=packing_table(rest) if rest else None,
        sensitivity_table=sensitivity_table(summary.sensitivity),
        strictness_table=strictness_table(summary),
        token_sentence=token_sentence(summary),
        token_table=token_table(summary),
        dictionary_table=dictionary_table(run.results),
        agreement_table=agreement_table(run.results, summary.found_by),
        dictionary_overlap_table=dictionary_overlap_table(summary.overlaps),
        head_overlap_table=head_overlap_table(summary.overlaps),
        ablation=ablation_note(run.results),
        correlation_table=correlation_table(summary),
        manifest=record_table(run.manifest),
        config_text=run.config_text,
    )


def _glance(run: RunRecords) -> list[tuple[str, str]]:
    """The run in a handful of (name, value) lines."""
    summary = run.summary
    primary = summary.primary_rows
    lines = []
    widths = sorted({model.d_model for model in summary.models if model.d_model})
    if widths:
        counted, among = len({row.model.name for row in primary}), len(summary.models)
        only = f"; {among - counted} for the loss alone" if 0 < counted < among else ""
        lines.append(("models", f"{among}, of width {span(widths, whole)}{only}"))
    hooks = sorted({row.hook_point for row in primary if row.hook_point})
    if hooks:
        lines.append(("counted at", listed(hooks)))
    if primary and primary[0].n_seeds:
        seeds = span([row.n_seeds for row in primary if row.n_seeds], whole)
        lines.append(("dictionaries", f"{seeds} seeds per count"))
    if primary and primary[0].n_tokens:
        tokens = span([row.n_tokens for row in primary if row.n_tokens], whole)
        lines.append(("counted on", f"{tokens} held-out tokens"))
    origins = run.manifest.get("merged_from")
    if summary.wall_time_seconds is not None:
        apart = f", {len(origins)} studies together" if origins else ""
        lines.append(("took", duration(summary.wall_time_seconds) + apart))
    memory = run.manifest.get("peak_memory_bytes")
    if isinstance(memory, int | float):
        lines.append(("memory", f"{size(memory)} at peak"))
    return lines


def _scaling_lines(summary: Summary) -> list[str]:
    """The loss fit in sentences."""
    scaling = summary.scaling
    if not scaling.drawn:
        why = f": {scaling.reason}" if scaling.reason else ""
        return [f"No curve was fitted to the loss{why}."]
    unit = f"; L in {summary.models[0].loss_unit}" if summary.models else ""
    lines = [
        f"L = A / m^alpha + B, m the width, over "
        f"{plural(scaling.n_models or len(summary.models), 'model')}: "
        f"alpha = {in_prose(scaling.alpha)}, A = {in_prose(scaling.A, 3)}, "
        f"B = {in_prose(scaling.B, 3)}{unit}."
    ]
    if scaling.identified is False:
        why = f" ({scaling.reason})" if scaling.reason else ""
        lines.append(f"The fit is not identified{why}: other curves fit as well.")
    return [*lines, *([f"{scaling.caption.rstrip('.')}."] if scaling.caption else [])]


def _mixed_line(mixed: Mixed | None) -> str:
    """The mixed model in a sentence; empty where there is none."""
    if mixed is None:
        return ""
    return (
        f"Across {mixed.n_families} families ({plural(mixed.n_models or 0, 'model')}), at equal "
        f"width and depth a feature more per dimension goes with {in_prose(mixed.slope)} nats per "
        f"byte, p {significant(mixed.p, 2)} (mixed model, a level for each family)."
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # It stands between script tags, and its hash is taken before a parser normalises line ends.
    if "</script" in bundle or "<!--" in bundle or "\r" in bundle:
        raise RuntimeError("the Vega bundle cannot be inlined as it is: it would close its script")
    return bundle


def _own_script(source: str) -> str:
    found = re.search(r'<script id="charts">(.*?)</script>', source, re.DOTALL)
    if found is None:
        raise RuntimeError("page.html has no script with the id charts")
    return found.group(1)


def _policy(*scripts: str) -> str:
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )


def _data_uri(vector: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(vector.encode()).decode()}"
