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
    assert wanted == set(text["any"])
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


def test_an_interval_is_widened_by_the_biases_of_other_cells_alone():
    other, seldom = cell(zipf=1.0), cell(k_ratio=2.0)
    # 10% too many, and 5% too few.
    found = [rows_of(INDEPENDENT, i, saturation=(140.8, 130, 150, True)) for i in range(2)]
    found += [rows_of(other, i, saturation=(121.6, 110, 125, True)) for i in range(2)]
    # Identified too seldom to have a bias that widens others.
    found += [rows_of(seldom, 0, saturation=(500.0, 400, 600, True))]
    found += [rows_of(seldom, i, saturation=(500.0, 400, None, False)) for i in (1, 2)]
    records = cell_records(tidy(found), config([INDEPENDENT, other, seldom]))
    widened = [record["estimators"][0]["with_biases"] for record in records]
    # 130 to 150/0.95 does not hold 128; 110/1.1 to 125 does not either: no bias is a cell's own.
    assert [w["n_covering"] for w in widened] == [0, 0, 0]
    assert [w["n_biases"] for w in widened] == [1, 1, 2]
    wide = [
        rows_of(cell(k_ratio=0.5), i, saturation=(200.0, 128 * 1.09, 230, True)) for i in (0, 1)
    ]
    [*_, last] = cell_records(tidy(found + wide), config([INDEPENDENT, other, cell(k_ratio=0.5)]))
    assert last["estimators"][0]["with_biases"]["coverage"] == 1.0  # 128 * 1.09 / 1.1
    wide = [
        rows_of(cell(k_ratio=0.5), i, saturation=(200.0, 128 * 1.11, 230, True)) for i in (0, 1)
    ]
    [*_, last] = cell_records(tidy(found + wide), config([INDEPENDENT, other, cell(k_ratio=0.5)]))
    assert last["estimators"][0]["with_biases"]["coverage"] == 0.0


def test_widened_intervals_are_judged_in_every_kind_by_what_had_not_been_seen():
    other = cell(k_ratio=2.0)

    def gate(n: int, n_missing: int, *, start: int = 0) -> dict:
        found = [
            rows_of(a_cell, i, saturation=(128.0, 129.0 if i < missing else 120, 140, True))
            for a_cell, missing in ((INDEPENDENT, 0), (other, start + n_missing))
            for i in range(start, start + n)
        ]
        return judged(found, [INDEPENDENT, other])["saturation: coverage_widened"]

    assert gate(74, 7)["passed"] is True
    assert gate(74, 0)["passed"] is True  # too wide is not wrong here
    failed = gate(74, 8)
    assert (failed["passed"], failed["cell"]) == (False, other.name)
    assert failed["value"] == pytest.approx(66 / 74)
    assert gate(73, 0)["passed"] is None
    first, last = gates_text()["seen"]
    assert gate(last + 1 - first, 0, start=first)["value"] is None
    assert gate(last + 1 - first + 73, 26, start=first)["passed"] is None
    assert gate(last + 1 - first + 74, 26, start=first)["value"] == 1.0


def test_one_kind_alone_says_nothing_of_widened_intervals():
    gates = judged(many(INDEPENDENT, 128.0), [INDEPENDENT])
    assert gates["saturation: coverage_widened"]["passed"] is None


@pytest.mark.parametrize(("n_identified", "passed"), [(50, True), (49, None)])
def test_a_cell_that_is_mostly_refused_passes_no_gate(n_identified, passed):
    found = many(INDEPENDENT, 128.0, n_identified)
    found += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    gates = judged(found, [INDEPENDENT])
    assert gates["saturation: bias_independent"]["passed"] is passed
    wrong = many(INDEPENDENT, 200.0, n_identified)
    wrong += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    failed = {True: False, None: None}[passed]
    assert judged(wrong, [INDEPENDENT])["saturation: bias_independent"]["passed"] is failed


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
