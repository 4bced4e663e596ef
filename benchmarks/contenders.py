"""The trainers that benchmarks/sae_training.py compares, behind one face.

Every contender takes the same rows in the same order, the same learning rate (constant) and starts
with its decoder bias at the mean of the first rows; the rest is each library's default. Ours runs
with sae-lens's settings where its defaults differ: gradients clipped to a norm of 1, rows as they
are, its initial function, its weight of the dead-latent loss, its count of steps until a latent is
dead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saes.config import SAEConfig
from saes.group import Group
from saes.sae import SparseActs

SAE_LENS_INIT = 0.1**2
"""Both matrices of sae-lens begin with rows of norm 0.1, and pre-activations are multiplied by the
decoder's norm: for unit decoder rows, that is an encoder of this length."""
SAE_LENS_DEAD_STEPS = 1001
"""Steps without firing from which sae-lens calls a latent dead (`dead_feature_window` + 1)."""


@dataclass(frozen=True)
class Shape:
    """One SAE, and how many of it there are."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    n_hook_points: int = 1
    n_seeds: int = 1

    @property
    def n_saes(self) -> int:
        return self.n_hook_points * self.n_seeds

    @property
    def label(self) -> str:
        size = f"({self.d_in}, {self.d_sae}, {self.k}) batch {self.batch}"
        return f"{self.n_hook_points} x {self.n_seeds} {size}" if self.n_saes > 1 else size


class Contender:
    """Trains `n_saes` SAEs on rows; subclasses say how."""

    n_saes = 1

    def train(self, rows: list[Tensor], batch: int) -> None:
        """Take steps of `batch` rows over every hook point's rows."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[SparseActs, Tensor]:
        """What the first SAE makes of rows of the first hook point: its latents and x_hat."""
        raise NotImplementedError


class Ours(Contender):
    """This project's engine, shuffling included; one seed per core, as it is meant to run."""

    def __init__(
        self,
        shape: Shape,
        lr: float,
        mean: Tensor,
        seed: int,
        *,
        cores: int,
        dtype: str,
        stack: bool | None = None,
    ) -> None:
        seeds = shape.n_seeds if shape.n_saes > 1 or mean.device.type != "cpu" else cores
        self._names = [str(i) for i in range(shape.n_hook_points)]
        configs = [
            SAEConfig(
                d_in=shape.d_in,
                d_sae=shape.d_sae,
                k=shape.k,
                batch_size=shape.batch,
                n_tokens=10**12,
                hook_point=name,
                seed=seed * 100 + number,
                lr=lr,
                lr_warmup_fraction=0,
                lr_decay_fraction=0,
                encoder_dtype=dtype,
                max_grad_norm=1.0,
                encoder_init_scale=SAE_LENS_INIT,
                scale_activations=False,
                auxk_alpha=1.0,
                dead_after_tokens=SAE_LENS_DEAD_STEPS * shape.batch,
            )
            for name in self._names
            for number in range(seeds)
        ]
        self.n_saes = len(configs)
        self._group = Group(configs, workers=cores, stack=stack)
        self._chunks = 0

    def train(self, rows: list[Tensor], batch: int) -> None:
        self._group.advance(dict(zip(self._names, rows, strict=True)), self._chunks)
        self._chunks += 1

    def forward(self, x: Tensor) -> tuple[SparseActs, Tensor]:
        sae = self._group.members[0].export()
        acts = sae.encode(x)
        return acts, sae.decode(acts)


class SAELens(Contender):
    """sae-lens: `step` of one `SAETrainer` per SAE, which is what `MultiSAETrainer` loops over."""

    def __init__(
        self, shape: Shape, lr: float, mean: Tensor, seed: int, *, autocast: bool = False
    ) -> None:
        device = str(mean.device)
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.multi_sae_trainer import MultiSAETrainer

        saes, hook_names = {}, {}
        for hook_point in range(shape.n_hook_points):
            for number in range(shape.n_seeds):
                torch.manual_seed(seed * 100 + number)
                config = TopKTrainingSAEConfig(
                    d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, device=device
                )
                sae = TopKTrainingSAE(config)
                sae.b_dec.data = mean.clone()
                saes[f"{hook_point}/{number}"] = sae
                hook_names[f"{hook_point}/{number}"] = str(hook_point)
        config = SAETrainerConfig(
            total_training_samples=10**12,
            train_batch_size_samples=shape.batch,
            lr=lr,
            lr_end=lr,
            autocast=autocast,
            device=device,
        )
        self.n_saes = len(saes)
        self._hooks = hook_names
        self._trainers = MultiSAETrainer(config, saes, hook_names, iter(())).trainers

    def train(self, rows: list[Tensor], batch: int) -> None:
        for start in range(0, len(rows[0]), batch):
            for name, trainer in self._trainers.items():
                trainer.step(rows[int(self._hooks[name])][start : start + batch])
                trainer.n_training_steps += 1

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[SparseActs, Tensor]:
        sae = next(iter(self._trainers.values())).sae
        acts = sae.encode(x)
        return _sparse(acts, sae.cfg.k), sae.decode(acts)


class DictionaryLearning(Contender):
    """dictionary_learning: `TopKTrainer.update`."""

    def __init__(self, shape: Shape, lr: float, mean: Tensor, seed: int) -> None:
        if "nnsight" not in sys.modules:
            # Its activation buffer imports a model tracer that its trainers never call.
            stub = ModuleType("nnsight")
            stub.LanguageModel = object  # type: ignore[attr-defined]
            sys.modules["nnsight"] = stub
        from dictionary_learning.trainers.top_k import TopKTrainer

        self._trainer = TopKTrainer(
            steps=10**9,
            activation_dim=shape.d_in,
            dict_size=shape.d_sae,
            k=shape.k,
            layer=0,
            lm_name="",
            lr=lr,
            warmup_steps=0,
            seed=seed,
            device=str(mean.device),
        )
        self._trainer.ae.b_dec.data = mean.clone()
        self._steps = 1  # step 0 would replace the decoder bias

    def train(self, rows: list[Tensor], batch: int) -> None:
        for y in rows[0].split(batch):
            self._trainer.update(self._steps, y)
            self._steps += 1

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[SparseActs, Tensor]:
        acts = self._trainer.ae.encode(x)
        return _sparse(acts, int(self._trainer.ae.k)), self._trainer.ae.decode(acts)


class Sparsify(Contender):
    """sparsify: its `SparseCoder` (eager CPU decoder) in the loop of its `Trainer.fit`, with Adam.

    The loop is spelled out here because that trainer only takes a language model.
    """

    def __init__(self, shape: Shape, lr: float, mean: Tensor, seed: int) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(seed)
        config = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k)
        self._coder = SparseCoder(shape.d_in, config, device=mean.device)
        self._coder.b_dec.data = mean.clone()
        self._adam = torch.optim.Adam(self._coder.parameters(), lr=lr)
        self._idle = torch.zeros(shape.d_sae, dtype=torch.int64, device=mean.device)

    def train(self, rows: list[Tensor], batch: int) -> None:
        coder = self._coder
        for y in rows[0].split(batch):
            coder.set_decoder_norm_to_unit_norm()
            out = coder(y, dead_mask=self._idle > 10_000_000)
            (out.fvu + out.auxk_loss / 32).backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            self._adam.step()
            self._adam.zero_grad()
            self._idle += len(y)
            self._idle[out.latent_indices.flatten()] = 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[SparseActs, Tensor]:
        out = self._coder(x)
        return SparseActs(out.latent_indices, out.latent_acts), out.sae_out


def _sparse(acts: Tensor, k: int) -> SparseActs:
    """The k largest entries of every row of a dense matrix that has no more."""
    values, indices = acts.topk(k, dim=1)
    return SparseActs(indices, values)


Make = Callable[..., Contender]


def makers(cores: int, stack: bool | None = None) -> dict[str, Make]:
    """Contenders by name, in the order of the table: make(shape, lr, mean, seed).

    They train where the mean is. `stack`: see `saes.group.Group`.
    """
    ours = {"cores": cores, "stack": stack}
    return {
        "superscope": lambda *a: Ours(*a, **ours, dtype="float32"),
        "superscope bf16": lambda *a: Ours(*a, **ours, dtype="bfloat16"),
        "sparsify": Sparsify,
        "dictionary_learning": DictionaryLearning,
        "sae-lens": SAELens,
        "sae-lens bf16": lambda *a: SAELens(*a, autocast=True),
    }


def installed(name: str) -> str | None:
    """Version of the library behind a contender, or None."""
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, Any] = {
        "superscope": "superscope",
        "sparsify": "eai-sparsify",
        "dictionary_learning": "dictionary-learning",
        "sae-lens": "sae-lens",
    }
    try:
        return version(packages[name.removesuffix(" bf16")])
    except PackageNotFoundError:
        return None
