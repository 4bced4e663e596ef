"""Families of models by name, each a list of increasing size.

`gpt2` is also the name of one model: where models are listed it is that model, and where a family
is asked for (`interp study gpt2`) it is the family.
"""

from __future__ import annotations

from collections.abc import Iterable

from interp import ladder

_SIZES = {
    "gpt2": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    "pythia": tuple(
        f"EleutherAI/pythia-{size}"
        for size in ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    ),
    "opt": tuple(
        f"facebook/opt-{size}"
        for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
    ),
    "qwen2.5": tuple(
        f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
    ),
    "cerebras-gpt": tuple(
        f"cerebras/Cerebras-GPT-{size}"
        for size in ("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")
    ),
}


def names() -> list[str]:
    """The families known by name."""
    return [*_SIZES, "ladder"]


def members(family: str) -> tuple[str, ...]:
    """The models of a family, smallest first. Raises KeyError for an unknown one."""
    return tuple(ladder.names()) if family == "ladder" else _SIZES[family]


def expand(models: Iterable[str]) -> list[str]:
    """The list with each family's name replaced by its models; repeats are dropped."""
    found: list[str] = []
    for name in models:
        is_model = name in members("gpt2")
        found += members(name) if name in names() and not is_model else (name,)
    return list(dict.fromkeys(found))
