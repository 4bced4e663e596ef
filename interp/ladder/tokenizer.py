"""The ladder's tokenizer: byte-level BPE with 1,024 tokens, trained on the training split.

A small vocabulary on purpose: with 4,096 tokens a model of width 32 stayed 0.3 nats above a
token bigram after 8M tokens, and its output head took most of the training time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.ladder.recipe import END_OF_TEXT, N_CTX, VOCAB_SIZE

TOKENIZER_DOCUMENTS = 8_000
"""The tokenizer is trained on so many documents of the training split (about 90 MB)."""


def train_tokenizer(texts: Iterable[str], out_dir: Path) -> PreTrainedTokenizerFast:
    """Train on `texts` and save in Hugging Face format. No normalisation: bytes in, bytes out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=N_CTX,
    )
    fast.save_pretrained(out_dir)
    return fast


def token_stream(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], batch: int = 512
) -> Iterator[np.ndarray]:
    """Documents as uint16 ids, each preceded by the end-of-text token as in GPT-2."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    pending: list[str] = []

    def encode(group: list[str]) -> np.ndarray:
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(group, add_special_tokens=False)
        parts = [np.array([end, *e.ids], np.uint16) for e in encoded]
        return np.concatenate(parts)

    for text in texts:
        pending.append(text)
        if len(pending) == batch:
            yield encode(pending)
            pending = []
    if pending:
        yield encode(pending)
