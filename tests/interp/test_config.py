"""The study's config: presets, YAML, overrides; every wrong value is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from interp import ladder
from interp.config import PRESETS, StudyConfig, read_config, resolve_config
from interp.errors import UserError


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_resolved_yaml_reads_back_as_the_same_study(tmp_path: Path) -> None:
    config = PRESETS["full"].resolved()
    file = tmp_path / "study.yaml"
    file.write_text(config.to_yaml())
    assert config.threads > 0
    assert read_config(file) == config


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("widthz", 3, "unknown field 'widthz'"),
        ("n_seeds", 1, "n_seeds"),
        ("models", [], "models"),
        ("twins", ["other"], "not among the models"),
        ("models", ["a", "a"], "twice"),
        ("primary_stream", "all", "primary_stream"),
        ("d_sae_per_d_model", [0], "d_sae_per_d_model"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, field: str, value: object, complaint: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"models": ["a", "b"]} | {field: value}))
    with pytest.raises(UserError) as error:
        read_config(file)
    text = one_line(error)
    assert complaint in text
    assert str(file) in text


@pytest.mark.parametrize("text", ["models: [", "- a\n- b\n", ""])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(file)
    assert str(file) in one_line(error)


def test_an_unknown_study_lists_the_presets() -> None:
    with pytest.raises(UserError) as error:
        resolve_config("quik", {})
    assert "quick" in one_line(error)


def test_overrides_change_the_study_and_its_name() -> None:
    plain = resolve_config("quick", {})
    changed = resolve_config("quick", {"n_seeds": 4})
    assert plain == PRESETS["quick"]
    assert changed.n_seeds == 4
    assert changed.preset != "quick"
    assert resolve_config("quick", {"threads": 1}).preset == "quick"


def test_other_models_bring_their_own_twins() -> None:
    config = resolve_config("quick", {"models": ["/a", "/b"]})
    assert config.models == config.twins == ("/a", "/b")
    assert config.family == "custom"


def test_the_quick_preset_keeps_the_promises_of_the_readme() -> None:
    quick = PRESETS["quick"]
    assert quick.preview
    assert len(quick.models) >= 5
    assert len(quick.twins) == 2
    assert quick.d_sae_per_d_model == (4,)
    assert quick.n_seeds == 3
    assert quick.streams == ("contextual",)


def test_the_full_preset_is_a_result_over_all_widths_and_streams() -> None:
    full = PRESETS["full"]
    assert not full.preview
    assert list(full.models) == ladder.names()
    assert set(PRESETS["quick"].models) <= set(full.models)
    assert full.twins == full.models
    assert set(full.streams) == {"all", "contextual"}
    assert full.n_seeds == 5
    assert len(full.d_sae_per_d_model) >= 4
    assert full.other_layers
    assert isinstance(full, StudyConfig)
