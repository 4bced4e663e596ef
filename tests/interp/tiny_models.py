"""A random model of every supported architecture, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

N_LAYERS = 3
D_MODEL = 16


@dataclass(frozen=True)
class Covered:
    """One row of README's table: what the tests load, capture and compare."""

    architecture: str
    """`model_type`"""
    models: str
    """Published models of this form."""
    changes: dict[str, Any] = field(default_factory=dict)
    """To the configuration, where they change what a hook point means."""
    lacks: tuple[str, ...] = ()
    """Kinds of hook points that are refused."""


COVERED = {
    "gpt2": Covered("gpt2", "GPT-2, Cerebras-GPT, the embedded ladder"),
    "gpt_neo": Covered("gpt_neo", "GPT-Neo"),
    "gpt_neox": Covered("gpt_neox", "Pythia, GPT-NeoX", lacks=("resid_mid",)),
    "gpt_neox, sequential": Covered(
        "gpt_neox", "`use_parallel_residual: false`", {"use_parallel_residual": False}
    ),
    "opt": Covered("opt", "OPT"),
    "opt, post-norm": Covered(
        "opt",
        "OPT-350m",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
        lacks=("resid_mid",),
    ),
    "qwen2": Covered("qwen2", "Qwen2, Qwen2.5"),
    "llama": Covered("llama", "Llama, SmolLM2"),
    "gemma3_text": Covered("gemma3_text", "Gemma 3 (text)"),
}


def covered(name: str, *, n_vocab: int = 50) -> Any:
    """The model of one row of `COVERED`."""
    row = COVERED[name]
    return tiny(row.architecture, n_vocab=n_vocab, **row.changes)


def tiny(architecture: str, *, n_vocab: int = 50, **changes: Any) -> Any:
    """A transformers model of `model_type` `architecture`, every weight random, in eval mode."""
    import torch
    import transformers as tf

    common = {"vocab_size": n_vocab, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    decoder = common | {
        "hidden_size": D_MODEL,
        "intermediate_size": 32,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    grouped = decoder | {"num_key_value_heads": 1}
    configs: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: tf.GPT2Config(
            **common, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, n_positions=16
        ),
        "gpt_neo": lambda: tf.GPTNeoConfig(
            **common,
            hidden_size=D_MODEL,
            num_layers=N_LAYERS,
            attention_types=[[["global"], N_LAYERS]],
            num_heads=2,
            max_position_embeddings=16,
        ),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**decoder | changes),
        "opt": lambda: tf.OPTConfig(
            **common
            | {
                "hidden_size": D_MODEL,
                "ffn_dim": 32,
                "num_hidden_layers": N_LAYERS,
                "num_attention_heads": 2,
                "max_position_embeddings": 16,
                "word_embed_proj_dim": D_MODEL,
            }
            | changes
        ),
        "qwen2": lambda: tf.Qwen2Config(**grouped),
        "llama": lambda: tf.LlamaConfig(**grouped),
        "gemma3_text": lambda: tf.Gemma3TextConfig(**grouped, head_dim=8),
    }
    torch.manual_seed(0)
    hf = tf.AutoModelForCausalLM.from_config(configs[architecture]()).eval()
    for parameter in hf.parameters():  # no architecture may start out as the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return hf
