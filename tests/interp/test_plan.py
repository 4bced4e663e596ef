"""Plans: operations against torch's own counter, bytes against what is then written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny

from interp import cli, families, plan
from interp.budgets import require_fit, require_memory, require_room, require_time
from interp.capture import run_blocks
from interp.config import StudyConfig, resolve_config
from interp.errors import UserError
from interp.hook_points import HookPoint, architectures, kinds
from interp.models import wrap
from interp.plan import Cost, forward_flops, plan_capture, plan_study
from interp.recording import SPARE_BYTES, prepare, record
from interp.report.wording import significant
from interp.run import TRAINED


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)


@pytest.mark.parametrize("name", architectures())
def test_operations_equal_torchs_counter(name: str, tiny_model: Any) -> None:
    """Within 1%: ours leaves out nothing but rotary embeddings' tiny products."""
    from torch.utils.flop_counter import FlopCounterMode

    hf = tiny(name)
    hf.set_attn_implementation("eager")  # the counter does not see into the fused one on a CPU
    model = wrap(
        hf, tiny_model.tokenizer, name=name, family=name, train_tokens=None, weights_sha256=""
    )
    ids = torch.arange(24).view(2, 12)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hf(input_ids=ids)
    last = HookPoint("resid_post", model.n_layers - 1)
    mine = ids.numel() * forward_flops(model, last, 12, with_loss=True)
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.01)
    for point in (HookPoint(kind, 1) for kind in kinds(hf)):
        with FlopCounterMode(display=False) as counter:
            run_blocks(model, ids, {point: lambda value: None}, with_loss=False)
        mine = ids.numel() * forward_flops(model, point, 12, with_loss=False)
        assert mine == pytest.approx(counter.get_total_flops(), rel=0.01), point


def test_fewer_layers_and_no_head_cost_less(tiny_model: Any) -> None:
    first, last = HookPoint("resid_post", 0), HookPoint("resid_post", 2)
    one = forward_flops(tiny_model, first, 32, with_loss=False)
    assert forward_flops(tiny_model, last, 32, with_loss=False) == 3 * one
    assert forward_flops(tiny_model, HookPoint("resid_pre", 2), 32, with_loss=False) == 2 * one
    head = forward_flops(tiny_model, last, 32, with_loss=True) - 3 * one
    assert head == 2 * 300 * 32


def test_a_capture_is_planned_to_the_byte_and_leaves_nothing(
    tiny_model: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    recording = prepare(tiny_model, tiny_tokens, "resid_post", with_loss=True)
    out = tmp_path / "deeper" / "store"
    before = set(tmp_path.iterdir())
    cost = plan_capture(recording, out)
    assert set(tmp_path.iterdir()) == before
    record(recording, out)
    actual = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    assert cost.n_bytes == pytest.approx(actual, rel=0.1)
    assert cost.seconds > 0


@pytest.fixture
def config(tiny_dir: Path, save_tiny: Any, tmp_path: Path) -> StudyConfig:
    wide = save_tiny(tmp_path / "wide", d_model=64)
    return StudyConfig(
        models=(str(tiny_dir), str(wide)),
        twins=(str(wide),),
        text="stdlib",
        loss_tokens=2_048,
        means_tokens=8_192,
        pilot_tokens=4_096,
        sae_tokens=16_384,
        held_out_tokens=8_192,
        splice_tokens=1_024,
        pilot_ks=(2, 4),
        n_seeds=2,
        threads=1,
    )


def test_a_study_is_planned_part_by_part(config: StudyConfig) -> None:
    narrow, wide, twin, report = plan_study(config)
    assert report.what == "report"
    assert (twin.n_bytes, twin.flops) == (wide.n_bytes, wide.flops)
    assert "untrained twin" in twin.what
    assert 2 < wide.flops / narrow.flops < 8
    weights = 2 * 64 * 256 + 64 + 256
    assert wide.n_bytes > config.n_seeds * 4 * weights
    more = plan_study(config.model_copy(update={"n_seeds": 4, "twins": ()}))
    assert more[1].n_bytes > 1.5 * wide.n_bytes
    assert all(cost.seconds > 0 for cost in more)
    # Beside the first size at the primary layer, a twin has what it is asked for.
    whole = config.model_copy(update={"d_sae_per_d_model": (4, 8), "other_layers": True})
    deeper = whole.model_copy(update={"twin_other_layers": True})
    bytes_of = [plan_study(one)[2].n_bytes for one in (whole, deeper)]
    assert twin.n_bytes == bytes_of[0] < bytes_of[1]


@pytest.mark.slow
def test_a_study_takes_the_bytes_that_were_planned(config: StudyConfig, tmp_path: Path) -> None:
    from interp.study import run_study

    planned = sum(cost.n_bytes for cost in plan_study(config))
    run_study(config, tmp_path / "study", quiet=True)
    actual = sum(f.stat().st_size for f in (tmp_path / "study").rglob("*") if f.is_file())
    assert planned == pytest.approx(actual, rel=0.1)


def test_a_study_without_room_is_refused_with_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = SPARE_BYTES + 500

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    require_room([Cost("a", 0, 400, 0, 100)], tmp_path, n_seeds=5)
    costs = [Cost("a", 0, 800, 0, 100), Cost("b", 0, 0, 0, 200)]
    with pytest.raises(UserError, match=r"needs 1,000 bytes.* room for 500; --seeds 3 would fit"):
        require_room(costs, tmp_path, n_seeds=7)
    # Two seeds would fit, and give no interval.
    with pytest.raises(UserError, match="use fewer models"):
        require_room(costs, tmp_path, n_seeds=5)


def test_budgets_are_kept_and_what_would_fit_is_said(config: StudyConfig, tmp_path: Path) -> None:
    small, large = config.models
    costs = [
        Cost(small, 0, 2_000_000, 1_800.0, memory_bytes=10**9),
        Cost(large, 0, 2_000_000, 5_400.0, memory_bytes=3 * 10**9),
    ]

    def budget(**limits: float) -> StudyConfig:
        return config.model_copy(update=limits)

    require_fit(costs, budget(max_memory_gb=3.1, max_disk_gb=0.005, max_hours=2.1), tmp_path)
    with pytest.raises(UserError, match=r"needs 4,000,000 bytes and max_disk_gb allows 3,000,000"):
        require_room(costs, tmp_path, 3, max_disk_gb=0.003)
    with pytest.raises(UserError, match=rf"max_memory_gb allows 2,0.*; --models {small} would fit"):
        require_memory(costs, budget(max_memory_gb=2.0))
    with pytest.raises(UserError, match="use a smaller chunk_tokens"):
        require_memory(costs, budget(max_memory_gb=0.5))
    told = r"2\.00 hours here and max_hours is 1; .* 50% would fit \(--tokens 8200\)"
    with pytest.raises(UserError, match=told):
        require_time(costs, budget(max_hours=1.0))
    require_time(costs, budget())


def test_peak_memory_grows_with_what_is_held(config: StudyConfig) -> None:
    def peak(**more: object) -> int:
        cost = plan_study(config.model_copy(update={"models": config.models[1:], **more}))[0]
        return cost.memory_bytes

    first = peak()
    assert first > 100e6, "the libraries alone"
    # 32 million more tokens at 26 bytes.
    assert peak(sae_tokens=32_016_384) - first > 0.9 * 26 * 32e6
    assert plan_study(config)[0].n_units == 5


def test_the_commands_print_a_table_or_json(
    config: StudyConfig,
    tiny_dir: Path,
    text_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    line = ("plan", str(tmp_path / "study.yaml"), "--out", str(tmp_path))
    assert cli.main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [part["what"] for part in found["parts"]][-1] == "report"
    assert found["total"]["n_bytes"] == sum(part["n_bytes"] for part in found["parts"])
    options = {"out": str(tmp_path / "s"), "hook-points": "resid_pre", "tokens": "100"}
    options |= {"text": str(text_folder), "split": "all"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert cli.main(["capture", str(tiny_dir), *words, "--plan"]) == 0
    assert "total" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


SHAPES = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
    "EleutherAI/pythia-70m": (512, 6, 8),
    "EleutherAI/pythia-410m": (1024, 24, 16),
    "EleutherAI/pythia-1.4b": (2048, 24, 16),
    "EleutherAI/pythia-12b": (5120, 36, 40),
}
"""d_model, layers, heads, as published."""


def weightless(name: str) -> Any:
    """A model of that shape on torch's meta device: all that counting needs."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    d_model, n_layers, n_heads = SHAPES[name]
    with torch.device("meta"):
        if name.startswith("gpt2"):
            config = GPT2Config(n_embd=d_model, n_layer=n_layers, n_head=n_heads)
            hf, n_ctx = GPT2LMHeadModel(config), 1024
        else:
            sizes = {"hidden_size": d_model, "intermediate_size": 4 * d_model, "vocab_size": 50_304}
            heads = {"num_hidden_layers": n_layers, "num_attention_heads": n_heads}
            hf, n_ctx = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **heads)), 2048
    return SimpleNamespace(
        name=name, hf=hf, d_model=d_model, n_layers=n_layers, n_ctx=n_ctx,
        d_vocab=hf.config.vocab_size, unembedding=hf.get_output_embeddings().weight,
    )  # fmt: skip


def test_the_page_of_a_cluster_says_what_the_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for timed in ("_forward_seconds", "_sae_seconds"):
        monkeypatch.setattr(plan, timed, lambda *_, **__: 0.0)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md").read_text()
    flops = {}
    for name in SHAPES:
        family = "gpt2" if name.startswith("gpt2") else "pythia"
        config = resolve_config(family, {"sae_tokens": 100_000_000, "threads": 8})
        cost = plan._model_cost(config, weightless(name), TRAINED, {})
        gigabytes = (cost.n_bytes, cost.scratch_bytes, cost.memory_bytes)
        cells = [cost.flops / 1e15, *(n / 1e9 for n in gigabytes)]
        assert f"| {name} | {' | '.join(map(significant, cells))} |" in page
        flops[name] = cost.flops / 1e15
    total = 2 * sum(flops[name] for name in families.members("gpt2"))
    longest = flops["gpt2-xl"]
    assert (
        f"twins are {significant(total)} PFLOP, and GPT-2 XL alone is {significant(longest)} of"
        in (" ".join(page.split()))
    )
    assert f"more than {significant(total / longest, 2)} times" in page
