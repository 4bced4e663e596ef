"""What a summary says of the classes behind a count -> records."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from interp.report.json_values import interval, number, whole_number
from interp.report.records import Strictness, TokenIdentity, WithoutComposites


def read_token_identity(record: Mapping[str, Any]) -> TokenIdentity | None:
    """`token_identity` of a packing record or of a control in it; None in runs without."""
    found = record.get("token_identity") or {}
    n_classes = whole_number(found.get("n_classes"))
    if n_classes is None:
        return None
    return TokenIdentity(
        n_classes=n_classes,
        bits=number(found.get("bits")),
        all_bits=number(found.get("all_bits")),
        relative=interval(found, "relative"),
        detectors=interval(found, "detectors"),
        explained=interval(found, "explained"),
        explained_by_position=interval(found, "explained_by_position"),
        reason=found.get("reason"),
    )


def read_strictness(record: Mapping[str, Any], d_model: int | None) -> tuple[Strictness, ...]:
    """`strictness` of the same, per dimension; settings without a threshold are left out."""
    return tuple(
        Strictness(
            by=str(one.get("by")),
            at=at,
            headline=bool(one.get("headline")),
            per_dim=interval(one).over(d_model),
            null=number(one.get("null")),
        )
        for one in record.get("strictness") or ()
        if (at := number(one.get("at"))) is not None
    )


def read_without_composites(
    record: Mapping[str, Any], d_model: int | None
) -> WithoutComposites | None:
    """`without_composites` of the same, per dimension; None in runs without."""
    found = record.get("without_composites") or {}
    n_composites = number(found.get("n_composites"))
    if n_composites is None:
        return None
    counted, censored = interval(found), bool(found.get("censored"))
    if censored:
        counted = replace(counted, high=None)  # a full dictionary bounds nothing from above
    return WithoutComposites(n_composites, counted.over(d_model), found.get("converged"), censored)
