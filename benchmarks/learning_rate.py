"""What the bounds on the default learning rate do to long training, on real streams and twins.

    python benchmarks/learning_rate.py [--widths 64 128 192] [--out results/learning_rate]

Contextual streams at half depth of ladder models and of their untrained twins; two seeds each at
the rate of the rule alone (0.06 sqrt(k / d_sae), at most 0.02), at the default, which is bounded by
50 / (d_in sqrt(steps)), and at half of the default. On held-out rows: FVU, latents that hardly ever
fire, and the share of one seed's latents that have a counterpart in the other (mutual nearest
decoder rows, cosine above 0.7). Nothing is timed. A case that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

import interp
import saes
from interp.contextual import ContextualFitter, ContextualMeans
from interp.controls import random_init_twin
from interp.models import Model
from interp.tokens import Split
from saes.config import LR_FACTOR, MAX_LR

KS = {32: (3, 6), 64: (4, 11), 96: (5, 16), 128: (7, 20), 192: (9, 30)}
"""k of the model's SAEs and of its twin's, by width: about what an FVU of 0.3 takes there."""
WIDTHS = (64, 128, 192)
MULTIPLE = 4
"""d_sae / d_model."""
STORED_TOKENS = 4_194_304
HELD_OUT_TOKENS = 262_144
SEEDS = (0, 1)
MATCH = 0.7
RARE = 10
"""Held-out tokens that a latent must fire on."""

Case = dict[str, Any]
Stream = Float[Tensor, "row d_model"]


def stream(
    model: Model, n_tokens: int, split: Split, means: ContextualMeans | None
) -> tuple[Stream, ContextualMeans]:
    """Rows less the means of token and position, and these means (fitted where none are given)."""
    name = f"blocks.{(model.n_layers - 1) // 2}.hook_resid_post"
    blocks = interp.tokens("deps", model, n_tokens=n_tokens, split=split)
    parts, fitter = [], ContextualFitter(model.d_vocab, model.n_ctx, model.d_model)
    for chunk in interp.capture(model, blocks, name):
        kept = (chunk.acts[name], chunk.token_ids, chunk.positions)
        parts.append([x[chunk.keep] for x in kept])
        if means is None:
            fitter.update(*parts[-1])
    means = means or fitter.fit()
    return torch.cat([means.residual(*part) for part in parts]), means


def repeated(rows: Stream, n_tokens: int, key: str) -> Iterator[dict[str, Stream]]:
    """Chunks of the rows, over and over, until there are enough."""
    given = 0
    while given < n_tokens:
        for chunk in rows.split(65_536):
            yield {key: chunk}
            given += len(chunk)


def rates(config: saes.SAEConfig) -> dict[str, float]:
    """What is compared, by name."""
    alone = min(LR_FACTOR * math.sqrt(config.k / config.d_sae), MAX_LR)
    return {"rule alone": alone, "default": config.peak_lr, "half": config.peak_lr / 2}


def shared(a: saes.SAE, b: saes.SAE) -> float:
    """Share of the latents of `a` with a counterpart in `b`."""
    one, other = (functional.normalize(sae.W_dec.detach(), dim=1) for sae in (a, b))
    cosines = one @ other.T
    nearest = cosines.argmax(1)
    mutual = cosines.argmax(0)[nearest] == torch.arange(len(one))
    return float((mutual & (cosines.amax(1) > MATCH)).float().mean())


def measure(width: int, control: str, n_tokens: int) -> list[Case]:
    """All rates on one stream."""
    model = interp.load(f"ladder/d{width:03d}")
    if control == "twin":
        model = random_init_twin(model, 0)
    rows, means = stream(model, min(STORED_TOKENS, n_tokens), "train", None)
    held, _ = stream(model, min(HELD_OUT_TOKENS, n_tokens), "held_out", means)
    k = KS[width][control == "twin"]
    shape = {"d_in": width, "d_sae": MULTIPLE * width, "k": k, "n_tokens": n_tokens}
    named = rates(saes.SAEConfig(**shape))
    configs = [saes.SAEConfig(**shape, lr=lr, seed=seed) for lr in named.values() for seed in SEEDS]
    trained = saes.train(repeated(rows, n_tokens, configs[0].hook_point), configs)
    found = []
    for number, (name, lr) in enumerate(named.items()):
        pair = trained[len(SEEDS) * number :][: len(SEEDS)]
        quality = [_quality(sae, held) for sae in pair]
        found.append(
            {"width": width, "stream": control, "k": k, "d_sae": MULTIPLE * width,
             "n_tokens": n_tokens, "rate": name, "lr": lr, "shared": shared(*pair),
             "fvu": [fvu for fvu, _ in quality], "rare": [rare for _, rare in quality]}
        )  # fmt: skip
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def _quality(sae: saes.SAE, held: Stream) -> tuple[float, float]:
    """FVU, and the share of latents that fire on fewer than `RARE` of the held-out tokens."""
    error, fired = 0.0, torch.zeros(sae.d_sae)
    for part in held.split(32_768):
        error += float((sae(part) - part).square().sum())
        fired += (sae.encode_dense(part) > 0).sum(0)
    spread = float((held - held.mean(0)).square().sum())
    return error / spread, float((fired < RARE).float().mean())


def markdown(cases: list[Case], command: str) -> str:
    """One line per stream and rate."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    lines = [
        "# Learning rates of long training",
        "",
        f"`{command}`; {cases[0]['n_tokens']:,} tokens per SAE, batches of 1,024, two seeds.",
        "",
        "| width | stream | k | d_sae | rate | lr | FVU | rarely fire | shared by seeds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {c['width']} | {c['stream']} | {c['k']} | {c['d_sae']} | {c['rate']} "
            f"| {c['lr']:.5f} | {mean(c['fvu']):.4f} | {mean(c['rare']):.1%} | {c['shared']:.1%} |"
            for c in cases
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", choices=KS, default=WIDTHS)
    parser.add_argument("--tokens", type=int, default=1 << 24)
    parser.add_argument("--out", type=Path, help="folder for raw.json and table.md")
    options = parser.parse_args()
    file = None if options.out is None else options.out / "raw.json"
    cases: list[Case] = json.loads(file.read_text()) if file is not None and file.exists() else []
    done = {(c["width"], c["stream"], c["n_tokens"]) for c in cases}
    for width in options.widths:
        for control in ("model", "twin"):
            if (width, control, options.tokens) not in done:
                cases += measure(width, control, options.tokens)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(cases, indent=1) + "\n")
    shown = [case for case in cases if case["n_tokens"] == options.tokens]
    text = markdown(shown, " ".join(["python", *sys.argv]))
    if file is not None:
        file.with_name("table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
