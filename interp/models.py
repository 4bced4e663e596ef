"""A ladder name, a local directory or a hub name -> a language model with its tokenizer.

Safetensors only, no pickle, no remote code, no silent change of dtype or device; a checkpoint that
does not fill the architecture exactly is refused rather than completed with random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from interp import checkpoints, hook_points, hub, ladder
from interp.errors import UserError

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model in eval mode without gradients, its tokenizer and its identity."""

    name: str
    hf: Any
    """The transformers model, with its language-model head."""
    tokenizer: Any
    family: str
    """`ladder`, or the architecture's `model_type`."""
    train_tokens: int | None
    """Tokens seen in training, from the key of that name in config.json; None when unstated."""
    weights_sha256: str
    """Of the safetensors files in name order."""
    d_model: int
    n_layers: int
    n_ctx: int
    d_vocab: int
    """Rows of the input embedding: token ids must be smaller."""
    n_params: int
    """Tied matrices counted once."""
    parity_error: float | None = None
    """Largest relative difference from an unhooked transformers run; None if not compared."""

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def bos_id(self) -> int | None:
        """The token put before each document: BOS, else EOS, else None."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.hf.get_output_embeddings().weight

    def final_hidden(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The backbone's output, after its final norm: what the head multiplies."""
        return self.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.family}, d_model={self.d_model}, "
            f"n_layers={self.n_layers}, n_ctx={self.n_ctx}, d_vocab={self.d_vocab}, "
            f"n_params={self.n_params:,}, {self.dtype}, {self.device})"
        )


@dataclass(frozen=True)
class ModelInfo:
    """One line of `interp models`: what can be loaded here without the network."""

    name: str
    family: str
    d_model: int
    n_layers: int
    n_ctx: int
    d_vocab: int
    n_params: int
    train_tokens: int | None
    size_bytes: int
    """Of the safetensors files."""


def load(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """Load `ladder/d064`, a local directory, or a hub name, for inference.

    A local directory wins over a hub repository of the same name. Raises UserError for an unknown
    name, a hub that cannot be reached, a directory without config, tokenizer or safetensors, a
    truncated or incomplete checkpoint, an unsupported architecture, or an absent device.
    """
    _check_device(device)
    folder, tokenizer_folder = _find(name)
    config = checkpoints.read_config(folder, name)
    files = checkpoints.weight_files(folder, name)
    checkpoints.require_tokenizer_files(tokenizer_folder, name)
    hf = _load_weights(folder, name, dtype).to(device)
    family = "ladder" if name.startswith("ladder/") else config["model_type"]
    return wrap(
        hf,
        _load_tokenizer(tokenizer_folder, name),
        name=name,
        family=family,
        train_tokens=config.get("train_tokens"),
        weights_sha256=checkpoints.hash_files(files),
    )


def wrap(
    hf: Any,
    tokenizer: Any,
    *,
    name: str,
    family: str,
    train_tokens: int | None,
    weights_sha256: str,
) -> Model:
    """Make a `Model` of a transformers model already in memory; puts it in eval mode."""
    hf.eval().requires_grad_(False)
    hook_points.blocks(hf)
    config = hf.config
    return Model(
        name=name,
        hf=hf,
        tokenizer=tokenizer,
        family=family,
        train_tokens=train_tokens,
        weights_sha256=weights_sha256,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_ctx=config.max_position_embeddings,
        d_vocab=hf.get_input_embeddings().num_embeddings,
        n_params=sum(p.numel() for p in hf.parameters()),
    )


def list_models() -> list[ModelInfo]:
    """The models loadable here offline: the embedded ladder, then the hub's local cache."""
    found = [
        _describe(name, Path(ladder.checkpoint_path(name)), "ladder") for name in ladder.names()
    ]
    for name, folder in _cached_on_hub():
        try:
            checkpoints.weight_files(folder, name)
            checkpoints.require_tokenizer_files(folder, name)
            found.append(
                _describe(name, folder, checkpoints.read_config(folder, name)["model_type"])
            )
        except UserError:  # a partial download, or an architecture we do not read
            continue
    return found


def _describe(name: str, folder: Path, family: str) -> ModelInfo:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    files = checkpoints.weight_files(folder, name)
    return ModelInfo(
        name=name,
        family=family,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        n_params=checkpoints.count_parameters(files),
        train_tokens=getattr(config, "train_tokens", None),
        size_bytes=sum(f.stat().st_size for f in files),
    )


def _find(name: str) -> tuple[Path, Path]:
    """The folders of the checkpoint and of its tokenizer."""
    if name.startswith("ladder/"):
        if name not in ladder.names():
            raise UserError(f"no ladder model {name!r}; there are: {', '.join(ladder.names())}")
        return Path(ladder.checkpoint_path(name)), Path(ladder.tokenizer_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, folder
    if folder.is_file():
        raise UserError(f"{name}: is a file; name the directory that holds config.json")
    if not hub.is_name(name):
        raise UserError(f"{name}: no such directory; {checkpoints.ADVICE}")
    folder = _from_hub(name)
    return folder, folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    cached = hub.cached_file(name, "config.json", "model")
    if cached is not None and any(Path(cached).parent.glob("*.safetensors")):
        return Path(cached).parent
    hub.require(name, "model", otherwise=checkpoints.ADVICE)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"downloading {name!r} stopped ({type(error).__name__}: {reason}); try again"
        ) from error


def _cached_on_hub() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda r: r.repo_id):
        config = hub.cached_file(repo.repo_id, "config.json", "model")
        if repo.repo_type == "model" and config is not None:
            yield repo.repo_id, Path(config).parent


def _check_device(device: str | torch.device) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; use cpu, cuda or mps") from error
    if (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise UserError(f"device {device!r} is not available here; use cpu")


def _load_tokenizer(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"{name}: the tokenizer in {folder} cannot be read ({type(error).__name__}: {reason}); "
            "save it again with tokenizer.save_pretrained"
        ) from error
    if not tokenizer.is_fast or len(tokenizer) == 0:
        raise UserError(
            f"{name}: the tokenizer in {folder} is empty or not a fast one; "
            "save a fast tokenizer (tokenizer.json) there"
        )
    return tokenizer


def _load_weights(folder: Path, name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any  # the model and a report on its keys
    try:
        with _quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{name}: {folder} does not load ({type(error).__name__}: {reason}); "
            "copy the checkpoint again"
        ) from error
    hf, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise UserError(
            f"{name}: the checkpoint in {folder} lacks {len(wrong)} tensors of its architecture "
            f"({wrong[0]}, ...); copy the checkpoint again"
        )
    return hf


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for a load that takes a moment, and no notes about generation settings."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
