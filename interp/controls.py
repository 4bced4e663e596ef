"""What a result must be told apart from: an untrained twin, shuffled tokens, Gaussian data."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import Model, wrap
from interp.tokens import TokenBlocks


def random_init_twin(model: Model, seed: int) -> Model:
    """The same configuration freshly initialized, with the same tokenizer, dtype and device.

    Named `<name>@random-<seed>`. The global random state is left as it was. Source: Heap et al.,
    arXiv 2501.17727 (SAE metrics barely separate trained from random transformers).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The class's constructor runs the architecture's own initialization.
        hf = type(model.hf)(model.hf.config)
    hf = hf.to(device=model.device, dtype=model.dtype)
    digest = hashlib.sha256()
    for key, value in sorted(hf.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return wrap(
        hf,
        model.tokenizer,
        name=f"{model.name}@random-{seed}",
        family=model.family,
        train_tokens=0,
        weights_sha256=digest.hexdigest(),
    )


def shuffle_tokens_within_documents(tokens: TokenBlocks, seed: int) -> TokenBlocks:
    """Each document's text tokens in random order; the token before it stays before it.

    Unigram statistics and document boundaries survive, context does not. Bytes move with tokens.
    """
    text = tokens.is_text.flatten().numpy().nonzero()[0]
    docs = tokens.doc_ids.flatten().numpy()[text]
    keys = np.random.default_rng(seed).random(len(text))
    # Documents are contiguous and in order of appearance, which a stable rank preserves.
    starts = np.concatenate([[True], docs[1:] != docs[:-1]]) if len(docs) else np.zeros(0, bool)
    order = text[np.lexsort((keys, np.cumsum(starts)))]

    def shuffled(x: Tensor) -> Tensor:
        flat = x.flatten().clone()
        flat[text] = x.flatten()[order]
        return flat.view(x.shape)

    return replace(tokens, ids=shuffled(tokens.ids), n_bytes=shuffled(tokens.n_bytes))


def matched_gaussian(
    x: Float[Tensor, "token d"], n: int, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """`n` Gaussian rows with the mean and covariance of `x`: no features at all, same spectrum."""
    x64 = x.double()
    mean = x64.mean(0)
    centred = x64 - mean
    covariance = centred.T @ centred / max(len(x64) - 1, 1)
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues of a rank-deficient covariance come out slightly negative.
    root = vectors * values.clamp_min(0.0).sqrt()
    noise = torch.randn(n, x.shape[1], generator=generator, dtype=torch.float64)
    return (noise @ root.T + mean).to(x.dtype)
