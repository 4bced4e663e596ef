"""A folder as transformers writes it: is it whole, and what does it say about itself.

Nothing is loaded here: config, tokenizer files and safetensors headers are checked first, so that
a damaged checkpoint is refused in one line instead of a traceback from deep inside a loader.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from interp import hook_points
from interp.errors import UserError

# Any one of these makes a tokenizer; without all of them transformers returns an empty one.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")

ADVICE = (
    "name a ladder model (`interp models` lists them) or a local directory saved by transformers"
)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of an architecture we know. Raises UserError for any other, naming `name`.

    A quantized checkpoint is refused: its values would be those of some other dtype.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{name}: no config.json in {folder}; {ADVICE}") from error
    except ValueError as error:
        raise UserError(
            f"{name}: {folder / 'config.json'} is not valid JSON; copy it again"
        ) from error
    architecture = config.get("model_type") if isinstance(config, dict) else None
    if architecture not in hook_points.architectures():
        raise UserError(
            f"{name}: architecture {architecture!r} is not supported; supported: "
            f"{', '.join(hook_points.architectures())}"
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{name}: the checkpoint is quantized (quantization_config in config.json); name the "
            "unquantized one, or a .gguf file"
        )
    return config


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files in name order, each as long as its header says.

    Raises UserError for a missing, truncated or pickled one.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name}: {index} is damaged; copy the checkpoint again") from error
        files = [folder / shard for shard in sorted(shards)]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            advice = "copy the checkpoint again"
            if (folder / "pytorch_model.bin").is_file():
                advice = "pickled weights are not read: save them with safe_serialization"
            raise UserError(f"{name}: {file} is missing; {advice}")
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(
                f"{name}: {file} is truncated or damaged ({error}); copy the checkpoint again"
            ) from error
    return files


def require_tokenizer_files(folder: Path, name: str) -> None:
    """Raise UserError for a folder from which transformers would make an empty tokenizer."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(
            f"{name}: no tokenizer files in {folder} (one of {', '.join(TOKENIZER_FILES)}); "
            "save the tokenizer there with tokenizer.save_pretrained"
        )


def count_parameters(files: list[Path]) -> int:
    """Numbers stored in safetensors files, read from their headers."""
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                total += math.prod(tensors.get_slice(key).get_shape())
    return total


def hash_files(files: list[Path]) -> str:
    """SHA-256 over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
