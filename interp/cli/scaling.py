"""`interp fit` and `interp forecast`: the law of losses, and what it predicts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.parts import (
    FIGURE_HELP,
    check_figure,
    command,
    interval,
    json_flag,
    number,
    print_json,
    print_table,
)
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.fits import Estimate, JointFit
    from interp.fixed_tokens import AtTokens

FORMS = ("width", "params", "depth", "data", "depth-data")
_TABLE_HELP = (
    "a CSV file (family,dataset,model,d_model,loss), a finished study's folder, ladder, or "
    "ladder-tokens (with the recorded losses after fewer tokens)"
)


def add(commands: Any) -> None:
    """The parsers of both commands."""
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
        "width had different numbers of tokens and that form can be fitted",
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
    fit.add_argument("--figure", type=Path, metavar="FILE", help=FIGURE_HELP)
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
    forecast.add_argument("--figure", type=Path, metavar="FILE", help=FIGURE_HELP)
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


def _fit(args: argparse.Namespace) -> None:
    from interp.fits import fit_jointly
    from interp.fixed_tokens import at_fixed_tokens
    from interp.laws import possible_forms
    from interp.loss_table import read_table
    from interp.one_alpha import one_alpha
    from interp.progress import Progress

    check_figure(args.figure)
    table = read_table(args.table)
    budgets = [one for one in at_fixed_tokens(table) if one.B.value is not None]
    if len(budgets) < 2:  # nothing to set beside each other
        budgets = []
    form = args.form or "width"
    if (
        not args.form
        and budgets
        and "data" in possible_forms(table, data_exponent=args.data_exponent)
    ):
        form = "data"
    progress = Progress(1.0)
    fit = fit_jointly(
        table,
        form,
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
            "95% interval": interval(e.ci_low, e.ci_high),
            "over models": interval(e.ci_low_bootstrap, e.ci_high_bootstrap),
            "se joint": number(e.se_joint, 3),
            "se clustered": number(e.se_clustered, 3),
            "se offsets fixed": number(e.se_offsets_fixed, 3),
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
            "95% interval": interval(b.ci_low, b.ci_high),
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
                "error on models left out": number(c.left_out_rmse, 4),
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
            "alpha": number(b.alpha.value, 4),
            "95% interval": interval(b.alpha.ci_low, b.alpha.ci_high),
            "B": number(b.B.value, 4),
            "interval of B": interval(b.B.ci_low, b.B.ci_high),
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

    check_figure(args.figure)
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
            "95% interval": interval(f.ci_low, f.ci_high),
            "actual": number(f.actual, 4),
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
            where = f"at d_model {end.d_model:,.0f} {interval(end.ci_low, end.ci_high)}"
        elif end.ci_low is not None:
            where = f"at no width that is seen, and not below d_model {end.ci_low:,.0f}"
        else:
            where = "at a width that is not known"
        why = f" ({end.reason})" if end.reason else ""
        print(f"{end.family}: strong-superposition scaling ends {where}{why}")
    for note in table.notes:
        print(note)
