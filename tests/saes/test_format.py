"""The sae-lens folder: round trip, atomic replacement, and sae-lens itself as the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saes import format as sae_format
from saes.config import SAEConfig
from saes.errors import SAEError
from saes.format import load, sae_folders, save
from saes.sae import SAE


def make_sae(seed: int = 0, k: int = 3) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (5, 12), "W_dec": (12, 5), "b_enc": (12,), "b_dec": (5,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    cfg = SAEConfig(d_in=5, d_sae=12, k=k, n_tokens=100, seed=seed, hook_point="blocks.1.x")
    return SAE(**weights, k=k, cfg=cfg, metadata={"status": "done", "tokens_trained": 100})


def test_round_trip(tmp_path: Path) -> None:
    sae = make_sae()
    save(sae, tmp_path / "deep" / "sae")
    again = load(tmp_path / "deep" / "sae")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(again, name))
    assert (again.k, again.cfg, again.metadata) == (sae.k, sae.cfg, sae.metadata)
    assert sorted(p.name for p in (tmp_path / "deep" / "sae").iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
    ]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["sae"]
    assert repr(again) == (
        "SAE(d_in=5, d_sae=12, k=3, hook_point='blocks.1.x', seed=0, status='done')"
    )


def test_same_sae_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(make_sae(), tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(make_sae(0), tmp_path / "sae")
    save(make_sae(1), tmp_path / "sae")
    assert torch.equal(load(tmp_path / "sae").W_enc, make_sae(1).W_enc)


def test_interrupted_save_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_sae(0), tmp_path / "sae")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sae_format, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save(make_sae(1), tmp_path / "sae")
    assert torch.equal(load(tmp_path / "sae").W_enc, make_sae(0).W_enc)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SAEError, match="is no SAE folder"):
        save(make_sae(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(SAEError, match="is no SAE folder"):
        save(make_sae(), tmp_path / "notes.txt")


def test_listing_passes_over_hidden_folders(tmp_path: Path) -> None:
    for name in ("b/2-1-0", "a/2-1-0", "a/.2-1-1-x", ".checkpoints/2-1-0"):
        save(make_sae(), tmp_path / "out" / name)
    a, b = tmp_path / "out" / "a" / "2-1-0", tmp_path / "out" / "b" / "2-1-0"
    assert sae_folders(tmp_path / "out") == [a, b]
    assert sae_folders(a) == [a]
    # What lies above the folder asked for is the user's own affair.
    hidden = tmp_path / "out" / "a" / ".2-1-1-x"
    assert sae_folders(hidden) == [hidden]
    with pytest.raises(SAEError, match="no SAE there or below"):
        sae_folders(tmp_path / "none")


def damaged(tmp_path: Path, **changes: object) -> Path:
    """A saved SAE with its cfg.json changed."""
    folder = tmp_path / "sae"
    save(make_sae(), folder)
    cfg = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "matching_pursuit"}, "architecture 'matching_pursuit' is not supported"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"k": None}, "lacks k"),
        ({"k": 13}, "k 13 is outside"),
    ],
)
def test_unsupported_files_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SAEError, match=words):
        load(damaged(tmp_path, **changes))


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=r"no cfg\.json there"):
        load(tmp_path)
    folder = damaged(tmp_path)
    weights = folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(SAEError, match=r"sae_weights\.safetensors: damaged"):
        load(folder)
    save_file({name: t for name, t in tensors.items() if name != "b_enc"}, weights)
    with pytest.raises(SAEError, match="lacks b_enc"):
        load(folder)
    save_file(tensors | {"b_enc": torch.zeros(3)}, weights)
    with pytest.raises(SAEError, match="weights disagree"):
        load(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(SAEError, match="not JSON"):
        load(folder)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(SAEError, match=r"shape \(3, 4\) but d_in is 5"):
        make_sae().encode(torch.zeros(3, 4))


def test_sae_lens_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 5, generator=generator)

    def assert_agree(ours: SAE, theirs: object) -> None:
        acts = theirs.encode(x)  # type: ignore[attr-defined]
        torch.testing.assert_close(ours.encode_dense(x), acts, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ours.decode(ours.encode(x)),
            theirs.decode(acts),  # type: ignore[attr-defined]
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)  # type: ignore[operator]

    ours = make_sae()
    save(ours, tmp_path / "ours")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert ours.cfg is not None
    assert theirs.cfg.metadata.hook_name == ours.cfg.hook_point
    with torch.no_grad():
        assert_agree(ours, theirs)
        # Control: some tokens have fewer than k positive latents, so ReLU matters.
        assert (ours.encode(x).values == 0).any()
        # Options of theirs that change the function: decoder norms, no centring of the input.
        for rescale, centre in ((True, True), (False, False), (True, False)):
            cfg = sae_lens.TopKSAEConfig(
                d_in=5,
                d_sae=12,
                k=3,
                rescale_acts_by_decoder_norm=rescale,
                apply_b_dec_to_input=centre,
            )
            theirs = sae_lens.TopKSAE(cfg)
            theirs.load_state_dict(
                {name: getattr(make_sae(7), name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
            )
            folder = tmp_path / f"theirs-{rescale}-{centre}"
            theirs.save_model(folder)
            assert_agree(load(folder), theirs)


def test_saved_files_are_for_everyone_to_read_who_may_read_others(tmp_path: Path) -> None:
    eye = torch.eye(3)
    save(SAE(eye, eye, torch.zeros(3), torch.zeros(3), k=1), tmp_path / "sae")
    (tmp_path / "other").write_text("")
    usual = (tmp_path / "other").stat().st_mode
    modes = {file.stat().st_mode for file in (tmp_path / "sae").iterdir()}
    assert modes == {usual}


def test_a_full_disk_is_one_line_and_the_old_sae_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saes import format as sae_format

    eye = torch.eye(3)
    old, new = (SAE(f * eye, eye, torch.zeros(3), torch.zeros(3), k=1) for f in (1, 2))
    save(old, tmp_path / "sae")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(sae_format, "save_file", full)
    with pytest.raises(SAEError, match=r"sae: could not be written .*No space left"):
        save(new, tmp_path / "sae")
    assert torch.equal(load(tmp_path / "sae").W_enc, eye)
    assert [file.name for file in tmp_path.iterdir()] == ["sae"]
