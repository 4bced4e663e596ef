"""What was varied at constant width: levers, their values, and the models without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SEED = "seed"
BASE = "base"
OTHER = "other"
"""Of a model of the same width that is neither: not one recipe with any of the rest."""
ON_A_LOG_SCALE = ("tokens", "projects")
"""Amounts, told in doublings; weight decay is signed and told as it is."""


def name_of(fact: Mapping[str, Any]) -> str:
    """The lever that made a model; `base` for the recipe that the arm varies, or `other`."""
    lever = fact.get("lever")
    if lever is not None:
        return str(lever["name"])
    return BASE if "lever_base" in fact else OTHER


def replicate(fact: Mapping[str, Any]) -> bool:
    """The base recipe, under its own or another seed: models that differ by chance alone."""
    return name_of(fact) in (BASE, SEED)


def block(fact: Mapping[str, Any]) -> str:
    """Models of one block had the same thing varied.

    Replicates are one block, every model from elsewhere one of its own.
    """
    if replicate(fact):
        return BASE
    return str(fact["name"]) if name_of(fact) == OTHER else name_of(fact)


def value_of(fact: Mapping[str, Any], lever: str) -> float | None:
    """The value of a lever in a model; the base has one too, in `lever_base` of its record.

    None where it is not recorded, and in models from elsewhere. Tokens of the base need no record:
    it knows its own.
    """
    varied = fact.get("lever")
    if varied is not None:
        return float(varied["value"]) if varied["name"] == lever else None
    if name_of(fact) == OTHER:
        return None
    if (known := (fact.get("lever_base") or {}).get(lever)) is not None:
        return float(known)
    return float(fact["train_tokens"] or 0) or None if lever == "tokens" else None
