"""`interp train` and `interp eval-sae`: SAEs from a live capture, and what one reconstructs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from interp.cli.parts import MODEL_HELP, TEXT_HELP, command, count, json_flag
from saes.options import add_sae_options, configs

_EVAL_TOKENS = 65_536


def add(commands: Any) -> None:
    """The parsers of both commands."""
    train = command(
        commands,
        "train",
        _train,
        "SAEs from a live capture, without disk; run again to resume",
        "interp train ladder/d064 --hook-points resid_post --d-sae 8x --k 8 --tokens 1M",
    )
    train.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    train.add_argument(
        "--hook-points",
        nargs="+",
        required=True,
        metavar="POINT",
        help="blocks.N.hook_KIND, or KIND for every layer, such as resid_post",
    )
    train.add_argument(
        "--tokens", type=count, required=True, metavar="N", help="training tokens of each SAE"
    )
    train.add_argument("--text", default="deps", metavar="SRC", help=TEXT_HELP)
    train.add_argument("--out", type=Path, metavar="DIR", help="default: runs/saes/MODEL")
    train.add_argument(
        "--shuffle-buffer",
        type=count,
        metavar="N",
        help="tokens that every SAE shuffles together (65536); held in memory twice",
    )
    add_sae_options(train)

    judge = command(
        commands,
        "eval-sae",
        _evaluate,
        "FVU, L0, CE loss recovered (zero and mean ablation) and KL of SAEs on held-out text",
        "interp eval-sae runs/saes/ladder--d064 --model ladder/d064",
    )
    judge.add_argument("path", type=Path, metavar="PATH", help="an SAE, or a folder above some")
    judge.add_argument("--model", required=True, metavar="MODEL", help=MODEL_HELP)
    judge.add_argument("--text", default="deps", metavar="SRC", help=TEXT_HELP)
    judge.add_argument(
        "--tokens",
        type=count,
        default=_EVAL_TOKENS,
        metavar="N",
        help="held-out tokens (default: %(default)s)",
    )
    judge.add_argument("--hook-point", metavar="POINT", help="where an SAE's file does not say")
    judge.add_argument(
        "--means",
        type=Path,
        metavar="FILE",
        help="token and position means of a contextual SAE, where they do not lie beside it",
    )
    json_flag(judge)


def _train(args: argparse.Namespace) -> None:
    from interp.models import load
    from interp.sae_training import SHUFFLE_BUFFER, points_of, train_saes
    from interp.tokens import tokens

    model = load(args.model, device=args.device)
    points = points_of(args.hook_points, model)
    # Wrong SAE options are answered before the text is read.
    configs(args, {str(point): model.d_model for point in points}, args.tokens)
    # The stream leaves out first positions and sinks; what is then missing is passed over twice.
    blocks = tokens(args.text, model, n_tokens=int(1.02 * args.tokens) + model.n_ctx, split="train")
    for warning in blocks.warnings:
        print(f"interp: warning: {warning}; it is passed over again", file=sys.stderr)
    out = args.out or Path("runs") / "saes" / args.model.replace("/", "--")
    for path in train_saes(
        model,
        blocks,
        points,
        lambda widths: configs(args, widths, args.tokens),
        out,
        log=args.log,
        checkpoint_seconds=args.checkpoint_seconds,
        shuffle_buffer=args.shuffle_buffer or SHUFFLE_BUFFER,
        device=args.device,
    ):
        print(path)


def _evaluate(args: argparse.Namespace) -> None:
    from interp.errors import UserError
    from interp.models import load
    from interp.sae_evaluation import evaluate_sae, judged
    from interp.tokens import tokens
    from saes.format import sae_folders

    folders = sae_folders(args.path)
    model = load(args.model)
    # All before the first is judged, which takes a pass over the text each.
    points = {
        judged(folder, model, hook_point=args.hook_point, means=args.means)[1] for folder in folders
    }
    if args.means is not None and len(points) > 1:
        raise UserError(f"--means {args.means} is of one layer; give the SAEs of one hook point")
    blocks = tokens(args.text, model, n_tokens=args.tokens, split="held_out")
    rows = [
        evaluate_sae(folder, model, blocks, hook_point=args.hook_point, means=args.means)
        for folder in folders
    ]
    if args.json:
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    for row in rows:
        print(_text(row))


def _text(row: dict[str, Any]) -> str:
    """One SAE in three lines; a contextual one in four."""
    recovered = {
        kind: "undefined (the ablation costs nothing)" if value is None else f"{value:.4f}"
        for kind in ("zero", "mean")
        for value in [row[f"ce_loss_recovered_{kind}"]]
    }
    contextual = row["stream"] == "contextual"
    alone = ""
    if contextual:
        value = row["ce_loss_recovered_means_alone"]
        told = "an undefined share (it is hardly one)" if value is None else f"{value:.4f}"
        loss = f"{row['ce_loss_means_alone']:.4f}"
        alone = (
            f"\n  FVU is of the rest; with the token and position means alone the loss is {loss}, "
            f"and of that gap the SAE recovers {told}"
        )
    return (
        f"{row['path']}  {row['hook_point']}{' (contextual)' if contextual else ''}\n"
        f"  FVU {row['fvu']:.4f}  L0 {row['l0']:.2f}  dead {row['dead_fraction']:.1%}  "
        f"KL {row['kl_nats']:.4f} nats  ({row['n_tokens']:,} tokens)\n"
        f"  CE loss recovered {recovered['zero']} (zero ablation), {recovered['mean']} (mean); "
        f"losses: clean {row['ce_loss_clean']:.4f}, SAE {row['ce_loss_sae']:.4f}, "
        f"zero {row['ce_loss_zero_ablated']:.4f}, mean {row['ce_loss_mean_ablated']:.4f}{alone}"
    )
