"""`saes train DIR ...` and `saes eval OUT --acts DIR`: thin; parses, calls, prints.

Imports of torch wait until a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saes.errors import SAEError

if TYPE_CHECKING:
    from saes.training import TrainingStatus

CHECKPOINTS = ".checkpoints"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 done, 2 wrong input (one line on stderr), 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SAEError as error:
        print(f"saes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saes: interrupted; run the same line again to resume", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="saes", description="Sparse autoencoders on activations.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train SAEs on a folder of activations",
        description="Train one SAE per hook point, size, k and seed on a folder of .npy or "
        ".safetensors activations. Run the same line again to resume.",
    )
    train.add_argument("acts", metavar="DIR", type=Path, help="folder of activations")
    train.add_argument(
        "--d-sae",
        nargs="+",
        required=True,
        metavar="D",
        help="latents: a number, or a multiple of d_in such as 8x",
    )
    train.add_argument("--k", nargs="+", type=int, required=True, help="latents per token")
    train.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0..N-1 (1)")
    train.add_argument("--out", type=Path, required=True, help="folder for the SAEs")
    train.add_argument(
        "--tokens", type=int, help="rows to train on (one pass); more than a pass repeats it"
    )
    train.add_argument("--hook-points", nargs="+", help="keys to train on (all)")
    train.add_argument("--lr", type=float, help="peak learning rate (a rule in d_sae)")
    train.add_argument("--batch-size", type=int, help="tokens per step")
    train.add_argument("--encoder-dtype", choices=["float32", "bfloat16"])
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "eval",
        help="FVU, L0, dead fraction of saved SAEs",
        description="Evaluate every SAE below OUT on a folder of activations.",
    )
    evaluate.add_argument("saes", metavar="OUT", type=Path, help="an SAE, or a folder above some")
    evaluate.add_argument("--acts", type=Path, required=True, help="folder of activations")
    evaluate.add_argument("--json", action="store_true", help="a list of objects on stdout")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _train(options: argparse.Namespace) -> None:
    from saes.config import SAEConfig
    from saes.folder import ActivationFolder
    from saes.format import save
    from saes.training import train

    folder = ActivationFolder(options.acts)
    hook_points = options.hook_points or list(folder.widths)
    unknown = [name for name in hook_points if name not in folder.widths]
    if unknown:
        raise SAEError(
            f"{options.acts}: no hook point {unknown[0]!r}, only {sorted(folder.widths)}; "
            "give one of those"
        )
    n_tokens = folder.n_rows if options.tokens is None else options.tokens
    given = {
        name: getattr(options, name)
        for name in ("lr", "batch_size", "encoder_dtype")
        if getattr(options, name) is not None
    }
    configs = [
        SAEConfig(
            d_in=folder.widths[hook_point],
            d_sae=_size(size, folder.widths[hook_point]),
            k=k,
            n_tokens=n_tokens,
            hook_point=hook_point,
            seed=seed,
            **given,
        )
        for hook_point in hook_points
        for size in options.d_sae
        for k in options.k
        for seed in range(options.seeds)
    ]
    saes = train(
        folder.passes(n_tokens),
        configs,
        heartbeat=_Progress(),
        checkpoint_dir=options.out / CHECKPOINTS,
    )
    for config, sae in zip(configs, saes, strict=True):
        path = options.out / config.hook_point.replace("/", "--") / config.name
        save(sae, path)
        print(path)


def _evaluate(options: argparse.Namespace) -> None:
    from saes.folder import ActivationFolder
    from saes.format import CONFIG_NAME, load
    from saes.metrics import evaluate

    paths = sorted(path.parent for path in options.saes.rglob(CONFIG_NAME))
    if not paths:
        raise SAEError(f"{options.saes}: no SAE below it; give a folder written by saes train")
    folder = ActivationFolder(options.acts)
    rows = []
    for path in paths:
        sae = load(path)
        hook_point = sae.cfg.hook_point if sae.cfg else next(iter(folder.widths))
        if hook_point not in folder.widths:
            raise SAEError(
                f"{path}: trained on {hook_point!r} but {options.acts} holds "
                f"{sorted(folder.widths)}; give its activations"
            )
        metrics = evaluate(sae, (chunk[hook_point] for chunk in folder.chunks()))
        rows.append(
            {
                "path": str(path),
                "hook_point": hook_point,
                "d_in": sae.d_in,
                "d_sae": sae.d_sae,
                "k": sae.k,
                "seed": sae.cfg.seed if sae.cfg else None,
                "n_tokens": metrics.n_tokens,
                "fvu": metrics.fvu,
                "l0": metrics.l0,
                "dead_fraction": metrics.dead_fraction,
            }
        )
    print(json.dumps(rows, indent=2) if options.json else _table(rows))


def _size(text: str, d_in: int) -> int:
    """Latents from "4096" or "8x" (times d_in)."""
    try:
        value = float(text[:-1]) * d_in if text.endswith("x") else int(text)
    except ValueError:
        raise SAEError(f"--d-sae {text!r}: give a number or a multiple such as 8x") from None
    if value < 1 or value != int(value):
        raise SAEError(f"--d-sae {text!r}: gives {value:g} latents at d_in {d_in}; give a whole")
    return int(value)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = [name for name in rows[0] if name != "d_in"]
    cells = [columns] + [
        [f"{row[c]:.4f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


class _Progress:
    """One line on stderr, redrawn on a terminal, silent elsewhere."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first_done: int | None = None

    def __call__(self, status: TrainingStatus) -> None:
        if not sys.stderr.isatty():
            return
        # Tokens of an earlier, interrupted run cost nothing now.
        if self._first_done is None:
            self._first_done = status.tokens_done
        done = status.tokens_done - self._first_done
        seconds = time.monotonic() - self._started
        left = (status.tokens_total - status.tokens_done) * seconds / done if done else 0.0
        end = "\n" if status.tokens_done >= status.tokens_total else ""
        print(
            f"\r{status.tokens_done:,}/{status.tokens_total:,} tokens  "
            f"{status.sae_tokens_per_second:,.0f} SAE tokens/s  FVU {status.fvu:.4f}  "
            f"dead {status.dead_fraction:.1%}  {left:.0f} s left ",
            end=end,
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
