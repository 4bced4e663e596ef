"""How many features each layer of a language model packs per dimension, and what loss makes of it.

The public names are imported on first use, so that `import interp` is instant.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.capture import capture
    from interp.estimation import estimate
    from interp.loss import loss
    from interp.merge import merge
    from interp.models import load
    from interp.run import open_run
    from interp.study import run_study
    from interp.tokens import tokens

__all__ = ["capture", "estimate", "load", "loss", "merge", "open_run", "run_study", "tokens"]

_HOMES = {
    "capture": "interp.capture",
    "estimate": "interp.estimation",
    "load": "interp.models",
    "loss": "interp.loss",
    "merge": "interp.merge",
    "open_run": "interp.run",
    "run_study": "interp.study",
    "tokens": "interp.tokens",
}


class _Package(ModuleType):
    """Keeps `interp.loss` and its like the functions, though modules have the same names.

    Importing a submodule binds it on its package; for the public names that binding is dropped.
    `from interp.loss import ...` is not affected.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'interp' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__(self) -> list[str]:
        return sorted(__all__)


sys.modules[__name__].__class__ = _Package
