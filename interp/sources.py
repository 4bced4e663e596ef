"""What determines a study beside its config: the text and the models behind their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import UserError
from interp.recorded_lever import LEVER, OF_BASE
from interp.run import TRAINED, Run, RunFolder, folder_name, write_json

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
        # Where it was loaded from, by which version, and what its training varied say nothing about
        # what it computes.
        told = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key not in ("transformers_version", LEVER, OF_BASE)
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


def counted_on(run: Run, model: str) -> dict[str, str]:
    """Hashes of the text and of a model's weights as a finished study had them, where it kept them.

    Both under the names that its manifest has for them.
    """
    found = {
        "text_sha256": run.manifest.get("text_sha256"),
        "weights_sha256": run.manifest.get("weights_sha256", {}).get(folder_name(model, TRAINED)),
    }
    return {name: value for name, value in found.items() if value is not None}


def require_counted_on(run: Run, model: str, *, text_sha256: str, weights_sha256: str) -> None:
    """Raise UserError where the names stand for another text or model than the study counted on."""
    then = counted_on(run, model)
    for what, key, now in (
        (f"the text {run.config.text}", "text_sha256", text_sha256),
        (f"the model {model}", "weights_sha256", weights_sha256),
    ):
        if then.get(key, now) != now:
            raise UserError(
                f"{what} is not the one that {run.path} counted on ({key} was {then[key][:12]}, "
                f"now it is {now[:12]}); put that one back, or run the study again into a new "
                "folder"
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
