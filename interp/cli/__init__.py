"""The `interp` command, one module for each group of commands; thin: parses, calls, prints."""

from interp.cli.commands import build_parser, main

__all__ = ["build_parser", "main"]
