"""Many toy models trained side by side on one stream of batches: resumable, bit for bit.

Models that see the same inputs form a group. A piece of the stream is drawn once, every model of
the group walks through it in one go (its weights stay in the cache; batching the models' products
would move them through memory at every step), one model per thread at a time. So a model's bits
depend neither on its company nor on the number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.numpy import load_file, save

from interp import durable
from interp.errors import UserError
from interp.progress import Progress
from interp.toy.batches import Stream
from interp.toy.frequencies import Frequencies
from interp.toy.model import Scratch, ToyConfig, ToyModel

PIECE = 50
"""Steps that a model takes before the next one has its turn."""
CHECKPOINT_SECONDS = 45.0

T = TypeVar("T")
R = TypeVar("R")


def groups(configs: Iterable[ToyConfig]) -> dict[str, list[ToyConfig]]:
    """Configs that share inputs and length, by name, in the order of their first members."""
    found: dict[str, list[ToyConfig]] = {}
    for config in configs:
        f = config.frequencies
        name = f"{f.name}-n{f.n}-E{f.density:.4g}-batch{config.batch_size}-steps{config.n_steps}"
        found.setdefault(name, []).append(config)
    return found


def cost(config: ToyConfig) -> float:
    """Of training one model, roughly in CPU milliseconds: only the ratios matter."""
    f, batch = config.frequencies, config.batch_size
    distinct = _distinct(f, batch)
    entries = f.density * batch
    return config.n_steps * f.n * (2.2e-7 * entries + 1.5e-6 * distinct * (1 + config.m / 30))


def _distinct(frequencies: Frequencies, batch: int) -> float:
    """Expected number of features that occur in a batch."""
    return float((1 - (1 - np.minimum(frequencies.probabilities(), 1)) ** batch).sum())


class Workers:
    """Threads with a product on one core each and memory of their own. A context manager."""

    def __init__(self, n_threads: int) -> None:
        if n_threads < 1:
            raise UserError(f"{n_threads} threads; give at least one")
        self._scratch = threading.local()
        barrier = threading.Barrier(n_threads)

        def one_core() -> None:
            # Asking first makes torch initialize this thread, which would undo the setting later.
            torch.get_num_threads()
            torch.set_num_threads(1)
            barrier.wait()

        before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(n_threads, "toy", initializer=one_core)
        # New threads inherit the last count set anywhere: start all now, then put it back.
        for future in [self._pool.submit(torch.get_num_threads) for _ in range(n_threads)]:
            future.result()
        torch.set_num_threads(before)

    def map(self, call: Callable[[T, Scratch], R], items: Sequence[T]) -> Iterator[R]:
        """call(item, this thread's scratch) of every item, in order."""

        def with_scratch(item: T) -> R:
            if not hasattr(self._scratch, "held"):
                self._scratch.held = Scratch()
            return call(item, self._scratch.held)

        return self._pool.map(with_scratch, items)

    def close(self) -> None:
        """Waits for what is running; drops what is not."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def workers(n_threads: int) -> Iterator[Workers]:
    """Threads for as long as the block lasts."""
    pool = Workers(n_threads)
    try:
        yield pool
    finally:
        pool.close()


def advance(
    models: Sequence[ToyModel], stream: Stream, start: int, stop: int, pool: Workers
) -> None:
    """Take every model through the batches start .. stop - 1."""
    batches = [stream.batch(number) for number in range(start, stop)]

    def walk(model: ToyModel, scratch: Scratch) -> None:
        for batch in batches:
            model.step(batch, scratch)

    for _ in pool.map(walk, models):
        pass


def train_group(
    configs: Sequence[ToyConfig],
    state: Path,
    pool: Workers,
    progress: Progress,
    *,
    label: str = "",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    saved: Callable[[], None] = lambda: None,
) -> list[ToyModel]:
    """The group's models, trained. `state` keeps them between checkpoints; the caller deletes it.

    `saved` is called after each. Raises UserError when `state` is damaged or of other models, or
    when a loss diverges.
    """
    models = [ToyModel(config) for config in configs]
    if state.exists():
        _restore(models, state)
    first = configs[0]
    stream = Stream(first.frequencies, first.batch_size)
    # The slowest first, so that no thread is left with a long one at the end of a piece.
    order = sorted(models, key=lambda model: -model.config.m)
    whole = sum(cost(config) for config in configs)
    progress.skip(whole * models[0].n_steps / first.n_steps)
    last = time.monotonic()
    while models[0].n_steps < first.n_steps:
        start = models[0].n_steps
        stop = min(start + PIECE, first.n_steps)
        progress.at(label)
        advance(order, stream, start, stop, pool)
        progress.finish(whole * (stop - start) / first.n_steps)
        if time.monotonic() - last > checkpoint_seconds and stop < first.n_steps:
            durable.write(state, _state(models))
            saved()
            last = time.monotonic()
    return models


def _state(models: Sequence[ToyModel]) -> bytes:
    tensors = {}
    for number, model in enumerate(models):
        for name, array in {"W": model.W, "b": model.b, **model.moments}.items():
            tensors[f"{number}.{name}"] = array
    return save(tensors, {"n_steps": str(models[0].n_steps), "models": _names(models)})


def _restore(models: Sequence[ToyModel], state: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(state, "numpy") as file:
            metadata = file.metadata()
        tensors = load_file(state)
    except SafetensorError as error:
        raise UserError(
            f"{state}: damaged ({error}); delete it to train its models again"
        ) from None
    if metadata.get("models") != _names(models):
        raise UserError(f"{state}: holds other models; delete it or choose another folder")
    for number, model in enumerate(models):
        model.n_steps = int(metadata["n_steps"])
        model.W, model.b = tensors[f"{number}.W"], tensors[f"{number}.b"]
        model.moments = {name: tensors[f"{number}.{name}"] for name in model.moments}


def _names(models: Sequence[ToyModel]) -> str:
    return " ".join(model.config.name for model in models)
