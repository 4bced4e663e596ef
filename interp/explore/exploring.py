"""A finished study -> its explorer: the model runs once more over the held-out text.

The same tokens, streams and SAEs as when the study counted, so that the classes shown are the
classes counted. Every group of SAEs is done when its folder is there; a second call does the rest.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import saes
from interp import durable
from interp.capture import capture
from interp.contextual import ContextualMeans
from interp.controls import random_init_twin
from interp.corpora import Corpus, load_text
from interp.errors import UserError
from interp.explore import pages
from interp.explore.agreement import Codes, best_elsewhere
from interp.explore.firings import Text
from interp.explore.groups import Group, groups_of
from interp.explore.latents import N_TOKENS_SHOWN, Seeds, Tokenized, latents
from interp.explore.lens import logit_lens
from interp.explore.pages import Facts
from interp.explore.records import Latent, Match
from interp.explore.token_text import held_out_text, vocabulary
from interp.labelling import labels_of
from interp.models import Model, load
from interp.progress import Progress
from interp.python_labels import LABELS
from interp.run import TWIN, Run, RunFolder, advice_without_saes
from interp.sources import counted_on, require_counted_on
from interp.streams import Streams
from interp.tokens import TokenBlocks, tokens
from saes.sae import SAE, SparseActs, joined

FORMAT = 2
"""Of what is measured for the pages; another number makes them again."""
CODE_POSITIONS = 32_768
"""Positions of the text on which latents of different layers and models are compared."""
MIN_CORRELATION = 0.3
"""With a latent elsewhere, to be shown beside it."""
MEMORY_BYTES = 1 << 30
"""Activations held at once; more groups than fit are read in further passes."""
_CHUNK_BYTES = 1 << 28
"""Of captured streams, all layers together; as much again is copied out of them."""
_THRESHOLD = "match_threshold"
_BYTES_PER_FIRING = 32
"""As given by the SAE, and twice as sparse matrices."""


def explore_run(
    run: Run,
    models: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    *,
    quiet: bool = False,
) -> Path:
    """Write `explorer/` in the run's folder and return its first page.

    `models` and `layers` select; what was explored before stays. Raises UserError for a model or
    layer that the run has not, for SAEs or means that are missing, and for a text or model that is
    another than the study counted on.
    """
    wanted, everything = groups_of(run, models, layers), groups_of(run)
    if bare := [g.key for g in wanted if not g.folders]:
        raise UserError(
            f"{run.path / 'saes' / bare[0]}-* are missing, the SAEs that the study has counted; "
            f"{advice_without_saes(run.path)}, or leave that model out"
        )
    root = run.path / "explorer"
    root.mkdir(exist_ok=True)
    with durable.only_writer(root):
        pages.write_assets(root)
        _measure(run, root, wanted, Progress(sum(map(_work, wanted)), quiet=quiet))
        done = [f for g in everything if (f := pages.read_facts(root / g.key)) is not None]
        _relate(run, root, done, Progress(len(done), quiet=quiet))
        return pages.write_index(
            root,
            done,
            preset=run.config.preset,
            preview=run.config.preview,
            left=len(everything) - len(done),
        )


def _work(group: Group) -> float:
    """Relative, for the progress line: a part per latent, and one per encoded product."""
    return len(group.folders) * group.spot.d_sae * (1.0 + group.d_model / 1000)


def _measure(run: Run, root: Path, wanted: Sequence[Group], progress: Progress) -> None:
    """The pages of all groups that have none, model by model."""
    corpus: Corpus | None = None
    for (name, control), mine in groupby(wanted, key=lambda g: (g.model, g.control)):
        todo = []
        for group in mine:
            facts = pages.read_facts(root / group.key)
            if facts is not None and facts.settings == _settings(run, group):
                pages.write_page(root, facts)
                progress.skip(_work(group))
            else:
                todo.append(group)
        if not todo:
            continue
        progress.at(f"{name}: loading")
        model = load(name)
        corpus = corpus or load_text(run.config.text)
        require_counted_on(
            run, name, text_sha256=corpus.sha256, weights_sha256=model.weights_sha256
        )
        if control == TWIN:
            model = random_init_twin(model, run.config.seed)
        blocks = tokens(
            corpus,
            model,
            n_tokens=run.config.held_out_tokens,
            split="held_out",
            seed=run.config.seed,
        )
        tokenized = _tokenized(model, blocks, corpus)
        pages.write_text(root, tokenized.text.text)
        for some in _that_fit(todo, blocks.ids.numel()):
            _explore(run, root, model, blocks, tokenized, some, progress)


def _tokenized(model: Model, blocks: TokenBlocks, corpus: Corpus) -> Tokenized:
    try:
        labels, known = labels_of(blocks, corpus)
    except UserError:  # no Python in it: nothing to label
        labels, known = None, np.zeros(blocks.ids.numel(), dtype=bool)
    return Tokenized(
        text=Text.of(held_out_text(blocks, corpus)),
        token_ids=blocks.ids.flatten().numpy(),
        doc_ids=blocks.doc_ids.flatten().numpy(),
        vocabulary=vocabulary(model.tokenizer, model.unembedding.shape[0]),
        labels=labels,
        known=known,
    )


def _that_fit(groups: Sequence[Group], n_positions: int) -> Iterator[list[Group]]:
    """In turns whose activations fit into memory; at least one group each."""
    some: list[Group] = []
    used = 0
    for group in groups:
        size = len(group.folders) * group.k * n_positions * _BYTES_PER_FIRING
        if some and used + size > MEMORY_BYTES:
            yield some
            some, used = [], 0
        some.append(group)
        used += size
    if some:
        yield some


def _explore(
    run: Run,
    root: Path,
    model: Model,
    blocks: TokenBlocks,
    tokenized: Tokenized,
    groups: Sequence[Group],
    progress: Progress,
) -> None:
    """One pass of the model, and then the pages of each group."""
    dictionaries = {g.key: [saes.load(folder) for folder in g.folders] for g in groups}
    streams = Streams({g.spot.layer: _means(run, g) for g in groups if g.spot.about != "all"})
    acts: dict[str, list[list[SparseActs]]] = {
        key: [[] for _ in found] for key, found in dictionaries.items()
    }
    held: dict[str, list[Tensor]] = {g.key: [] for g in groups if _THRESHOLD not in g.found}
    kept = []
    points = sorted({g.spot.hook_point for g in groups})
    at = 0
    progress.at(f"{model.name}: reading the held-out text")
    per_token = 4 * model.d_model * len(points)
    chunk_tokens = max(_CHUNK_BYTES // per_token, 1)
    for chunk in capture(model, blocks, points, chunk_tokens=chunk_tokens):
        kept.append(at + chunk.keep.nonzero().flatten())
        (rows,) = streams.rows([chunk], [g.spot for g in groups], seed=run.config.seed)
        for group in groups:
            if group.key in held:
                held[group.key].append(rows[group.spot.stream])
            for sae, parts in zip(dictionaries[group.key], acts[group.key], strict=True):
                found = sae.encode(rows[group.spot.stream])
                parts.append(SparseActs(found.indices.int(), found.values))
        at += len(chunk)
    positions = torch.cat(kept).numpy()
    for group in groups:
        progress.at(f"{model.name}: {group.spot.stream}, {group.spot.d_sae} latents")
        seeds = Seeds(
            saes=dictionaries[group.key],
            acts=[joined(parts) for parts in acts.pop(group.key)],
            positions=positions,
            counted_threshold=group.found.get(_THRESHOLD),
            held=torch.cat(held.pop(group.key)) if group.key in held else None,
            seed=run.config.seed,
        )
        _keep_codes(run, group, seeds)
        _write(run, root, model, group, seeds, tokenized)
        progress.finish(_work(group))


def _write(
    run: Run, root: Path, model: Model, group: Group, seeds: Seeds, tokenized: Tokenized
) -> None:
    def of_seed(seed: int, sae: SAE) -> Iterator[Latent]:
        lens = logit_lens(model, sae.W_dec, N_TOKENS_SHOWN)
        return latents(seeds, seed, tokenized, lens, rng=np.random.default_rng(seed))

    def facts(counted: list[int], told: list[int]) -> Facts:
        matched = seeds.match_threshold is not None
        return Facts(
            key=group.key,
            model=group.model,
            control=group.control,
            layer=group.spot.layer,
            hook_point=group.spot.hook_point,
            about=group.spot.about,
            d_sae=group.spot.d_sae,
            k=group.k,
            architecture=group.spot.architecture,
            n_seeds=len(group.folders),
            n_tokens=len(seeds.positions),
            text=run.config.text,
            text_key=tokenized.text.text.sha256,
            depth=group.depth,
            main=group.main,
            matched=matched,
            min_seeds=run.config.min_seeds,
            found=len(seeds.found_again(run.config.min_seeds)) if matched else None,
            by_chance=group.found.get("reproducible_null"),
            fvu=group.found.get("fvu_mean"),
            counted=counted,
            told=None if tokenized.labels is None else told,
            settings=_settings(run, group),
        )

    all_seeds = (of_seed(seed, sae) for seed, sae in enumerate(seeds.saes))
    pages.write_group(root, facts, group.key, all_seeds)


def _settings(run: Run, group: Group) -> dict[str, Any]:
    config = run.config
    return {
        "format": FORMAT,
        "labels": len(LABELS),
        "text": config.text,
        "held_out_tokens": config.held_out_tokens,
        "seed": config.seed,
        "min_seeds": config.min_seeds,
        "saes": [durable.sha256(folder / "sae_weights.safetensors") for folder in group.folders],
        **counted_on(run, group.model),
    }


def _means(run: Run, group: Group) -> ContextualMeans:
    folder = RunFolder(run.path).work(group.model, group.control)
    return ContextualMeans.load(folder / f"means.{group.spot.layer}.safetensors")


# Other layers and models


def _codes_file(run: Run, key: str, seed: int) -> Path:
    return run.path / "work" / "explore" / key / f"{seed}.npz"


def _keep_codes(run: Run, group: Group, seeds: Seeds) -> None:
    """Activations on the first positions, for comparison with groups that are not in memory."""
    rows = int(np.searchsorted(seeds.positions, CODE_POSITIONS))
    kept = np.zeros(CODE_POSITIONS, dtype=bool)
    kept[seeds.positions[:rows]] = True
    for seed, z in enumerate(seeds.z):
        part = sp.csr_array(z[:rows])
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            kept=np.packbits(kept),
            values=part.data.astype(np.float32),
            latents=part.indices.astype(np.int32),
            bounds=part.indptr.astype(np.int64),
            d_sae=np.array(part.shape[1]),
        )
        file = _codes_file(run, group.key, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write(file, buffer.getvalue())


def _read_codes(run: Run, key: str, seed: int) -> Codes:
    file = _codes_file(run, key, seed)
    if not file.is_file():
        raise UserError(
            f"{file} is missing, and with it what other dictionaries are compared with; "
            f"remove {run.path / 'explorer'} and run the same line again"
        )
    with np.load(file) as data:
        kept = np.unpackbits(data["kept"], count=CODE_POSITIONS).astype(bool)
        # Rows of positions that were not kept are empty.
        lengths = np.zeros(CODE_POSITIONS, dtype=np.int64)
        lengths[kept] = np.diff(data["bounds"])
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        shape = (CODE_POSITIONS, int(data["d_sae"]))
        z = sp.csr_array((data["values"].astype(float), data["latents"], bounds), shape=shape)
    return Codes(z, kept)


def compared_with(facts: Facts, everything: Sequence[Facts]) -> list[Facts]:
    """The groups whose latents are looked for those of one: what a reader would ask about.

    The other dictionaries of the same place and model; the other layers of the model; and, of every
    other model and of the untrained twins, the layer at the nearest relative depth. Only where the
    same tokens stand at the same positions.
    """
    found = []
    elsewhere: dict[tuple[str, str], list[Facts]] = {}
    for other in everything:
        if other.key == facts.key or other.text_key != facts.text_key:
            continue
        same_model = (other.model, other.control) == (facts.model, facts.control)
        if same_model and other.layer == facts.layer:
            found.append(other)
        elif other.main and other.about == facts.about:
            if same_model:
                found.append(other)
            else:
                elsewhere.setdefault((other.model, other.control), []).append(other)
    return found + [
        min(of_model, key=lambda other: abs(other.depth - facts.depth))
        for of_model in elsewhere.values()
    ]


def _relate(run: Run, root: Path, done: Sequence[Facts], progress: Progress) -> None:
    for facts in done:
        others = compared_with(facts, done)
        if pages.is_related(root, facts, others):
            progress.skip(1)
            continue
        progress.at(f"{facts.title}: comparing")
        mine = [_read_codes(run, facts.key, seed) for seed in range(facts.n_seeds)]
        matches: list[list[list[Match]]] = [
            [[] for _ in range(facts.d_sae)] for _ in range(facts.n_seeds)
        ]
        for where, other in enumerate(others):
            theirs = _read_codes(run, other.key, 0)
            for codes, of_seed in zip(mine, matches, strict=True):
                found = best_elsewhere(codes, theirs, min_correlation=MIN_CORRELATION)
                for latent, (partner, r) in found.items():
                    of_seed[latent].append(Match(where, partner, None, r))
        for of_seed in matches:
            for of_latent in of_seed:
                of_latent.sort(key=lambda match: -match.correlation)
        pages.write_related(root, facts, others, matches, MIN_CORRELATION)
        progress.finish(1)
