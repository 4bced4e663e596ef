"""The `interp` command: parses, calls, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from interp.cli import (
    calibrate,
    capture,
    explore,
    geometry,
    labels,
    ladder,
    models,
    published,
    saes,
    scaling,
    study,
    toy,
)
from interp.cli.parts import DEFECT, USER_ERROR
from interp.errors import StudyFailedError, UserError
from saes.options import OneLineParser

INTERRUPTED = 130
_OF_THE_SYSTEM = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR,
    errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EMFILE,
}  # fmt: skip
"""Errors that say something of a path or a disk, and nothing of this program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Status: 0 done, 1 some of it failed, 2 wrong input, 130 interrupted.

    A defect raises, which is status 1 too. A file that may not be read or written, and memory that
    is not there, are no defects.
    """
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    args.line = shlex.join(["interp", *words])
    if not hasattr(args, "call"):
        parser.print_help()
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return args.call(args) or 0
    except UserError as error:
        return _refuse(str(error))
    except StudyFailedError as error:
        return _refuse(str(error), DEFECT)
    except KeyboardInterrupt:
        if argv is None:  # whoever presses again wants what is already happening
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted; run the same line again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Of a write, which knows no name.
            return _refuse(f"{error.strerror}; make room, then run the same line again")
        if error.errno not in _OF_THE_SYSTEM or error.filename is None:
            raise
        return _refuse(
            f"{error.filename}: {error.strerror}; choose another place, or mend this one"
        )
    except Exception as error:
        # Both are named, so that `--help` need not import saes or torch.
        if type(error).__name__ == "SAEError":
            return _refuse(str(error))
        if type(error).__name__ == "OutOfMemoryError":
            return _refuse(f"{error}; use --dtype bfloat16, --device-map auto, or a smaller model")
        raise


def _refuse(message: str, exit_status: int = USER_ERROR) -> int:
    print(f"interp: {' '.join(message.split())}", file=sys.stderr)
    return exit_status


def build_parser() -> OneLineParser:
    """Every command with its options; nothing heavy is imported."""
    parser = OneLineParser(
        prog="interp",
        description="How many features each layer of a language model packs per dimension, and "
        "whether that packing explains the model's loss.",
    )
    commands = parser.add_subparsers(
        metavar="COMMAND", title="commands", parser_class=OneLineParser
    )
    for group in (
        models,
        capture,
        saes,
        published,
        labels,
        explore,
        geometry,
        scaling,
        toy,
        calibrate,
        study,
        ladder,
    ):
        group.add(commands)
    return parser
