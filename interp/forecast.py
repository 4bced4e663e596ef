"""Losses of larger models predicted from smaller ones, with intervals that can be wrong.

Each data set is forecast by itself: a model then appears once, and what its losses on several data
sets share cannot make an interval too narrow. The law is assumed to go on; what the interval holds
is the noise of training and the uncertainty of the law's parameters, not that the law might end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.errors import UserError
from interp.fit_comparison import predict
from interp.laws import LAWS, problem
from interp.loss_table import LossTable
from interp.separable import Separable, crossing

MIN_FREEDOM = 1


@dataclass(frozen=True)
class Forecast:
    """One model's loss as the smaller ones have it. No NaN: None, with a reason."""

    family: str
    dataset: str
    model: str
    d_model: int
    predicted: float
    ci_low: float | None
    """95% prediction interval; 0, the least a loss can be, where nothing above it is excluded."""
    ci_high: float | None
    actual: float | None
    """None for a model that does not exist yet."""
    covered: bool | None
    n_known: int
    """Losses that the prediction rests on, of all families on this data set."""
    times_wider: float
    """d_model over that of the widest known model of the family."""
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def forecast_largest(
    table: LossTable,
    *,
    form: str = "width",
    n_largest: int = 1,
    heartbeat: Callable[[float], None] = lambda share: None,
) -> list[Forecast]:
    """The `n_largest` widths of every family, on every data set, from all narrower models.

    All families' largest are left out at once, so that no prediction has seen any of them. Raises
    UserError where too few models are left: an offset needs two, a law more losses than parameters.
    """
    size, *_ = [table.column(column) for _, column, _ in LAWS[form].terms]
    family = table.rows["family"].to_numpy()
    out = np.zeros(len(size), dtype=bool)
    for name in dict.fromkeys(family):
        widths = np.unique(size[family == name])
        if len(widths) - n_largest < 2:
            raise UserError(
                f"{table.name}: family {name} has {len(widths)} sizes; with the largest "
                f"{n_largest} left out at least two must remain: add smaller models"
            )
        out |= (family == name) & (size >= widths[-n_largest])
    return _forecast(table.take(~out), table.take(out), form, heartbeat)


def forecast_sizes(
    table: LossTable,
    widths: Sequence[int],
    *,
    heartbeat: Callable[[float], None] = lambda share: None,
) -> list[Forecast]:
    """Models that do not exist: every family at the given d_model, from all models of the table."""
    rows = [
        {"family": f, "dataset": d, "model": f"{f} at {width}", "d_model": float(width)}
        for f, d in table.groups
        for width in widths
    ]
    wanted = LossTable(table.name, pd.DataFrame(rows).assign(loss=np.nan))
    return _forecast(table, wanted, "width", heartbeat)


def _forecast(
    known: LossTable, wanted: LossTable, form: str, heartbeat: Callable[[float], None]
) -> list[Forecast]:
    found = []
    for dataset in dict.fromkeys(wanted.rows["dataset"]):
        here = known.take((known.rows["dataset"] == dataset).to_numpy())
        there = wanted.take((wanted.rows["dataset"] == dataset).to_numpy())
        unknown = [family for family, _ in there.groups if (family, dataset) not in here.groups]
        if unknown:
            raise UserError(
                f"{known.name}: family {unknown[0]} has no smaller model on {dataset}, so its "
                "offset there is not known; add smaller models or leave fewer out"
            )
        law = problem(_named(here, dataset), form)
        for row in there.rows.to_dict("records"):
            found.append(_one(law, here, {str(k): v for k, v in row.items()}, form))
            heartbeat(len(found) / len(wanted.rows))
    return found


def _named(table: LossTable, dataset: str) -> LossTable:
    """So that a refusal says which part of the table is too small."""
    return replace(table, name=f"{table.name}: the smaller models on {dataset}")


def _one(law: Separable, known: LossTable, row: dict[str, Any], form: str) -> Forecast:
    """The prediction, and the losses y for which a fit to the known models and y is not rejected.

    Those y satisfy SS(with y) - SS <= s^2 F(.95; 1, n - p), which is exact for linear laws.
    """
    group = known.groups.index((row["family"], row["dataset"]))
    appended = replace(
        law,
        y=np.append(law.y, 0.0),
        groups=np.append(law.groups, group),
        terms=tuple(
            replace(t, values=np.append(t.values, row[column]))
            for t, (_, column, _) in zip(law.terms, LAWS[form].terms, strict=True)
        ),
    )
    new = appended.with_rows(np.arange(len(appended.y)) == len(law.y))
    predicted = float(predict(new, law)[0])
    least = law.minimise().squares
    freedom = len(law.y) - law.n_parameters
    level = least * (1 + float(stats.f.ppf(0.95, 1, freedom)) / freedom)

    def squares(y: float) -> float:
        return replace(appended, y=np.append(law.y, y)).minimise().squares

    step = float(np.sqrt(max(level - least, 0.0))) or 1e-9 * predicted
    low = crossing(squares, level, predicted, -step, 0.0)
    high = crossing(squares, level, predicted, step, 100 * float(law.y.max()))
    actual = None if np.isnan(row["loss"]) else float(row["loss"])
    covered = None
    if actual is not None:
        covered = (low or 0.0) <= actual <= (np.inf if high is None else high)
    reasons = []
    if high is None:
        reasons.append("no upper limit: the smaller models do not identify the law")
    if freedom == MIN_FREEDOM:
        reasons.append("one degree of freedom")
    of_family = known.rows[known.rows["family"] == row["family"]]
    return Forecast(
        family=row["family"],
        dataset=row["dataset"],
        model=row["model"],
        d_model=int(row["d_model"]),
        predicted=predicted,
        ci_low=0.0 if low is None else low,
        ci_high=high,
        actual=actual,
        covered=covered,
        n_known=len(law.y),
        times_wider=float(row["d_model"] / of_family["d_model"].max()),
        reason="; ".join(reasons) or None,
    )
