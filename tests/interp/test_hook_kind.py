"""Studies at other hook points than a block's output: what is read, spliced, refused and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from report_run import packing_record, summary
from tiny_models import tiny
from tiny_study import tiny_study

from interp import cli, plan
from interp.capture import capture
from interp.config import HookKind, StudyConfig, parse_config
from interp.contextual import ContextualMeans
from interp.corpora import load_text
from interp.errors import UserError
from interp.graph import Graph
from interp.hook_points import KINDS, HookPoint
from interp.models import load
from interp.plan import plan_study
from interp.report import headline
from interp.run import GAUSSIAN, RunFolder
from interp.sources import ModelSource, Sources
from interp.spots import layer_depth, primary_layer, spots
from interp.study import run_study
from interp.tokens import tokens


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    """Of one model of two layers."""
    return tiny_study(tmp_path_factory.mktemp("family"), save_tiny, widths=(16,), twins=())


def test_a_study_may_be_at_every_kind_of_hook_point() -> None:
    assert get_args(HookKind) == KINDS
    with pytest.raises(UserError, match="hook_kind: Input should be 'resid_pre', 'attn_out'"):
        parse_config({"models": ["a"], "hook_kind": "resid"}, "here")


def test_the_input_of_a_block_is_as_deep_as_the_output_before_it(config: StudyConfig) -> None:
    assert layer_depth("resid_pre", 2, 4) == layer_depth("resid_post", 1, 4) == 0.5
    assert layer_depth("mlp_out", 1, 4) == 0.5
    before = config.model_copy(update={"hook_kind": "resid_pre"})
    assert [primary_layer(config, n) for n in (1, 2, 4)] == [0, 0, 1]
    assert [primary_layer(before, n) for n in (1, 2, 4)] == [0, 1, 2]


def test_a_study_at_block_outputs_has_the_names_and_inputs_it_always_had(
    config: StudyConfig, tmp_path: Path
) -> None:
    """Else every study from before would be measured anew."""
    source = ModelSource.of(load(config.models[0]))
    wide = config.model_copy(update={"other_layers": True, "other_k_rules": ("constant",)})
    graph = Graph(wide, RunFolder(tmp_path), Sources("text", {config.models[0]: source}))
    assert [unit.name for unit in graph.units] == [
        "loss",
        "streams",
        "pilots",
        "saes",
        "rows.blocks.0.hook_resid_post.contextual.32.fvu",
        "rows.blocks.0.hook_resid_post.contextual.32.constant",
        "rows.blocks.1.hook_resid_post.contextual.32.fvu",
    ]
    own = [set(graph.settings(unit)) - set(graph.settings(graph.units[0])) for unit in graph.units]
    streams, pilots, saes, rows, *_ = own[1:]
    assert streams == {"means_tokens", "chunk_tokens", "streams"}
    assert pilots == {"pilot_tokens", "pilot_ks", "target_fvu", "held_out_tokens", "chunk_tokens",
                      "confirm_k", "streams", "longest_tokens"}  # fmt: skip
    assert saes == {"sae_tokens", "primary_sae_tokens", "check_convergence", "chunk_tokens",
                    "streams", "longest_tokens"}  # fmt: skip
    assert rows == {"sae_tokens", "primary_sae_tokens", "target_fvu", "held_out_tokens",
                    "splice_tokens"}  # fmt: skip


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "mlp_out"])
def test_a_study_counts_where_it_is_told_to(kind: str, config: StudyConfig, tmp_path: Path) -> None:
    name = config.models[0]
    with_noise = {"gaussian": (name,) if kind == "mlp_out" else ()}
    config = config.model_copy(update={"hook_kind": kind, **with_noise})
    layer = 1 if kind == "resid_pre" else 0
    point = f"blocks.{layer}.hook_{kind}"
    run = run_study(config, tmp_path / "run", quiet=True)
    assert set(run.results.hook_point.dropna()) == {point}
    assert all(key.startswith(f"{point}.contextual/") for key in run.saes(name))
    assert len(run.saes(name)) == config.n_seeds
    records = run.summary["packing"]
    assert {r["hook_point"] for r in records} == {point}
    assert all(r["primary_layer"] and r["layer_fraction"] == 0.5 for r in records)
    if with_noise["gaussian"]:
        assert {c["name"] for r in records for c in r["controls"]} == {GAUSSIAN}
        assert "in what the MLP adds" in run.summary["headline"]
    # The means are those of this very tensor, of its training documents.
    model = load(name)
    corpus = load_text(config.text)
    blocks = tokens(corpus, model, n_tokens=6_000, split="train", seed=config.seed)
    part = blocks[: -(-config.means_tokens // blocks.n_ctx)]
    x = torch.cat([c.acts[point][c.keep] for c in capture(model, part, point)])
    means = ContextualMeans.load(
        RunFolder(run.path).work(name, "trained") / f"means.{layer}.safetensors"
    )
    assert means.n_tokens == len(x)
    torch.testing.assert_close(means.mean, x.mean(0), atol=1e-4, rtol=1e-4)
    # And the spliced loss lies where a splice there can bring it.
    trained = run.results[run.results.control == "trained"].set_index("quantity").value
    clean, ablated = trained["ce_loss_clean"], trained["ce_loss_ablated"]
    assert clean == pytest.approx(trained["loss_nats_per_token"], abs=0.2)
    assert ablated != clean
    assert (run.path / "report.html").read_text().count(point)


def test_other_hook_points_are_another_study(config: StudyConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(config)
    with pytest.raises(UserError, match="hook_kind is 'resid_post' there, 'mlp_out' here"):
        folder.claim(config.model_copy(update={"hook_kind": "mlp_out"}))


def test_a_kind_that_a_model_lacks_is_refused_before_any_work(
    config: StudyConfig,
    tiny_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parallel = tmp_path / "parallel"
    tiny("gpt_neox", n_vocab=len(tiny_tokenizer)).save_pretrained(parallel)
    tiny_tokenizer.save_pretrained(parallel)
    asked = config.model_copy(
        update={"models": (*config.models, str(parallel)), "hook_kind": "resid_mid"}
    )
    (tmp_path / "study.yaml").write_text(asked.to_yaml())
    for line in (["study"], ["plan"]):
        out = tmp_path / "out"
        assert cli.main([*line, str(tmp_path / "study.yaml"), "--out", str(out)]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith(f"interp: {parallel}: hook_kind resid_mid: blocks.0.hook_resid_mid")
        assert "use resid_pre or resid_post" in told
        assert not out.exists()
    for_loss = asked.model_copy(
        update={"models": config.models, "loss_only_models": (str(parallel),)}
    )
    assert [cost.what for cost in plan_study(for_loss)][1] == str(parallel), "it gets no SAEs"


def test_the_input_of_a_block_is_planned_without_the_block(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)
    at = {
        kind: plan_study(config.model_copy(update={"hook_kind": kind, "primary_layer_fraction": 1}))
        for kind in ("resid_pre", "attn_out", "resid_post")
    }
    flops = [cost[0].flops for cost in at.values()]
    assert flops == sorted(set(flops))
    assert len({cost[0].n_bytes for cost in at.values()}) == 1


def test_the_answer_says_what_was_counted_in() -> None:
    data = summary()
    plain = headline(data)
    assert "adds" not in plain
    for record in data["packing"]:
        record["hook_point"] = record["hook_point"].replace("resid_post", "mlp_out")
    assert ", in what the MLP adds, " in headline(data)
    one = packing_record(32) | {"layer_fraction": None}
    for kind, word in (("resid_pre", "Before"), ("resid_post", "After")):
        row = one | {"hook_point": str(HookPoint(kind, one["layer"]))}
        assert f"{word} layer 1 " in headline(data | {"packing": [row]}), kind


def test_layers_are_chosen_beside_the_primary_one(config: StudyConfig) -> None:
    def layers(**more: object) -> list[int]:
        return [s.layer for s in spots(config.model_copy(update=more), 16, 6)]

    assert layers() == [2]
    assert layers(other_layers=True) == [2, 0, 1, 3, 4, 5]
    assert layers(other_layers=True, layers=(5, 2, 0)) == [2, 0, 5], "the primary one stays first"


def test_layers_that_are_not_there_are_refused_before_any_work(
    config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"layers \[1\] are those that other_layers adds"):
        parse_config({"models": ["a"], "layers": [1]}, "here")
    with pytest.raises(UserError, match=r"layers\.0: .* greater than or equal to 0"):
        parse_config({"models": ["a"], "other_layers": True, "layers": [-1]}, "here")
    with pytest.raises(UserError, match="layers has an entry twice"):
        parse_config({"models": ["a"], "other_layers": True, "layers": [1, 1]}, "here")
    deeper = config.model_copy(update={"other_layers": True, "layers": (1, 2)})
    (tmp_path / "study.yaml").write_text(deeper.to_yaml())
    for command in ("study", "plan"):
        out = tmp_path / "out"
        assert cli.main([command, str(tmp_path / "study.yaml"), "--out", str(out)]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "layers [1, 2]: blocks.2.hook_resid_post: the model has 2 layers" in told
        assert not out.exists()
