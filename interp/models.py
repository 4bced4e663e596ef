"""A ladder name, a directory, a .gguf file or a hub name -> a language model with its tokenizer.

Safetensors or GGUF only, no pickle, no remote code, no silent change of dtype or device; a model
whose captured tensors differ from transformers' own is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import (
    checkpoints,
    families,
    gguf_file,
    hook_points,
    hub,
    jupyter,
    ladder,
    parity,
    pretrained,
)
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
    """Of the safetensors files in name order, or of the GGUF file."""
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

    def _repr_html_(self) -> str:
        tokens, error = self.train_tokens, self.parity_error
        differs = "nothing" if error == 0 else f"at most {error:.1e}, relatively" if error else None
        return jupyter.facts(
            self.name,
            {
                "family": self.family,
                "layers, width": f"{self.n_layers}, d_model {self.d_model:,}",
                "context, vocabulary": f"{self.n_ctx:,} tokens, {self.d_vocab:,}",
                "parameters": f"{self.n_params:,}",
                "trained on": "not stated" if tokens is None else f"{tokens:,} tokens",
                "here": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
                "differs from transformers by": differs,
                "weights": f"sha256 {self.weights_sha256[:12]}",
            },
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
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> Model:
    """Load `ladder/d064`, a local directory, a .gguf file, or a hub name, for inference.

    A hub name may pin a revision: `EleutherAI/pythia-70m@step3000`. A local path wins over a hub
    repository of the same name. `device_map` (`auto`, or a mapping of modules) spreads a model over
    several devices, and then `device` must be left alone. The loaded model is compared with an
    unhooked transformers run on a few tokens before it is handed out (`interp.parity`).

    Raises UserError for an unknown name, a hub that cannot be reached, a directory without config,
    tokenizer or safetensors, a truncated or incomplete checkpoint, an unsupported architecture, an
    absent device, a map that leaves weights on no device, or values that differ from transformers'.
    """
    require_device(device)
    if device_map is not None and str(device) != "cpu":
        raise UserError(f"device {device!r} and a device_map contradict each other; give one")
    place = _find(name)
    if place.gguf is not None:
        hf, tokenizer = gguf_file.read(place.gguf, dtype, device_map)
        files = [place.gguf]
        train_tokens = None
    else:
        train_tokens = checkpoints.read_config(place.folder, name).get("train_tokens")
        files = checkpoints.weight_files(place.folder, name)
        checkpoints.require_tokenizer_files(place.tokenizer, name)
        hf = pretrained.read_weights(place.folder, name, dtype=dtype, device_map=device_map)
        tokenizer = pretrained.read_tokenizer(place.tokenizer, name)
    if device_map is None:
        hf = hf.to(device)
    elif any(p.device.type == "meta" for p in hf.parameters()):
        raise UserError(
            f"{name}: the device_map leaves weights on no device; use devices with more memory"
        )
    model = wrap(
        hf,
        tokenizer,
        name=name,
        family="ladder" if name.startswith(ladder.PREFIX) else hf.config.model_type,
        train_tokens=train_tokens,
        weights_sha256=checkpoints.hash_files(files),
    )
    return replace(model, parity_error=parity.require(model))


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
        _describe(name, Path(ladder.checkpoint_path(name)), "ladder")
        for name in (*ladder.names(), *ladder.arm_names())
    ]
    for name, folder in _cached_on_hub():
        try:
            checkpoints.weight_files(folder, name)
            checkpoints.require_tokenizer_files(folder, name)
            found.append(
                _describe(name, folder, checkpoints.read_config(folder, name)["model_type"])
            )
        except Exception:  # a partial download, an architecture or a config that cannot be read
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


@dataclass(frozen=True)
class _Place:
    """Where a name's files are."""

    folder: Path
    tokenizer: Path
    gguf: Path | None = None


def _find(name: str) -> _Place:
    if name.startswith(ladder.PREFIX):
        shipped = [*ladder.names(), *ladder.arm_names()]
        if name not in shipped:
            close = (
                difflib.get_close_matches(name, ladder.arm_names(), n=3) or ladder.arm_names()[:3]
            )
            raise UserError(
                f"no ladder model {name!r}; there are: {', '.join(ladder.names())}, and of one "
                f"width {', '.join(close)} and others (`interp models` lists all)"
            )
        return _Place(Path(ladder.checkpoint_path(name)), Path(ladder.tokenizer_path()))
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        return _Place(path, path)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"{name}: no such file; {checkpoints.ADVICE}")
        return _Place(path.parent, path.parent, path)
    if path.is_file():
        raise UserError(f"{name}: is a file; name the directory that holds config.json, or a .gguf")
    if name in families.names() and name not in families.members(name):
        members = ", ".join(families.members(name))
        raise UserError(f"{name} is a family of models; name one of them: {members}")
    repository, _, revision = name.partition("@")
    if not hub.is_name(repository) or (revision == "" and "@" in name):
        raise UserError(f"{name}: no such directory; {checkpoints.ADVICE}")
    folder = _from_hub(repository, revision or None)
    return _Place(folder, folder)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    otherwise = checkpoints.ADVICE
    cached = hub.cached_file(name, "config.json", "model", revision=revision)
    if cached is not None:
        folder = Path(cached).parent
        try:
            checkpoints.weight_files(folder, name)
            checkpoints.require_tokenizer_files(folder, name)
            return folder
        except UserError as error:  # a download that was interrupted goes on
            otherwise = f"the hub's cache holds a part of it ({error})"
    hub.require(name, "model", revision=revision, otherwise=otherwise)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"downloading {name!r} stopped ({type(error).__name__}: {reason}); try again"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"the hub's {name} has no safetensors, and pickled weights are not read; pin a "
            f"revision that has them ({name}@refs/pr/N, where the hub has converted it)"
        )
    return folder


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


def require_device(device: str | torch.device) -> None:
    """Raise UserError for a device that torch does not know or does not have here."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {str(device)!r}; use cpu, cuda or mps")
    index = torch.device(device).index or 0
    if (kind == "cuda" and index >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise UserError(f"device {str(device)!r} is not available here; use cpu")
