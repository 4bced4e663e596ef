"""The count without composites in a study: its rows, its records, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_summary import NAMES, WIDTHS, rows, summary

import saes
from interp.config import StudyConfig
from interp.held_out import HeldOut
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.spot_counts import Count, count_only, counts_of, rows_of
from interp.spot_rows import sae_rows
from saes.config import SAEConfig
from saes.latent_set import LatentSet
from saes.sae import SparseActs
from saes.synthetic import SyntheticConfig, SyntheticData

N_FEATURES, N_PAIRS, D_IN, N_TOKENS = 24, 4, 32, 4_000
CONFIG = StudyConfig(models=("ladder/d032",))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeds(n_pairs: int) -> list[LatentSet]:
    """Three dictionaries of the same features and pairs, shuffled, with room to spare.

    Every token has one latent, the features more often than the pairs.
    """
    features = torch.nn.functional.normalize(
        torch.randn(N_FEATURES, D_IN, generator=generator(0)), dim=1
    )
    pairs = features[:n_pairs] + features[n_pairs : 2 * n_pairs]
    spare = torch.zeros(2 * N_FEATURES - n_pairs, D_IN)
    W_dec = torch.nn.functional.normalize(torch.cat([features, pairs, spare]), dim=1)
    odds = torch.tensor([3.0] * N_FEATURES + [1.0] * n_pairs)
    fires = torch.multinomial(odds, N_TOKENS, replacement=True, generator=generator(1))
    found = []
    for seed in range(3):
        order = torch.randperm(len(W_dec), generator=generator(2 + seed))
        place = torch.argsort(order)
        acts = SparseActs(place[fires][:, None], torch.ones(N_TOKENS, 1))
        found.append(LatentSet.from_acts(W_dec[order], acts))
    return found


def held_out() -> HeldOut:
    tokens = torch.arange(N_TOKENS)
    return HeldOut(
        x=torch.randn(N_TOKENS, D_IN, generator=generator(9)), token_ids=tokens % 50,
        positions=tokens % 100, doc_ids=tokens // 100, dropped_fraction=0.0,
    )  # fmt: skip


def test_near_copies_are_no_composites() -> None:
    latents = []
    for one in seeds(0):
        W = one.W_dec.clone()
        # Six spare latents become copies that take half of a feature's tokens.
        live = np.flatnonzero(one.live)[:6]
        spare = np.flatnonzero(~one.live)[:6]
        W[spare] = W[live]
        indices = one.acts.indices.clone()
        for copied, copy in zip(live.tolist(), spare.tolist(), strict=True):
            tokens = (indices[:, 0] == copied).nonzero()[:, 0]
            indices[tokens[::2], 0] = copy
        latents.append(LatentSet.from_acts(W, SparseActs(indices, one.acts.values)))
    plain, atoms = counts_of(latents, held_out(), 1, CONFIG)
    assert plain.estimate.value == atoms.estimate.value == N_FEATURES
    told = by_quantity([plain, atoms], latents)
    assert told["merged_latents_mean"] == 6
    assert told["composites_mean"] == 0


def by_quantity(counts: list[Count], latents: list[LatentSet]) -> dict[str, float | None]:
    found = rows_of(counts, latents, held_out(), 1, CONFIG, strictness=False)
    return {row["quantity"]: row["value"] for row in found}


def test_pairs_are_left_out_of_the_second_count() -> None:
    latents, held = seeds(N_PAIRS), held_out()
    plain, atoms = counts_of(latents, held, 1, CONFIG)
    assert plain.estimate.value == N_FEATURES + N_PAIRS
    assert atoms.estimate.value == N_FEATURES
    assert count_only(atoms, latents, held, 1, CONFIG) == N_FEATURES
    assert count_only(plain, latents, held, 1, CONFIG) == N_FEATURES + N_PAIRS
    told = by_quantity([plain, atoms], latents)
    assert told["reproducible"] == N_FEATURES + N_PAIRS
    assert told["reproducible_atoms"] == N_FEATURES
    assert told["composites_mean"] == N_PAIRS
    assert told["censored_atoms"] == told["reproducible_atoms_null"] == 0


def test_where_there_are_none_it_is_the_same_count_with_the_same_null() -> None:
    latents = seeds(0)
    plain, atoms = counts_of(latents, held_out(), 1, CONFIG)
    assert atoms.estimate == plain.estimate
    assert atoms.found is plain.found
    assert by_quantity([plain, atoms], latents)["composites_mean"] == 0


def test_a_count_that_is_refused_has_nothing_beside_it() -> None:
    [plain] = counts_of(seeds(N_PAIRS)[:2], held_out(), 1, CONFIG)
    assert plain.found is None
    told = by_quantity([plain], [])
    assert set(told) == {"reproducible", "censored"}


def with_atoms(
    found: list[dict[str, Any]], share: float, n_left_out: float
) -> list[dict[str, Any]]:
    """Rows with the count without composites beside each, as `share` of it."""
    more = []
    for row in found:
        name, value = row["quantity"], row["value"]
        if name == "reproducible":
            planted = {"reproducible_atoms": share * value, "reproducible_atoms_se": 0.01 * value,
                       "composites_mean": n_left_out, "converged_atoms": 1.0,
                       "censored_atoms": 0.0, "reproducible_atoms_null": 1.0}  # fmt: skip
            more += [
                row | {"quantity": q, "value": v, "ci_low": 0.9 * v, "ci_high": 1.1 * v}
                for q, v in planted.items()
            ]
            half = {"role": "half", "ci_low": None, "ci_high": None}
            more.append(row | half | {"quantity": "reproducible_atoms", "value": 0.5 * value})
    return found + more


def test_a_record_has_it_and_older_rows_do_not() -> None:
    found = summary(with_atoms(rows(), 0.75, 3.0))["packing"]
    record = next(r for r in found if r["estimator"] == "reproducible")
    assert record["without_composites"] == {
        "n_composites": 3.0, "value": pytest.approx(0.75 * record["value"]),
        "ci_low": pytest.approx(0.675 * record["value"]),
        "ci_high": pytest.approx(0.825 * record["value"]),
        "value_half": pytest.approx(0.5 * record["value"]), "null": 1.0, "converged": True,
        "censored": False, "reason": None,
    }  # fmt: skip
    assert not any("without_composites" in r for r in summary(rows())["packing"])
    assert "saturation_atoms" not in {r["estimator"] for r in found}


def growing(share: float) -> list[dict[str, Any]]:
    """Counts that level off at 3 d, and `share` of them without composites."""
    return [
        row
        for multiple in (4, 8, 16, 32, 64)
        for row in with_atoms(
            rows(1.0, scale=3 * (1 - np.exp(-multiple / 6)), multiple=multiple), share, 1.0
        )
    ]


def test_four_sizes_give_its_level_too() -> None:
    found = summary(growing(0.8), d_sae_per_d_model=(8, 4, 16, 32, 64))["packing"]
    for name, share in (("saturation", 1.0), ("saturation_atoms", 0.8)):
        records = [r for r in found if r["estimator"] == name]
        assert [r["model"] for r in records] == list(NAMES)
        for record, width in zip(records, WIDTHS, strict=True):
            assert record["value"] == pytest.approx(3 * share * width, rel=0.03)


def said(all_rows: list[dict[str, Any]], **changes: Any) -> str:
    replies = dict(objections(read_summary(summary(all_rows, **changes))))
    return replies["Latents that stand for two others are counted too."]


def test_the_reply_says_how_many_and_what_is_left() -> None:
    # Counts of 2 d in dictionaries of 8 d, of which 25.6 latents are composites.
    told = said(with_atoms(rows(), 0.75, 25.6) + with_atoms(rows(control="random_init"), 0.5, 0.0))
    least, most = (100 * 25.6 / (8 * width) for width in (WIDTHS[-1], WIDTHS[0]))
    assert told.startswith(
        f"Such are {least:.1f}% to {most:.1f}% of the latents of a model's dictionary and 0.0% of "
        "a twin's (a latent whose direction"
    )
    assert told.endswith(
        "Without them models count 1.5 per dimension, with them 2.0; twins 1.0, and trained minus "
        "twin lies above zero for 6 of 6 pairs."
    )


def test_the_reply_says_what_bars_a_count() -> None:
    planted = with_atoms(rows(), 0.75, 1.0)
    for row in planted:
        if row["quantity"] == "converged_atoms" and row["model"] in NAMES[:2]:
            row["value"] = 0.0
        if row["quantity"] == "censored_atoms" and row["model"] == NAMES[-1]:
            row["value"] = 1.0
    assert "models count 1.5 (1 of 6 full, 2 of 6 not converged) per dimension" in said(planted)


def test_the_reply_where_there_are_none_and_where_nobody_looked() -> None:
    assert said(with_atoms(rows(), 1.0, 0.0)).startswith("There are none: a latent whose direction")
    assert said(rows()) == "Not answered: this run did not look for them."


def test_a_study_of_many_sizes_has_the_reply_of_its_counts() -> None:
    told = said(growing(0.8), d_sae_per_d_model=(8, 4, 16, 32, 64))
    assert told.startswith("Such are ")


def test_saes_of_half_the_tokens_are_counted_alike() -> None:
    data = SyntheticData(SyntheticConfig(d_in=16, n_features=24, l0=2.0, seed=3))
    budgets = {"main": 16_384, "half": 8_192}
    plan = [
        SAEConfig(d_in=16, d_sae=64, k=2, hook_point="x", seed=seed, n_tokens=n)
        for n in budgets.values()
        for seed in range(3)
    ]
    stream = data.stream(max(budgets.values()), generator=generator(4))
    trained = saes.train(({"x": x} for x in stream), plan, workers=1)
    x, _ = data.rows(N_TOKENS, generator=generator(5))
    found = sae_rows(trained[:3], trained[3:], replace(held_out(), x=x), CONFIG, k=2,
                     k_reached=True, n_tokens=budgets["main"])  # fmt: skip
    counts = {(r["quantity"], r["role"]): r["value"] for r in found if r["seed"] is None}
    for name in ("reproducible", "reproducible_atoms"):
        assert {(name, "main"), (name, "half")} <= counts.keys()
    assert counts["reproducible_atoms", "half"] <= counts["reproducible", "half"] + 2
    assert {counts["converged", "main"], counts["converged_atoms", "main"]} <= {0.0, 1.0}
