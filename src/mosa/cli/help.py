"""What `--help` shows: pages from `help.json`, which needs no torch.

The first page of a command has its line, an example, and, where not all fit, the first options of
each group with the first part of their texts; `--help-all` shows everything in full.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

FILE = Path(__file__).with_name("help.json")
MOST_LINES = 40
"""Of a first page."""
POSITIONAL = "positional arguments"
AHEAD = 3
"""How many options of the first group stand on a first page before others have a second one."""
WIDEST_NAME = 26
"""Columns of an option's name; a text beside a longer one begins on the next line."""


class HelpOfCommand(TypedDict):
    """A command as `help.json` has it."""

    summary: str
    example: str
    groups: dict[str, dict[str, str]]
    """By title, then by how an option is written: what it does."""


@cache
def read_help() -> Mapping[str, HelpOfCommand]:
    """The help of every command by its name."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def dashed(text: str) -> str:
    """The text with options as they are shown: `--max_new_tokens` is `--max-new-tokens`."""
    return re.sub(
        r"(?<![\w-])--[a-z][a-z0-9]*(_[a-z0-9]+)+", lambda found: found[0].replace("_", "-"), text
    )


def page_of(name: str, *, whole: bool = False) -> str:
    """The help of a command, as wide as the terminal: its first page, or all of it."""
    width = shutil.get_terminal_size().columns - 2
    head, groups = list(_head(name, width)), list(_groups(name, width))
    if not whole and len(head) + len(groups) > MOST_LINES:
        groups = _first_groups(name, width, MOST_LINES - len(head))
    return "\n".join([*head, *groups])


def _head(name: str, width: int) -> Iterator[str]:
    about = read_help()[name]
    taken = " ".join(word.upper() for word in about["groups"].get(POSITIONAL, ()))
    yield " ".join(f"usage: mosa {name} {taken} [options]".split())
    yield ""
    yield from textwrap.wrap(about["summary"], width)
    yield ""
    yield from in_lines(about["example"], width)


def cut_to_width(text: str, width: int) -> str:
    """The first words of a text that is wider than that."""
    return textwrap.shorten(text, max(width, 20), placeholder=" ...", break_on_hyphens=False)


def in_lines(command: str, width: int) -> list[str]:
    """A command as it is typed, over several lines where it is long."""
    parts = re.split(r" (?=--)", command)  # an option stays with its values
    lines = [f"  {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" {part}"
        else:
            lines[-1] += " \\"
            lines.append(f"      {part}")
    assert shlex.split(" ".join(line.rstrip("\\") for line in lines)) == shlex.split(command)
    return lines


def _groups(name: str, width: int) -> Iterator[str]:
    for title, options in read_help()[name]["groups"].items():
        yield from ("", f"{title}:")
        column = min(max(map(len, options)), WIDEST_NAME) + 4
        for option, text in options.items():
            yield from _option(option, text, column, width)


def _option(option: str, text: str, column: int, width: int) -> Iterator[str]:
    """The lines of an option, with its text from a column on."""
    text = " ".join(text.split())
    lines = textwrap.wrap(text, width - column, break_on_hyphens=False) or [""]
    if len(option) + 4 > column:
        yield f"  {option}"
    else:
        yield f"  {option:<{column - 2}}{lines.pop(0)}".rstrip()
    yield from (f"{'':<{column}}{line}" for line in lines)


def _first_groups(name: str, width: int, room: int) -> list[str]:
    """The first options of each group, as many as fit into so many lines: one of each, then a
    second, and so on, where the first group is ahead of the others."""
    groups = read_help()[name]["groups"]
    end = ["", f"All options in full: mosa {name} --help-all"]
    main = next(iter(groups))
    in_turn = sorted(
        (place - AHEAD * (title == main), number, title, option)
        for number, (title, options) in enumerate(groups.items())
        for place, option in enumerate(options)
    )
    names = [len(option) for turn, *_, option in in_turn if turn < AHEAD]
    column = 4 + max(length for length in names if length <= WIDEST_NAME)
    shown: dict[str, list[list[str]]] = {title: [] for title in groups}
    left = room - 1 - len(groups) - len(end)
    for *_, title, option in in_turn:
        lines = list(_option(option, briefly(groups[title][option]), column, width))
        if len(lines) > left:
            break
        shown[title].append(lines)
        left -= len(lines)
    found = [""]
    for title, options in groups.items():
        num = len(shown[title])
        found.append(f"{title}:" if num == len(options) else f"{title} ({num} of {len(options)}):")
        found += [line for lines in shown[title] for line in lines]
    return [*found, *end]


def briefly(text: str) -> str:
    """What a text says up to its first semicolon or sentence, and the default.

    >>> briefly("Draws from so many tokens; null does not cut (default: 64)")
    'Draws from so many tokens (default: 64)'
    """
    first, *rest = re.split(r"; |\. (?=[A-Z])", text, maxsplit=1)
    end = re.search(r" \((required|default: [^()]*)\)$", " ".join(rest))
    return f"{first}{end[0] if end else ''}"


def commands_page(group: str = "") -> str:
    """Every command of a group (all without one) on a line."""
    about = {name: of for name, of in read_help().items() if f"{name} ".startswith(group)}
    column = max(map(len, about)) + 2
    summaries = {name: of["summary"].rstrip(".") for name, of in about.items()}
    width = shutil.get_terminal_size().columns - 4 - column
    shown = {name: f"{told[0].lower()}{told[1:]}" for name, told in summaries.items()}
    return "\n".join(
        [
            "usage: mosa COMMAND [options]      (mosa COMMAND --help lists the options)",
            "",
            "mosa aligns, attacks and measures diffusion language models.",
            "",
            *(f"  {name:<{column}}{cut_to_width(told, width)}" for name, told in shown.items()),
            "",
            "  --version  print the version",
        ]
    )
