"""Learn sparse dictionaries from any stream of activations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saes.config import SAEConfig
    from saes.format import load, save
    from saes.sae import SAE
    from saes.training import train

__all__ = ["SAE", "SAEConfig", "load", "save", "train"]

_HOMES = {
    "SAE": "saes.sae",
    "SAEConfig": "saes.config",
    "load": "saes.format",
    "save": "saes.format",
    "train": "saes.training",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `saes --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'saes' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
