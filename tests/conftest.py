"""Fixtures: a tiny random GPT-2 with its own byte-level tokenizer, saved to disk; no network."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SUPERSCOPE_CACHE"] = "off"  # no test depends on, or leaves, anything in the home
if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many workers as cores: threads of one would only wait for the other's.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "class Tree:\n    def __init__(self, left, right):\n        self.left = left\n",
    "for i in range(10):\n    print(i, i * i)\n",
    "# naïve café: Größe, 東京, Москва, 🦉🦉\nvalue = 'ñandú'\n",
    "import os\nimport sys\n\nif __name__ == '__main__':\n    sys.exit(os.getpid())\n",
    "token = '<|endoftext|>'  # text that spells a special token\n",
)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """Short documents; two of them hold text that trips careless byte counts."""
    return TEXTS


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of about 300 tokens whose one special token is <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def save_tiny(tiny_tokenizer: Any) -> Callable[..., Path]:
    """save_tiny(folder, d_model=, n_layers=, n_ctx=, seed=) writes a random GPT-2."""

    def save(
        folder: Path, *, d_model: int = 32, n_layers: int = 3, n_ctx: int = 32, seed: int = 0
    ) -> Path:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=len(tiny_tokenizer),
            n_positions=n_ctx,
            n_embd=d_model,
            n_layer=n_layers,
            n_head=2,
            # Well above the default, so that layers differ and tests can tell them apart.
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> Path:
    """A saved random GPT-2: 3 layers of width 32, context 32. Do not write to it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_model(tiny_dir: Path) -> Any:
    """`tiny_dir` as an interp Model. Shared: leave no hooks on it."""
    from interp.models import load

    return load(str(tiny_dir))


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder with one .py file per text."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def tiny_tokens(text_folder: Path, tiny_model: Any) -> Any:
    """The texts as token blocks for `tiny_model`."""
    from interp.tokens import tokens

    return tokens(text_folder, tiny_model)
