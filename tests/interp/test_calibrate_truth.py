"""Classes beside the features that they stand for, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from interp.calibrate.presets import PRESETS
from interp.calibrate.training import train
from interp.calibrate.truth import beside_the_truth, facts_of
from saes.composites import without_composites
from saes.latent_set import LatentSet
from saes.matching import ReproducibleCount, reproducible
from saes.sae import SparseActs
from saes.synthetic import SyntheticData

NOTHING = SparseActs(torch.zeros((1, 1), dtype=torch.long), torch.zeros((1, 1)))


def latents(*rows: tuple[float, ...]) -> LatentSet:
    return LatentSet(torch.tensor(rows), NOTHING, np.ones(len(rows), dtype=bool))


def count(*classes: tuple[int, ...]) -> ReproducibleCount:
    table = np.array(classes)
    sizes = (table >= 0).sum(axis=1)
    s_ge = {r: int((sizes >= r).sum()) for r in (1, 2)}
    return ReproducibleCount(
        s_ge=s_ge, class_sizes=sizes, classes=table, n_seeds=2, n_live=(4, 4), n_merged=(0, 1),
        threshold=0.7, duplicate_cosine=0.8, min_correlation=0.5, mean_cosine=None,
        mean_correlation=None,
    )  # fmt: skip


def test_hits_second_hits_and_strays_by_hand() -> None:
    """Features along two axes; a sum of both has a cosine of .71 with either."""
    features = torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    one = latents((1, 0, 0), (3, 1, 0), (1, 1, 0), (0, 0, 1))
    other = latents((9, 0, 0), (1, 1, 0), (0, 0, 1), (0, 1, 0))
    # The first axis; a copy of it (cosine .95); a sum; what is no feature; one seed's alone.
    found = count((0, 0), (1, -1), (2, 1), (3, 2), (-1, 3))
    truth = beside_the_truth(found, 1, [one, other], features)
    assert truth["0.9"] == {"hit": 2, "again": 1, "none": 2}
    assert truth["0.7"] == {"hit": 2, "again": 2, "none": 1}
    assert beside_the_truth(found, 2, [one, other], features)["0.9"] == {
        "hit": 1, "again": 0, "none": 2
    }  # fmt: skip


def test_an_opposite_direction_is_no_hit() -> None:
    features = torch.tensor([[1.0, 0.0, 0.0]])
    found = count((0, 0))
    back = latents((-1, 0, 0))
    assert beside_the_truth(found, 2, [back, back], features)["0.7"]["none"] == 1


def test_no_classes_hit_nothing() -> None:
    empty = count((0, -1))
    one = latents((1.0, 0.0))
    assert beside_the_truth(empty, 2, [one, one], torch.eye(2))["0.9"] == {
        "hit": 0, "again": 0, "none": 0
    }  # fmt: skip


def test_facts_are_plain() -> None:
    assert facts_of(count((0, 0), (1, -1))) == {
        "s_ge": {"1": 2, "2": 1}, "n_live": [4, 4], "n_merged": [0, 1], "threshold": 0.7
    }  # fmt: skip


@pytest.mark.slow
def test_a_feature_below_another_is_found_together_with_it() -> None:
    """Why the number of such features can be near and their classes are not (docs, estimators)."""
    gates = PRESETS["gates"]
    [one] = [cell for cell in gates.cells if cell.children]
    data = SyntheticData(one.data(seed=0))
    config = gates.model_copy(
        update={"cells": (one,), "n_seeds": 1, "d_sae_per_d_in": (8,), "largest_holds_twice": False}
    )
    [[sae]] = train(data, one, 0, config, workers=1).main.values()
    latents = normalize(sae.W_dec, dim=1)
    n_parents = one.n_features // (1 + one.children)
    parents, below = data.directions[:n_parents], data.directions[n_parents:]
    of = torch.arange(len(below)) // one.children

    def found(directions: torch.Tensor) -> float:
        return float(((latents @ normalize(directions, dim=1).T).amax(0) > 0.9).double().mean())

    assert found(parents) > 0.8
    assert found(below) < 0.1
    assert found(below + parents[of]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("difficulty", "fewest", "most"),
    [({"correlation": 0.5}, 1.5, math.inf), ({"k_ratio": 2.0}, 0.0, 0.75)],
)
def test_what_stands_for_no_feature_fires_where_k_does_not_fit(
    difficulty: dict[str, float], fewest: float, most: float
) -> None:
    """Why correlated features and a large k make N too high (docs, estimators).

    Bounds are on how many features are active where such classes fire, over the average of all
    rows. Features that fire in bursts need more latents than k there, and groups of them get one;
    a k that is too large has slots left where hardly any is active.
    """
    gates = PRESETS["gates"]
    [one] = [
        cell for cell in gates.cells if all(getattr(cell, k) == v for k, v in difficulty.items())
    ]
    data = SyntheticData(one.data(seed=0))
    config = gates.model_copy(
        update={"cells": (one,), "n_seeds": 2, "d_sae_per_d_in": (8,), "largest_holds_twice": False}
    )
    [pair] = train(data, one, 0, config, workers=1).main.values()
    x, fired = data.rows(config.held_out_rows, generator=torch.Generator().manual_seed(1))
    latents = [without_composites(LatentSet.from_acts(s.W_dec, s.encode(x))) for s in pair]
    found = reproducible(latents, 0.7)
    of_first = found.classes[found.class_sizes == 2][:, 0]
    acts = latents[0].acts
    directions = normalize(data.directions, dim=1)
    truth = (normalize(latents[0].W_dec, dim=1) @ directions.T).amax(1).numpy()
    n_active = (fired > 0).sum(1).double()
    ratios = [
        float(n_active[((acts.indices == j) & (acts.values > 0)).any(1)].mean() / n_active.mean())
        for j in of_first.tolist()
        if truth[j] < 0.9
    ]
    assert len(ratios) >= 3
    assert fewest < float(np.median(ratios)) < most
