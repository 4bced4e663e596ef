"""Labels over a study's folder: tokens meet the bytes they stand for, models meet their twins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.cli import main
from interp.config import StudyConfig
from interp.corpora import load_text
from interp.errors import UserError
from interp.labelling import labels_of
from interp.python_labels import LABELS
from interp.run import TRAINED, folder_name
from interp.study import run_study
from interp.tokens import tokens


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with one file that is none."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(40):
        body = "".join(
            f"def f{j}(x, y={j}):\n    # note {i * j}\n    return x + y * {i}\n\n\n"
            for j in range(60)
        )
        (folder / f"{i:02d}.py").write_text(body)
    (folder / "broken.py").write_text("def :\n" * 200)
    return folder


def test_labels_follow_the_tokens_through_the_blocks(tiny_model: Any, source: Path) -> None:
    corpus = load_text(source)
    blocks = tokens(corpus, tiny_model, n_tokens=4_096)
    labels, known = labels_of(blocks, corpus)
    docs = blocks.doc_ids.flatten().numpy()
    texts = {int(d): corpus.documents[int(d)]["text"].encode() for d in np.unique(docs[docs >= 0])}
    at = dict.fromkeys(texts, 0)
    keywords = 0
    for i, (doc, n_bytes, is_text) in enumerate(
        zip(docs, blocks.n_bytes.flatten().tolist(), blocks.is_text.flatten(), strict=True)
    ):
        if not is_text:
            assert not known[i]
            continue
        piece = texts[doc][at[doc] : at[doc] + n_bytes]
        at[doc] += n_bytes
        assert known[i] == (b"def :" not in texts[doc])
        if labels[i, LABELS.index("keyword_def")]:
            keywords += 1
            assert piece.strip() in b"def", piece
        if b"#" in piece and known[i]:
            assert labels[i, LABELS.index("comment")]
    assert known.sum() > 3_000
    assert keywords > 50


def test_a_study_is_labelled_from_the_command_line(
    tmp_path: Path, source: Path, save_tiny: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = str(save_tiny(tmp_path / "model", d_model=16, n_layers=2))
    config = StudyConfig(
        models=(model,), twins=(model,), text=str(source), loss_tokens=2_048, means_tokens=4_096,
        pilot_tokens=4_096, sae_tokens=8_192, held_out_tokens=4_096, splice_tokens=1_024,
        streams=("contextual", "all"), d_sae_per_d_model=(2, 3), n_seeds=2, pilot_ks=(2,),
        check_convergence=False, threads=1,
    )  # fmt: skip
    run = run_study(config, tmp_path / "run", quiet=True)
    assert main(["labels", str(run.path), "--tokens", "8192", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(f["control"], f["about"]) for f in found] == [
        ("trained", "all"), ("trained", "contextual"),
        ("random_init", "all"), ("random_init", "contextual"),
    ]  # fmt: skip
    for one in found:
        assert (one["d_sae"], one["n_seeds"]) == (32, 2)
        assert one["dedicated_min"] <= one["dedicated_mean"] <= one["dedicated_max"]
        assert one["n_labels"] >= len(one["labels"]) > 3
        assert {s["label"] for s in one["labels"]} <= set(LABELS)
    assert main(["labels", str(run.path), "--models", "other"]) == 2
    assert "has no other" in capsys.readouterr().err
    # A study one model and one twin of which could not be measured.
    whole = json.loads((run.path / "summary.json").read_text())
    failed = {"model": model, "control": "random_init", "unit": "train", "error": "no memory"}
    (run.path / "summary.json").write_text(json.dumps(whole | {"failures": [failed]}))
    config_file = run.path / "config.resolved.yaml"
    told = config_file.read_text()
    config_file.write_text(told.replace("models:\n", "models:\n- gone\n", 1))
    assert main(["labels", str(run.path), "--tokens", "8192", "--json"]) == 0
    assert {f["control"] for f in json.loads(capsys.readouterr().out)} == {"trained"}
    config_file.write_text(told)
    (run.path / "summary.json").write_text(json.dumps(whole))
    kept = json.loads((run.path / "manifest.json").read_text())
    for other, told in (
        ({"text_sha256": "0" * 64}, f"the text {source} is not the one"),
        ({"weights_sha256": {folder_name(model, TRAINED): "0" * 64}}, f"the model {model} is not"),
    ):
        (run.path / "manifest.json").write_text(json.dumps(kept | other))
        assert main(["labels", str(run.path), "--tokens", "8192"]) == 2
        assert f"interp: {told}" in capsys.readouterr().err


def test_text_that_is_no_python_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text(
        "It was the best of times, it was the worst of times. " * 99
    )
    corpus = load_text(tmp_path / "prose.txt")
    with pytest.raises(UserError, match="none of its documents is Python"):
        labels_of(tokens(corpus, tiny_model, n_tokens=512), corpus)
