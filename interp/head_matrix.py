"""One matrix of a checkpoint, read by itself: no model is built and no other tensor is touched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp import checkpoints, hub, ladder
from interp.errors import UserError
from saes.format import CONFIG_NAME, WEIGHTS_NAME

Which = Literal["unembedding", "embedding"]

# Last parts of tensor names; what stands before them depends on how the model was wrapped.
_EMBEDDINGS = ("wte.weight", "embed_in.weight", "embed_tokens.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
_GGUF = {"embedding": "token_embd.weight", "unembedding": "output.weight"}
_GGUF_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of vectors and where they come from."""

    name: str
    """Of the model, or the folder of the SAE."""
    matrix: str
    """unembedding, embedding, or decoder."""
    rows: Float[Tensor, "row d_model"]
    """As stored, or float32 where the file is quantized."""
    tied: bool | None = None
    """Whether the embedding serves as the head; None for a decoder."""


def matrices_of(name: str, which: tuple[Which, ...]) -> list[Matrix]:
    """The matrices of a ladder name, a directory, a .gguf file or a hub name; or of the SAEs below.

    A folder that holds SAEs and no model gives the decoder of each. A tied head is the embedding.
    Raises UserError for what is not there, is damaged, or has no head.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        saes = sorted(config.parent for config in path.rglob(CONFIG_NAME))
        if saes:
            return [decoder(folder) for folder in saes]
    if path.suffix == ".gguf" and path.is_file():
        return [_from_gguf(path, wanted) for wanted in which]
    checkpoint = _checkpoint(name)
    return [_from_safetensors(name, checkpoint, wanted) for wanted in which]


def decoder(folder: Path) -> Matrix:
    """The decoder of one saved SAE. Raises UserError for a folder that holds none."""
    file = folder / WEIGHTS_NAME
    if "W_dec" not in _names_in(file, str(folder)):
        raise UserError(f"{folder}: {WEIGHTS_NAME} has no W_dec; save the SAE again")
    return Matrix(str(folder), "decoder", _tensor(file, "W_dec", str(folder)))


@dataclass(frozen=True)
class _Checkpoint:
    """config.json's content and the file of each tensor; a file is fetched when asked for."""

    config: dict[str, Any]
    file_of: dict[str, str]
    folder: Path | None
    """None: on the hub."""
    repository: str = ""
    revision: str | None = None

    def path(self, file: str) -> Path:
        if self.folder is not None:
            return self.folder / file
        return _fetch(self.repository, file, self.revision)


def _checkpoint(name: str) -> _Checkpoint:
    if name.startswith(ladder.PREFIX):
        if name not in ladder.names():
            raise UserError(f"no ladder model {name!r}; there are: {', '.join(ladder.names())}")
        return _local(name, Path(ladder.checkpoint_path(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(name, path)
    if path.exists():
        raise UserError(f"{name}: is a file; name the directory that holds config.json, or a .gguf")
    repository, _, revision = name.partition("@")
    if not hub.is_name(repository) or (revision == "" and "@" in name):
        raise UserError(f"{name}: no such directory; {checkpoints.ADVICE}, or a folder of SAEs")
    return _on_hub(repository, revision or None)


def _local(name: str, folder: Path) -> _Checkpoint:
    config = _json(folder / "config.json", name)
    if (folder / _INDEX).is_file():
        return _Checkpoint(config, _weight_map(folder / _INDEX, name), folder)
    file = folder / _WEIGHTS
    if not file.is_file():
        advice = "copy the checkpoint again"
        if (folder / "pytorch_model.bin").is_file():
            advice = "pickled weights are not read: save them with safe_serialization"
        raise UserError(f"{name}: {file} is missing; {advice}")
    return _Checkpoint(config, dict.fromkeys(_names_in(file, name), _WEIGHTS), folder)


def _on_hub(repository: str, revision: str | None) -> _Checkpoint:
    """Of a hub model: its config, its index if it is sharded, and later the one shard needed."""
    if hub.cached_file(repository, "config.json", "model", revision=revision) is None:
        hub.require(repository, "model", revision=revision, otherwise=checkpoints.ADVICE)
    config = _json(_fetch(repository, "config.json", revision), repository)
    try:
        file_of = _weight_map(_fetch(repository, _INDEX, revision), repository)
    except UserError:
        file = _fetch(repository, _WEIGHTS, revision)
        file_of = dict.fromkeys(_names_in(file, repository), _WEIGHTS)
    return _Checkpoint(config, file_of, None, repository, revision)


def _fetch(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    cached = hub.cached_file(repository, file, "model", revision=revision)
    if cached is not None:
        return Path(cached)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the transport's own exceptions, whichever client is installed
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"{repository}: {file} could not be fetched ({type(error).__name__}: {reason}); "
            "try again, or name a local directory"
        ) from error


def _from_safetensors(name: str, checkpoint: _Checkpoint, which: Which) -> Matrix:
    embedding = _named(checkpoint, _EMBEDDINGS)
    head = _named(checkpoint, _HEADS)
    tied = _is_tied(name, checkpoint, has_head=head is not None)
    tensor = embedding if which == "embedding" or tied else head
    if tensor is None:
        raise UserError(
            f"{name}: the checkpoint has no {which} (looked for tensors ending in "
            f"{', '.join(_EMBEDDINGS if which == 'embedding' or tied else _HEADS)}); "
            "give a causal language model"
        )
    file = checkpoint.path(checkpoint.file_of[tensor])
    return Matrix(name, which, _tensor(file, tensor, name), tied)


def _is_tied(name: str, checkpoint: _Checkpoint, *, has_head: bool) -> bool:
    """Whether the embedding is the head. Where the config is silent, its architecture decides."""
    stated = checkpoint.config.get("tie_word_embeddings")
    if stated is None and not has_head:
        stated = _default_tie(checkpoint.config)
    if has_head:
        return stated is True
    if stated is not True:
        raise UserError(
            f"{name}: the checkpoint has no head (no tensor ends in {' or '.join(_HEADS)}, and "
            "its head is not tied to the embedding); give a causal language model"
        )
    return True


def _default_tie(config: dict[str, Any]) -> bool:
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.for_model(**config).tie_word_embeddings)
    except Exception:  # an architecture that transformers does not know, or a config it refuses
        return False


def _named(checkpoint: _Checkpoint, endings: tuple[str, ...]) -> str | None:
    """The shortest tensor name with such an ending: not one of a nested encoder."""
    found = [
        tensor
        for tensor in checkpoint.file_of
        if any(tensor == ending or tensor.endswith("." + ending) for ending in endings)
    ]
    return min(found, key=lambda tensor: (len(tensor), tensor), default=None)


def _tensor(file: Path, tensor: str, name: str) -> Float[Tensor, "row d_model"]:
    """Reads the bytes of this tensor alone."""
    try:
        with safe_open(file, framework="pt") as tensors:
            found = tensors.get_tensor(tensor)
    except FileNotFoundError as error:
        raise UserError(f"{name}: {file} is missing; copy the checkpoint again") from error
    except SafetensorError as error:
        raise UserError(
            f"{name}: {file} is truncated or damaged ({error}); copy the checkpoint again"
        ) from error
    if found.ndim != 2 or not found.is_floating_point():
        raise UserError(
            f"{name}: {tensor} has shape {tuple(found.shape)} and dtype {found.dtype}, which is "
            "no matrix of vectors; give a checkpoint that is not quantized"
        )
    return found


def _from_gguf(path: Path, which: Which) -> Matrix:
    if find_spec("gguf") is None:
        raise UserError(f"{path}: reading GGUF needs the package gguf; pip install 'gguf>=0.17'")
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors: dict[str, Any] = {}
    for part in _gguf_parts(path):
        try:
            tensors |= {t.name: t for t in GGUFReader(part).tensors}
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: {part.name}, another part of it, is missing; copy all parts"
            ) from error
        except Exception as error:  # the reader's own errors are of any kind on a damaged file
            reason = str(error).strip().split("\n")[0][:160]
            raise UserError(f"{part}: no readable GGUF file ({reason}); copy it again") from error
    tied = _GGUF["unembedding"] not in tensors  # the format's own rule
    found = tensors.get(_GGUF["embedding" if tied else which])
    if found is None:
        raise UserError(f"{path}: the file has no {which}; give a causal language model")
    rows = torch.from_numpy(dequantize(found.data, found.tensor_type).copy())
    return Matrix(str(path), which, rows, tied)


def _gguf_parts(path: Path) -> list[Path]:
    """All files of a model that was split; a head that is missing in one of them is not tied."""
    split = _GGUF_PART.fullmatch(path.name)
    if split is None:
        return [path]
    stem, n = split.groups()
    return [path.with_name(f"{stem}-{i + 1:05d}-of-{n}.gguf") for i in range(int(n))]


def _names_in(file: Path, name: str) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except FileNotFoundError as error:
        raise UserError(f"{name}: {file} is missing; copy it again") from error
    except SafetensorError as error:
        raise UserError(
            f"{name}: {file} is truncated or damaged ({error}); copy it again"
        ) from error


def _weight_map(index: Path, name: str) -> dict[str, str]:
    found = _json(index, name).get("weight_map")
    if not isinstance(found, dict):
        raise UserError(f"{name}: {index} is damaged; copy the checkpoint again")
    return found


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{name}: no {file.name} in {file.parent}; {checkpoints.ADVICE}, or a folder of SAEs"
        ) from error
    except ValueError as error:
        raise UserError(f"{name}: {file} is not valid JSON; copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: {file} holds no JSON object; copy it again")
    return found
