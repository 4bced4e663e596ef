"""What the explorer computes, piece by piece, against plain formulas and planted truths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from explorer_pages import facts as facts_of

from interp.explore.agreement import Codes, best_elsewhere, in_other_seeds, neighbours
from interp.explore.exploring import compared_with
from interp.explore.firings import AFTER, BEFORE, STRONGEST, Firings, Text
from interp.explore.latents import Seeds
from interp.explore.lens import logit_lens
from interp.explore.pages import Facts
from interp.explore.records import HeldOutText
from interp.explore.token_text import held_out_text, of_bytes, vocabulary
from interp.hook_points import architectures

RNG = np.random.default_rng(0)


def sparse(n: int, d: int, density: float = 0.1) -> np.ndarray:
    return RNG.random((n, d)) * (RNG.random((n, d)) < density)


# Agreement


def test_neighbours_are_those_of_all_cosines() -> None:
    W = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    unit = W / W.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    near, values = neighbours(W, 3)
    assert (near == cosines.topk(3, dim=1).indices.numpy()).all()
    assert values == pytest.approx(cosines.topk(3, dim=1).values.numpy(), abs=1e-6)
    # A dictionary of two has one neighbour each.
    assert neighbours(W[:2], 5)[0].tolist() == [[1], [0]]


def test_the_best_elsewhere_is_that_of_all_correlations() -> None:
    n = 600
    a, b = sparse(n, 12), sparse(n, 9)
    b[:, 4] = a[:, 7] + 0.2 * sparse(n, 1)[:, 0]
    a[:, 3] = 0
    a[:5, 3] = 1  # too rare to say anything of
    b[:, 8] = 0  # dead
    kept_a, kept_b = RNG.random(n) < 0.9, RNG.random(n) < 0.9
    a[~kept_a], b[~kept_b] = 0, 0
    both = kept_a & kept_b
    expected = np.corrcoef(a[both].T, np.delete(b, 8, axis=1)[both].T)[:12, 12:]
    found = best_elsewhere(
        Codes(sp.csr_array(a), kept_a), Codes(sp.csr_array(b), kept_b), min_correlation=-1.0
    )
    assert 3 not in found
    assert set(found) == set(range(12)) - {3}
    for latent, (partner, r) in found.items():
        assert partner == int(expected[latent].argmax())
        assert r == pytest.approx(expected[latent].max(), abs=1e-9)
    assert found[7][0] == 4
    few = best_elsewhere(
        Codes(sp.csr_array(a), kept_a), Codes(sp.csr_array(b), kept_b), min_correlation=0.5
    )
    assert list(few) == [7]


def test_products_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (Codes(sp.csr_array(sparse(300, 20)), np.ones(300, bool)) for _ in range(2))
    whole = best_elsewhere(mine, other, min_correlation=0.0)
    monkeypatch.setattr("interp.explore.agreement._BLOCK_PRODUCTS", 64)
    assert best_elsewhere(mine, other, min_correlation=0.0) == whole


def test_classes_come_before_the_nearest_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(6, 16, generator=generator)
    order = torch.tensor([3, 0, 1, 2, 5, 4])
    z = sp.csc_array(sparse(500, 6))
    # Seed 1 is seed 0 in another order; the study made classes of latents 0 and 1, the second one
    # against the directions.
    classes = np.array([[0, 1], [1, 5]])
    one, other = in_other_seeds([W, W[order]], [z, z[:, order.numpy()]], classes)
    [match] = one[0]
    assert (match.where, match.latent, match.counted) == (1, 1, True)
    assert match.cosine == pytest.approx(1, abs=1e-6)
    assert match.correlation == pytest.approx(1)
    assert (one[1][0].latent, one[1][0].counted) == (5, True)
    assert one[1][0].cosine is not None
    assert one[1][0].cosine < 0.9
    assert (one[2][0].latent, one[2][0].counted) == (3, False)
    assert [m[0].latent for m in other[1:5]] == [0, 1, 2, 5]
    assert other[5][0].latent == 1


# The logit lens


def test_classes_that_a_study_counts_are_of_as_many_seeds_as_it_asks_for() -> None:
    seeds = Seeds([], [], np.arange(0), None, None, seed=0)
    seeds.__dict__["classes"] = np.array([[0, 1, -1], [1, -1, 0], [2, 2, 2]])
    assert [len(seeds.found_again(r)) for r in (2, 3)] == [3, 1]
    assert seeds.found_again(3).tolist() == [[2, 2, 2]]


def test_the_lens_is_the_norm_and_the_head(tiny_model: Any) -> None:
    hf = tiny_model.hf
    generator = torch.Generator().manual_seed(0)
    hf.transformer.ln_f.weight.data += torch.randn(32, generator=generator) * 0.5
    try:
        d = torch.randn(5, 32, generator=generator)
        lens = logit_lens(tiny_model, d, 4)
        centred = d - d.mean(dim=1, keepdim=True)
        normed = centred / centred.pow(2).mean(dim=1, keepdim=True).sqrt()
        logits = (normed * hf.transformer.ln_f.weight) @ hf.lm_head.weight.T
        logits = logits - logits.mean(dim=1, keepdim=True)
        assert lens.promoted_logits == pytest.approx(logits.topk(4, dim=1).values, rel=1e-3)
        assert lens.promoted.tolist() == logits.topk(4, dim=1).indices.tolist()
        assert lens.suppressed.tolist() == (-logits).topk(4, dim=1).indices.tolist()
        assert (lens.suppressed_logits < 0).all()
        # A bias of the norm is no part of the direction.
        hf.transformer.ln_f.bias.data += 1.0
        again = logit_lens(tiny_model, 7 * d, 4)
        assert again.promoted.tolist() == lens.promoted.tolist()
        assert again.promoted_logits == pytest.approx(lens.promoted_logits, rel=1e-3)
    finally:
        hf.transformer.ln_f.weight.data.fill_(1.0)
        hf.transformer.ln_f.bias.data.zero_()


def test_blocks_of_directions_give_the_same_lens(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    whole = logit_lens(tiny_model, d, 3)
    monkeypatch.setattr("interp.explore.lens._BLOCK_LOGITS", 4 * tiny_model.d_vocab)
    pieces = logit_lens(tiny_model, d, 3)
    assert torch.equal(whole.promoted, pieces.promoted)
    assert len(architectures()) > 3


# Text


def test_the_shown_text_is_the_text(tiny_model: Any, tiny_tokens: Any, text_folder: Path) -> None:
    from interp.corpora import load_text

    corpus = load_text(text_folder)
    shown = held_out_text(tiny_tokens, corpus)
    assert len(shown.documents) == len(corpus)
    assert any("\udc80" <= c <= "\udcff" for text in shown.strings for c in text)
    names = {row["doc_id"]: row["text"] for row in corpus.documents}
    for start, end, name in shown.documents:
        text = "".join(shown.strings[i] for i in shown.ids[start:end])
        assert text.encode("utf-8", "surrogateescape").decode() == names[name]


def test_the_vocabulary_writes_what_tokens_write(tiny_model: Any) -> None:
    tokenizer = tiny_model.tokenizer
    words = vocabulary(tokenizer, tiny_model.d_vocab)
    assert words[tokenizer.eos_token_id] == "<|endoftext|>"
    for text in ("def add(a):", "Größe 🦉"):
        ids = tokenizer(text).input_ids
        assert "".join(words[i] for i in ids).encode("utf-8", "surrogateescape").decode() == text


class Pieces:
    """As much of a sentencepiece tokenizer as is asked for."""

    backend_tokenizer: Any

    def __init__(self, pieces: list[str]) -> None:
        self.backend_tokenizer = self
        self.pieces = pieces

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}


def test_sentencepiece_tokens_are_read_as_such() -> None:
    words = vocabulary(Pieces(["▁the", "<0xE2>", "a", "東"]), 5)
    assert words == [" the", "\udce2", "a", "東", ""]


def test_bytes_that_are_no_character_survive() -> None:
    raw = b"a\xe2\x00\xff\xe6\x9d\xb1"
    assert of_bytes(raw) == "a\udce2\x00\udcff東"
    assert of_bytes(raw).encode("utf-8", "surrogateescape") == raw


# Firings


@pytest.fixture
def text() -> Text:
    ids = RNG.integers(1, 200, 4_000).astype(np.int32)
    strings = ["", *(f"t{i}" for i in range(1, 200))]
    return Text.of(HeldOutText(strings, ids, [(1, 2_000, "a"), (2_001, 4_000, "b")], 500, "0" * 64))


def test_windows_stay_in_document_and_block(text: Text) -> None:
    assert text.window(250) == (250 - BEFORE, 250 + AFTER + 1)
    assert text.window(3) == (1, 3 + AFTER + 1)
    assert text.window(505) == (500, 505 + AFTER + 1)
    assert text.window(1_995) == (1_995 - BEFORE, 2_000)
    assert text.window(2_001)[0] == 2_001


def test_passages_show_the_strongest_and_every_third(text: Text) -> None:
    positions = np.sort(RNG.choice(np.arange(1, 2_000), 300, replace=False))
    values = RNG.random(300) * 9 + 1e-3
    firings = Firings(positions, values)
    passages = firings.passages(text, np.random.default_rng(0))
    at = dict(zip(positions.tolist(), values.tolist(), strict=True))
    first = [p for p in passages if p.band == 0]
    assert first[0].centre == positions[values.argmax()]
    assert len(first) <= STRONGEST
    centres = [p.centre for p in passages]
    assert len(set(centres)) == len(centres)
    for p in passages:
        start, end = text.window(p.centre)
        expected = {q - p.centre: at[q] for q in at if start <= q < end}
        assert dict(p.acts) == expected
        assert not any(start <= other < end for other in centres[: centres.index(p.centre)])
        if p.band:
            assert np.ceil(3 * at[p.centre] / values.max()) == 4 - p.band
    assert {p.band for p in passages} == {0, 1, 2, 3}


def test_passages_that_repeat_are_shown_once() -> None:
    ids = np.tile(np.arange(1, 101, dtype=np.int32), 40)
    strings = ["", *(f"t{i}" for i in range(1, 101))]
    text = Text.of(HeldOutText(strings, ids, [(0, 4_000, "a")], 4_000, "0" * 64))
    firings = Firings(np.arange(50, 4_000, 100), np.linspace(1, 2, 40))
    [only] = firings.passages(text, np.random.default_rng(0))
    assert only.centre == 3_950
    assert Firings(np.array([], int), np.array([])).passages(text, np.random.default_rng(0)) == ()


def test_histogram_entropy_and_tokens(text: Text) -> None:
    firings = Firings(np.array([10, 20, 30, 40]), np.array([1.0, 1.0, 2.0, 4.0]))
    assert sum(firings.histogram()) == 4
    assert firings.histogram()[-1] == 1
    ids = np.zeros(4_000, int)
    ids[[10, 20]], ids[30], ids[40] = 5, 6, 7
    # 1.5 bits of the shares, and for so few firings (3 - 1) / (2 * 4 ln 2) on top.
    assert firings.token_entropy_bits(ids) == pytest.approx(1.5 + 2 / (8 * np.log(2)))
    one = HeldOutText(["", "x", "y"], np.where(np.arange(4_000) == 40, 2, 1), [], 500, "")
    assert firings.fires_on(one, 4) == (("x", 0.5), ("y", 0.5))
    assert Firings(np.array([], int), np.array([])).token_entropy_bits(ids) is None


# What is compared with what


def facts(model: str, layer: int, **more: Any) -> Facts:
    base = vars(facts_of(model, 64)([1], [0]))
    depth = (layer + 1) / 4
    key = f"{model}/{layer}/{more.get('about', '')}{more.get('d_sae', '')}{more.get('control', '')}"
    return Facts(**base | {"layer": layer, "depth": depth, "key": key} | more)


def test_a_latent_is_looked_for_where_a_reader_would_look() -> None:
    mine = facts("a", 1)
    expected = [
        facts("a", 1, d_sae=128, main=False),
        facts("a", 1, about="all"),
        facts("a", 0),
        facts("b", 1, depth=0.5),
        facts("a", 1, control="random_init"),
    ]
    others = [
        mine,
        facts("a", 0, about="all"),
        facts("b", 3, depth=1.0),
        facts("b", 1, depth=0.5, d_sae=128, main=False),
        facts("c", 1, text_key="0" * 64),
    ]
    found = compared_with(mine, [*others, *expected])
    assert {f.key for f in found} == {f.key for f in expected}
