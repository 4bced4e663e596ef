"""What determines a study beside its config: the text and the models behind their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from interp.run import RunFolder, write_json

if TYPE_CHECKING:
    from interp.models import Model

_FILE = "sources.json"


@dataclass(frozen=True)
class ModelSource:
    """What a result depends on of a model, known without running it."""

    d_model: int
    n_layers: int
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str

    @classmethod
    def of(cls, model: Model) -> ModelSource:
        """Of a loaded one."""
        config = model.hf.config.to_dict()
        # Where it was loaded from and by which version says nothing about what it computes.
        told = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key != "transformers_version"
        }
        tokenizer = f"{model.tokenizer.backend_tokenizer.to_str()}/{model.bos_id}"
        return cls(
            model.d_model,
            model.n_layers,
            model.weights_sha256,
            config_sha256=_sha256(json.dumps(told, sort_keys=True, default=str)),
            tokenizer_sha256=_sha256(tokenizer),
        )


@dataclass(frozen=True)
class Sources:
    """Of one study."""

    text_sha256: str
    models: Mapping[str, ModelSource]

    def write(self, folder: RunFolder) -> None:
        (folder.root / "work").mkdir(exist_ok=True)
        write_json(folder.root / "work" / _FILE, asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sources:
        """What `dataclasses.asdict` made of one."""
        models = {name: ModelSource(**one) for name, one in data["models"].items()}
        return cls(data["text_sha256"], models)

    @classmethod
    def read(cls, folder: RunFolder) -> Sources | None:
        """As the last sitting found them; None before the first."""
        try:
            return cls.from_json(json.loads((folder.root / "work" / _FILE).read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
