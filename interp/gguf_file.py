"""A quantized .gguf file -> a dequantized transformers model and its tokenizer.

Needs the package `gguf` (the extra `gguf`); transformers does the conversion.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from interp import hook_points, pretrained
from interp.errors import UserError


def read(
    path: Path, dtype: torch.dtype, device_map: str | dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) of the file, dequantized to `dtype`.

    Raises UserError without the package gguf, for a damaged file, or an unknown architecture.
    """
    from transformers import AutoConfig

    if find_spec("gguf") is None:
        raise UserError(f"{path}: reading GGUF needs the package gguf; pip install 'gguf>=0.17'")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r}")
        with pretrained.quiet():
            config = AutoConfig.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the reader's own errors are of any kind on a damaged file
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(f"{path}: no readable GGUF file ({reason}); copy it again") from error
    if config.model_type not in hook_points.architectures():
        raise UserError(
            f"{path}: architecture {config.model_type!r} is not supported; supported: "
            f"{', '.join(hook_points.architectures())}"
        )
    hf = pretrained.read_weights(
        path.parent,
        str(path),
        dtype=dtype,
        device_map=device_map,
        config=config,
        gguf_file=path.name,
    )
    _forget_quantization(hf)
    return hf, pretrained.read_tokenizer(path.parent, str(path), gguf_file=path.name)


def _forget_quantization(hf: Any) -> None:
    """The weights are plain tensors now; transformers would still refuse to save or copy them."""
    hf.hf_quantizer = None
    hf.is_quantized = False
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
