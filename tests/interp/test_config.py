"""The study's config: presets, YAML, overrides; every wrong value is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from interp import ladder
from interp.cli import main
from interp.config import PRESETS, StudyConfig, parse_config, read_config, resolve_config
from interp.errors import UserError
from interp.run import SHUFFLED, TRAINED, TWIN
from interp.spots import pilot_ks, primary_layer, spots


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


def test_a_file_may_start_from_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("extends: full\nmodels: [/a, /b]\ntext: /c.jsonl\nprimary_sae_tokens: 9000\n")
    config = resolve_config(str(file), {})
    full = PRESETS["full"]
    assert (config.models, config.twins, config.loss_only_models) == (
        ("/a", "/b"),
        ("/a", "/b"),
        (),
    )
    assert (config.preset, config.family) == ("full (changed)", "custom")
    assert (config.text, config.primary_sae_tokens) == ("/c.jsonl", 9_000)
    changed = {
        "preset",
        "family",
        "models",
        "twins",
        "loss_only_models",
        "text",
        "primary_sae_tokens",
    }
    assert config.model_dump(exclude=changed) == full.model_dump(exclude=changed)
    file.write_text("extends: full\nmodels: [/a, /b]\ntwins: [/a]\npreset: mine\n")
    config = resolve_config(str(file), {"models": ["/b"]})
    assert (config.preset, config.models, config.twins) == ("mine", ("/b",), ("/b",))
    file.write_text("extends: full\n")
    assert resolve_config(str(file), {"models": ["/x"]}).family == "custom"
    file.write_text("extends: referee\narm: width\nmodels: [/x, /y]\n")
    assert read_config(file).twins == ("/x", "/y")
    file.write_text("extends: quick\n")
    assert read_config(file) == PRESETS["quick"].model_copy(update={"preset": "quick (changed)"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: [a]\nextends: fool\n", "line 2: extends: 'fool' is no preset; use one of quick"),
        ("preset: full\nmodels: [a]\n", "line 1: preset is only a name; write `extends: full`"),
        ("models: ladder/d032\n", "line 1: models: write a list: [ladder/d032]"),
        ("extends: full\nmodels: ladder/d032\n", "models: write a list: [ladder/d032]"),
        ("arm: depth\nmodels: [a]\n", "line 1: arm: Input should be 'width' or"),
        ("extends: [full]\nmodels: [a]\n", "line 1: extends: ['full'] is no preset"),
        ("preset: [full]\nmodels: [a]\n", "line 1: preset: Input should be a valid string"),
        ("extends: full\npreset: full\n", "line 2: preset: 'full' is a preset's name"),
        ("models: [a]\nother_k_rules:\n", "line 2: other_k_rules: write a list: []"),
    ],
)
def test_a_file_that_means_something_else_is_told_so(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(file)
    assert complaint in one_line(error)


def test_a_plan_for_a_file_is_refused_as_the_study_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["plan", "quick", "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file; give --out a folder" in capsys.readouterr().err


def test_without_ray_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "out"
    assert main(["study", "quick", "--executor", "ray", "--out", str(out)]) == 2
    assert "executor ray needs Ray" in capsys.readouterr().err
    assert not out.exists()


def test_tokens_are_those_of_every_sae(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[StudyConfig] = []
    monkeypatch.setattr("interp.plan.plan_study", lambda config: asked.append(config) or [])
    monkeypatch.setattr("interp.budgets.require_fit", lambda *_: None)
    monkeypatch.setattr("interp.cli.study.print_costs", lambda *_, **__: None)
    assert main(["plan", "full", "--tokens", "1M"]) == 0
    assert main(["plan", "full"]) == 0
    assert [(c.sae_tokens, c.primary_sae_tokens) for c in asked] == [
        (1_000_000, None),
        (PRESETS["full"].sae_tokens, PRESETS["full"].primary_sae_tokens),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models:\n- a\nwidthz: 3\n", 3),
        ("models:\n- a\n\nn_seeds: 1\n", 4),
        ("models:\n- a\n- b\n- 7\n", 4),
        ("primary_stream: all\nmodels: [a]\n", 1),
        ("models: [a]\n# a remark\ntwins: [b]\n", 3),
        ("loss_only_models: [b]\nmodels: [a, b]\n", 2),
        ("models: [a]\nn_seeds: 3\nn_seeds: 4\n", 3),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(file)
    assert f"line {line}" in one_line(error)
    assert str(file) in one_line(error)


def test_a_config_of_another_version_says_so(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    text = PRESETS["quick"].to_yaml()
    file.write_text(text + "a_field_of_tomorrow: 1\n")
    with pytest.raises(UserError, match="unknown field 'a_field_of_tomorrow'") as error:
        read_config(file)
    assert "written by" not in one_line(error)
    file.write_text(text.replace("# superscope ", "# superscope 99.", 1) + "a_field: 1\n")
    with pytest.raises(UserError, match=r"written by superscope 99\..*, this is \d") as error:
        read_config(file)
    file.write_text(text.replace("# superscope ", "# superscope 99.", 1))
    assert read_config(file) == PRESETS["quick"], "what is understood is taken"


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


def test_the_arm_is_not_studied_without_its_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = PRESETS["referee"].model_copy(update={"models": ("ladder/d064",)})
    monkeypatch.setitem(PRESETS, "referee", alone)
    with pytest.raises(UserError) as refused:
        resolve_config("referee", {})
    assert "interp ladder arm --ship" in one_line(refused)
    file = tmp_path / "study.yaml"
    file.write_text("extends: referee\n")
    with pytest.raises(UserError, match="interp ladder arm --ship"):
        read_config(file)
    named = resolve_config("referee", {"models": ("ladder/d064", "ladder/d032")})
    # Measured in parts, to be merged: the base model's twin is the arm's.
    part = resolve_config("referee", {"models": ("ladder/d032",)})
    assert (part.models, part.twins, part.gaussian) == (("ladder/d032",), (), ())
    assert named.models == ("ladder/d064", "ladder/d032")


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
    assert [*full.loss_only_models, *full.models] == ladder.names()
    assert set(PRESETS["quick"].models) <= set(full.models)
    assert full.twins == full.models
    assert set(full.streams) == {"all", "contextual"}
    assert full.n_seeds == 5
    assert len(full.d_sae_per_d_model) >= 2
    assert set(full.other_k_rules) == {"constant", "proportional"}
    assert full.other_layers
    assert isinstance(full, StudyConfig)


def test_a_model_is_counted_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in models and in loss_only_models"):
        parse_config({"models": ["a", "b"], "loss_only_models": ["b"]}, "here")
    for field in ("models", "twins", "loss_only_models"):
        with pytest.raises(UserError, match=f"{field} has an entry twice"):
            parse_config({"models": ["a"], "twins": []} | {field: ["a", "a"]}, "here")


def test_every_k_up_to_the_largest_can_be_chosen() -> None:
    config = PRESETS["full"]
    assert pilot_ks(config, 48) == [2, 4, 8, 12]
    assert pilot_ks(config, 64) == [2, 4, 8, 12, 16]
    assert pilot_ks(config, 256) == [2, 4, 8, 12, 16, 24, 32, 64]
    assert pilot_ks(config, 4) == [1]


def test_a_tie_goes_to_the_lower_layer() -> None:
    config = PRESETS["quick"]
    assert [primary_layer(config, n) for n in (1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "of_controls"), [((4,), 1), ((4, 8, 16), 1), ((4, 8, 16, 32), 4)]
)
def test_controls_are_measured_where_the_headline_is(
    sizes: tuple[int, ...], of_controls: int
) -> None:
    """At the first size; where N is read off four or more, at all of them."""
    config = StudyConfig(models=("ladder/d032",), d_sae_per_d_model=sizes, other_layers=True)
    trained = {s.d_sae for s in spots(config, 32, 4, TRAINED) if s.headline}
    assert trained == {32 * size for size in sizes}
    for control in (TWIN, SHUFFLED):
        found = spots(config, 32, 4, control)
        assert [s.d_sae for s in found] == [32 * size for size in sizes[:of_controls]]
        assert all(s.headline for s in found)
