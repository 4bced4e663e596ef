"""Published SAEs as ladders that need no training: named presets, and anything sae-lens can load.

All of them come from the Hugging Face hub, the models too: nothing here works offline but the list.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import saes
from interp import hub
from interp.errors import UserError
from saes.format import hook_name
from saes.sae import SAE

NEEDS_HUB = "published SAEs and their models are on the hub; `interp study` needs neither"


@dataclass(frozen=True)
class PublishedSAE:
    """One SAE by the names that sae-lens knows it by, and the model that it reads."""

    model: str
    """Hub name."""
    release: str
    sae_id: str

    def __str__(self) -> str:
        return f"{self.release}:{self.sae_id}"


@dataclass(frozen=True, eq=False)
class Fetched:
    """A published SAE, here."""

    sae: SAE
    hook_point: str | None
    """As its own configuration says, in TransformerLens's form; None where it says none."""
    centred: bool
    """Trained on a model whose weights were centred: it reads the stream less its mean over
    dimensions, which is what centring takes from a stream that LayerNorms read."""


def _sizes(model: str, release: str, pattern: str, sizes: tuple[str, ...]) -> list[PublishedSAE]:
    return [PublishedSAE(model, release, pattern.format(size)) for size in sizes]


PRESETS: Mapping[str, tuple[PublishedSAE, ...]] = MappingProxyType(
    {
        # One layer of one model at eight dictionary sizes, 768 to 98,304.
        "gpt2-small": tuple(
            _sizes(
                "gpt2",
                "gpt2-small-res-jb-feature-splitting",
                "blocks.8.hook_resid_pre_{}",
                ("768", "1536", "3072", "6144", "12288", "24576", "49152", "98304"),
            )
        ),
        # Two widths of model at about half depth, each at the sizes that both have.
        "gemma-scope": (
            *_sizes(
                "google/gemma-2-2b",
                "gemma-scope-2b-pt-res-canonical",
                "layer_12/width_{}/canonical",
                ("16k", "32k", "65k", "524k", "1m"),
            ),
            *_sizes(
                "google/gemma-2-9b",
                "gemma-scope-9b-pt-res-canonical",
                "layer_20/width_{}/canonical",
                ("16k", "32k", "65k", "524k", "1m"),
            ),
        ),
        # Three models at half depth, L0 50.
        "qwen3": (
            PublishedSAE("Qwen/Qwen3-1.7B-Base", "qwen-scope-3-1.7b-base-w32k-l50", "layer13"),
            PublishedSAE("Qwen/Qwen3-8B-Base", "qwen-scope-3-8b-base-w64k-l50", "layer17"),
            PublishedSAE(
                "Qwen/Qwen3-30B-A3B-Base", "qwen-scope-3-30b-a3b-base-w32k-l50", "layer23"
            ),
        ),
    }
)


def find(what: str, model: str | None = None) -> tuple[PublishedSAE, ...]:
    """The SAEs of a preset, or the one of `RELEASE:SAE_ID`, whose model must then be given.

    Raises UserError for a name that is neither, and for a model beside a preset.
    """
    release, colon, sae_id = what.partition(":")
    if not colon:
        if what not in PRESETS:
            raise UserError(
                f"no published SAEs named {what!r}; presets: {', '.join(PRESETS)}; any other is "
                "RELEASE:SAE_ID as sae-lens names it"
            )
        if model is not None:
            raise UserError(f"{what} names its own models; leave --model out")
        return PRESETS[what]
    if model is None:
        raise UserError(f"{what}: give --model, the model that the SAE was trained on")
    return (PublishedSAE(model, release, sae_id),)


def fetch(one: PublishedSAE) -> Fetched:
    """Download an SAE and read it as one of ours.

    sae-lens brings it into its own layout, whatever form it was published in; `saes.load` reads
    that. Raises UserError where the hub cannot be reached or has no such SAE, and SAEError for an
    architecture that `saes` does not have.
    """
    from sae_lens import SAE as PublishedForm
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

    try:
        repo_id, _ = get_repo_id_and_folder_name(one.release, one.sae_id)
    except ValueError as error:
        raise UserError(f"{one}: {error}") from None
    if "/" not in repo_id:
        raise UserError(f"{one}: sae-lens knows no release of this name")
    if not _cached(repo_id):
        hub.require(repo_id, "model", otherwise=NEEDS_HUB)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sae-lens, about how releases are named
        try:
            theirs = PublishedForm.from_pretrained(one.release, one.sae_id)
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{one}: sae-lens cannot load it ({reason}); {NEEDS_HUB}") from None
        theirs.save_model(folder)
        told: Mapping[str, Any] = theirs.cfg.metadata.model_from_pretrained_kwargs or {}
        return Fetched(
            sae=saes.load(folder),
            hook_point=hook_name(folder),
            centred=bool(told.get("center_writing_weights")),
        )


def _cached(repo_id: str) -> bool:
    """Whether anything of a repository was downloaded before: then it may load offline."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")).is_dir()
