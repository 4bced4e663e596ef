"""Capture of all layers, and the loss, against the model's bare forward pass and two libraries.

    python benchmarks/capture.py                      GPT-2 small's shape, random weights
    python benchmarks/capture.py --model ladder/d128  or any directory
    python benchmarks/capture.py --device cuda --batch 32 --n-ctx 1024

All sides run the same tokens in one process, interleaved; medians and ratios are printed:

    R_core = capture without the loss / the transformers backbone's forward pass
    R_loss = capture with the loss / the full transformers forward pass with its loss

Then peak memory of a fresh process at 1, 4 and 16 times the tokens. Targets are in the last column.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interp import ladder
from interp.capture import capture, run_blocks
from interp.hook_points import HookPoint
from interp.models import Model, load, wrap
from interp.recording import prepare, record
from interp.tokens import TokenBlocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        _one_memory(args)
        return
    model = _model(args)
    tokens = _tokens(model, args, args.blocks)
    points = [HookPoint("resid_post", layer) for layer in range(model.n_layers)]
    sides = _sides(model, tokens, points, args)
    _check(model, tokens, points, sides, args)
    times = _race({name: run for name, (run, _) in sides.items()}, args)
    seconds = {name: statistics.median(t) * sides[name][1] for name, t in times.items()}
    _report(seconds, tokens, times, args)
    _memory(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="default: GPT-2 small's shape with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--n-ctx", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="blocks per forward pass")
    parser.add_argument("--blocks", type=int, default=16, help="blocks per timed run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--skip", nargs="*", default=[], choices=["bridge", "sae-lens", "memory"])
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sink", choices=["ram", "disk"], default="ram", help=argparse.SUPPRESS)
    return parser.parse_args()


def _model(args: argparse.Namespace) -> Model:
    dtype = DTYPES[args.dtype]
    if args.model:
        return load(args.model, device=args.device, dtype=dtype)
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).to(args.device, dtype)
    return wrap(
        hf, None, name="gpt2-shaped", family="gpt2", train_tokens=None, weights_sha256="random"
    )


def _tokens(model: Model, args: argparse.Namespace, n_blocks: int) -> TokenBlocks:
    """Random ids, one document a block: the speed does not depend on the text."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_blocks, min(args.n_ctx, model.n_ctx))
    return TokenBlocks(
        ids=torch.randint(model.d_vocab, shape, generator=generator, dtype=torch.int32),
        doc_ids=torch.arange(n_blocks, dtype=torch.int32)[:, None].expand(shape).contiguous(),
        n_bytes=torch.ones(shape, dtype=torch.int32),
        is_text=torch.ones(shape, dtype=torch.bool),
        corpus="random",
        split="all",
        seed=0,
    )


Sides = dict[str, tuple[Callable[[], Any], int]]
"""What to time, and how often it is needed for all layers."""


def _sides(
    model: Model, tokens: TokenBlocks, points: list[HookPoint], args: argparse.Namespace
) -> Sides:
    batches = [b.to(model.device, torch.int64) for b in tokens.ids.split(args.batch)]

    @torch.inference_mode()
    def backbone() -> Any:
        return [model.final_hidden(ids)[:, -1].cpu() for ids in batches]

    @torch.inference_mode()
    def full() -> Any:
        outputs = [model.hf(input_ids=ids, labels=ids, use_cache=False) for ids in batches]
        return [float(output.loss) for output in outputs]

    def null() -> Any:
        for ids in batches:
            run_blocks(model, ids, {p: lambda value: None for p in points}, with_loss=False)

    def ram(with_loss: bool) -> Any:
        return list(capture(model, tokens, points, batch_size=args.batch, with_loss=with_loss))

    def disk() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            recording = prepare(model, tokens, points, batch_size=args.batch)
            return len(record(recording, Path(folder) / "store"))

    sides: Sides = {
        "transformers backbone": (backbone, 1),
        "transformers full, loss": (full, 1),
        "capture, null sink": (null, 1),
        "capture, RAM": (lambda: ram(False), 1),
        "capture, disk": (disk, 1),
        "capture with loss, RAM": (lambda: ram(True), 1),
    }
    if "bridge" not in args.skip:
        bridge = _bridge(model)
        names = [str(p) for p in points]

        @torch.inference_mode()
        def run_with_cache(names_filter: Any) -> Any:
            caches = []
            for ids in batches:
                _, cache = bridge.run_with_cache(ids, names_filter=names_filter)
                caches.append({n: cache[n].cpu() for n in names})
            return caches

        sides["TransformerBridge, same cache"] = (lambda: run_with_cache(names), 1)
        sides["TransformerBridge, whole cache"] = (lambda: run_with_cache(None), 1)
        if "sae-lens" not in args.skip:
            sides["sae-lens runner, all layers"] = (
                lambda: _sae_lens(bridge, tokens, names[len(names) // 2], model.d_model, args),
                len(names),  # it captures one hook point per run
            )
    return sides


def _bridge(model: Model) -> Any:
    """TransformerBridge on a copy of the model: it rewrites the one it is given."""
    import copy

    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    # It wants a tokenizer that lies somewhere; none is used.
    tokenizer = model.tokenizer or AutoTokenizer.from_pretrained(ladder.tokenizer_path())
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(model.hf), tokenizer=tokenizer
    )


def _sae_lens(
    bridge: Any, tokens: TokenBlocks, hook_name: str, d_in: int, args: argparse.Namespace
) -> Any:
    from unittest import mock

    import datasets

    datasets.disable_progress_bars()
    from sae_lens import cache_activations_runner
    from sae_lens.config import CacheActivationsRunnerConfig

    if len(tokens) % args.batch:
        sys.exit(f"--blocks {len(tokens)} is no multiple of --batch {args.batch}")
    n_blocks, n_ctx = tokens.ids.shape
    with tempfile.TemporaryDirectory() as folder:
        config = CacheActivationsRunnerConfig(
            dataset_path="none",
            model_name="none",
            model_batch_size=args.batch,
            hook_name=hook_name,
            d_in=d_in,
            training_tokens=n_blocks * n_ctx,
            context_size=n_ctx,
            new_cached_activations_path=str(Path(folder) / "out"),
            shuffle=False,
            prepend_bos=False,
            device=args.device,
            dtype=args.dtype,
            # One buffer, exactly filled: it computes whole buffers, whatever is asked for.
            buffer_size_gb=n_blocks * n_ctx * d_in * DTYPES[args.dtype].itemsize * 1.0001 / 1e9,
            streaming=False,
        )
        data = datasets.Dataset.from_dict({"input_ids": tokens.ids.tolist()})
        with mock.patch.object(cache_activations_runner, "load_model", return_value=bridge):
            runner = cache_activations_runner.CacheActivationsRunner(config, override_dataset=data)
            captured = runner.run()
        assert len(captured) == n_blocks
        return captured


def _check(
    model: Model,
    tokens: TokenBlocks,
    points: list[HookPoint],
    sides: Sides,
    args: argparse.Namespace,
) -> None:
    """Both sides must have computed the same thing. Also the warm-up."""
    [chunk] = sides["capture with loss, RAM"][0]()
    sizes = [len(b) for b in tokens.ids.split(args.batch)]
    losses = sides["transformers full, loss"][0]()
    theirs = sum(loss * n for loss, n in zip(losses, sizes, strict=True)) / len(tokens)
    mine = float(chunk.nll.view(len(tokens), -1)[:, 1:].mean())
    print(f"loss: {mine:.6f} here, {theirs:.6f} in transformers, difference {mine - theirs:.1e}")
    if "TransformerBridge, same cache" in sides:
        caches = sides["TransformerBridge, same cache"][0]()
        worst = 0.0
        for point in points:
            other = torch.cat([c[str(point)].flatten(0, 1) for c in caches]).float()
            worst = max(worst, float((chunk.acts[str(point)] - other).abs().max()))
        print(f"activations: largest difference from TransformerBridge {worst:.1e}")


def _race(sides: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, run in sides.items():
        _timed(run, args)  # what the first run pays for is nobody's speed
        print(f"\rwarmed up: {name:<40}", end="", file=sys.stderr)
    for repeat in range(args.repeats):
        for name, run in sides.items():
            times[name].append(_timed(run, args))
        print(f"\rrepeat {repeat + 1} of {args.repeats}{'':<40}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return times


def _timed(run: Callable[[], Any], args: argparse.Namespace) -> float:
    if args.device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _report(
    seconds: dict[str, float],
    tokens: TokenBlocks,
    times: dict[str, list[float]],
    args: argparse.Namespace,
) -> None:
    core, full = seconds["transformers backbone"], seconds["transformers full, loss"]
    limit = 1.05 if args.device == "cpu" else 1.10
    targets = {
        "capture, RAM": f"R_core <= {limit}",
        "capture with loss, RAM": "R_loss <= 1.05",
    }
    print(f"\n{tokens.ids.numel():,} tokens, {args.dtype}, {args.device}, "
          f"{torch.get_num_threads()} threads, median of {args.repeats}\n")  # fmt: skip
    print(f"{'':<32}{'tokens/s':>10}{'/ backbone':>12}{'/ full':>9}{'spread':>9}  target")
    for name, value in seconds.items():
        spread = (max(times[name]) - min(times[name])) / statistics.median(times[name])
        print(
            f"{name:<32}{tokens.ids.numel() / value:>10,.0f}{value / core:>12.3f}"
            f"{value / full:>9.3f}{spread:>9.0%}  {targets.get(name, '')}"
        )
    runner = seconds.get("sae-lens runner, all layers")
    if runner is not None:
        ratio = runner / seconds["capture, disk"]
        print(f"\nsae-lens runner / capture to disk, all layers: {ratio:.1f} (target >= 3)")


def _memory(args: argparse.Namespace) -> None:
    """Peak memory of a process of its own for each amount of text."""
    if "memory" in args.skip:
        return
    print(f"\n{'peak memory, MB':<20}{'1x':>10}{'4x':>10}{'16x':>10}   16x / 1x")
    for sink in ("ram", "disk"):
        peaks = []
        for times in (1, 4, 16):
            line = [sys.executable, *sys.argv, "--memory-of", str(times * args.blocks)]
            done = subprocess.run([*line, "--sink", sink], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
        row = "".join(f"{p / 1e6:>10,.0f}" for p in peaks)
        print(f"capture to {sink:<9}{row}{peaks[-1] / peaks[0]:>11.3f}")


def _one_memory(args: argparse.Namespace) -> None:
    model = _model(args)
    tokens = _tokens(model, args, args.memory_of)
    # Chunks of a 1x run: what is held must not grow with the text.
    chunk_tokens = args.blocks * tokens.n_ctx
    if args.sink == "ram":
        for _ in capture(
            model, tokens, "resid_post", batch_size=args.batch, chunk_tokens=chunk_tokens
        ):
            pass
    else:
        with tempfile.TemporaryDirectory() as folder:
            size = chunk_tokens * model.n_layers * model.d_model * 4
            recording = prepare(
                model, tokens, "resid_post", batch_size=args.batch, shard_bytes=size
            )
            record(recording, Path(folder) / "store")
    print(json.dumps(_peak_bytes()))


def _peak_bytes() -> int:
    """Of this program alone: what getrusage says includes the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
