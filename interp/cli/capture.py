"""`interp capture`: activations to disk, resumable."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.parts import (
    DTYPES,
    MODEL_HELP,
    TEXT_HELP,
    command,
    count,
    json_flag,
    load_options,
    model_options,
    print_costs,
    print_json,
    print_table,
    size,
)

if TYPE_CHECKING:
    from interp.store import Store

MAX_THREADS = 1024
"""Many more, and OpenMP ends the process instead of refusing them."""


def add(commands: Any) -> None:
    """The parser of the command."""
    parser = command(
        commands,
        "capture",
        _capture,
        "activations to disk: safetensors shards with a manifest; run again to resume",
        "interp capture ladder/d064 --out acts --hook-points resid_post --tokens 1M --loss",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--hook-points",
        nargs="+",
        required=True,
        metavar="POINT",
        help="blocks.N.hook_KIND, or KIND for every layer: resid_pre, attn_out, resid_mid, "
        "mlp_out, resid_post",
    )
    parser.add_argument("--tokens", type=count, required=True, metavar="N", help="at most N tokens")
    parser.add_argument("--text", default="deps", metavar="SRC", help=TEXT_HELP)
    parser.add_argument(
        "--split",
        choices=("all", "train", "held_out"),
        default="train",
        help="which documents (default: %(default)s)",
    )
    model_options(parser)
    parser.add_argument("--store-dtype", choices=DTYPES, help="on disk (default: --dtype)")
    parser.add_argument(
        "--positions",
        choices=("sae", "all"),
        default="sae",
        help="sae (default): without position 0, tokens before documents and high-norm sinks",
    )
    parser.add_argument("--loss", action="store_true", help="store each token's loss too")
    parser.add_argument(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="blocks of one context each in a forward pass (default: %(default)s)",
    )
    parser.add_argument(
        "--budget", type=size, metavar="BYTES", help="refuse to write more, such as 20GB"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--repair", action="store_true", help="capture damaged shards again")
    parser.add_argument(
        "--plan", action="store_true", help="only say what it would cost, after a short trial"
    )
    json_flag(parser)


def _capture(args: argparse.Namespace) -> None:
    import torch

    from interp.errors import UserError
    from interp.models import load
    from interp.progress import Progress
    from interp.recording import prepare, record
    from interp.store import MANIFEST, open_store
    from interp.tokens import tokens

    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise UserError(f"--threads {args.threads}; use 1 to {MAX_THREADS}")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}; use 1 or more")
    if (args.out / MANIFEST).exists() and args.threads is None:
        args.threads = open_store(args.out).manifest.origin.threads
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = load(args.model, **load_options(args))
    blocks = tokens(args.text, model, n_tokens=args.tokens, split=args.split)
    recording = prepare(
        model,
        blocks,
        args.hook_points,
        dtype=args.store_dtype,
        positions=args.positions,
        with_loss=args.loss,
        batch_size=args.batch,
    )
    recording.require_room(args.out, args.budget)
    for warning in blocks.warnings:  # of a capture that is not refused
        print(f"interp: warning: {warning}", file=sys.stderr)
    if args.plan:
        from interp.plan import plan_capture

        print_costs([plan_capture(recording, args.out)], as_json=args.json)
        return
    progress = Progress(len(blocks))
    done_before: int | None = None

    def heartbeat(store: Store) -> None:
        nonlocal done_before
        if done_before is None:
            done_before = store.blocks_done - store.manifest.shards[-1].n_blocks
            progress.skip(done_before)
        progress.at(f"{args.model}: capturing", store.blocks_done - done_before)

    store = record(
        recording, args.out, budget_bytes=args.budget, repair=args.repair, heartbeat=heartbeat
    )
    progress.close(f"{args.out}: {len(store):,} rows, {store.n_bytes:,} bytes")
    _print(store, args.json)


def _print(store: Store, as_json: bool) -> None:
    origin = store.manifest.origin
    facts: dict[str, Any] = {
        "path": str(store.path),
        "model": origin.model,
        "text": origin.text,
        "dtype": origin.dtype,
        "n_tokens": origin.n_tokens,
        "n_rows": len(store),
        "dropped_fraction": store.dropped_fraction,
        "n_bytes": store.n_bytes,
        "n_shards": len(store.manifest.shards),
        "parity_error": store.manifest.parity_error,
    }
    if origin.with_loss:
        facts["loss_nats_per_token"] = store.loss().nats_per_token
    if as_json:
        print_json(facts | {"hook_points": origin.hook_points})
        return
    facts["dropped_fraction"] = f"{store.dropped_fraction:.4f}"
    print_table([facts], f"{len(origin.hook_points)} hook points, {', '.join(origin.hook_points)}")
