"""`saes train DIR ...` and `saes eval OUT --acts DIR`: thin; parses, calls, prints.

Imports of torch wait until a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saes.errors import SAEError
from saes.options import OneLineParser, add_sae_options, configs, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0 done, 2 wrong input (one line on stderr), 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except SAEError as error:
        print(f"saes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saes: interrupted; run the same line again to resume", file=sys.stderr)
        return 130
    return 0


def build_parser() -> OneLineParser:
    """Both commands with their options; nothing heavy is imported."""
    parser = OneLineParser(prog="saes", description="Sparse autoencoders on activations.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)

    train: OneLineParser = commands.add_parser(
        "train",
        help="train SAEs on a folder of activations",
        description="Train SAEs on a folder of .npy or .safetensors activations. Run the same line "
        "again to resume. Each SAE's metrics are in a .jsonl file beside its folder.",
    )
    train.example = "saes train acts --d-sae 8x --k 32 --seeds 5 --out saes-out"
    train.add_argument("acts", metavar="DIR", type=Path, help="folder of activations")
    train.add_argument("--out", type=Path, required=True, help="folder for the SAEs")
    train.add_argument(
        "--tokens", type=count, help="rows to train on (one pass); more than a pass repeats it"
    )
    train.add_argument("--hook-points", nargs="+", help="keys to train on (all)")
    train.add_argument(
        "--shuffle-buffer",
        "--chunk-rows",
        dest="chunk_rows",
        type=count,
        default=131_072,
        metavar="N",
        help="rows that every SAE shuffles together (131072)",
    )
    add_sae_options(train)
    train.set_defaults(run=_train)

    evaluate: OneLineParser = commands.add_parser(
        "eval",
        help="FVU, L0, dead fraction of saved SAEs",
        description="Evaluate every SAE below OUT on a folder of activations.",
    )
    evaluate.example = "saes eval saes-out --acts acts --json"
    evaluate.add_argument("saes", metavar="OUT", type=Path, help="an SAE, or a folder above some")
    evaluate.add_argument("--acts", type=Path, required=True, help="folder of activations")
    evaluate.add_argument("--json", action="store_true", help="a list of objects on stdout")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _train(options: argparse.Namespace) -> None:
    from saes.folder import ActivationFolder
    from saes.runs import train_into

    folder = ActivationFolder(options.acts)
    hook_points = options.hook_points or list(folder.widths)
    unknown = [name for name in hook_points if name not in folder.widths]
    if unknown:
        raise SAEError(
            f"{options.acts}: no hook point {unknown[0]!r}, only {sorted(folder.widths)}; "
            "give one of those"
        )
    n_tokens = folder.n_rows if options.tokens is None else options.tokens
    settings = configs(options, {name: folder.widths[name] for name in hook_points}, n_tokens)
    for path in train_into(
        options.out,
        folder.passes(n_tokens, options.chunk_rows),
        settings,
        identity={**folder.identity, "shuffle_buffer": options.chunk_rows},
        labels={"acts": str(options.acts)},
        log=options.log,
        checkpoint_seconds=options.checkpoint_seconds,
        device=options.device,
    ):
        print(path)


def _evaluate(options: argparse.Namespace) -> None:
    from saes.folder import ActivationFolder
    from saes.format import load, sae_folders
    from saes.metrics import evaluate

    paths = sae_folders(options.saes)
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
        if folder.widths[hook_point] != sae.d_in:
            raise SAEError(
                f"{path}: d_in is {sae.d_in} but {options.acts} holds rows of width "
                f"{folder.widths[hook_point]}; give the activations that it was trained on"
            )
        metrics = evaluate(sae, (chunk[hook_point] for chunk in folder.chunks()))
        if not math.isfinite(metrics.fvu):
            raise SAEError(f"{path}: what it reconstructs is not finite; train it again")
        rows.append(
            {
                "path": str(path),
                "hook_point": hook_point,
                "d_in": sae.d_in,
                "d_sae": sae.d_sae,
                "k": sae.k or None,
                "seed": sae.cfg.seed if sae.cfg else None,
                "n_tokens": metrics.n_tokens,
                "fvu": metrics.fvu,
                "l0": metrics.l0,
                "dead_fraction": metrics.dead_fraction,
                "density_histogram": metrics.density_histogram(),
            }
        )
    print(json.dumps(rows, indent=2, allow_nan=False) if options.json else _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    columns = [name for name in rows[0] if name not in ("d_in", "density_histogram")]
    cells = [columns] + [
        [f"{row[c]:.4f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


if __name__ == "__main__":
    sys.exit(main())
