"""`summary["arm"]` -> record: what was found among models of one width."""

from collections.abc import Mapping, Sequence
from typing import Any

from interp.report.arm_records import (
    Arm,
    Effect,
    EqualK,
    EqualStrictness,
    RankTest,
    Response,
    Secondary,
    Unconverged,
)
from interp.report.interval import Interval
from interp.report.json_values import interval, number, whole_number


def read_arm(data: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> Arm:
    """The arm's record; `models` are those of the summary, among which the base is."""
    mediation, power, left = (
        data.get(key) or {} for key in ("mediation", "power", "leave_one_out")
    )
    ends = number(left.get("low")), number(left.get("high"))
    base = next((m for m in models if "lever_base" in m), {})
    known = {"tokens": base.get("train_tokens"), **(base.get("lever_base") or {})}
    return Arm(
        d_model=whole_number(data.get("d_model")),
        n_models=whole_number(data.get("n_models")) or 0,
        n_usable=whole_number(data.get("n_usable")) or 0,
        n_seeds=whole_number((data.get("seeds") or {}).get("n_packing")),
        measurement_share=number(data.get("measurement_share")),
        base_values={k: v for k, raw in known.items() if (v := number(raw)) is not None},
        responses=tuple(_response(record) for record in data.get("dose_response") or ()),
        loss_per_packing=Interval(
            *(number(mediation.get(key)) for key in ("loss_per_packing", "ci_low", "ci_high"))
        ),
        effects=tuple(_effect(record) for record in mediation.get("effects") or ()),
        assumptions=str(mediation.get("assumptions") or ""),
        mediation_reason=mediation.get("reason"),
        detectable_rho=number(power.get("detectable_rho")),
        leave_one_out=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
        without_block={k: number(v) for k, v in (left.get("without_block") or {}).items()},
        secondary=tuple(_secondary(record) for record in data.get("holm") or ()),
        equal_k=_equal_k(data.get("equal_k") or {}),
        equal_strictness=_equal_strictness(data.get("equal_strictness") or {}),
        unconverged=_unconverged(data.get("unconverged") or {}),
    )


def _equal_k(record: Mapping[str, Any]) -> EqualK | None:
    least, most, k = (whole_number(record.get(key)) for key in ("least", "most", "k"))
    if least is None or most is None or k is None:
        return None
    n_models = whole_number(record.get("n_models")) or 0
    return EqualK(least, most, k, n_models, number(record.get("spearman")), number(record.get("p")))


def _equal_strictness(record: Mapping[str, Any]) -> EqualStrictness | None:
    least, most, cosine = (number(record.get(key)) for key in ("least", "most", "cosine"))
    if least is None or most is None or cosine is None:
        return None
    n_models = whole_number(record.get("n_models")) or 0
    rank = number(record.get("spearman")), number(record.get("p"))
    return EqualStrictness(least, most, cosine, n_models, *rank)


def _unconverged(record: Mapping[str, Any]) -> Unconverged | None:
    n_models = whole_number(record.get("n_models"))
    if n_models is None:
        return None
    growth = number(record.get("growth_low")), number(record.get("growth_high"))
    return Unconverged(
        n_models=n_models,
        n_unconverged=whole_number(record.get("n_unconverged")) or 0,
        left_out={str(r.get("model")): str(r.get("reason")) for r in record.get("left_out") or ()},
        growth=None if growth[0] is None or growth[1] is None else (growth[0], growth[1]),
        growth_with_loss=number(record.get("growth_with_loss")),
        p_growth_with_loss=number(record.get("p_growth_with_loss")),
        detectable_rho=number(record.get("detectable_rho")),
        tests=tuple(map(_rank_test, record.get("tests") or ())),
        responses=tuple(map(_response, record.get("dose_response") or ())),
        responses_half=tuple(map(_response, record.get("dose_response_half") or ())),
    )


def _rank_test(record: Mapping[str, Any]) -> RankTest:
    return RankTest(
        of=str(record.get("of")),
        n_models=whole_number(record.get("n_models")) or 0,
        spearman=Interval(*(number(record.get(key)) for key in ("spearman", "ci_low", "ci_high"))),
        p=number(record.get("p")),
    )


def _response(record: Mapping[str, Any]) -> Response:
    return Response(
        lever=str(record.get("lever")),
        outcome=str(record.get("outcome")),
        n_models=whole_number(record.get("n_models")),
        tau=number(record.get("tau")),
        p_trend=number(record.get("p_trend")),
        slope=interval(record, "slope"),
        slope_per=str(record.get("slope_per") or "unit"),
        spread_over_seeds=number(record.get("spread_over_seeds")),
        p_spread=number(record.get("p_spread")),
        decided_by=record.get("decided_by"),
        p_holm=number(record.get("p_holm")),
        moves=record.get("moves"),
        reason=record.get("reason"),
    )


def _effect(record: Mapping[str, Any]) -> Effect:
    keys = ("indirect", "ci_low", "ci_high")
    return Effect(
        lever=str(record.get("lever")),
        side=str(record.get("side")),
        value=number(record.get("value")),
        on_packing=number(record.get("on_packing")),
        total=number(record.get("total")),
        direct=number(record.get("direct")),
        indirect=Interval(*(number(record.get(key)) for key in keys)),
    )


def _secondary(record: Mapping[str, Any]) -> Secondary:
    return Secondary(
        estimator=str(record.get("estimator")),
        about=str(record.get("about") or "embedding"),
        layer_fraction=number(record.get("layer_fraction")),
        d_sae=number(record.get("d_sae")),
        n_models=whole_number(record.get("n_models")),
        spearman=Interval(*(number(record.get(k)) for k in ("spearman", "ci_low", "ci_high"))),
        p=number(record.get("p")),
        p_holm=number(record.get("p_holm")),
        reason=record.get("reason"),
    )
