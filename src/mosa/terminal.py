"""What is shown in a terminal: text as text, whatever a model, a server or a file has said.

Markup is never read from a text, and control characters (escape sequences, changes of direction,
halves of characters) are shown as `\\x1b` and the like. Ours is the only styling.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MOST_CHARACTERS = 1000
"""Of a message; the longest ones list every choice."""
WIDTH_OF_FILES = 150
"""Columns of what goes to a file or a pipe."""

# Control characters but for tab and line feed, separators of lines, marks and changes of
# direction, and halves of characters.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff]"
)


_usual_warning = warnings.formatwarning


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not show, written out."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def sentence(text: str) -> str:
    """A message on one line, printable, of a length that a terminal can show."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 3]}..."


def show(*lines: str | Iterable[str]) -> None:
    """Print, at once."""
    print(*(printable(str(line)) for line in lines), flush=True)


def encodable_streams() -> None:
    """From here on, a terminal or file that is not UTF-8 gets `\\xe9` for what it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def short_warnings() -> None:
    """From here on, a warning of ours is one line without the place in the source."""
    warnings.formatwarning = _warning


def _warning(message: Any, category: Any, filename: str, *others: Any, **more: Any) -> str:
    if not filename.startswith(str(Path(__file__).parent)):
        return _usual_warning(message, category, filename, *others, **more)
    return f"mosa: {sentence(str(message))}\n"


def new_console(*, is_wide: bool = False) -> Console:
    """A console that prints texts as they are; one that `is_wide` has room for whole rows where
    it is no terminal."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **kwargs: Any) -> Text:
            return super().render_str(printable(text), **kwargs)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as print does

    found = Plain(highlight=False, markup=False, emoji=False)
    if is_wide and not found.is_terminal:
        found = Plain(highlight=False, markup=False, emoji=False, width=WIDTH_OF_FILES)
    return found
