"""The SAEs of a finished study against what Python says of every token, model beside twin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from interp.capture import capture
from interp.contextual import ContextualMeans
from interp.controls import random_init_twin
from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.label_scores import LabelScore, score_labels
from interp.models import Model, load
from interp.python_labels import LABELS, byte_labels, token_labels
from interp.run import TRAINED, TWIN, Run, RunFolder, advice_without_saes, folder_name
from interp.sources import require_counted_on
from interp.spots import Spot
from interp.streams import Streams
from interp.tokens import TokenBlocks, tokens
from saes.sae import SAE

N_TOKENS = 131_072


@dataclass(frozen=True)
class Labelled:
    """One group of seeds at one place: what their latents tell of Python."""

    model: str
    control: str
    spot: Spot
    k: int
    by_seed: tuple[tuple[LabelScore, ...], ...]

    @property
    def n_labels(self) -> int:
        """Labels that enough tokens carry."""
        return len(self.by_seed[0])

    @property
    def n_dedicated(self) -> tuple[int, ...]:
        """Of every seed: labels with a latent of their own."""
        return tuple(sum(score.dedicated for score in scores) for scores in self.by_seed)

    def to_json(self) -> dict[str, Any]:
        """One row, with the labels of the first seed."""
        return {
            "model": self.model,
            "control": self.control,
            "layer": self.spot.layer,
            "about": self.spot.about,
            "d_sae": self.spot.d_sae,
            "k": self.k,
            "n_seeds": len(self.by_seed),
            "n_labels": self.n_labels,
            "dedicated_mean": float(np.mean(self.n_dedicated)),
            "dedicated_min": min(self.n_dedicated),
            "dedicated_max": max(self.n_dedicated),
            "labels": [vars(s) | {"dedicated": s.dedicated} for s in self.by_seed[0]],
        }


def label_run(
    run: Run, models: Sequence[str] | None = None, *, n_tokens: int = N_TOKENS
) -> Iterator[Labelled]:
    """Every group of kept SAEs of a run at its first dictionary size, on held-out text.

    Models that could not be measured are left out, unless they are named. Raises UserError for a
    model that is not in the run, a run without kept SAEs, text that is no Python, and a text or
    model that is another than the study counted on.
    """
    config = run.config
    measured = {m["name"] for m in run.summary["models"]}
    names = list(models or [name for name in config.models if name in measured])
    if strangers := set(names) - set(config.models):
        raise UserError(
            f"{run.path} has no {', '.join(sorted(strangers))}; it has {', '.join(config.models)}"
        )
    corpus = load_text(config.text)
    lost = {(failure["model"], failure["control"]) for failure in run.failures}
    for name in names:
        has_twin = name in config.twins and (name, TWIN) not in lost
        for control in (TRAINED, TWIN) if has_twin else (TRAINED,):
            groups = _groups(run, name, control)
            model = load(name)
            require_counted_on(
                run, name, text_sha256=corpus.sha256, weights_sha256=model.weights_sha256
            )
            if control == TWIN:
                model = random_init_twin(model, config.seed)
            blocks = tokens(corpus, model, n_tokens=n_tokens, split="held_out", seed=config.seed)
            labels, known = labels_of(blocks, corpus)
            for spot, saes in groups.items():
                streams = Streams(_means(run.path, name, control, spot))
                scores = _scores(model, blocks, streams, spot, saes, labels, known, config.seed)
                yield Labelled(name, control, spot, saes[0].k, scores)


def labels_of(
    blocks: TokenBlocks, corpus: Corpus
) -> tuple[Bool[np.ndarray, "token label"], Bool[np.ndarray, " token"]]:
    """Labels of every position of the blocks, flattened, and for which of them they are known.

    Not known: padding, tokens before documents, and documents that are no Python. Raises UserError
    when that is all of them.
    """
    docs = blocks.doc_ids.flatten().numpy()
    is_text, n_bytes = blocks.is_text.flatten().numpy(), blocks.n_bytes.flatten().numpy()
    labels = np.zeros((len(docs), len(LABELS)), dtype=bool)
    known = np.zeros(len(docs), dtype=bool)
    texts = corpus.documents
    for document in np.unique(docs[docs >= 0]):
        of_bytes = byte_labels(texts[int(document)]["text"])
        if of_bytes is not None:
            # The text's end may be cut off, and its beginning never.
            mine = np.flatnonzero((docs == document) & is_text)
            labels[mine] = token_labels(of_bytes, n_bytes[mine])
            known[mine] = True
    if not known.any():
        raise UserError(f"{corpus.name}: none of its documents is Python; labels need source code")
    return labels, known


def _scores(
    model: Model,
    blocks: TokenBlocks,
    streams: Streams,
    spot: Spot,
    saes: Sequence[SAE],
    labels: Bool[np.ndarray, "token label"],
    known: Bool[np.ndarray, " token"],
    seed: int,
) -> tuple[tuple[LabelScore, ...], ...]:
    rows, kept, at = [], [], 0
    for chunk in capture(model, blocks, spot.hook_point):
        mine = chunk.keep.numpy() & known[at : at + len(chunk)]
        (found,) = streams.rows([chunk], [spot], seed=seed)
        rows.append(found[spot.stream][torch.from_numpy(mine[chunk.keep.numpy()])])
        kept.append(at + np.flatnonzero(mine))
        at += len(chunk)
    x, positions = torch.cat(rows), np.concatenate(kept)
    docs = blocks.doc_ids.flatten().numpy()[positions]
    # Every other document: halves of about the same text, and no document in both.
    _, order = np.unique(docs, return_inverse=True)
    return tuple(
        tuple(
            score_labels(
                sae.encode(x),
                sae.d_sae,
                labels[positions],
                LABELS,
                order % 2 == 0,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        for sae in saes
    )


def _groups(run: Run, model: str, control: str) -> dict[Spot, list[SAE]]:
    """The kept SAEs whose k came by the FVU rule, at the first size, by place; seeds in order."""
    results = run.results
    d_sae = results[(results.model == model) & results.d_sae.notna()].d_sae.min()
    chosen = results[
        (results.model == model)
        & (results.control == control)
        & (results.role == "main")
        & (results.k_rule == "fvu")
        & (results.architecture == run.config.architecture)
        & (results.d_sae == d_sae)
        & (results.quantity == "reproducible")
    ]
    kept = run.saes(model, control=control)
    groups = {}
    for row in chosen.itertuples():
        spot = Spot(
            int(row.layer),
            row.about,
            int(row.d_sae),
            kind=run.config.hook_kind,
            architecture=run.config.architecture,
        )
        names = [n for n in kept if n.startswith(f"{spot.stream}/{spot.size(int(row.k))}-")]
        if names:
            groups[spot] = [kept[n] for n in sorted(names, key=lambda n: int(n.rpartition("-")[2]))]
    if not groups:
        raise UserError(
            f"{run.path} keeps no SAEs of {folder_name(model, control)}; "
            f"{advice_without_saes(run.path)}"
        )
    return groups


def _means(root: Path, model: str, control: str, spot: Spot) -> dict[int, ContextualMeans]:
    if spot.about == "all":
        return {}
    file = RunFolder(root).work(model, control) / f"means.{spot.layer}.safetensors"
    if not file.exists():
        raise UserError(
            f"{file} is missing, the means that contextual SAEs were trained without; "
            "run the study again into a new folder"
        )
    return {spot.layer: ContextualMeans.load(file)}
