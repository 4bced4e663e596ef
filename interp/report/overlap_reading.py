"""The overlaps of a summary -> records."""

from collections.abc import Mapping
from typing import Any

from interp.report.json_values import interval, number, whole_number
from interp.report.overlap_records import DictionaryOverlap, HeadOverlap, Overlaps


def read_overlaps(record: Mapping[str, Any]) -> Overlaps:
    """`overlap` of a `summary.json`; dictionaries of unknown size are left out."""
    return Overlaps(
        tuple(
            DictionaryOverlap(
                model=str(one.get("model")),
                control=str(one.get("control")),
                hook_point=str(one.get("hook_point")),
                about=str(one.get("about")),
                headline=bool(one.get("headline")),
                d_model=d_model,
                d_sae=d_sae,
                k=whole_number(one.get("k")),
                n_seeds=whole_number(one.get("n_seeds")),
                overlap=interval(one, "overlap"),
                centred=interval(one, "overlap_centred"),
                capacity=interval(one, "capacity"),
                welch_floor=number(one.get("welch_floor")),
                random_mean=number(one.get("random_mean")),
            )
            for one in record.get("dictionaries") or ()
            if (d_model := whole_number(one.get("d_model")))
            and (d_sae := whole_number(one.get("d_sae")))
        ),
        tuple(
            HeadOverlap(
                model=str(one.get("model")),
                n=whole_number(one.get("n")),
                d_model=whole_number(one.get("d_model")),
                overlap=number(one.get("mean_squared_overlap")),
                centred=number(one.get("mean_squared_overlap_centred")),
                top_removed=number(one.get("mean_squared_overlap_top_removed")),
                welch_floor=number(one.get("welch_floor")),
                random_mean=number(one.get("random_mean")),
                reason=one.get("reason"),
            )
            for one in record.get("heads") or ()
        ),
    )
