"""Train the ladder: GPT-2 models of one family, the same tokens in the same order for all.

Every run is resumable: a checkpoint every few minutes holds weights, optimizer and step, and the
same command goes on from it. Checkpoints of the stable phase are kept, and a run of another number
of tokens branches off them: until its own decay it would take the same steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from interp import durable
from interp.errors import UserError
from interp.ladder import signed_decay
from interp.ladder.recipe import (
    HEAD_SIZE,
    N_CTX,
    N_LAYERS,
    VOCAB_SIZE,
    Recipe,
    initializer_range,
)

CHECKPOINT_SECONDS = 120.0
STABLE = "stable.safetensors"
TEXT = "text.sha256"
MICRO_SEQUENCES = 8
ATTENTION = "sdpa_fp32"


def sdpa_fp32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, None]:
    """Causal attention in fp32 inside a bf16 model, [batch head pos d_head] in.

    On CPUs the bf16 backward of torch's fused attention takes twice the time of the fp32 one
    (122 against 59 ms at batch 32, 8 heads of 16, 256 positions), and is half of a step.
    """
    with torch.autocast("cpu", enabled=False):
        out = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, sdpa_fp32)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@dataclass
class Progress:
    """One line of a run's log. Losses in nats per token."""

    step: int
    n_tokens: int
    lr: float
    train_loss_nats: float
    held_out_loss_nats: float | None
    tokens_per_second: float


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float | int | None]] = field(default_factory=list)


def build_model(d_model: int, seed: int = 0) -> GPT2LMHeadModel:
    """A fresh model of the family; the same initial weights on every machine.

    GPT-2's tanh GELU is asked for by its fused name; the function is the same.
    """
    if d_model < HEAD_SIZE or d_model % HEAD_SIZE:
        raise UserError(
            f"width {d_model} is no multiple of the head size {HEAD_SIZE}; give one that is"
        )
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=N_CTX,
        n_embd=d_model,
        n_layer=N_LAYERS,
        n_head=d_model // HEAD_SIZE,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=initializer_range(d_model),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation(ATTENTION)
    return model


def batch_at(ids: np.ndarray, step: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step, [batch pos] each: consecutive windows of the token stream.

    Seed 0 takes them as they come, any other begins elsewhere in the same tokens and goes around.
    Batches stay neighbours: shuffled, they train another model (`results/batch_order`), and seeds
    would differ from the base model by more than chance. Only a recipe that limits its
    projects reads a stream again from its start.
    """
    rows = recipe.batch_tokens // N_CTX
    if recipe.seed:
        step = (step + _first_batch(recipe.seed, recipe.n_steps)) % recipe.n_steps
    start = step * recipe.batch_tokens
    if recipe.n_projects is not None:
        start %= len(ids) - recipe.batch_tokens
    window = torch.from_numpy(ids[start : start + recipe.batch_tokens + 1].astype(np.int64))
    return window[:-1].view(rows, N_CTX), window[1:].view(rows, N_CTX)


@cache
def _first_batch(seed: int, n_steps: int) -> int:
    """Where a seed begins."""
    return int(np.random.default_rng(seed).integers(1, n_steps))


def mean_loss(model: GPT2LMHeadModel, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token: bf16 matrix products, fp32 loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=x).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def accumulate(
    compute_loss: Callable[[GPT2LMHeadModel, Tensor, Tensor], Tensor],
    model: GPT2LMHeadModel,
    x: Tensor,
    y: Tensor,
) -> float:
    """Add the gradient of the batch's mean loss to `.grad`; returns the loss, nats per token.

    In slices of `MICRO_SEQUENCES`, whose activations stay in a core's cache.
    """
    total = 0.0
    for at in range(0, len(x), MICRO_SEQUENCES):
        part = slice(at, at + MICRO_SEQUENCES)
        loss = compute_loss(model, x[part], y[part]) * (len(x[part]) / len(x))
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, ids: np.ndarray, n_tokens: int = 262_144) -> float:
    """Loss on the first `n_tokens` of held-out projects, nats per token."""
    model.eval()
    n_blocks = min(n_tokens, len(ids) - 1) // N_CTX
    window = torch.from_numpy(ids[: n_blocks * N_CTX + 1].astype(np.int64))
    x, y = window[:-1].view(-1, N_CTX), window[1:].view(-1, N_CTX)
    total = 0.0
    for at in range(0, n_blocks, 32):
        total += float(mean_loss(model, x[at : at + 32], y[at : at + 32])) * len(x[at : at + 32])
    model.train()
    return total / n_blocks


def train(
    recipe: Recipe,
    train_ids: np.ndarray,
    held_out_ids: np.ndarray,
    run_dir: Path,
    *,
    keep_at: Sequence[int] = (),
    trunks: Sequence[Path] = (),
    heartbeat: Callable[[Progress], None] = lambda _: None,
    log_every: int = 64,
) -> GPT2LMHeadModel:
    """Train one model, or finish a run that was interrupted, and return it.

    `train_ids`, `held_out_ids`: token streams, uint16 [token].
    Writes into `run_dir`: `recipe.json`, `log.json`, `state.safetensors` (exact resume), and of the
    stable phase weights and optimizer: `stable.safetensors` where the decay begins, and
    `stable-STEP.safetensors` for every step in `keep_at`. `trunks`: folders of runs that may take
    the same steps at first; what they kept of them is not taken again.
    Raises UserError when the stream is too short or `run_dir` holds another recipe or text.
    """
    needed = recipe.n_steps * recipe.batch_tokens + 1
    if recipe.n_projects is not None:
        needed = 2 * recipe.batch_tokens
    if len(train_ids) < needed:
        raise UserError(
            f"{len(train_ids):,} training tokens are fewer than the recipe's {needed:,}; "
            "run `interp ladder corpus` again"
        )
    torch.set_num_threads(recipe.n_threads)
    run_dir.mkdir(parents=True, exist_ok=True)
    text = hashlib.sha256(np.ascontiguousarray(train_ids).data).hexdigest()
    _claim(run_dir, recipe, text)
    model = build_model(recipe.d_model, recipe.seed)
    model.train()
    optimizer = _optimizer(model, recipe)
    state = _resume(_start(run_dir, recipe, text, trunks), model, optimizer)
    compute_loss = torch.compile(mean_loss) if recipe.compile else mean_loss
    last_save = mark = time.monotonic()
    running: list[float] = []
    while state.step < recipe.n_steps:
        if state.step == recipe.decay_start:
            _save(run_dir / STABLE, model, optimizer, state)
        elif state.step in keep_at and state.step < recipe.decay_start:
            _save(run_dir / f"stable-{state.step}.safetensors", model, optimizer, state)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * recipe.schedule(state.step)
        loss = accumulate(compute_loss, model, *batch_at(train_ids, state.step, recipe))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        signed_decay.grow(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        running.append(loss)
        now = time.monotonic()
        if state.step % log_every == 0 or state.step == recipe.n_steps:
            done = state.step == recipe.n_steps
            line = Progress(
                step=state.step,
                n_tokens=state.step * recipe.batch_tokens,
                lr=recipe.lr * recipe.schedule(state.step - 1),
                train_loss_nats=float(np.mean(running)),
                held_out_loss_nats=held_out_loss(model, held_out_ids)
                if done or state.step % (8 * log_every) == 0
                else None,
                tokens_per_second=len(running) * recipe.batch_tokens / max(now - mark, 1e-9),
            )
            state.seconds += now - mark
            state.log.append(vars(line).copy())
            heartbeat(line)
            running, mark = [], time.monotonic()
            if done or now - last_save > CHECKPOINT_SECONDS:
                _save(run_dir / "state.safetensors", model, optimizer, state)
                last_save = time.monotonic()
    durable.write(run_dir / "log.json", (json.dumps(state.log, indent=0) + "\n").encode())
    return model.eval()


def _optimizer(model: GPT2LMHeadModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in groups by learning rate and decay; the tied embedding is one of the embeddings."""
    matrices: dict[str, list[torch.nn.Parameter]] = {"hidden": [], "positions": [], "rows": []}
    vectors = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        else:
            kind = "hidden" if ".h." in name else "rows" if ".wte." in name else "positions"
            matrices[kind].append(parameter)
    row_decay = recipe.weight_decay if recipe.row_decay is None else recipe.row_decay
    groups = [
        {
            "params": parameters,
            "peak_lr": recipe.lr_hidden if kind == "hidden" else recipe.lr,
            **signed_decay.settings(row_decay if kind == "rows" else recipe.weight_decay),
        }
        for kind, parameters in matrices.items()
    ]
    groups.append({"params": vectors, "peak_lr": recipe.lr, **signed_decay.settings(0.0)})
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)


def _start(run_dir: Path, recipe: Recipe, text: str, trunks: Sequence[Path]) -> Path:
    """The file to go on from: its own, or the latest that another run shares. It need not exist."""
    own = run_dir / "state.safetensors"
    if own.exists():
        return own
    shared = {}
    for trunk in trunks:
        if trunk != run_dir and _text_of(trunk) == text and (trunk / "recipe.json").exists():
            other = Recipe.model_validate_json((trunk / "recipe.json").read_text())
            for file in sorted(trunk.glob("stable*.safetensors")):
                step = _read_state(file).step
                if recipe.same_until(step, other):
                    shared[step] = file
    return shared[max(shared)] if shared else own


def _claim(run_dir: Path, recipe: Recipe, text: str) -> None:
    path = run_dir / "recipe.json"
    if path.exists() and Recipe.model_validate_json(path.read_text()) != recipe:
        raise UserError(f"{run_dir} holds a run of another recipe; choose another folder")
    if path.exists() and _text_of(run_dir) != text:
        raise UserError(f"{run_dir} holds a run on another text; choose another folder")
    durable.write(run_dir / TEXT, text.encode())
    durable.write(path, (recipe.model_dump_json(indent=1) + "\n").encode())


def _text_of(run_dir: Path) -> str | None:
    """SHA-256 of the tokens that a run was begun with."""
    file = run_dir / TEXT
    return file.read_text() if file.exists() else None


def _save(
    path: Path, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, state: _State
) -> None:
    """Everything needed to go on, in one atomic safetensors file."""
    tensors = {f"model.{n}": p.detach().clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.detach().clone()
    meta = {"state": json.dumps(vars(state))}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=meta)
    os.replace(partial, path)


def _resume(path: Path, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer) -> _State:
    if not path.exists():
        return _State()
    try:
        tensors = load_file(path)
        state = _read_state(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it to start afresh") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {k: tensors[f"optimizer.{k}.{name}"] for k in keys}
    return state


def _read_state(path: Path) -> _State:
    with safe_open(path, framework="pt") as file:
        return _State(**json.loads(file.metadata()["state"]))
