"""`interp explore` and `interp push`: what others look at and load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.cli.parts import command


def add(commands: Any) -> None:
    """The parsers of the commands."""
    explore = command(
        commands,
        "explore",
        _explore,
        "static pages on which every latent of a finished study can be opened; resumable",
        "interp explore runs/quick --models ladder/d064",
    )
    explore.add_argument("dir", type=Path, metavar="DIR", help="a finished study")
    explore.add_argument("--models", nargs="+", metavar="MODEL", help="some of its models")
    explore.add_argument("--layers", nargs="+", type=int, metavar="N", help="some of its layers")

    push = command(
        commands,
        "push",
        _push,
        "publish a study's SAEs on the Hugging Face hub, in the layout that sae-lens loads",
        "interp push runs/quick me/ladder-saes --dry-run",
    )
    push.add_argument("dir", type=Path, metavar="DIR", help="a finished study")
    push.add_argument("repo", metavar="OWNER/NAME", help="made if it is not there")
    push.add_argument("--models", nargs="+", metavar="MODEL", help="some of its models")
    push.add_argument("--private", action="store_true", help="if the repository is made")
    push.add_argument(
        "--dry-run", action="store_true", help="write what would be pushed to DIR/push instead"
    )


def _explore(args: argparse.Namespace) -> None:
    from interp.explore.exploring import explore_run
    from interp.run import open_run

    print(f"explorer: {explore_run(open_run(args.dir), args.models, args.layers)}")


def _push(args: argparse.Namespace) -> None:
    from interp.push import push, write_tree
    from interp.run import open_run

    run = open_run(args.dir)
    if args.dry_run:
        out = args.dir / "push"
        names = write_tree(run, args.repo, out, args.models)
        print(f"{len(names)} SAEs, as they would be pushed to {args.repo}: {out}")
        return
    print(push(run, args.repo, args.models, private=args.private))
