"""Rewrites the help of every command, which `mosa COMMAND --help` shows without torch.

    python -m mosa.cli.help_texts        # after an option or its text has changed

A test holds the file equal to the options.
"""

from __future__ import annotations

import os

from mosa.cli import COMMANDS, HELP_FILE, parser_of
from mosa.files import write_json


def make_help() -> dict[str, list[str]]:
    """The lines of each command's help, an option with all of its text on each."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"  # as argparse asks for the width of a terminal
    try:
        return {name: parser_of(name).format_help().splitlines() for name in COMMANDS}
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


if __name__ == "__main__":
    write_json(HELP_FILE, make_help())
