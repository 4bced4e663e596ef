"""Families: lists of increasing size, by name."""

from __future__ import annotations

import re

import pytest

from interp import families, hub, ladder
from interp.config import resolve_config


def test_the_promised_families_are_known() -> None:
    assert families.names() == ["gpt2", "pythia", "opt", "qwen2.5", "cerebras-gpt", "ladder"]
    assert families.members("gpt2") == ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    assert families.members("ladder") == tuple(ladder.names())
    for family in families.names()[:-1]:
        assert all(map(hub.is_name, families.members(family)))


@pytest.mark.parametrize("family", ["pythia", "opt", "qwen2.5", "cerebras-gpt"])
def test_sizes_increase(family: str) -> None:
    def parameters(name: str) -> float:
        number, unit = re.search(r"-([\d.]+)([mb])$", name.lower()).groups()  # type: ignore[union-attr]
        return float(number) * {"m": 1e6, "b": 1e9}[unit]

    sizes = list(map(parameters, families.members(family)))
    assert sizes == sorted(set(sizes))


def test_lists_expand_families_and_keep_models() -> None:
    assert families.expand(["./x", "opt", "facebook/opt-125m"]) == ["./x", *families.members("opt")]
    assert families.expand(["gpt2"]) == ["gpt2"]  # the model of that name
    assert families.expand(["ladder/d032", "ladder"])[0] == "ladder/d032"


def test_a_study_of_a_family_is_all_of_it() -> None:
    config = resolve_config("gpt2", {"sae_tokens": 10**6})
    assert config.sae_tokens == 10**6
    config = resolve_config("gpt2", {"executor": "ray", "address": "auto"})
    assert config.models == families.members("gpt2")
    assert config.twins == config.models
    assert config.family == "gpt2"
    assert config.preset == "quick settings on gpt2"
    assert config.preview
    small = resolve_config("opt", {"models": ["facebook/opt-125m"]})
    assert (small.models, small.family) == (("facebook/opt-125m",), "opt")
    if ladder.names():
        assert resolve_config("ladder", {}).models == tuple(ladder.names())
