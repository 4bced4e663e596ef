"""What determines a study: one frozen record, its presets, and reading it from YAML.

`config.resolved.yaml` in a finished run is this record with every default written out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from interp import families, ladder
from interp.errors import UserError
from saes.config import PENALIZED

About = Literal["all", "contextual"]
KRule = Literal["fvu", "constant", "proportional"]
Architecture = Literal["topk", "batchtopk", "matryoshka_batchtopk"]
HookKind = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""`interp.hook_points.KINDS`, which a config, being a leaf, cannot ask; a test holds them equal."""
MIN_SIZES = 4
"""Dictionary sizes that N by saturation needs."""
MIN_SEEDS = 2
"""Seeds that have to find a latent for it to count, unless more are asked for."""
_WRITTEN_BY = "# superscope "


class StudyConfig(BaseModel):
    """One study. Counts of text are in tokens of the models' tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "custom"
    preview: bool = False
    """A preview draws rows that fail the convergence rule, hollow; a result does not use them."""
    family: str = "ladder"
    arm: Literal["width", "constant_width"] = "width"
    """What differs between the models: their width, or what the constant-width arm varies."""
    models: tuple[str, ...] = Field(min_length=1)
    """The models that get SAEs, in increasing size."""
    loss_only_models: tuple[str, ...] = ()
    """Models for the loss curve alone (too narrow for a trustworthy count)."""
    twins: tuple[str, ...] = ()
    """Those of `models` that also run with random initial weights, as a control."""
    shuffled: tuple[str, ...] = ()
    """Those that also run on tokens shuffled within documents: no context, the same tokens."""
    gaussian: tuple[str, ...] = ()
    """Those whose streams are also replaced by Gaussian noise of the same mean and covariance."""

    text: str = "deps"
    """Corpus of activations and losses; split by document into train and held-out."""
    loss_tokens: int = Field(default=262_144, ge=2_048)
    means_tokens: int = Field(default=524_288, ge=2_048)
    """Training tokens behind the token and position means of the contextual stream."""
    pilot_tokens: int = Field(default=1_048_576, ge=2_048)
    """Training tokens of each pilot; far fewer than `sae_tokens`, and FVU ends below its target."""
    sae_tokens: int = Field(default=1_048_576, ge=4_096)
    """Training tokens of each SAE; longer than the text means several passes over it."""
    primary_sae_tokens: int | None = Field(default=None, ge=4_096)
    """The same for the SAEs the headline rests on: primary layer and stream, k by FVU, every size,
    controls alike. Elsewhere, and without it, `sae_tokens`."""
    held_out_tokens: int = Field(default=131_072, ge=2_048)
    splice_tokens: int = Field(default=32_768, ge=1_024)

    hook_kind: HookKind = "resid_post"
    """Where in a block every count is made; a kind that a model lacks is refused."""
    primary_layer_fraction: float = Field(default=0.5, gt=0, le=1)
    """Depth of the primary layer: after this share of the blocks. `resid_pre` comes after the
    blocks before it, any other kind counts the block that it is in."""
    other_layers: bool = False
    """Measure the layers beside the primary one too, on the primary stream at the first size."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which ones, counted from 0, where `other_layers` is set; none given: all of them."""
    twin_other_layers: bool = False
    """The same for twins and other controls. Without it these have the streams of the primary layer
    at the first size, or at every size where the headline is N by saturation: what it is set
    against, for a third of what a model costs."""
    streams: tuple[About, ...] = ("contextual",)
    """Streams at the primary layer; a second one is measured at the first size."""
    primary_stream: About = "contextual"
    d_sae_per_d_model: tuple[int, ...] = (4,)
    """Dictionary sizes of the primary stream at the primary layer; everywhere else the first."""
    architecture: Architecture = "topk"
    """Of the SAEs that every count rests on. For the batchtopk kinds k is a mean over tokens."""
    other_architectures: tuple[Architecture, ...] = ()
    """Sensitivity to it, at the primary layer, stream and first size; each with its own k."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the product that picks an SAE's latents in training. Their values, the weights and
    whatever is counted are float32 either way."""
    n_seeds: int = Field(default=3, ge=2, le=16)
    min_seeds: int = Field(default=MIN_SEEDS, ge=MIN_SEEDS)
    """Seeds that have to find a latent for it to count. Two is the usual count, which fills
    dictionaries that are smaller than what there is to find; a count of more seeds stays below
    their size, so that models can be ranked by it."""
    target_fvu: float = Field(default=0.3, gt=0, lt=1)
    """k is what reaches it. At 0.3 models and random twins of every ladder width need less than
    the largest k allowed, d_model / 4; at 0.2 the twins up to width 96 would not reach it."""
    pilot_ks: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32)
    confirm_k: bool = False
    """Where the headline rests, train one SAE at the k of the pilots and at either neighbour on
    `sae_tokens`, and keep the nearest: pilots end at a higher FVU than longer runs."""
    other_k_rules: tuple[KRule, ...] = ()
    """Sensitivity to k, at the primary layer, stream and first size: beside the k that reaches
    `target_fvu`, a constant one (`constant_k`) or one in proportion (d_model / 8)."""
    constant_k: int = Field(default=8, ge=1)
    check_convergence: bool = True
    """Branch off every SAE a second one that ends at half the tokens, and compare."""

    chunk_tokens: int = Field(default=65_536, ge=1_024)
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of a unit; 0 is replaced by the machine's number of cores, at most 8."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where models run and SAEs train; what is counted is counted on the CPU. `auto` is replaced by
    cuda where this machine has one, else by cpu."""

    executor: Literal["local", "ray"] = "local"
    """Where units run: one after the other in this process, or as tasks of a Ray cluster."""
    address: str | None = None
    """Of the cluster; `auto` finds one that runs here, none starts one for this study."""
    units_per_gpu: int = Field(default=1, ge=1, le=64)
    """With Ray and device cuda, units that share a GPU; nobody asks whether its memory holds
    them."""
    max_memory_gb: float | None = Field(default=None, gt=0)
    """Budgets that `interp plan` holds the study to: memory of one process,"""
    max_disk_gb: float | None = Field(default=None, gt=0)
    """the folder with its scratch space,"""
    max_hours: float | None = Field(default=None, gt=0)
    """and the time of all units together on the machine that plans."""

    @field_validator("architecture", "other_architectures", mode="before")
    @classmethod
    def _has_k(cls, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else (value,):
            if one in PENALIZED:
                raise ValueError(
                    f"{one} is made sparse by a penalty and has no k, so no rule for k can hold "
                    "it to target_fvu; use topk, batchtopk or matryoshka_batchtopk"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if self.min_seeds > self.n_seeds:
            raise ValueError(
                f"min_seeds {self.min_seeds} is more than n_seeds {self.n_seeds}; lower it, or "
                "train more seeds"
            )
        for name in ("twins", "shuffled", "gaussian"):
            strangers = set(getattr(self, name)) - set(self.models)
            if strangers:
                raise ValueError(
                    f"{name} {sorted(strangers)} are not among the models; add them there"
                )
        for name in ("models", "twins", "shuffled", "gaussian", "loss_only_models", "streams",
                     "d_sae_per_d_model", "other_architectures", "layers"):  # fmt: skip
            entries = getattr(self, name)
            if len(set(entries)) != len(entries):
                raise ValueError(f"{name} has an entry twice: {list(entries)}; remove one")
        both = set(self.models) & set(self.loss_only_models)
        if both:
            raise ValueError(
                f"{sorted(both)} are in models and in loss_only_models; keep one of the two"
            )
        if self.primary_stream not in self.streams:
            raise ValueError(
                f"primary_stream {self.primary_stream!r} is not in streams {list(self.streams)}; "
                "add it"
            )
        if not self.d_sae_per_d_model or min(self.d_sae_per_d_model) < 1:
            raise ValueError("d_sae_per_d_model needs at least one multiple of 1 or more")
        if "fvu" in self.other_k_rules or len(set(self.other_k_rules)) != len(self.other_k_rules):
            raise ValueError("other_k_rules may hold constant and proportional, each once")
        if self.layers and not self.other_layers:
            raise ValueError(
                f"layers {list(self.layers)} are those that other_layers adds; set it, or "
                "remove layers (primary_layer_fraction chooses the primary layer)"
            )
        if self.architecture in self.other_architectures:
            raise ValueError(
                f"other_architectures has {self.architecture!r}, which is the architecture of all "
                "other counts; remove it there"
            )
        if not self.pilot_ks or min(self.pilot_ks) < 1:
            raise ValueError("pilot_ks needs at least one k of 1 or more")
        return self

    @property
    def by_saturation(self) -> bool:
        """Whether there are sizes enough for N, which is then the headline."""
        return len(self.d_sae_per_d_model) >= MIN_SIZES

    def resolved(self) -> StudyConfig:
        """With machine-dependent defaults filled in."""
        found: dict[str, object] = {}
        if not self.threads:
            found["threads"] = min(os.cpu_count() or 1, 8)
        if self.device == "auto":
            from torch import cuda  # a second, which reading a config should not take

            found["device"] = "cuda" if cuda.is_available() else "cpu"
        return self.model_copy(update=found)

    def to_yaml(self) -> str:
        """With the version that wrote it, for the day when a field is not known any more."""
        fields = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return f"{_WRITTEN_BY}{metadata.version('superscope')}\n{fields}"


_QUICK_WIDTHS = (32, 48, 64, 96, 128)
_NARROWEST = 32
"""Below it the null alone matches too much for a trustworthy count (SCIENCE section 4)."""


_HOW = {"threads", "device", "executor", "address", "units_per_gpu", "max_memory_gb", "max_disk_gb",
        "max_hours"}  # fmt: skip
"""Fields that leave a preset what it is."""


def _ladder(widths: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"ladder/d{width:03d}" for width in widths)


def _shipped() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Models that get SAEs and models for the loss curve alone, among those that are shipped."""
    names = ladder.names()
    wide = tuple(n for n in names if int(n.rpartition("d")[2]) >= _NARROWEST)
    return wide or _ladder(_QUICK_WIDTHS), tuple(n for n in names if n not in wide)


_WIDE, _NARROW = _shipped()

_ARM = ("ladder/d064", *ladder.arm_names())
_RESULT: dict[str, Any] = {
    "n_seeds": 5,
    "loss_tokens": 1_048_576,
    "means_tokens": 2_097_152,
    "sae_tokens": 4_194_304,
    "held_out_tokens": 262_144,
    "pilot_tokens": 2_097_152,
    # At 8.4 million the counts at half depth still grew by 5 to 8% with the last doubling at most
    # widths, and pilots left FVU up to 0.025 from its target. Nothing rests on the other counts.
    "primary_sae_tokens": 16_777_216,
    "confirm_k": True,
}
"""How much text a result rests on, where a preview has the defaults."""

PRESETS: dict[str, StudyConfig] = {
    "quick": StudyConfig(
        preset="quick",
        preview=True,
        models=_ladder(_QUICK_WIDTHS),
        twins=_ladder((32, 64)),
    ),
    "full": StudyConfig(
        preset="full",
        # Every model that is shipped: a preset must not name one that is not there.
        models=_WIDE,
        loss_only_models=_NARROW,
        twins=_WIDE,
        streams=("contextual", "all"),
        d_sae_per_d_model=(4, 8),
        other_layers=True,
        other_k_rules=("constant", "proportional"),
        **_RESULT,
    ),
    # The constant-width arm. Named before the run: the primary metric is the contextual count at
    # half depth, the arm is all of it, and the lever that the question is about is the decay.
    # Models are ranked by their counts, so counts must have room. What two seeds find has none:
    # of the base model in the committed `full` it fills dictionaries of 4 and 8 latents per
    # dimension. What all five find is 0.61 of D at 4. It was chosen on the base model alone.
    "referee": StudyConfig(
        preset="referee",
        arm="constant_width",
        models=_ARM,
        twins=_ARM[:1],
        shuffled=_ARM[:1],
        gaussian=_ARM[:1],
        min_seeds=5,
        **_RESULT,
    ),
}


def read_config(path: Path) -> StudyConfig:
    """A study's YAML file. Raises UserError, in one line that names field and line, when wrong."""
    try:
        text = path.read_text()
        data, lines = yaml.safe_load(text), _lines(yaml.compose(text))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a YAML file that can be read") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read as YAML ({_first_line(error)}); mend it"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `field: value` lines; see `interp study --help`")
    try:
        return parse_config(_extended(data, path, lines), str(path), lines)
    except UserError as error:
        first, version = text.partition("\n")[0], metadata.version("superscope")
        if not first.startswith(_WRITTEN_BY) or first == f"{_WRITTEN_BY}{version}":
            raise
        told = f"the file was written by {first.removeprefix('# ')}, this is {version}"
        raise UserError(f"{error} ({told})") from None


def _extended(
    data: dict[str, object], path: Path, lines: Mapping[tuple[str | int, ...], int]
) -> dict[str, object]:
    """What the file says, on top of the preset that its `extends` names, if it does."""
    name = data.get("extends")
    if name is None:
        # A study writes every field; who names a preset and little else wants to begin with it.
        preset = data.get("preset")
        if (
            isinstance(preset, str)
            and preset in PRESETS
            and len(data) < len(StudyConfig.model_fields) / 2
        ):
            raise UserError(
                f"{path}, line {lines['preset',]}: preset is only a name; write `extends: "
                f"{data['preset']}` to take that preset's settings"
            )
        return data
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(
            f"{path}, line {lines['extends',]}: extends: {name!r} is no preset; use one of "
            f"{', '.join(PRESETS)}"
        )
    base = PRESETS[name]
    given = {field: value for field, value in data.items() if field != "extends"}
    own_name = given.get("preset")
    if isinstance(own_name, str) and own_name in PRESETS:
        raise UserError(
            f"{path}, line {lines['preset',]}: preset: {own_name!r} is a preset's name; give the "
            "study one of its own, or leave it out"
        )
    named = given.get("models")
    models: dict[str, object] = {}
    if isinstance(named, list):
        models = _of_models(base, [str(m) for m in named], arm=str(given.get("arm", base.arm)))
    elif name == "referee" and "models" not in given:
        _require_the_arm(base.models)
    return base.model_dump() | {"preset": f"{name} (changed)"} | models | given


def _require_the_arm(models: Sequence[str]) -> None:
    if len(models) < 2:
        raise UserError(
            "referee: the models of the constant-width arm are not here; "
            "`interp ladder arm --ship` trains them, or name your own with --models"
        )


def _of_models(
    base: StudyConfig, models: Sequence[str], *, arm: str | None = None
) -> dict[str, object]:
    """Other models than the preset's drop the controls and loss-only models not among them."""
    twins = tuple(m for m in models if m in base.twins)
    if not twins and (arm or base.arm) != "constant_width":
        # Of an arm the base model's twin serves all, also where they are measured in parts.
        twins = tuple(models)
    return {
        "models": tuple(models),
        "twins": twins,
        "shuffled": tuple(m for m in models if m in base.shuffled),
        "gaussian": tuple(m for m in models if m in base.gaussian),
        "loss_only_models": (),
        "family": "ladder" if all(m.startswith("ladder/") for m in models) else "custom",
    }


def resolve_config(what: str, overrides: dict[str, object]) -> StudyConfig:
    """A preset, a family (with the quick preset's settings) or a YAML file, with overrides.

    Other models than theirs drop the twins and loss-only models that are not among them.
    """
    if what in PRESETS:
        base = PRESETS[what]
    elif what in families.names():
        base = PRESETS["quick"].model_copy(update={"preset": f"quick settings on {what}"})
        overrides = {"models": families.members(what)} | overrides
    elif what.endswith((".yaml", ".yml")):
        base = read_config(Path(what))
    else:
        raise UserError(
            f"unknown study {what!r}; use one of {', '.join(PRESETS)}, a family "
            f"({', '.join(families.names())}), or the path of a YAML file"
        )
    data = base.model_dump() | overrides
    if what == "referee" and "models" not in overrides:
        _require_the_arm(base.models)
    if "models" in overrides:
        data |= _of_models(base, [str(m) for m in data["models"]])
        if what in families.names():
            members = set(families.members(what))
            data["family"] = what if set(data["models"]) <= members else "custom"
        elif base.preset != what and base.family not in ("ladder", "custom"):  # a file says it
            data["family"] = base.family
    if overrides and base.preset == what:
        data["preset"] = what if set(overrides) <= _HOW else f"{what} (changed)"
    return parse_config(data, what)


def parse_config(
    data: dict[str, object], where: str, lines: Mapping[tuple[str | int, ...], int] | None = None
) -> StudyConfig:
    """A validated config from plain data. Raises UserError naming the first wrong field.

    lines: of the file that the data come from, by the path of field and entry.
    """
    lines = lines or {}
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = first["loc"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "tuple_type":
            one = first["input"]
            message = f"write a list: [{one}]" if isinstance(one, str | int) else "write a list: []"
        if not at:  # fields that do not go together: the first that the message names
            named = re.findall(r"\w+", message)
            at = next(((word,) for word in named if (word,) in lines), ())
            field = ""
        else:
            field = ".".join(str(part) for part in at)
        line = lines.get(at) or lines.get(at[:1])
        where = f"{where}, line {line}" if line else where
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown field {field!r}; remove or correct it") from None
        raise UserError(f"{where}: {field + ': ' if field else ''}{message}") from None


def _lines(node: yaml.Node | None) -> dict[tuple[str | int, ...], int]:
    """Where every field of a document stands, and every entry of its lists.

    Raises YAMLError for a field that is there twice, which YAML's own reader passes over.
    """
    found: dict[tuple[str | int, ...], int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if (key.value,) in found:
            raise yaml.YAMLError(
                f"{key.value} stands in line {found[key.value,]} and again in line "
                f"{key.start_mark.line + 1}"
            )
        found[key.value,] = key.start_mark.line + 1
        for i, entry in enumerate(value.value if isinstance(value, yaml.SequenceNode) else ()):
            found[key.value, i] = entry.start_mark.line + 1
    return found


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
