"""Command-line options that say which SAEs to train, shared by `saes train` and `interp train`.

Imports nothing heavy, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from saes.errors import SAEError

if TYPE_CHECKING:
    from saes.config import SAEConfig

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated")
TRACKERS = ("wandb", "trackio", "tensorboard")
_SAME_NAME = (
    "architecture",
    "lr",
    "batch_size",
    "max_grad_norm",
    "encoder_init_scale",
    "encoder_dtype",
    "k_warmup_fraction",
    "b_dec_init",
    "matryoshka_widths",
)
"""Options that are fields of `SAEConfig`; not given, they keep its defaults."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and status 2, as every other wrong input."""

    example: str | None = None
    """A command line that works, for the end of the help."""

    def format_help(self) -> str:
        """argparse would wrap the example, and then what is copied does not run."""
        return super().format_help() + (f"\nexample:\n  {self.example}\n" if self.example else "")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_sae_options(parser: argparse.ArgumentParser) -> None:
    """Shape, sparsity, seeds and optimization of the SAEs; how to follow the run."""
    shape = parser.add_argument_group("SAEs: one per hook point, size, sparsity and seed")
    shape.add_argument(
        "--d-sae", nargs="+", required=True, metavar="D", help="latents: 4096, or 8x for 8 * d_in"
    )
    shape.add_argument(
        "--k", nargs="+", default=[], metavar="K", help="latents per token: 32, or 0.1x of d_in"
    )
    shape.add_argument(
        "--sparsity-coefficient",
        nargs="+",
        type=float,
        default=[],
        metavar="C",
        help="instead of --k, for standard and gated (L1) and jumprelu (L0)",
    )
    shape.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0..N-1 (1)")
    shape.add_argument("--architecture", choices=ARCHITECTURES, help="default: topk")
    shape.add_argument(
        "--matryoshka-widths",
        nargs="+",
        type=int,
        metavar="D",
        help="nested sizes, ascending (d_sae / 16, / 8, / 4, / 2 and d_sae)",
    )

    step = parser.add_argument_group("optimization")
    step.add_argument("--lr", type=float, help="peak learning rate (a rule in d_sae and k)")
    step.add_argument("--batch-size", type=int, help="tokens per step (1024)")
    step.add_argument("--max-grad-norm", type=float, metavar="G", help="clip gradients (never)")
    step.add_argument(
        "--encoder-init-scale", type=float, metavar="S", help="length of initial encoder rows (1)"
    )
    step.add_argument(
        "--encoder-dtype",
        choices=["float32", "bfloat16"],
        help="of the product that selects latents (float32)",
    )
    step.add_argument(
        "--k-warmup-fraction",
        type=float,
        metavar="F",
        help="share of the steps over which k falls to its value (0)",
    )
    step.add_argument(
        "--b-dec-init",
        choices=["mean", "geometric_median"],
        help="of the first rows, where the decoder bias starts (mean)",
    )
    step.add_argument("--no-scaling", action="store_true", help="train on the rows as they are")

    run = parser.add_argument_group("the run")
    run.add_argument("--device", default="cpu", help="cpu or cuda; where to train (cpu)")
    run.add_argument("--log", choices=TRACKERS, help="send the metrics there too (nowhere)")
    run.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds between checkpoints, at least (default: %(default)g)",
    )


def count(text: str) -> int:
    """A number of tokens: 200000, 2e5, 200k, 1M."""
    value = with_unit(text, {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9})
    if not 1 <= value < 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number from 1 on; write 200000 or 200k"
        )
    return int(value)


def with_unit(text: str, units: dict[str, float]) -> float:
    """The number that `text` says, in ones; 0 where it says none."""
    unit = next((unit for unit in units if text.lower().endswith(unit)), "")
    try:
        return float(text[: len(text) - len(unit)]) * units.get(unit, 1)
    except ValueError:
        return 0.0


def configs(
    options: argparse.Namespace, widths: Mapping[str, int], n_tokens: int
) -> list[SAEConfig]:
    """One config per hook point of `widths` (d_in by name), size, sparsity and seed.

    Raises SAEError for values that no SAE can have.
    """
    from saes.config import SAEConfig

    if options.k and options.sparsity_coefficient:
        raise SAEError("--k and --sparsity-coefficient: give the one that the architecture takes")
    if options.seeds < 1:
        raise SAEError(f"--seeds {options.seeds}: give at least 1")
    given = {name: getattr(options, name) for name in _SAME_NAME}
    given = {name: value for name, value in given.items() if value is not None}
    sparsity: list[dict[str, object]] = [{"k": k} for k in options.k]
    sparsity += [{"sparsity_coefficient": c} for c in options.sparsity_coefficient]
    return [
        SAEConfig(
            d_in=d_in,
            d_sae=size,
            n_tokens=n_tokens,
            hook_point=hook_point,
            seed=seed,
            scale_activations=not options.no_scaling,
            **rule,
            **given,
        )
        for hook_point, d_in in widths.items()
        for size in options.d_sae
        for rule in sparsity or [{}]
        for seed in range(options.seeds)
    ]
