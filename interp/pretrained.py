"""A checked folder of safetensors -> a transformers model and tokenizer, completely or not at all.

A checkpoint that does not fill the architecture exactly is refused: transformers would complete it
with random weights, or leave out layers that config.json does not speak of, with a log line.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError

_IN_A_BLOCK = re.compile(r"(^|\.)(h|layers)\.\d+\.")
_BUFFER = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.inv_freq$")
"""Masks and rotary frequencies, which old checkpoints hold and models compute."""


def read_weights(
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The causal language model in `folder`, in `dtype`; sdpa attention where there is one.

    `options` go to `from_pretrained`. Raises UserError for what does not load, lacks tensors, or
    has some in its blocks that the architecture makes no use of.
    """
    with warnings.catch_warnings():
        # In Jupyter tqdm asks for widgets, which nothing here uses.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import AutoModelForCausalLM

    loaded: Any  # the model and a report on its keys
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                device_map=device_map,
                **options,
            )
    except Exception as error:  # a wrong config.json ends in errors of any kind
        raise UserError(
            f"{name}: {folder} does not load ({_reason(error, 160)}); copy the checkpoint again"
        ) from error
    hf, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise UserError(
            f"{name}: the checkpoint in {folder} lacks {len(wrong)} tensors of its architecture "
            f"({wrong[0]}, ...); copy the checkpoint again"
        )
    unused = _unused(map(str, report["unexpected_keys"]))
    if unused:
        raise UserError(
            f"{name}: {len(unused)} tensors of the checkpoint in {folder} have no place in the "
            f"architecture of its config.json ({unused[0]}, ...); copy both again"
        )
    return hf


def _unused(surplus: Iterable[str]) -> list[str]:
    """Of the names without a place: weights of blocks. A trainer's extra head changes nothing."""
    return sorted(x for x in surplus if _IN_A_BLOCK.search(x) and not _BUFFER.search(x))


def read_tokenizer(folder: Path, name: str, **options: Any) -> Any:
    """The fast tokenizer in `folder`. Raises UserError for a damaged, empty or slow one."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as error:
        raise UserError(
            f"{name}: the tokenizer in {folder} cannot be read ({_reason(error, 120)}); "
            "save it again with tokenizer.save_pretrained"
        ) from error
    if not tokenizer.is_fast or len(tokenizer) == 0:
        raise UserError(
            f"{name}: the tokenizer in {folder} is empty or not a fast one; "
            "save a fast tokenizer (tokenizer.json) there"
        )
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar for a load that takes a moment, and no notes about generation settings."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Some bars do not ask whether they are wanted.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _reason(error: Exception, length: int) -> str:
    lines = str(error).strip().split("\n")
    return f"{type(error).__name__}: {lines[0][:length]}"
