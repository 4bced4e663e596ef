"""The gate every loaded model passes: captured tensors against an unhooked transformers run.

Wrong module names, a norm on the wrong side, a changed library: each would make activations that
look like activations. A few tokens are enough to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from interp.errors import UserError
from interp.hook_points import HookPoint, blocks, kinds, sums, watch
from interp.loss import block_nll

if TYPE_CHECKING:  # models call this
    from interp.models import Model

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
HALF_TOLERANCE = 2e-2
"""For 16-bit models, where the order of sums alone moves values by several thousandths."""

_BATCH, _POSITIONS = 2, 16
_THEIRS = "differs from transformers"


def require(model: Model) -> float:
    """The largest relative difference between what is captured and what transformers gives.

    Compared are the stream before and after every block and the backbone's output, each relative to
    the reference's largest value; inside the blocks, of which transformers says nothing, the stream
    with the sum of what should add up to it; and the loss, relative to at least one nat. Raises
    UserError beyond the tolerance, naming the first such place: 1e-5 for float32, 2e-2 for 16-bit
    models.
    """
    errors = _errors(model)
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    for place, error in errors.items():
        if not error <= tolerance:
            raise UserError(
                f"{model.name}: {place} by {error:.1e} (tolerance {tolerance:.0e}), so nothing "
                "captured could be trusted; install the locked versions, or report this "
                "architecture"
            )
    return max(errors.values())


def _errors(model: Model) -> dict[str, float]:
    """What differs from what, and by how much; layer by layer."""
    n = min(_POSITIONS, model.n_ctx)
    # Spread over the vocabulary, the same on every machine.
    ids = (torch.arange(_BATCH * n) * 7919 + 13).view(_BATCH, n) % model.d_vocab
    ids = ids.to(model.device)
    n_layers = len(blocks(model.hf))
    seen: dict[HookPoint, Tensor] = {}

    def keeping(point: HookPoint) -> Callable[[Tensor], None]:
        # To one place: the parts of a block need not be on one device.
        return lambda value: seen.update({point: value.reshape(_BATCH, n, -1).to("cpu", copy=True)})

    points = [HookPoint(kind, layer) for layer in range(n_layers) for kind in kinds(model.hf)]
    with torch.inference_mode():
        with watch(model.hf, {point: keeping(point) for point in points}):
            hidden = model.final_hidden(ids)
        nll = block_nll(model, hidden, ids)[:, 1:].mean()
        theirs = model.hf(input_ids=ids, output_hidden_states=True, use_cache=False)
        logits = rearrange(theirs.logits[:, :-1].float(), "batch pos token -> (batch pos) token")
        their_loss = F.cross_entropy(logits, ids[:, 1:].flatten().to(logits.device))
    errors = {}
    for layer in range(n_layers):
        pre, post = HookPoint("resid_pre", layer), HookPoint("resid_post", layer)
        errors[f"{pre} {_THEIRS}"] = _relative(seen[pre], theirs.hidden_states[layer])
        if layer + 1 < n_layers:  # the reference's last state is after the final norm
            errors[f"{post} {_THEIRS}"] = _relative(seen[post], theirs.hidden_states[layer + 1])
        for total, terms in sums(model.hf, layer):
            added = torch.stack([seen[term].float() for term in terms]).sum(0)
            errors[f"{total} differs from the sum of its parts"] = _relative(seen[total], added)
    errors[f"the backbone's output {_THEIRS}"] = _relative(hidden, theirs.hidden_states[-1])
    # The loss of a good model may be far below one nat: there the absolute difference counts.
    one = torch.ones_like(nll)
    errors[f"the loss {_THEIRS}"] = _relative(
        torch.stack([nll, one]), torch.stack([their_loss.to(nll), one])
    )
    return errors


def _relative(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest value; what is not finite on both sides is equal."""
    mine, theirs = mine.float().flatten(), theirs.float().flatten().to(mine.device)
    finite = torch.isfinite(mine) | torch.isfinite(theirs)
    if not finite.any():
        return 0.0  # capture and loss refuse such a model, naming the document
    mine, theirs = mine[finite], theirs[finite]
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
