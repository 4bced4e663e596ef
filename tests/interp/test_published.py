"""Published SAEs: what the presets name is there, and what is counted is what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_stand_in import hub_stand_in

import saes
from interp.cli import main
from interp.errors import UserError
from interp.published import PRESETS, find
from interp.sae_counts import REASON, count_sae, held_out_rows
from saes.sae import SAE

REPO = "me/published"
HUB_NAMES = {"gpt2-small": "gpt2", "gemma-2-2b": "google/gemma-2-2b",
             "gemma-2-9b": "google/gemma-2-9b"}  # fmt: skip


def identity(d: int, k: int = 1) -> SAE:
    """Latent i is the i-th axis."""
    eye = torch.eye(d)
    return SAE(eye, eye.clone(), torch.zeros(d), torch.zeros(d), k=k)


def test_the_presets_name_what_sae_lens_knows() -> None:
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).with_name("pretrained_saes.yaml").read_text()
    known = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert set(PRESETS) == {"gpt2-small", "gemma-scope", "qwen3"}
    for one in (sae for preset in PRESETS.values() for sae in preset):
        release = known[one.release]
        assert one.sae_id in {sae["id"] for sae in release["saes"]}, one
        assert HUB_NAMES.get(release["model"], release["model"]) == one.model
        assert "-res-" in f"{one.release} {release['repo_id']}".lower(), "of the residual stream"
    sizes = [int(one.sae_id.rpartition("_")[2]) for one in PRESETS["gpt2-small"]]
    assert sizes == [768 * 2**i for i in range(8)]


def test_the_counts_of_one_dictionary_by_hand() -> None:
    """Four of eight latents fire: on 40, 12, 9 and 1 of 62 tokens, each on 20 of 40 documents."""
    latents = [0] * 40 + [1] * 12 + [2] * 9 + [3]
    x = torch.eye(8)[latents] * 2
    found = count_sae(identity(8), x, torch.arange(62) % 31)
    values = {e.estimator: e.value for e in found.estimates}
    # Latent 0 fires on more than a fifth of the tokens and carries the mean.
    assert [values[f"live_latents_{tau}"] for tau in (1, 10, 100)] == [3, 1, 0]
    # One live latent that fires often enough: however the mass is weighed, its number is 1.
    assert [values[f"hill_{q}"] for q in (0, 1, 2)] == [1, pytest.approx(1), pytest.approx(1)]
    assert found.fvu == pytest.approx(0, abs=1e-12)
    assert (found.l0, found.dead_fraction, found.d_sae, found.k) == (1, 0.5, 8, 1)
    assert (found.n_tokens, found.n_documents, found.overlap) == (62, 31, None)
    row = found.to_json()
    assert row["reason"] == REASON
    assert not any(e["estimator"] == "reproducible" for e in row["estimates"])
    json.dumps(row, allow_nan=False)


def test_an_sae_of_a_centred_model_reads_the_centred_stream() -> None:
    """Whatever is added to all dimensions of a row changes nothing; uncentred it does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 24, generator=generator)
    moved = x + torch.randn(400, 1, generator=generator) * 5
    docs = torch.arange(400) // 20
    sae = identity(24, k=2)
    a, b = (count_sae(sae, rows, docs, centred=True) for rows in (x, moved))
    assert a.fvu == pytest.approx(b.fvu, rel=1e-4)
    assert [e.value for e in a.estimates] == pytest.approx([e.value for e in b.estimates], rel=1e-4)
    raw = count_sae(sae, moved, docs)
    assert abs(raw.fvu - a.fvu) > 0.05


def test_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="rows of 8 and the model's have 6"):
        count_sae(identity(8), torch.rand(20, 6), torch.arange(20))


@pytest.mark.parametrize(
    ("what", "model", "says"),
    [
        ("gpt3", None, "presets: gpt2-small, gemma-scope, qwen3"),
        ("gpt2-small", "gpt2", "leave --model out"),
        ("a:b", None, "give --model"),
    ],
)
def test_what_cannot_be_found_says_how_to_name_it(what: str, model: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        find(what, model)


def test_the_list_needs_no_hub_and_says_that_the_rest_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["published"]) == 0
    said = capsys.readouterr().out
    assert "on the hub" in said
    assert "gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical" in said


def published(*argv: str, hub: str, home: Path) -> Any:
    """In a process of its own: huggingface_hub reads its surroundings when it is imported."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    surroundings |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    line = [sys.executable, "-m", "interp.cli", "published", *argv]
    return subprocess.run(line, env=surroundings, capture_output=True, text=True, timeout=300)


def test_an_sae_of_the_hub_is_counted_and_one_that_is_not_there_is_one_line(
    tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    from interp.models import load
    from interp.tokens import tokens

    folder = save_tiny(tmp_path / "model", d_model=16, n_layers=2)
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(f"the {i} of {i * 37} is {i % 7}\n" * 30)
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)
    point = "blocks.0.hook_resid_post"
    config = saes.SAEConfig(d_in=16, d_sae=64, k=4, n_tokens=4_096, hook_point=point)
    sae = SAE(W.T.contiguous(), W, torch.zeros(64), torch.zeros(16), k=4, cfg=config)
    saes.save(sae, tmp_path / "sae")
    with hub_stand_in() as hub:
        hub.files[f"api/models/{REPO}"] = json.dumps({"id": REPO, "sha": "c" * 40}).encode()
        for file in (tmp_path / "sae").iterdir():
            hub.files[f"{REPO}/one/{file.name}"] = file.read_bytes()
        line = ("--model", str(folder), "--text", str(text), "--tokens", "4096", "--json")
        home = tmp_path / "home"
        done = published(f"{REPO}:one", *line, hub=hub.url, home=home)
        absent = published(f"{REPO}:two", *line, hub=hub.url, home=home)
        unknown = published("me/nothing:one", *line, hub=hub.url, home=home)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    model = load(str(folder))
    x, docs = held_out_rows(
        model, tokens(str(text), model, n_tokens=4_096, split="held_out"), point
    )
    expected = count_sae(sae, x, docs).to_json()
    # The last bit of a forward pass depends on the number of threads.
    assert row["estimates"] == [
        pytest.approx(e) for e in json.loads(json.dumps(expected["estimates"]))
    ]
    assert row["fvu"] == pytest.approx(expected["fvu"])
    assert (row["hook_point"], row["centred"], row["about"]) == (point, False, "all")
    for refused in (absent, unknown):
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "hub" in refused.stderr
    offline = published("gpt2-small", hub="http://127.0.0.1:1", home=tmp_path / "other")
    assert offline.returncode == 2
    assert "cannot be reached" in offline.stderr
    assert offline.stderr.count("\n") == 1
