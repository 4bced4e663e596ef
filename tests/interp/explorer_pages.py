"""A small explorer without any model: texts and records made up, hostile where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from interp.explore import pages
from interp.explore.pages import Facts
from interp.explore.records import HeldOutText, Latent, Match, Passage

HOSTILE = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
    "<!--<script>' \" & {{ 7 * 7 }} ]]>"
)
SIGNS = {
    "\u202e": "U+202E",
    "\u2066": "U+2066",
    "\u200b": "U+200B",
    "\u2028": "U+2028",
    "\udce2": "\\xE2",
    "\x00": "␀",
    "\x1b": "␛",
    "\ufeff": "U+FEFF",
}
"""Marks that must be seen, and as what."""
STRINGS = ["", "def", " add", "(", "\n", HOSTILE, "שלום", *SIGNS]
N_CTX = 128
TEXT_KEY = "f" * 64


def text(n_positions: int = 1_024) -> HeldOutText:
    """Three documents; every block begins with a token that is no text."""
    ids = 1 + np.arange(n_positions) % (len(STRINGS) - 1)
    ids[::N_CTX] = 0
    third = n_positions // 3
    documents = [(i * third + 1, (i + 1) * third, f"file {i} {HOSTILE}") for i in range(3)]
    return HeldOutText(STRINGS, ids.astype(np.int32), documents, N_CTX, TEXT_KEY)


def latent(number: int, seed: int = 0) -> Latent:
    """A counted latent, or a dead one where the number ends in 7."""
    base = Latent(
        number=number,
        state="counted",
        density=0.001 * (1 + number % 100),
        mass=1 / (1 + number),
        max_act=4.0,
        token_entropy_bits=2.5,
        found_by=1 + number % 2,
        label=("keyword_def", f"told {HOSTILE}")[number % 2] if number % 5 == 0 else None,
        label_f1=0.6 if number % 5 == 0 else None,
        label_told=number % 10 == 0,
        fires_on=(("def", 0.7), (STRINGS[number % len(STRINGS)], 0.3)),
        promotes=((HOSTILE, 3.25), (f"token{number}", 1.0), ("\udce2", 0.5)),
        suppresses=(("(", -2.0), (" add", -1.0)),
        neighbours=(((number + 1) % 100, 0.75), ((number + 2) % 100, 0.5)),
        histogram=(5, 3, 0, 1),
        passages=(
            Passage(0, 300, ((-2, 1.0), (0, 4.0), (3, 0.5))),
            Passage(1, 400, ((0, 3.0),)),
            Passage(3, 129, ((0, 0.25),)),
        ),
        in_seeds=(Match(1 - seed, number, 0.9, 0.8, True),),
    )
    if number % 10 != 7:
        return base
    return replace(
        base, state="dead", density=0.0, mass=0.0, max_act=0.0, token_entropy_bits=None,
        found_by=None, label=None, label_f1=None, label_told=False, fires_on=(), histogram=(),
        passages=(),
    )  # fmt: skip


def facts(model: str, d_sae: int, n_seeds: int = 2) -> Callable[[list[int], list[int]], Facts]:
    """What `write_group` asks for at its end."""

    def made(counted: list[int], told: list[int]) -> Facts:
        return Facts(
            key=key(model, d_sae), model=model, control="trained", layer=1,
            hook_point="blocks.1.hook_resid_post", about="contextual", d_sae=d_sae, k=4,
            n_seeds=n_seeds, n_tokens=1_000, text=HOSTILE, text_key=TEXT_KEY, depth=0.5, main=True,
            matched=True, found=60, by_chance=2.0, fvu=0.3, counted=counted, told=told,
        )  # fmt: skip

    return made


def key(model: str, d_sae: int) -> str:
    """A folder whose name needs quoting in an address."""
    return f"{model.replace('/', '--')[:20]}/blocks.1 #contextual%20?/{d_sae}-4"


def write_site(root: Path, d_sae: int = 300) -> list[Facts]:
    """Two dictionaries of one text, the second with a hostile model's name."""
    root.mkdir(parents=True)
    pages.write_assets(root)
    pages.write_text(root, text())
    groups = [write_group(root, model, d_sae) for model in ("ladder/d064", f"m{HOSTILE}")]
    one, other = groups
    for here, there in ((one, other), (other, one)):
        matches = [[[Match(0, n, None, 0.625)] for n in range(d_sae)] for _ in range(2)]
        pages.write_related(root, here, [there], matches, 0.3)
    pages.write_index(root, groups, preset=HOSTILE, preview=True, left=1)
    return groups


def write_group(root: Path, model: str, d_sae: int, n_seeds: int = 2) -> Facts:
    """The pages of one dictionary."""
    seeds: Iterator[Iterator[Latent]] = (
        (latent(number, seed) for number in range(d_sae)) for seed in range(n_seeds)
    )
    return pages.write_group(root, facts(model, d_sae, n_seeds), key(model, d_sae), seeds)
