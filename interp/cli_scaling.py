"""`interp geometry`, `interp fit` and `interp forecast`; thin, like `interp.cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli_parts import (
    MODEL_HELP,
    TEXT_HELP,
    command,
    count,
    json_flag,
    print_json,
    print_table,
)
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.fits import Estimate, JointFit
    from interp.fixed_tokens import AtTokens
    from interp.head_matrix import Matrix

FORMS = ("width", "params", "depth", "data", "depth-data")
_TABLE_HELP = (
    "a CSV file (family,dataset,model,d_model,loss), a finished study's folder, ladder, or "
    "ladder-tokens (with the recorded losses after fewer tokens)"
)
_FIGURE_HELP = "write it as .png or .svg too"
_BAND_TOKENS = 262_144


def add(commands: Any) -> None:
    """The parsers of the three commands."""
    geometry = command(
        commands,
        "geometry",
        _geometry,
        "overlap of output-head rows, embeddings or SAE decoders; reads that one tensor alone",
        "interp geometry ladder/d064 path/to/checkpoint runs/quick/saes --json",
    )
    geometry.add_argument(
        "model", nargs="+", metavar="MODEL", help=MODEL_HELP + ", a family, or a folder of SAEs"
    )
    geometry.add_argument(
        "--matrix",
        choices=("unembedding", "embedding", "all"),
        default="unembedding",
        help="of a model (default: unembedding, which is the embedding where they are tied)",
    )
    geometry.add_argument(
        "--text",
        metavar="SRC",
        help="token frequencies, loss and overlap by frequency; " + TEXT_HELP,
    )
    geometry.add_argument(
        "--tokens",
        type=count,
        default=_BAND_TOKENS,
        metavar="N",
        help="of each split of --text (default: %(default)s)",
    )
    geometry.add_argument(
        "--histogram", action="store_true", help="with --json: the overlaps of sampled pairs"
    )
    geometry.add_argument("--figure", type=Path, metavar="FILE", help=_FIGURE_HELP)
    json_flag(geometry)

    fit = command(
        commands,
        "fit",
        _fit,
        "a scaling law jointly over families and data sets, with joint and clustered errors",
        "interp fit losses.csv --figure fit.png",
    )
    fit.add_argument("table", type=Path, metavar="TABLE", help=_TABLE_HELP)
    fit.add_argument(
        "--form",
        choices=FORMS,
        help="of the law: A/d_model^alpha + B (width), n_params instead, or with terms in depth "
        "(c_l/n_layers) and data (c_D/train_tokens^b); default: width, or data where models of one "
        "width had different numbers of tokens",
    )
    fit.add_argument(
        "--data-exponent", type=_positive, metavar="B", help="hold b instead of fitting it"
    )
    fit.add_argument(
        "--bootstrap",
        type=_natural,
        default=400,
        metavar="N",
        help="resamples of models, 0 for none (default: %(default)s)",
    )
    fit.add_argument("--figure", type=Path, metavar="FILE", help=_FIGURE_HELP)
    json_flag(fit)

    forecast = command(
        commands,
        "forecast",
        _forecast,
        "the largest models of every family predicted from the smaller ones, with intervals",
        "interp forecast losses.csv --json",
    )
    forecast.add_argument("table", type=Path, metavar="TABLE", help=_TABLE_HELP)
    forecast.add_argument(
        "--largest", type=_natural, metavar="N", help="widths left out of each family (default: 1)"
    )
    forecast.add_argument(
        "--at", type=_natural, nargs="+", metavar="D_MODEL", help="instead: widths not in the table"
    )
    forecast.add_argument("--form", choices=FORMS[:3], help="of the law (default: width)")
    forecast.add_argument("--figure", type=Path, metavar="FILE", help=_FIGURE_HELP)
    json_flag(forecast)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


def _geometry(args: argparse.Namespace) -> None:
    from interp import families
    from interp.head_matrix import Which, matrices_of
    from interp.progress import Progress

    _check_figure(args.figure)
    which: tuple[Which, ...] = (args.matrix,)
    if args.matrix == "all":
        which = ("embedding", "unembedding")
    names = families.expand(args.model)
    progress = Progress(len(names))
    rows: list[dict[str, Any]] = []
    shown_names: list[str] = []
    for name in names:
        found = matrices_of(name, which)
        for number, matrix in enumerate(found):

            def heartbeat(share: float, done: int = number, n: int = len(found)) -> None:
                progress.at(name, (done + share) / n)  # noqa: B023

            rows.append(_overlaps(args, matrix, heartbeat))
            # SAEs of one folder differ in the end of their paths, which a table cuts off.
            inner = matrix.name.removeprefix(f"{Path(name).expanduser()}/")
            shown_names.append(inner if matrix.matrix == "decoder" else matrix.name)
        progress.finish(1)
    if args.figure is not None:
        from interp.report.geometry_figure import geometry_figure
        from interp.report.panels import save

        save(geometry_figure(rows), args.figure)
    if args.json:
        print_json(rows)
        return
    shown = [
        {
            "model": name,
            "matrix": r["matrix"] + (" (tied)" if r["tied"] else ""),
            "rows": r["n"],
            "zero": r["n_zero_rows"],
            "d": r["d_model"],
            "overlap": f"{r['mean_squared_overlap']:.4f}",
            "/ random": f"{r['ratio_to_random']:.2f}",
            "/ Welch": _number(r["ratio_to_welch"], 2),
            "centred": _number(r["mean_squared_overlap_centred"], 4),
            f"top {r['n_removed']} off": _number(r["mean_squared_overlap_top_removed"], 4),
            "dimensions": _number(r["participation_ratio"], 1),
            "norms": f"{r['norm_mean']:.3g} ± {r['norm_std']:.2g}",
        }
        for name, r in zip(shown_names, rows, strict=True)
    ]
    if len({r["n_removed"] for r in rows}) > 1:  # one heading for all rows of the table
        shown = [
            {("top off" if k.startswith("top ") else k): v for k, v in row.items()} for row in shown
        ]
    print_table(shown, "mean squared overlap of rows; random rows: 1/d; dimensions: participation")
    for row in rows:
        if "bands" in row:
            _print_bands(row)


def _overlaps(
    args: argparse.Namespace, matrix: Matrix, heartbeat: Callable[[float], None]
) -> dict[str, Any]:
    """One object of the answer."""
    from interp.geometry import geometry

    try:
        found = geometry(matrix.rows, heartbeat=heartbeat).to_json()
    except ValueError as error:
        raise UserError(
            f"{matrix.name}: its {matrix.matrix} cannot be measured ({error}); check the checkpoint"
        ) from error
    if not args.histogram:
        for bins in ("bins", "fraction", "random_fraction"):
            del found["sample"][bins]
    bands = {} if args.text is None else _bands(args, matrix)
    head = {"model": matrix.name, "matrix": matrix.matrix, "tied": matrix.tied}
    return head | found | bands


def _bands(args: argparse.Namespace, matrix: Matrix) -> dict[str, Any]:
    from interp.frequency_bands import frequency_bands
    from interp.models import load
    from interp.tokens import tokens

    if matrix.matrix == "decoder":
        raise UserError(f"{matrix.name}: an SAE has no tokens; give --text with models only")
    model = load(matrix.name)
    ranking, held_out = (
        tokens(args.text, model, n_tokens=args.tokens, split=split)
        for split in ("train", "held_out")
    )
    for warning in (*ranking.warnings, *held_out.warnings):
        print(f"interp: warning: {warning}", file=sys.stderr)
    return frequency_bands(model, matrix.rows, ranking, held_out).to_json()


def _print_bands(row: dict[str, Any]) -> None:
    found = row["frequencies"]
    law = f"no exponent: {found['reason']}"
    if found["exponent"] is not None:
        law = (
            f"frequency ~ rank^-{found['exponent']:.3f} [{found['ci_low']:.3f}, "
            f"{found['ci_high']:.3f}] (head {found['exponent_head']:.2f}, "
            f"tail {found['exponent_tail']:.2f})"
        )
    shown = [
        {
            "ranks": f"{b['first_rank']:,}-{b['last_rank']:,}" if b["first_rank"] else "unseen",
            "tokens": b["n_types"],
            "of text": f"{b['token_fraction']:.1%}",
            "nats/token": _number(b["loss_nats_per_token"], 3),
            "95% interval": "-"
            if b["ci_low"] is None
            else f"{b['ci_low']:.3f} to {b['ci_high']:.3f}",
            "of loss": f"{b['loss_fraction']:.1%}",
            "norm": f"{b['norm_mean']:.3g}",
            "overlap": _number(b["mean_squared_overlap"], 4),
        }
        for b in row["bands"]
    ]
    print_table(shown, f"{row['model']}, {row['matrix']}, on {row['text']}")
    print(law)


def _fit(args: argparse.Namespace) -> None:
    from interp.fits import fit_jointly
    from interp.fixed_tokens import at_fixed_tokens
    from interp.laws import possible_forms
    from interp.loss_table import read_table
    from interp.one_alpha import one_alpha
    from interp.progress import Progress

    _check_figure(args.figure)
    table = read_table(args.table)
    budgets = [one for one in at_fixed_tokens(table) if one.B.value is not None]
    if len(budgets) < 2:  # nothing to set beside each other
        budgets = []
    possible = possible_forms(table, data_exponent=args.data_exponent)
    progress = Progress(1.0)
    fit = fit_jointly(
        table,
        args.form or ("data" if budgets and "data" in possible else "width"),
        data_exponent=args.data_exponent,
        n_bootstrap=args.bootstrap,
        heartbeat=lambda share: progress.at("fitting", share),
    )
    if args.figure is not None:
        from interp.report.law_figure import fit_figure
        from interp.report.panels import save

        save(fit_figure(table.rows, fit.to_json()), args.figure)
    if args.json:
        extra: dict[str, Any] = {}
        if budgets:
            extra["at_fixed_tokens"] = [one.to_json() for one in budgets]
            extra["one_alpha"] = [
                {"family": family, "dataset": dataset} | asdict(common)
                for (family, dataset), common in one_alpha(table).items()
            ]
        print_json(fit.to_json() | extra)
        return
    _print_fit(fit)
    if budgets:
        _print_budgets(budgets)
        for (family, dataset), common in one_alpha(table).items():
            print(
                f"{family}, {dataset}: one alpha for all numbers of tokens, {common.alpha:.4f}; "
                f"against one each, p {common.p:.2g} (F test, losses taken for independent)"
            )


def _print_fit(fit: JointFit) -> None:
    shown = [
        {
            "parameter": name,
            "value": f"{e.value:.4g}",
            "95% interval": _interval(e.ci_low, e.ci_high),
            "over models": _interval(e.ci_low_bootstrap, e.ci_high_bootstrap),
            "se joint": _number(e.se_joint, 3),
            "se clustered": _number(e.se_clustered, 3),
            "se offsets fixed": _number(e.se_offsets_fixed, 3),
        }
        for name, e in _estimates(fit).items()
    ]
    print_table(
        shown,
        f"{fit.law}: {fit.n_losses} losses of {fit.n_models} models, {fit.n_parameters} "
        f"parameters, residual sd {fit.residual_sd:.3g}",
    )
    offsets = [
        {
            "family": b.family,
            "dataset": b.dataset,
            "B": f"{b.value:.4f}",
            "95% interval": _interval(b.ci_low, b.ci_high),
        }
        for b in fit.B
    ]
    print_table(offsets, "offsets, which no width removes")
    if len(fit.comparison) > 1:
        best = min((c.aicc for c in fit.comparison if c.aicc is not None), default=0.0)
        compared = [
            {
                "form": c.form,
                "parameters": c.n_parameters,
                "residual sd": f"{c.residual_sd:.4f}",
                "AICc - best": "-" if c.aicc is None else f"{c.aicc - best:.1f}",
                "error on models left out": _number(c.left_out_rmse, 4),
            }
            for c in fit.comparison
        ]
        print_table(compared, "forms; lower is better")
    if not fit.identified:
        print(f"not identified: {fit.reason}")
    for sentence in (*fit.explanation, *fit.notes):
        print(sentence)


def _print_budgets(budgets: Sequence[AtTokens]) -> None:
    shown = [
        {
            "family": b.family,
            "dataset": b.dataset,
            "tokens": f"{b.train_tokens:,.0f}",
            "models": b.n_models,
            "alpha": _number(b.alpha.value, 4),
            "95% interval": _interval(b.alpha.ci_low, b.alpha.ci_high),
            "B": _number(b.B.value, 4),
            "interval of B": _interval(b.B.ci_low, b.B.ci_high),
        }
        for b in budgets
    ]
    print_table(shown, "alpha at fixed tokens: L = A / d_model^alpha + B, each budget by itself")
    for reason in dict.fromkeys(
        f"{b.train_tokens:,.0f} tokens: {b.reason}" for b in budgets if b.reason
    ):
        print(reason)


def _estimates(fit: JointFit) -> dict[str, Estimate]:
    return {"alpha": fit.alpha, "A": fit.A} | fit.terms


def _forecast(args: argparse.Namespace) -> None:
    from interp.forecast import forecast_largest, forecast_sizes
    from interp.loss_table import read_table
    from interp.packing_gain import packing_gain
    from interp.progress import Progress
    from interp.scaling_end import ends_of

    _check_figure(args.figure)
    if args.largest == 0 or 0 in (args.at or ()):
        raise UserError("--largest and --at take numbers from 1")
    if args.at and (args.largest or args.form):
        raise UserError(
            "--at takes all models and the law in width; leave out --largest and --form"
        )
    table = read_table(args.table)
    progress = Progress(1.0)

    def heartbeat(share: float) -> None:
        progress.at("forecasting", share)

    if args.at:
        found = forecast_sizes(table, args.at, heartbeat=heartbeat)
    else:
        found = forecast_largest(
            table, form=args.form or "width", n_largest=args.largest or 1, heartbeat=heartbeat
        )
    gain = packing_gain(table)
    ends = {end.family: end for end in ends_of(table)}
    rows = [forecast.to_json() for forecast in found]
    for row in rows:
        row["packing_gain"] = gain.to_json()
        row["scaling_ends"] = ends[row["family"]].to_json()
    if args.figure is not None:
        from interp.report.law_figure import forecast_figure
        from interp.report.panels import save

        save(forecast_figure(rows), args.figure)
    if args.json:
        print_json(rows)
        return
    shown = [
        {
            "family": f.family,
            "dataset": f.dataset,
            "model": f.model,
            "d_model": f.d_model,
            "times wider": f"{f.times_wider:.2f}",
            "predicted": f"{f.predicted:.4f}",
            "95% interval": _interval(f.ci_low, f.ci_high),
            "actual": _number(f.actual, 4),
            "inside": "-" if f.covered is None else "yes" if f.covered else "no",
        }
        for f in found
    ]
    known = "all" if args.at else "the smaller"
    print_table(shown, f"{table.name}: from {known} models, each data set by itself")
    judged = [f.covered for f in found if f.covered is not None]
    if judged:
        print(f"{sum(judged)} of {len(judged)} losses lie inside their 95% prediction intervals")
    for reason in dict.fromkeys(f.reason for f in found if f.reason):
        print(reason)
    print(gain.sentence)
    for end in ends.values():
        if end.d_model is not None:
            where = f"at d_model {end.d_model:,.0f} {_interval(end.ci_low, end.ci_high)}"
        elif end.ci_low is not None:
            where = f"at no width that is seen, and not below d_model {end.ci_low:,.0f}"
        else:
            where = "at a width that is not known"
        why = f" ({end.reason})" if end.reason else ""
        print(f"{end.family}: strong-superposition scaling ends {where}{why}")
    for note in table.notes:
        print(note)


def _check_figure(path: Path | None) -> None:
    """Before the work, not after it."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path}: figures are written as .png or .svg; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.3g}"


def _interval(low: float | None, high: float | None) -> str:
    """[1.2, 1.4]; an open side is …"""
    if low is None and high is None:
        return "-"
    ends = ["…" if v is None else f"{v:.4g}" for v in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"
