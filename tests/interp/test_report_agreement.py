"""The table of what seeds have in common, from the rows of a study."""

from typing import Any

import pandas as pd

from interp.report.agreement import QUANTITIES, agreement_table

FOUND_BY = "three seeds or more"


def results(**changed: Any) -> pd.DataFrame:
    """Two dictionaries of one model, its twin, and rows that are none of the table's business."""
    numbers = (100.0, 60.0, 30.0, 1.25, 0.714)
    rows = [
        {"model": "m", "control": control, "hook_point": "blocks.1.hook_resid_post",
         "about": "contextual", "d_sae": d_sae, "k": 4, "k_rule": rule, "role": role,
         "quantity": quantity, "value": value * scale}
        for control, d_sae, rule, role, scale in (
            ("random_init", 256, "fvu", "main", 0),
            ("trained", 256, "fvu", "main", 1),
            ("trained", 256, "constant", "main", 1),
            ("trained", 512, "fvu", "main", 0.5),
            ("trained", 256, "fvu", "half", 9),
        )
        for quantity, value in zip(QUANTITIES, numbers, strict=True)
    ]  # fmt: skip
    return pd.DataFrame([row | changed for row in rows])


def test_one_line_per_dictionary_with_its_share() -> None:
    table = agreement_table(results(), FOUND_BY)
    assert table is not None
    assert dict(table.shared) == {
        "Hook point": "blocks.1.hook_resid_post", "Stream": "contextual", "k": "4"
    }  # fmt: skip
    assert table.columns[:4] == ("Model", "Weights", "D", "Live latents of a seed")
    assert table.columns[4] == "Found by three seeds or more"
    assert table.rows == (
        ("m", "trained", "256", "100", "60", "30", "1.2", "30.0%", "0.71"),
        ("m", "trained", "512", "50", "30", "15", "0.62", "30.0%", "0.36"),
        ("m", "untrained twin", "256", "0", "0", "0", "0", "–", "0"),
    )


def test_what_was_not_matched_has_no_table() -> None:
    assert agreement_table(None, FOUND_BY) is None
    assert agreement_table(results(quantity="fvu"), FOUND_BY) is None
    assert agreement_table(results().drop(columns="control"), FOUND_BY) is None


def test_a_dictionary_with_too_few_latents_to_match_has_no_line() -> None:
    rows = results()
    refused = (rows.d_sae == 512) & (rows.quantity == "reproducible_null")
    table = agreement_table(rows[~refused], FOUND_BY)
    assert table is not None
    assert [row[2] for row in table.rows] == ["256", "256"]


def test_two_architectures_with_one_k_are_two_lines() -> None:
    both = pd.concat([results(architecture=kind) for kind in ("topk", "batchtopk")])
    table = agreement_table(both, FOUND_BY)
    assert table is not None
    at = table.columns.index("SAE")
    assert [row[at] for row in table.rows] == ["TopK"] * 2 + ["BatchTopK"] * 2 + [
        "TopK",
        "BatchTopK",
    ]
    alone = agreement_table(results(architecture="batchtopk"), FOUND_BY)
    assert alone is not None
    assert "SAE" not in alone.columns
