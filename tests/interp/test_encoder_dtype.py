"""The precision of the product that picks latents, as a setting of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import tiny_study

import saes
from interp.config import StudyConfig, parse_config
from interp.errors import UserError
from interp.graph import Graph
from interp.models import load
from interp.run import RunFolder
from interp.sources import ModelSource, Sources
from interp.study import run_study


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    """Of one model, whose dictionaries have far more latents than k."""
    root = tmp_path_factory.mktemp("family")
    more = {"twins": (), "d_sae_per_d_model": (8,), "check_convergence": False}
    return tiny_study(root, save_tiny, widths=(16,), **more)


def in_bfloat16(config: StudyConfig) -> StudyConfig:
    return config.model_copy(update={"encoder_dtype": "bfloat16"})


def test_single_precision_is_what_nobody_has_to_ask_for() -> None:
    assert StudyConfig(models=("a",)).encoder_dtype == "float32"
    with pytest.raises(UserError, match="encoder_dtype: Input should be 'float32' or 'bfloat16'"):
        parse_config({"models": ["a"], "encoder_dtype": "float16"}, "here")


def test_only_what_trains_saes_depends_on_it(config: StudyConfig, tmp_path: Path) -> None:
    """And where nobody asks, records from before there was a choice still stand."""
    sources = Sources("text", {config.models[0]: ModelSource.of(load(config.models[0]))})
    single = Graph(config, RunFolder(tmp_path), sources)
    half = Graph(in_bfloat16(config), RunFolder(tmp_path), sources)
    for unit in single.units:
        was, settings = single.settings(unit), half.settings(unit)
        assert "encoder_dtype" not in was
        assert settings.pop("encoder_dtype", None) == (
            "bfloat16" if unit.kind in ("pilots", "saes") else None
        )
        assert settings == was


def test_every_sae_of_a_study_is_trained_with_it(config: StudyConfig, tmp_path: Path) -> None:
    runs = [
        run_study(one, tmp_path / one.encoder_dtype, quiet=True)
        for one in (config, in_bfloat16(config))
    ]
    found = []
    for run, dtype in zip(runs, ("float32", "bfloat16"), strict=True):
        assert run.failures == []
        folders = [file.parent for file in sorted(run.path.glob("saes/**/cfg.json"))]
        trained = [saes.load(folder) for folder in folders]
        assert len(trained) == config.n_seeds
        assert {sae.cfg.encoder_dtype for sae in trained if sae.cfg} == {dtype}
        found.append((trained[0].W_dec, run.results.query("quantity == 'fvu'").value.mean()))
    assert (found[0][0] != found[1][0]).any()
    assert found[1][1] == pytest.approx(found[0][1], rel=0.05)
