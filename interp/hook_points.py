"""Places in the residual stream, and the only knowledge of module names in the project.

A hook point is a kind and a layer, printed as TransformerLens prints it
(`blocks.2.hook_resid_post`). Tensors are always the raw stream: nothing is folded or centred.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError

# In the order in which a block computes them.
KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

_ATTENTION = ("attn", "attention", "self_attn")
_FORM = re.compile(r"blocks\.(\d+)\.hook_(\w+)")


@dataclass(frozen=True)
class HookPoint:
    """One place in one block: `kind` is one of `KINDS`, `layer` counts from 0."""

    kind: str
    layer: int

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.kind}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts hook points in the order in which a forward pass reaches them."""
        return (self.layer, KINDS.index(self.kind))


@dataclass(frozen=True)
class _Site:
    """Where a block computes a kind: a submodule (empty: the block itself) and its side."""

    module: str
    side: str  # "input" | "output"


def _sites(mid: str, attn: str, mlp: str) -> dict[str, _Site]:
    return {
        "resid_pre": _Site("", "input"),
        "attn_out": _Site(attn, "output"),
        "resid_mid": _Site(mid, "input"),
        "mlp_out": _Site(mlp, "output"),
        "resid_post": _Site("", "output"),
    }


_LLAMA = _sites("post_attention_layernorm", "self_attn", "mlp")
_ARCHITECTURES: dict[str, dict[str, _Site]] = {
    "gpt2": _sites("ln_2", "attn", "mlp"),
    "gpt_neo": _sites("ln_2", "attn", "mlp"),
    "gpt_neox": _sites("post_attention_layernorm", "attention", "mlp"),
    "opt": _sites("final_layer_norm", "self_attn", "fc2"),
    "qwen2": _LLAMA,
    "llama": _LLAMA,
    # Gemma 3 normalises what a sublayer adds: the norm's output is what enters the stream.
    "gemma3_text": _sites("pre_feedforward_layernorm", "post_attention_layernorm", "")
    | {"mlp_out": _Site("post_feedforward_layernorm", "output")},
}


def architectures() -> list[str]:
    """The `model_type` of every architecture whose module names are known here."""
    return list(_ARCHITECTURES)


def parse(text: str | HookPoint) -> HookPoint:
    """Read `blocks.2.hook_resid_post`; a `HookPoint` passes through.

    Raises UserError when the text has another form or names an unknown kind.
    """
    if isinstance(text, HookPoint):
        return text
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"{text!r} is no hook point; write it like blocks.2.hook_resid_post, or a bare kind "
            f"for every layer (kinds: {', '.join(KINDS)})"
        )
    if match[2] not in KINDS:
        raise UserError(f"{text!r}: unknown kind {match[2]!r}; choose one of {', '.join(KINDS)}")
    return HookPoint(match[2], int(match[1]))


def resolve(hook_points: Sequence[str | HookPoint] | str | HookPoint, hf: Any) -> list[HookPoint]:
    """Parse, check against the model, and sort in forward order without repeats.

    A bare kind such as `resid_post` stands for that kind at every layer. Raises UserError for a
    layer the model lacks or a kind its architecture does not compute.
    """
    if isinstance(hook_points, (str, HookPoint)):
        hook_points = [hook_points]
    n_layers = len(blocks(hf))
    found: set[HookPoint] = set()
    for text in hook_points:
        if text in KINDS:
            found.update(HookPoint(str(text), layer) for layer in range(n_layers))
        else:
            found.add(parse(text))
    points = sorted(found, key=lambda p: p.order)
    for point in points:
        if point.layer >= n_layers:
            raise UserError(
                f"{point}: the model has {n_layers} layers; use a layer from 0 to {n_layers - 1}"
            )
        _site(hf, point)
    return points


def kinds(hf: Any) -> list[str]:
    """The kinds that the model computes, in the order of a block."""
    found = []
    for kind in KINDS:
        with suppress(UserError):
            _site(hf, HookPoint(kind, 0))
            found.append(kind)
    return found


def sums(hf: Any, layer: int) -> list[tuple[HookPoint, tuple[HookPoint, ...]]]:
    """Which tensors of a block are sums of which others; none where norms follow the additions."""
    pre, attn, mid, mlp, post = (HookPoint(kind, layer) for kind in KINDS)
    if _is_post_norm(hf):
        return []
    if _is_parallel(hf):
        return [(post, (pre, attn, mlp))]
    return [(mid, (pre, attn)), (post, (mid, mlp))]


def _is_parallel(hf: Any) -> bool:
    """Whether attention and MLP read the same stream and are added together."""
    return getattr(hf.config, "use_parallel_residual", False)


def _is_post_norm(hf: Any) -> bool:
    return not getattr(hf.config, "do_layer_norm_before", True)


def blocks(hf: Any) -> nn.ModuleList:
    """The transformer blocks: the outermost ModuleList as long as the model is deep."""
    n_layers = hf.config.num_hidden_layers
    for module in hf.base_model.modules():  # outermost first
        if isinstance(module, nn.ModuleList) and len(module) == n_layers > 0:
            return module
    raise UserError(
        f"{type(hf).__name__}: cannot tell which modules are its {n_layers} blocks; "
        f"supported architectures: {', '.join(architectures())}"
    )


def attention(block: nn.Module) -> nn.Module:
    """The part of a block that looks at other positions."""
    return next(m for name, m in block.named_children() if name in _ATTENTION)


def _site(hf: Any, point: HookPoint) -> _Site:
    architecture = hf.config.model_type
    if architecture not in _ARCHITECTURES:
        raise UserError(
            f"architecture {architecture!r} is not supported; supported: "
            f"{', '.join(architectures())}"
        )
    if point.kind == "resid_mid":
        if _is_parallel(hf):
            raise UserError(
                f"{point}: this {architecture} adds attention and MLP in parallel, so there is "
                "no stream between them; use resid_pre or resid_post"
            )
        if _is_post_norm(hf):
            raise UserError(
                f"{point}: this {architecture} normalises after each addition, so the stream "
                "between attention and MLP is not raw; use resid_pre or resid_post"
            )
    return _ARCHITECTURES[architecture][point.kind]


Callback = Callable[[Float[Tensor, "*batch d_model"]], Tensor | None]


@contextmanager
def watch(hf: Any, callbacks: Mapping[HookPoint, Callback]) -> Iterator[None]:
    """Call each callback with its hook point's tensor during forward passes inside the block.

    A callback that returns a tensor of the same number of elements replaces the value, for
    everything that reads it: what replaces `resid_mid` goes into the MLP and past it. Whatever
    happens, an exception raised by a callback included, no hook outlives the block.
    """
    layers = blocks(hf)
    with ExitStack() as stack:
        # In forward order: what the sum at the end of a block is given for a new middle must be
        # there before that sum is read.
        for point, callback in sorted(callbacks.items(), key=lambda item: item[0].order):
            site = _site(hf, point)
            block = module = layers[point.layer]
            if site.module:
                module = module.get_submodule(site.module)
            if point.kind == "resid_mid":
                around = _PastTheMLP(callback)
                callback = around.replace
                stack.callback(block.register_forward_hook(_on_output(around.add)).remove)
            if site.side == "input":
                handle = module.register_forward_pre_hook(_on_input(callback), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_on_output(callback))
            stack.callback(handle.remove)
        yield


class _PastTheMLP:
    """What a new value of the stream before the MLP changes in the stream that goes past it.

    The hook point is the input of the MLP's norm, and the block adds its own copy of the old value
    to what the MLP makes of the new one.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._change: Tensor | None = None

    def replace(self, value: Tensor) -> Tensor | None:
        new = self._callback(value)
        self._change = None if new is None else new.reshape(value.shape) - value
        return new

    def add(self, value: Tensor) -> Tensor | None:
        """To the block's output."""
        return None if self._change is None else value + self._change.reshape(value.shape)


def _on_input(callback: Callback) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        new = callback(value)
        if new is None:
            return None
        new = new.reshape(value.shape)
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    return hook


def _on_output(callback: Callback) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = callback(value)
        if new is None:
            return None
        new = new.reshape(value.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook
