"""What is shown in a terminal: text as text, whatever a model, a server or a file has said.

Markup is never read from a text, and control characters (escape sequences, changes of direction,
halves of characters) are shown as `\\x1b` and the like. Ours is the only styling.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

MOST_CHARACTERS = 1000
"""Of a message; the longest ones list every choice."""
WIDTH_OF_FILES = 150
"""Columns of what goes to a file or a pipe."""
SECONDS_BEFORE = 1.0
"""How long something has to take to get a bar that vanishes."""
SECONDS_BETWEEN_LINES = 30.0
"""How often progress is printed where there is no terminal to redraw."""

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


@contextmanager
def without_lines(beginning: str) -> Iterator[None]:
    """Leaves out lines that begin so of what goes to stderr, a library's in C++ too; the others
    come at the end."""
    stderr = 2
    sys.stderr.flush()
    shown = os.dup(stderr)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), stderr)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, stderr)
            os.close(shown)
            held.seek(0)
            others = [line for line in held if not line.startswith(beginning.encode())]
            os.write(stderr, b"".join(others))


def new_console(*, is_wide: bool = False) -> Console:
    """A console that prints texts as they are; one that `is_wide` has room for whole rows where
    it is no terminal."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **kwargs: Any) -> Text:
            return super().render_str(printable(text), **kwargs)

        def print(self, *objects: Any, **options: Any) -> None:
            if all(isinstance(each, str | Text) for each in objects):
                # Text has lines in a terminal only, and a path none anywhere: it is copied.
                words = " ".join(map(str, objects)).split()
                is_long = max(map(len, words), default=0) > self.width
                options.setdefault("soft_wrap", is_long or not self.is_terminal)
            super().print(*objects, **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as print does

    found = Plain(highlight=False, markup=False, emoji=False)
    if is_wide and not found.is_terminal:
        found = Plain(highlight=False, markup=False, emoji=False, width=WIDTH_OF_FILES)
    return found


@dataclass
class _Row:
    """A row of the bar, and since when it is about the same."""

    task: TaskID
    last_line: float
    what: str = ""
    first: int = 0
    begun: float = 0.0


class LiveBar:
    """One bar, whose description and total may change, with the time that it took and that is left:
    drawn in a terminal, a line now and then elsewhere. Work in parallel has a row for each.

    One that `vanishes` is gone when it ends, and is not drawn at all for what takes a moment.
    """

    def __init__(self, *, is_shown: bool = True, vanishes: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console: Console = new_console()
        self.bar = Progress(
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(bar_width=None),  # what the words leave
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
            transient=vanishes,
        )
        self.begun = time.monotonic()
        self.is_shown = is_shown
        self.seconds_before = SECONDS_BEFORE if vanishes else 0.0
        self.rows: dict[str, _Row] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    def update(
        self, what: str, done: int, total: int | None, left: str | None = None, *, row: str = ""
    ) -> None:
        """Show progress with something; `left` is what is left in words, unset: the time at the
        pace since the first call about it."""
        if not self.is_shown:
            return
        now = time.monotonic()
        if row not in self.rows:
            task = self.bar.add_task("", total=None, what="", count="", left="")
            self.rows[row] = _Row(task, now)
        of = self.rows[row]
        if what != of.what:
            of.what, of.first, of.begun = what, done, now
        if left is None:
            left = _time_left(of, done, total, now)
        count = "" if total is None else f"{done}/{total}"
        self.bar.update(
            of.task, what=printable(what), total=total, completed=done, count=count, left=left
        )
        if self.console.is_terminal:
            if not self.bar.live.is_started and now >= self.begun + self.seconds_before:
                self.bar.start()
            return
        if now > of.last_line + SECONDS_BETWEEN_LINES:
            of.last_line = now
            told = "" if total is None else f": {done} of {total}"
            show(f"{what}{told}{', ' if left else ''}{left}")

    def end(self, row: str) -> None:
        """Take the row of what has ended away."""
        if row in self.rows:
            self.bar.remove_task(self.rows.pop(row).task)

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self.is_shown:
            self.console.print(text)


def _time_left(row: _Row, done: int, total: int | None, now: float) -> str:
    if total is None or done <= row.first or done >= total:
        return ""
    pace = (now - row.begun) / (done - row.first)
    return f"about {duration(pace * (total - done))} left"


def duration(seconds: float) -> str:
    """Some time, in a unit that suits it.

    >>> duration(61.0), duration(600.0), duration(6000.0)
    ('61 s', '10 min', '1.7 h')
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
