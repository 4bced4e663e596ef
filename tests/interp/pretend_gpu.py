"""A GPU to test with: tensors of the CPU that say they are on `cuda`, and mix as torch lets them.

What real ones refuse is refused: a product of tensors on two devices, numpy, a generator of the
CPU that draws on the GPU. What a GPU computes in no fixed order is refused as well, because a study
must not use it. Only what goes through Python is watched; nothing is computed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda:0")
_UNORDERED = {"index_add_", "index_add", "scatter_add_", "scatter_add", "bincount", "histc"}
"""Sums that a GPU takes in another order each time, where the numbers are not whole."""


class OnGPU(Tensor):
    """The same memory, said to be elsewhere."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return CUDA
        if func == Tensor.is_cuda.__get__:
            return True
        if func in (Tensor.cpu, Tensor.to):
            return _moved(func, args, kwargs)
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        with torch._C.DisableTorchFunctionSubclass():
            tensors = list(_tensors((args, kwargs)))
            mixed = _mixes(name, args, tensors)
            floats = any(t.is_floating_point() for t in tensors)
        if mixed:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if floats and name in _UNORDERED:
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator")
        if "device" in kwargs:
            there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
            made = super().__torch_function__(func, types, args, kwargs)
            return made if there else made.as_subclass(Tensor)
        return super().__torch_function__(func, types, args, kwargs)


class _Creation(TorchFunctionMode):
    """Tensors that are made on, or sent to, the pretended device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.to and not any(map(_is_on_gpu, _tensors(args[:1]))):
            return _moved(func, args, kwargs)
        pinned = kwargs.pop("pin_memory", False)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            if kwargs.get("generator") is not None or pinned:
                raise RuntimeError(f"{func.__name__}: a CPU's generator, or memory, on a GPU")
            kwargs["device"] = "cpu"
            return func(*args, **kwargs).as_subclass(OnGPU)
        return func(*args, **kwargs)


def _mixes(name: str, args: Any, tensors: list[Tensor]) -> bool:
    """Whether torch would refuse. An index may come from the CPU, a copy from anywhere."""
    if name == "copy_":
        return False
    if name in ("__getitem__", "__setitem__"):
        place, indices, value = _is_on_gpu(args[0]), _tensors(args[1]), _tensors(args[2:])
        foreign = any(_is_on_gpu(t) and not place for t in indices)
        return foreign or any(t.ndim and _is_on_gpu(t) != place for t in value)
    return any(t.ndim and not _is_on_gpu(t) for t in tensors)


def _is_on_gpu(tensor: Tensor) -> bool:
    return isinstance(tensor, OnGPU)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _moved(func: Any, args: Any, kwargs: Any) -> Tensor:
    """`Tensor.to` and `Tensor.cpu`, from memory to memory of the same CPU."""
    tensor, *more = args
    with torch._C.DisableTorchFunctionSubclass():
        there, dtype = _is_on_gpu(tensor) and func != Tensor.cpu, tensor.dtype
        for value in (*more, *kwargs.values()):
            if isinstance(value, Tensor):
                there, dtype = _is_on_gpu(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                there = torch.device(value).type == "cuda"
        # A copy, so that nothing written there is seen here.
        copy = bool(kwargs.get("copy")) or there != _is_on_gpu(tensor)
        moved = tensor.as_subclass(Tensor).to(dtype, copy=copy)
        return moved.as_subclass(OnGPU) if there else moved


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`; tied weights stay tied."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    new = tensor.detach().to(*args, **kwargs)
                    moved[id(tensor)] = (
                        nn.Parameter(new, requires_grad=tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else new
                    )
                held[name] = moved[id(tensor)]  # type: ignore[assignment]
    return module


def pretend(monkeypatch: pytest.MonkeyPatch) -> _Creation:
    """Enter what this returns: from then on torch has one GPU."""
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "A pretended GPU",
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: type("Card", (), {"total_memory": 1 << 34}),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(nn.Module, "to", _module_to)
    return _Creation()
