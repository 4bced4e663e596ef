"""Every command's help ends with a line that works when it is copied."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest

import interp.cli
import saes.cli
from saes.options import OneLineParser


def commands(parser: argparse.ArgumentParser) -> Iterator[OneLineParser]:
    """The parsers of all commands and of their steps."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from commands(sub)


PARSERS = {
    command.prog: (whole, command)
    for whole in (interp.cli.build_parser(), saes.cli.build_parser())
    for command in commands(whole)
}


def test_all_commands_are_looked_at() -> None:
    promised = "models ladder loss capture train eval-sae geometry toy fit forecast calibrate plan"
    promised += " study status report"
    assert {f"interp {name}" for name in promised.split()} < set(PARSERS)
    assert {"saes train", "saes eval", "interp ladder train"} < set(PARSERS)


@pytest.mark.parametrize("name", PARSERS)
def test_help_ends_with_a_worked_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # narrower than most examples: they must not be wrapped
    whole, command = PARSERS[name]
    title, example = command.format_help().splitlines()[-2:]
    assert title == "example:"
    program, *words = shlex.split(example)
    assert program == whole.prog
    assert " ".join([program, *words]).startswith(name)
    whole.parse_args(words)  # a wrong option would stop the test with status 2


@pytest.mark.parametrize("name", PARSERS)
def test_help_says_what_every_option_does_and_what_happens_without_it(name: str) -> None:
    _, command = PARSERS[name]
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        assert action.help, f"{name} {action.dest}"
        if action.default not in (None, False, []):
            said = "default" in action.help or f"({action.default})" in action.help
            assert said, f"{name} {action.dest}"


def test_an_example_that_does_not_parse_is_seen() -> None:
    with pytest.raises(SystemExit):
        interp.cli.build_parser().parse_args(["report", "runs/quick", "--deep"])
