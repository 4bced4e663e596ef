"""CE loss recovered: 1 for perfect reconstructions, 0 for the ablation itself, by hand between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.capture import capture
from interp.errors import UserError
from interp.hook_points import HookPoint, watch
from interp.loss import loss
from interp.splice import ce_loss_recovered

POINT = "blocks.1.hook_resid_post"


def kept_mean(model: Any, tokens: Any) -> torch.Tensor:
    (chunk,) = capture(model, tokens, POINT)
    return chunk.acts[POINT][chunk.keep].double().mean(0).float()


def test_the_identity_recovers_all(tiny_model: Any, tiny_tokens: Any) -> None:
    result = ce_loss_recovered(tiny_model, tiny_tokens, POINT, lambda x, ids, pos: x)
    assert result.ce_loss_sae == pytest.approx(result.ce_loss_clean, abs=1e-6)
    assert result.ce_loss_recovered == pytest.approx(1.0, abs=1e-4)
    expected = loss(tiny_model, tiny_tokens)
    assert result.ce_loss_clean == pytest.approx(expected.nats_per_token, abs=1e-6)
    assert result.n_tokens == expected.n_tokens


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_the_ablation_itself_recovers_nothing(
    tiny_model: Any, tiny_tokens: Any, ablation: Any
) -> None:
    value = kept_mean(tiny_model, tiny_tokens) if ablation == "mean" else torch.zeros(32)
    result = ce_loss_recovered(
        tiny_model,
        tiny_tokens,
        POINT,
        lambda x, ids, pos: value.expand_as(x),
        ablation=ablation,
    )
    assert result.ablation == ablation
    assert result.ce_loss_recovered == pytest.approx(0.0, abs=1e-3)
    assert abs(result.ce_loss_ablated - result.ce_loss_clean) > 1e-3


def test_losses_equal_a_hooked_hf_run(tiny_model: Any, tiny_tokens: Any) -> None:
    """HF's own loss with the stream shrunk by hand on kept rows only."""
    (chunk,) = capture(tiny_model, tiny_tokens, POINT)
    keep = chunk.keep.view(*tiny_tokens.ids.shape, 1)
    ids = tiny_tokens.ids.long()
    labels = torch.where(tiny_tokens.is_target, ids, -100)
    with (
        torch.inference_mode(),
        watch(tiny_model.hf, {HookPoint("resid_post", 1): lambda v: torch.where(keep, v / 2, v)}),
    ):
        expected = float(tiny_model.hf(input_ids=ids, labels=labels).loss)
    result = ce_loss_recovered(tiny_model, tiny_tokens, POINT, lambda x, ids, pos: x / 2)
    assert result.ce_loss_sae == pytest.approx(expected, abs=1e-5)
    by_definition = (result.ce_loss_ablated - result.ce_loss_sae) / (
        result.ce_loss_ablated - result.ce_loss_clean
    )
    assert result.ce_loss_recovered == pytest.approx(by_definition)


def test_the_reconstruction_sees_kept_rows_with_their_tokens(
    tiny_model: Any, tiny_tokens: Any
) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []

    def remember(x: Any, ids: Any, pos: Any) -> Any:
        seen.append((x.clone(), ids, pos))
        return x

    ce_loss_recovered(tiny_model, tiny_tokens, POINT, remember, chunk_tokens=96, batch_size=2)
    (chunk,) = capture(tiny_model, tiny_tokens, POINT)
    x, ids, pos = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(x, chunk.acts[POINT][chunk.keep])
    assert torch.equal(ids, chunk.token_ids[chunk.keep].long())
    assert torch.equal(pos, chunk.positions[chunk.keep].long())
    assert (pos > 0).all()


def test_chunks_and_batches_do_not_change_the_result(tiny_model: Any, tiny_tokens: Any) -> None:
    def half(x: Any, ids: Any, pos: Any) -> Any:
        return x / 2

    one = ce_loss_recovered(tiny_model, tiny_tokens, POINT, half)
    many = ce_loss_recovered(tiny_model, tiny_tokens, POINT, half, chunk_tokens=96, batch_size=2)
    assert one.ce_loss_sae == pytest.approx(many.ce_loss_sae, abs=1e-6)
    assert one.ce_loss_ablated == pytest.approx(many.ce_loss_ablated, abs=1e-6)


def test_an_ablation_without_cost_has_no_share(tiny_model: Any, tiny_tokens: Any) -> None:
    """An MLP that writes nothing: ablating it changes nothing, and 0/0 is no number."""
    mlp = tiny_model.hf.transformer.h[1].mlp.c_proj
    kept = mlp.weight.clone(), mlp.bias.clone()
    try:
        mlp.weight.zero_(), mlp.bias.zero_()
        result = ce_loss_recovered(
            tiny_model, tiny_tokens, "blocks.1.hook_mlp_out", lambda x, ids, pos: x
        )
    finally:
        mlp.weight.copy_(kept[0]), mlp.bias.copy_(kept[1])
    assert result.ce_loss_recovered is None


def test_unknown_ablations_are_refused(tiny_model: Any, tiny_tokens: Any) -> None:
    with pytest.raises(UserError, match="mean or zero"):
        ce_loss_recovered(
            tiny_model,
            tiny_tokens,
            POINT,
            lambda x, ids, pos: x,
            ablation="noise",  # type: ignore[arg-type]
        )


def test_a_given_ablation_is_what_nothing_recovers(tiny_model: Any, tiny_tokens: Any) -> None:
    """An SAE that puts back what the ablation leaves has recovered nothing, whatever that is."""

    def halved(x: Any, ids: Any, pos: Any) -> Any:
        return x / 2

    result = ce_loss_recovered(tiny_model, tiny_tokens, POINT, halved, ablation=halved)
    assert result.ablation == "given"
    assert result.ce_loss_recovered in (None, pytest.approx(0.0, abs=1e-6))
    assert result.ce_loss_ablated == result.ce_loss_sae
