"""`mosa completion`: a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
import sys

import shtab
from jsonargparse import ArgumentParser, Namespace

from mosa.cli.help import POSITIONAL, read_help
from mosa.cli.options import Command

SHELLS = ("bash", "zsh", "tcsh")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help=f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}")


def _completion(args: Namespace) -> None:
    sys.stdout.write(shtab.complete(_parser_of_all(), args.shell) + "\n")


def _parser_of_all() -> argparse.ArgumentParser:
    """One parser with every command and option, from their help."""
    parser = argparse.ArgumentParser(prog="mosa")
    commands = parser.add_subparsers(dest="command")
    below: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    groups = {name.split()[0] for name in read_help() if " " in name}
    for name, about in read_help().items():
        first, _, second = name.partition(" ")
        if second:
            if first not in below:
                known = commands.choices.get(first) or commands.add_parser(
                    first,
                    help=f"commands of {first}",  # shtab leaves out what has none
                )
                below[first] = known.add_subparsers(dest="second")
            own = below[first].add_parser(second, help=about["summary"])
        else:
            own = commands.choices.get(first) or commands.add_parser(first, help=about["summary"])
        own.add_argument("--help-all", action="store_true")
        for title, options in about["groups"].items():
            if title == POSITIONAL and first in groups and not second:
                continue  # `mosa judge check` and `mosa judge RUN`: the words of the group complete
            for option in options:
                word, _, takes = option.partition(" ")
                if title == POSITIONAL or takes:
                    added = own.add_argument(word)
                else:
                    added = own.add_argument(word, action="store_true")
                if title == POSITIONAL or "PATH" in takes:
                    added.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
    return parser


COMMANDS: dict[str, Command] = {
    "completion": Command(
        "print a script by which a shell completes what you type",
        _arguments,
        _completion,
        "Nothing is written.",
        example='eval "$(mosa completion bash)"',
    ),
}
