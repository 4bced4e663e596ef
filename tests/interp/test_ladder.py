"""The embedded ladder: shipped files, their records, and the recipe that made them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from interp import ladder
from interp.cli.parts import LOSS_TOKENS
from interp.errors import UserError
from interp.ladder import corpus
from interp.ladder.bigram import bigram_loss
from interp.ladder.bracket import best_run, open_sides
from interp.ladder.card import BRACKET_FILE, CARD_FILE, card_text
from interp.ladder.recipe import BRACKET, BRACKET_TOKENS, Recipe, learning_rates
from interp.ladder.train import build_model, held_out_loss, train

MAX_BYTES = 32_000_000


def tiny_recipe(**changes: object) -> Recipe:
    return Recipe(
        **{
            "d_model": 16,
            "lr": 0.01,
            "lr_hidden": 0.003,
            "n_tokens": 512 * 12,
            "batch_tokens": 512,
            "compile": False,
        }
        | changes
    )


@pytest.fixture
def stream() -> np.ndarray:
    """A learnable stream: a noisy cycle through 64 tokens."""
    rng = np.random.default_rng(0)
    ids = np.arange(20_000) % 64
    noise = rng.random(20_000) < 0.1
    ids[noise] = rng.integers(0, 1024, noise.sum())
    return ids.astype(np.uint16)


# What is shipped


@pytest.mark.parametrize("name", ladder.names())
def test_a_shipped_model_has_the_loss_its_card_says(name: str) -> None:
    from interp.loss import loss
    from interp.models import load
    from interp.tokens import tokens

    model = load(name)
    record = ladder.record(name)
    assert model.d_model == record["d_model"] == int(name.removeprefix("ladder/d"))
    assert model.n_layers == 4
    assert model.n_params == record["n_params"]
    assert model.train_tokens == record["recipe"]["n_tokens"] >= 25_000_000
    blocks = tokens("deps", model, n_tokens=262_144, split="held_out")
    # The card's figure was computed by the same code from the same fp16 file: only the order of
    # float32 sums differs between machines.
    small = loss(model, blocks[:32])
    assert math.isfinite(small.nats_per_token)
    assert abs(small.nats_per_token - record["deps_first_blocks_nats_per_token"]) < 2e-3
    assert f"{record['deps_nats_per_token']:.4f}" in CARD_FILE.read_text()


def test_the_cards_losses_are_of_the_text_that_studies_measure() -> None:
    """A row from before the text changed would bend every fit to the ladder."""
    root = Path(__file__).parents[2]
    quick = json.loads((root / "results" / "quick" / "summary.json").read_text())["models"]
    config = yaml.safe_load((root / "results" / "quick" / "config.resolved.yaml").read_text())
    assert (config["text"], config["loss_tokens"]) == ("deps", LOSS_TOKENS)
    assert len(quick) >= 5
    for model in quick:
        of_card = ladder.record(model["name"])["deps_nats_per_token"]
        assert of_card == pytest.approx(model["loss_nats_per_token"], abs=1e-5), model["name"]


def test_every_shipped_model_passed_its_gate() -> None:
    """On the quality of training, not on its outcome."""
    assert len(ladder.names()) >= 5
    for name in ladder.names():
        record = ladder.record(name)
        assert record["held_out_projects_nats_per_token"] < record["bigram_nats_per_token"], name
        assert record["loss_spikes"] == 0, name
        width = record["d_model"]
        assert (record["recipe"]["lr"], record["recipe"]["lr_hidden"]) == learning_rates(width)


def test_the_ladder_stays_small_and_holds_no_pickle() -> None:
    files = [p for p in ladder.CHECKPOINTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < MAX_BYTES
    assert {p.suffix for p in files} == {".json", ".safetensors"}


def test_the_card_is_what_the_records_say() -> None:
    records, manifest, bracket = (
        json.loads(f.read_text()) for f in (ladder.RECORDS_FILE, corpus.MANIFEST_FILE, BRACKET_FILE)
    )
    budgets = json.loads(ladder.BUDGETS_FILE.read_text()) if ladder.BUDGETS_FILE.exists() else []
    assert CARD_FILE.read_text() == card_text(records, manifest, bracket, budgets)


def test_the_chosen_rates_lie_among_those_that_were_run() -> None:
    runs = json.loads(BRACKET_FILE.read_text())
    assert len({run["d_model"] for run in runs}) >= 3
    for width in {run["d_model"] for run in runs}:
        for rate, chosen in zip(("lr", "lr_hidden"), learning_rates(width), strict=True):
            tried = [run[rate] for run in runs if run["d_model"] == width]
            assert min(tried) < chosen < max(tried), (width, rate)


def test_every_run_of_the_bracket_is_in_the_recipe() -> None:
    for run in json.loads(BRACKET_FILE.read_text()):
        assert (run["lr"], run["lr_hidden"]) in BRACKET[run["d_model"]]
        assert run["n_tokens"] == BRACKET_TOKENS[run["d_model"]]


@pytest.mark.parametrize("width", [32, 96, 256])
def test_the_bracket_is_closed_on_all_sides(width: int) -> None:
    assert open_sides(json.loads(BRACKET_FILE.read_text()), width) == []


def test_a_bracket_that_ends_downhill_is_open() -> None:
    def run(lr: float, lr_hidden: float, loss: float) -> dict[str, float]:
        return {"d_model": 8, "lr": lr, "lr_hidden": lr_hidden, "held_out_loss_nats": loss}

    runs = [run(2, 1, 5.0), run(4, 1, 4.0), run(8, 1, 4.5), run(4, 2, 4.2)]
    assert best_run(runs, 8) == runs[1]
    assert open_sides(runs, 8) == ["rate inside the blocks, below"]
    assert open_sides([*runs, run(4, 0.5, 3.9)], 8) == ["rate inside the blocks, below"]
    assert open_sides([*runs, run(4, 0.5, 4.1)], 8) == []
    # A worse run that differs in both rates shows nothing.
    assert open_sides([*runs, run(3, 0.5, 9.0)], 8) == ["rate inside the blocks, below"]


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ladder.checkpoint_path("ladder/d033")


# The corpus


def test_no_training_project_is_in_the_lock() -> None:
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text().splitlines()
    locked = {line.split("==")[0].lower().replace("_", "-") for line in lock if "==" in line}
    projects = corpus.load_projects()
    names = {r.split("==")[0].lower().replace("_", "-") for rs in projects.values() for r in rs}
    assert len(names) >= 20
    assert not names & locked


def test_the_manifest_names_every_project_with_licence_and_hash() -> None:
    manifest = json.loads(corpus.MANIFEST_FILE.read_text())
    projects = corpus.load_projects()
    assert len(manifest["projects"]) == sum(map(len, projects.values()))
    assert manifest["bytes"]["train"] > 120e6
    for project in manifest["projects"]:
        assert len(project["sha256"]) == 64
        assert project["licence"]
        assert "GPL" not in project["licence"]


CODE = "\n".join(f"def f{i}(x):\n    return x + {i}  # note {i * 7}" for i in range(60)) + "\n"


def test_near_duplicates_are_excluded_and_the_rest_is_kept() -> None:
    other = "\n".join(f"class C{i}:\n    name = 'value {i * 3}'\n" for i in range(60)) + "\n"
    evaluation = corpus.shingle_hashes(CODE)
    assert len(evaluation) > 10
    edited = CODE.replace("def f3(x)", "def g3(y)")
    assert corpus._verdict(edited, evaluation, set(), set()) == "near evaluation text"
    seen_text: set[bytes] = set()
    seen_shingles: set[int] = set()
    nothing = np.zeros(0, np.uint64)
    assert corpus._verdict(other, evaluation, seen_text, seen_shingles) == "files"
    assert corpus._verdict(other + "\n", nothing, seen_text, seen_shingles) == "duplicate"
    assert corpus._verdict(other + "z = 1\n", nothing, seen_text, seen_shingles) == "near duplicate"
    assert corpus._verdict(CODE, nothing, seen_text, seen_shingles) == "files"


def test_shingles_do_not_depend_on_layout_or_process() -> None:
    assert np.array_equal(
        corpus.shingle_hashes(CODE), corpus.shingle_hashes(CODE.replace(" ", "  "))
    )
    assert corpus.shingle_hashes("a b c").size == 0
    assert int(corpus.shingle_hashes(CODE).sum() % np.uint64(1_000_003)) == SHINGLE_SUM


SHINGLE_SUM = 726362
"""Fixed, so that a corpus built elsewhere or later excludes the same files."""


def test_tables_are_dropped_and_long_files_cut_at_a_line() -> None:
    assert corpus.is_generated_table("\n".join(f"{i}, {i * i}, 0x{i:04x}," for i in range(200)))
    assert not corpus.is_generated_table(CODE)
    long = "# comment line\n" * 10_000
    cut = corpus.cap(long)
    assert len(cut.encode()) <= corpus.MAX_BYTES
    assert cut.endswith("\n")
    assert corpus.cap(CODE) == CODE


# The recipe


def test_the_schedule_warms_up_stays_and_decays_to_zero() -> None:
    recipe = tiny_recipe(n_tokens=512 * 100)
    shares = [recipe.schedule(s) for s in range(recipe.n_steps)]
    assert shares[0] == pytest.approx(0.5)  # warm-up of two steps
    assert all(s == 1.0 for s in shares[2 : recipe.decay_start + 1])
    assert shares[-1] == pytest.approx(1 / 20)
    assert all(a > b for a, b in itertools.pairwise(shares[recipe.decay_start :]))


def test_the_model_is_the_declared_one() -> None:
    model = build_model(32)
    assert model.config.n_head == 2
    assert model.config.vocab_size == 1024
    assert model.transformer.wte.weight is model.lm_head.weight
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.02 * 24**0.5, rel=0.02)
    with pytest.raises(UserError, match="head size"):
        build_model(40)


def test_training_attention_is_the_models_own() -> None:
    """The fp32 fused attention used in training gives what transformers' eager attention gives."""
    model = build_model(32).eval()
    ids = torch.randint(0, 1024, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        model.set_attn_implementation("eager")
        theirs = model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_training_learns(tmp_path: Path, stream: np.ndarray) -> None:
    trained = train(tiny_recipe(n_tokens=512 * 30), stream, stream, tmp_path, log_every=4)
    log = json.loads((tmp_path / "log.json").read_text())
    assert log[0]["train_loss_nats"] == pytest.approx(math.log(1024), abs=0.7)
    assert held_out_loss(trained, stream) < log[0]["train_loss_nats"] - 1.0
    assert log[-1]["held_out_loss_nats"] == pytest.approx(held_out_loss(trained, stream), abs=0.01)


def test_a_run_resumes_from_its_checkpoint_exactly(
    tmp_path: Path, stream: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.ladder import train as module

    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    recipe = tiny_recipe()
    whole = train(recipe, stream, stream, tmp_path / "whole", log_every=4)
    seen: list[int] = []

    def stop_at_8(line: module.Progress) -> None:
        seen.append(line.step)
        if line.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, stream, stream, tmp_path / "cut", log_every=4, heartbeat=stop_at_8)
    seen.clear()
    again = train(
        recipe, stream, stream, tmp_path / "cut", log_every=4,
        heartbeat=lambda line: seen.append(line.step),
    )  # fmt: skip
    assert seen[0] == 8, "resumed from the checkpoint after step 4"
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_folder_of_another_recipe_is_refused(tmp_path: Path, stream: np.ndarray) -> None:
    train(tiny_recipe(n_tokens=512), stream, stream, tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        train(tiny_recipe(n_tokens=512, lr=0.02), stream, stream, tmp_path)


def test_a_run_on_another_text_is_refused(tmp_path: Path, stream: np.ndarray) -> None:
    train(tiny_recipe(n_tokens=512), stream, stream, tmp_path)
    with pytest.raises(UserError, match="another text"):
        train(tiny_recipe(n_tokens=512), stream[::-1], stream, tmp_path)


def test_too_short_a_stream_is_refused(tmp_path: Path, stream: np.ndarray) -> None:
    with pytest.raises(UserError, match="fewer than"):
        train(tiny_recipe(n_tokens=10**6), stream, stream, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_bigram_baseline_is_the_entropy_of_a_markov_chain() -> None:
    rng = np.random.default_rng(1)
    ids = [0]
    for _ in range(60_000):
        ids.append(1 - ids[-1] if rng.random() < 0.9 else ids[-1])
    stream = np.array(ids, np.uint16)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    # Sampling error of a mean of 30,000 log-probabilities with spread 0.66 is 0.004.
    assert bigram_loss(stream[:30_000], stream[30_000:]) == pytest.approx(entropy, abs=0.016)
