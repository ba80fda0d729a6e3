"""Rewrites the help of every command, which `mosa COMMAND --help` shows without torch.

    python -m mosa.cli.help_texts        # after an option or its text has changed

A test holds the file equal to the options.
"""

from __future__ import annotations

import argparse

from jsonargparse._common import parser_context

from mosa.cli import COMMANDS, command_named, parser_of
from mosa.cli.help import FILE, HelpOfCommand, dashed
from mosa.files import write_json


def make_help() -> dict[str, HelpOfCommand]:
    """What each command and its options do, from the options themselves."""
    return {name: _described(name) for name in COMMANDS}


def _described(name: str) -> HelpOfCommand:
    command, parser = command_named(name), parser_of(name)
    formatter = parser._get_formatter()
    groups: dict[str, dict[str, str]] = {}
    with parser_context(parent_parser=parser):  # which jsonargparse's formatter asks for
        for group in parser._action_groups:
            shown = {
                dashed(_written(action, formatter)): dashed(formatter._expand_help(action))
                for action in group._group_actions
                if action.help is not argparse.SUPPRESS and action.dest != "help"
            }
            if shown:
                groups[str(group.title)] = shown
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    return {"summary": dashed(summary), "example": command.example, "groups": groups}


def _written(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    """How an option is written, a list with commas."""
    if action.option_strings and action.nargs == "+":
        return f"{action.option_strings[0]} {action.metavar or 'A,B,...'}"
    return formatter._format_action_invocation(action)


if __name__ == "__main__":
    write_json(FILE, make_help())
