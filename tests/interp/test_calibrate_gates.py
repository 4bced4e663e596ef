"""The calibration's cells and gates, by hand."""

import pytest
from calibrations import DIFFICULTIES, INDEPENDENT, cell, config, judged, many, rows_of

from interp.calibrate.gates import cell_records, gates_text
from interp.calibrate.presets import PRESETS
from interp.calibrate.table import tidy


def test_a_gate_is_about_one_difficulty_inside_its_region():
    assert cell().group(512) == "independent"
    for name, change in DIFFICULTIES.items():
        assert cell(**change).group(512) == name
    for change in ({"zipf": 1.5}, {"n_per_dim": 9}, {"noise": 0.3}, {"k_ratio": 3.0}):
        assert cell(**change).group(4096) is None
    assert cell(k_ratio=0.5, children=3).group(512) is None
    assert cell().group(256) == "independent"
    assert cell().group(255) is None  # the largest dictionary must hold 2n = 256


def test_presets_have_cells_for_every_gate():
    text = gates_text()
    wanted = {gate["cells"] for gate in text["gates"]} - {"any"}
    assert wanted == set(text["gated_groups"])
    known = {"name", "cells", "value", "limit", "min_replicates", "passed", "failed"}
    assert set().union(*text["gates"]) <= known
    for name, preset in PRESETS.items():
        assert wanted <= {preset.group(c) for c in preset.cells}, name
        assert len({c.name for c in preset.cells}) == len(preset.cells), name
        for c in preset.cells:
            c.data(seed=0)  # possible at all
    assert PRESETS["full"].n_replicates >= gates_text()["min_replicates"] >= 100


def test_k_is_a_share_of_the_true_l0():
    assert [cell(k_ratio=r).k for r in (0.5, 1, 2)] == [1, 2, 4]
    assert cell(l0=0.5, k_ratio=0.5).k == 1


def test_bias_spread_and_coverage_by_hand():
    found = [
        rows_of(INDEPENDENT, 0, saturation=(128 * 1.02, 120, 140, True)),
        rows_of(INDEPENDENT, 1, saturation=(128 * 1.04, 129, 150, True)),
        rows_of(INDEPENDENT, 2, saturation=(300.0, 290, None, False)),
    ]
    [record] = cell_records(tidy(found), config([INDEPENDENT]))
    [estimator] = record["estimators"]
    assert estimator["bias"] == pytest.approx(0.03)
    assert estimator["spread"] == pytest.approx(0.02 / 2**0.5)
    assert estimator["coverage"] == 0.5
    assert (estimator["n_identified"], estimator["n_replicates"]) == (2, 3)
    assert estimator["n_false_bounds"] == 1  # "at least 290" of 128
    assert record["n_features"] == 128


@pytest.mark.parametrize(
    ("value", "passed"), [(1.049, True), (1.051, False), (0.951, True), (0.949, False)]
)
def test_the_bias_of_independent_features_has_its_limit(value, passed):
    gates = judged(many(INDEPENDENT, 128 * value), [INDEPENDENT])
    gate = gates["saturation: bias_independent"]
    assert gate["passed"] is passed
    assert gate["value"] == pytest.approx(value - 1)
    assert gate["cell"] == INDEPENDENT.name
    words = gates_text()["gates"][0]["passed" if passed else "failed"]
    assert gate["verdict"] == words.replace("<N>", "N")


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_difficult_cells_have_their_own_gates(name):
    hard = cell(**DIFFICULTIES[name])
    for value, passed in ((1.14, True), (1.16, False), (0.86, True), (0.84, False)):
        gates = judged(many(hard, 128 * value), [hard])
        decided = {n: g["passed"] for n, g in gates.items() if g["passed"] is not None}
        assert decided == {f"saturation: bias_{name}": passed}


def test_the_worst_cell_decides():
    other = cell(zipf=1.0)
    gates = judged(
        many(INDEPENDENT, 128.0) + many(other, 100.0),
        [INDEPENDENT, other],
    )
    assert gates["saturation: bias_independent"]["cell"] == other.name
    assert gates["saturation: bias_independent"]["passed"] is False


def test_a_cell_without_an_answer_leaves_a_pass_undecided_and_a_failure_failed():
    silent = cell(zipf=1.0)
    for value, passed in ((128.0, None), (150.0, False)):
        gates = judged(
            many(INDEPENDENT, value) + many(silent, 100.0, identified=False),
            [INDEPENDENT, silent],
        )
        assert gates["saturation: bias_independent"]["passed"] is passed


def test_refusals_are_no_passes():
    gates = judged(many(INDEPENDENT, 128.0, identified=False), [INDEPENDENT])
    assert gates["saturation: bias_independent"]["passed"] is None
    assert gates["saturation: identified"]["passed"] is False


def test_a_failure_in_a_full_cell_is_not_hidden_by_a_worse_one_that_is_not():
    other = cell(zipf=1.0)
    found = many(INDEPENDENT, 128 * 1.12) + many(other, 128 * 1.4, 1)
    gate = judged(found, [INDEPENDENT, other])["saturation: bias_independent"]
    assert (gate["passed"], gate["cell"]) == (False, INDEPENDENT.name)


def test_few_replicates_decide_only_what_more_could_not_mend():
    """The words speak of one in ten: eleven refusals are more than a hundred can make good."""

    def decided(n_identified: int, n_refused: int) -> bool | None:
        found = many(INDEPENDENT, 128.0, n_identified)
        found += many(INDEPENDENT, 128.0, n_refused, identified=False, start=n_identified)
        return judged(found, [INDEPENDENT])["saturation: identified"]["passed"]

    assert decided(0, 1) is None
    assert decided(1, 0) is None
    assert decided(0, 10) is None
    assert decided(0, 11) is False
    assert decided(90, 10) is True
    assert decided(89, 11) is False
    one = judged(many(INDEPENDENT, 200.0, 1), [INDEPENDENT])["saturation: bias_independent"]
    assert (one["passed"], one["value"]) == (None, pytest.approx(200 / 128 - 1))


def test_coverage_needs_a_hundred_replicates_of_every_cell():
    def coverage(n_replicates: int, n_missing: int) -> dict:
        found = [
            rows_of(INDEPENDENT, i, saturation=(128.0, 129.0 if i < n_missing else 120, 140, True))
            for i in range(n_replicates)
        ]
        return judged(found, [INDEPENDENT])["saturation: coverage"]

    assert coverage(99, 5)["passed"] is None
    assert coverage(100, 5)["passed"] is True
    assert coverage(100, 5)["value"] == pytest.approx(0.95)
    assert coverage(100, 11)["passed"] is False
    assert coverage(100, 1)["passed"] is False  # too wide is wrong too


def test_good_cells_do_not_hide_one_whose_intervals_are_too_short():
    other = cell(zipf=1.0)
    found = []
    for a_cell, n_missing in ((INDEPENDENT, 4), (other, 12)):
        found += [
            rows_of(a_cell, i, saturation=(128.0, 129.0 if i < n_missing else 120, 140, True))
            for i in range(100)
        ]
    gate = judged(found, [INDEPENDENT, other])["saturation: coverage"]
    assert (gate["passed"], gate["cell"]) == (False, other.name)
    assert gate["value"] == pytest.approx(0.88)


HALF, DOUBLE = cell(k_ratio=0.5), cell(k_ratio=2.0)


def with_widened(replicates, cells) -> list[dict]:
    records = cell_records(tidy(replicates), config(cells))
    return [record["estimators"][0]["widened"] for record in records]


def alike(a_cell, *found, start=10) -> list[dict]:
    """Two replicates of each (value, ci_low, ci_high), with numbers that nobody has looked at."""
    return [
        rows_of(a_cell, start + i, saturation=(*of, True)) for i, of in enumerate([*found, *found])
    ]


def test_an_interval_is_widened_by_the_biases_of_other_groups_alone():
    sibling = cell(zipf=1.0)
    found = alike(INDEPENDENT, (140.8, 130, 150))  # 10% too many
    found += alike(sibling, (192.0, 180, 200))  # 50% too many, of the same group
    found += alike(HALF, (121.6, 110, 125))  # 5% too few
    first, second, third = with_widened(found, [INDEPENDENT, sibling, HALF])
    # 130 to 150 / 0.95 does not hold 128, and 110 / 1.5 to 125 does not: no bias is a group's own.
    assert [w["n_covering"] for w in (first, second, third)] == [0, 0, 0]
    assert [w["n_biases"] for w in (first, second, third)] == [1, 1, 2]
    assert (first["n_with_interval"], first["coverage"]) == (2, 0.0)
    for low, covering in ((128 * 1.49, 1.0), (128 * 1.51, 0.0)):
        wide = alike(HALF, (300.0, low, 330))
        *_, last = with_widened([*found[:4], *wide], [INDEPENDENT, sibling, HALF])
        assert last["coverage"] == covering


def test_a_bound_is_no_interval_and_what_was_seen_gives_biases_alone():
    bound = rows_of(HALF, 12, saturation=(128.0, 120, 140, False))
    found = [*alike(HALF, (128.0, 120, 140)), bound, *alike(HALF, (128.0, 120, 140), start=3000)]
    found += alike(INDEPENDENT, (192.0, 180, 200), start=3000)
    independent, half = with_widened(found, [INDEPENDENT, HALF])
    assert (half["n_replicates"], half["n_identified"], half["n_with_interval"]) == (3, 2, 2)
    assert (half["n_biases"], independent["n_biases"]) == (1, 1)
    assert (independent["n_replicates"], independent["coverage"]) == (0, None)


def of_all_groups(n: int, missing: dict, *, start: int = 10) -> list[dict]:
    return [
        rows_of(
            a_cell,
            i,
            saturation=(128.0, 129.0 if i < start + missing.get(name, 0) else 120, 140, True),
        )
        for name, a_cell in GROUPS.items()
        for i in range(start, start + n)
    ]


GROUPS = {"independent": INDEPENDENT} | {n: cell(**what) for n, what in DIFFICULTIES.items()}


def test_widened_intervals_are_judged_in_every_group_by_what_had_not_been_seen():
    def gate(n: int, *, start: int = 10, **missing: int) -> dict:
        found = of_all_groups(n, missing, start=start)
        return judged(found, GROUPS.values())["saturation: coverage_widened"]

    assert gate(74, k_half=7)["passed"] is True
    assert gate(74)["passed"] is True  # too wide is not wrong here
    failed = gate(74, k_half=8, correlation=1)
    assert (failed["passed"], failed["cell"]) == (False, HALF.name)
    assert failed["value"] == pytest.approx(66 / 74)
    worst = gate(74, correlation=4)  # of those that pass it is told too
    assert (worst["value"], worst["cell"]) == (pytest.approx(70 / 74), GROUPS["correlation"].name)
    assert gate(73)["passed"] is None
    assert gate(73, k_half=73)["passed"] is None  # what others widen more could still hold
    *_, (first, last) = gates_text()["seen_replicates"]
    seen = last + 1 - first
    assert gate(seen, start=first)["value"] is None
    assert gate(seen + 73, start=first, k_half=seen)["passed"] is None
    assert gate(seen + 74, start=first, k_half=seen)["value"] == 1.0


@pytest.mark.parametrize("missing", ["independent", "hierarchy"])
def test_a_gate_of_all_groups_is_undecided_without_one(missing):
    cells = [a_cell for name, a_cell in GROUPS.items() if name != missing]
    for wrong in (0, 74):
        found = [
            r
            for r in of_all_groups(74, {"k_half": wrong})
            if r["cell"] in {a_cell.name for a_cell in cells}
        ]
        gate = judged(found, cells)["saturation: coverage_widened"]
        assert (gate["passed"], gate["value"]) == (None, 1.0 - wrong / 74)


@pytest.mark.parametrize(("n_identified", "passed"), [(50, True), (49, None)])
def test_a_cell_that_is_mostly_refused_passes_no_gate(n_identified, passed):
    found = many(INDEPENDENT, 128.0, n_identified)
    found += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    gates = judged(found, [INDEPENDENT])
    assert gates["saturation: bias_independent"]["passed"] is passed
    wrong = many(INDEPENDENT, 200.0, n_identified)
    wrong += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    failed = {True: False, None: None}[passed]
    gate = judged(wrong, [INDEPENDENT])["saturation: bias_independent"]
    assert gate["passed"] is failed
    assert (gate["value"] is None) is (failed is None), "what is judged is shown, and nothing else"


def test_both_estimators_are_judged_in_their_own_words():
    gates = judged(
        [
            rows_of(
                INDEPENDENT,
                i,
                saturation=(200.0, 190, 210, True),
                saturation_atoms=(129.0, 120, 140, True),
            )
            for i in range(100)
        ],
        [INDEPENDENT],
    )
    assert gates["saturation: bias_independent"]["passed"] is False
    assert gates["saturation_atoms: bias_independent"]["passed"] is True
    verdict = gates["saturation_atoms: bias_independent"]["verdict"]
    assert "identified, N without composites is within 5%" in verdict
    assert not any("<N>" in gate["verdict"] for gate in gates.values())
