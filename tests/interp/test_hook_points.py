"""Hook points: their names, their tensors against HF's own, and that no hook is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import COVERED, N_LAYERS, covered, tiny
from torch import Tensor

from interp.errors import UserError
from interp.hook_points import KINDS, HookPoint, architectures, blocks, parse, resolve, watch


def collect(hf: Any, ids: Tensor, points: list[HookPoint]) -> dict[HookPoint, Tensor]:
    seen: dict[HookPoint, Tensor] = {}
    callbacks = {
        p: (lambda value, p=p: seen.update({p: value.detach().clone().reshape(-1, 16)}))
        for p in points
    }
    with torch.inference_mode(), watch(hf, callbacks):
        hf(input_ids=ids)
    return seen


def n_hooks(hf: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


IDS = torch.arange(20).reshape(2, 10) % 48 + 2


def test_names_round_trip() -> None:
    point = parse("blocks.11.hook_resid_post")
    assert point == HookPoint("resid_post", 11)
    assert str(point) == "blocks.11.hook_resid_post"
    assert parse(point) is point


@pytest.mark.parametrize("text", ["resid_post", "blocks.x.hook_resid_post", "blocks.1.resid_post"])
def test_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(UserError, match=r"blocks\.2\.hook_resid_post"):
        parse(text)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="resid_mid") as error:
        parse("blocks.1.hook_resid_pots")
    assert "\n" not in str(error.value)


def test_resolve_sorts_in_forward_order_and_drops_repeats() -> None:
    hf = tiny("gpt2")
    asked = ["blocks.2.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_mid"]
    assert [str(p) for p in resolve([*asked, asked[0]], hf)] == [asked[2], asked[1], asked[0]]
    assert resolve("blocks.0.hook_resid_mid", hf) == [HookPoint("resid_mid", 0)]


def test_a_bare_kind_stands_for_every_layer() -> None:
    points = resolve(["attn_out", "blocks.1.hook_resid_pre"], tiny("gpt2"))
    assert [str(p) for p in points] == [
        "blocks.0.hook_attn_out",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_attn_out",
        "blocks.2.hook_attn_out",
    ]
    with pytest.raises(UserError, match=r"blocks\.0\.hook_resid_mid.*parallel"):
        resolve("resid_mid", tiny("gpt_neox"))


def test_a_layer_beyond_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="3 layers; use a layer from 0 to 2"):
        resolve("blocks.3.hook_resid_post", tiny("gpt2"))


@pytest.mark.parametrize("name", [name for name in COVERED if name != "opt, post-norm"])
def test_residuals_equal_hidden_states_and_add_up(name: str) -> None:
    """resid_pre and resid_post against HF's hidden_states; mid and post by the sums they are."""
    hf = covered(name)
    kinds = [k for k in KINDS if k not in COVERED[name].lacks]
    points = [HookPoint(kind, layer) for layer in range(N_LAYERS) for kind in kinds]
    seen = collect(hf, IDS, resolve(points, hf))
    with torch.inference_mode():
        states = hf(input_ids=IDS, output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        at = {kind: seen[HookPoint(kind, layer)] for kind in kinds}
        torch.testing.assert_close(at["resid_pre"], states[layer].reshape(-1, 16))
        if layer + 1 < N_LAYERS:  # the last hidden state is after the final norm
            torch.testing.assert_close(at["resid_post"], states[layer + 1].reshape(-1, 16))
        if "resid_mid" in at:
            torch.testing.assert_close(at["resid_mid"], at["resid_pre"] + at["attn_out"])
            torch.testing.assert_close(at["resid_post"], at["resid_mid"] + at["mlp_out"])
        else:
            total = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
            torch.testing.assert_close(at["resid_post"], total)


def test_the_post_norm_opt_gives_the_stream_between_its_blocks() -> None:
    """OPT-350m: the embedding is projected, and each block ends with a norm."""
    hf = covered("opt, post-norm")
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    points = [HookPoint(kind, layer) for layer in range(N_LAYERS) for kind in kinds]
    seen = collect(hf, IDS, resolve(points, hf))
    with torch.inference_mode():
        states = hf(input_ids=IDS, output_hidden_states=True).hidden_states
        for layer in range(N_LAYERS):
            at = {kind: seen[HookPoint(kind, layer)] for kind in kinds}
            torch.testing.assert_close(at["resid_pre"], states[layer].reshape(-1, 16))
            block = blocks(hf)[layer]
            mid = block.self_attn_layer_norm(at["resid_pre"] + at["attn_out"])
            post = block.final_layer_norm(mid + at["mlp_out"])
            torch.testing.assert_close(at["resid_post"], post)
        last = seen[HookPoint("resid_post", N_LAYERS - 1)]
        torch.testing.assert_close(
            hf.base_model.decoder.project_out(last), states[-1].flatten(0, 1)
        )


def test_the_last_residual_is_before_the_final_norm() -> None:
    hf = tiny("gpt2")
    last = collect(hf, IDS, [HookPoint("resid_post", N_LAYERS - 1)])
    raw = last[HookPoint("resid_post", N_LAYERS - 1)]
    with torch.inference_mode():
        after = hf(input_ids=IDS, output_hidden_states=True).hidden_states[-1].reshape(-1, 16)
        torch.testing.assert_close(hf.transformer.ln_f(raw), after)
    assert not torch.allclose(raw, after, atol=0.1)


@pytest.mark.parametrize("name", COVERED)
def test_what_the_readme_lists_is_what_resolves(name: str) -> None:
    hf = covered(name)
    for kind in KINDS:
        if kind in COVERED[name].lacks:
            with pytest.raises(UserError, match=rf"blocks\.0\.hook_{kind}"):
                resolve(kind, hf)
        else:
            assert len(resolve(kind, hf)) == N_LAYERS


def test_every_architecture_is_covered() -> None:
    assert {row.architecture for row in COVERED.values()} == set(architectures())


def test_points_an_architecture_lacks_say_so() -> None:
    with pytest.raises(UserError, match="parallel"):
        resolve("blocks.0.hook_resid_mid", tiny("gpt_neox"))
    resolve("blocks.0.hook_resid_mid", tiny("gpt_neox", use_parallel_residual=False))
    with pytest.raises(UserError, match="normalises after"):
        resolve("blocks.0.hook_resid_mid", tiny("opt", do_layer_norm_before=False))


def test_unknown_architectures_are_refused() -> None:
    import transformers as tf

    config = tf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(UserError, match=r"'bloom' is not supported; supported: gpt2"):
        resolve("blocks.0.hook_resid_post", tf.BloomForCausalLM(config))


def test_no_hook_outlives_the_block_even_after_an_exception() -> None:
    hf = tiny("gpt2")
    before = n_hooks(hf)

    def fail(value: Tensor) -> None:
        raise RuntimeError("from a callback")

    points = {HookPoint(kind, 1): fail for kind in KINDS}
    with watch(hf, points):
        # What replaces resid_mid is handed on to the end of its block.
        assert n_hooks(hf) == before + len(KINDS) + 1
    assert n_hooks(hf) == before
    with pytest.raises(RuntimeError, match="from a callback"), watch(hf, points):
        hf(input_ids=IDS)
    assert n_hooks(hf) == before


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_returned_tensor_replaces_the_value(architecture: str, kind: str) -> None:
    """Putting zeros at a point changes the logits; putting the value itself back does not."""
    if (architecture, kind) == ("gpt_neox", "resid_mid"):
        kind = "attn_out"
    hf = tiny(architecture)
    point = HookPoint(kind, 1)
    with torch.inference_mode():
        plain = hf(input_ids=IDS).logits
        with watch(hf, {point: lambda value: value.reshape(-1, 16).clone()}):
            torch.testing.assert_close(hf(input_ids=IDS).logits, plain)
        with watch(hf, {point: lambda value: torch.zeros_like(value)}):
            assert (hf(input_ids=IDS).logits - plain).abs().max() > 1e-2


def test_blocks_are_the_layers() -> None:
    hf = tiny("opt")
    assert blocks(hf) is hf.model.decoder.layers


@pytest.mark.parametrize("name", [n for n in COVERED if "resid_mid" not in COVERED[n].lacks])
def test_a_new_middle_goes_past_the_mlp_too(name: str) -> None:
    """Replaced in the MLP's input alone, the block would still add the old value to its output."""
    hf = covered(name)
    mid, mlp, post = (HookPoint(kind, 1) for kind in ("resid_mid", "mlp_out", "resid_post"))
    seen: dict[HookPoint, torch.Tensor] = {}

    def halve(value: torch.Tensor) -> torch.Tensor:
        seen[mid] = value.clone().reshape(-1, 16) / 2
        return value / 2

    def keep(point: HookPoint) -> Any:
        return lambda value: seen.update({point: value.clone().reshape(-1, 16)})

    # Named last to first: what reads the sum must see it finished all the same.
    with torch.inference_mode(), watch(hf, {post: keep(post), mlp: keep(mlp), mid: halve}):
        hf(input_ids=IDS)
    torch.testing.assert_close(seen[post], seen[mid] + seen[mlp])
    plain = collect(hf, IDS, [mlp, post])
    assert not torch.allclose(plain[mlp], seen[mlp]), "the MLP reads the new value"
    untouched = collect(hf, IDS, [post])
    assert torch.equal(untouched[post], plain[post]), "and no hook is left behind"
