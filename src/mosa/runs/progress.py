"""Progress in a terminal: bars there, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mosa.terminal import new_console, printable, show

if TYPE_CHECKING:
    from mosa.runs.evaluate import Progress

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is printed where there is no terminal to redraw."""


class ProgressBar:
    """One bar, whose description and total may change."""

    def __init__(self, *, is_shown: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = new_console()
        self.bar = Progress(
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=None, what="", left="")
        self.last_line = time.monotonic()
        self.is_shown = is_shown

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    def update(self, what: str, done: int, total: int, left: str = "") -> None:
        """Show progress with something; `left` is what is left, in words."""
        if not self.is_shown:
            return
        if self.console.is_terminal and not self.bar.live.is_started:
            self.bar.start()
        self.bar.update(self.task, what=printable(what), total=total, completed=done, left=left)
        if self.console.is_terminal:
            return
        now = time.monotonic()
        if now > self.last_line + SECONDS_BETWEEN_LINES:
            self.last_line = now
            show(f"{what}: {done} of {total}{', ' if left else ''}{left}")

    def evaluation(self, now: Progress) -> None:
        """Show the progress of an evaluation."""
        left = f"{now.num_responses} responses, {_time_left(now)}"
        self.update(now.subject, now.num_done, now.num_tasks, left)

    def judging(self, judge: str, done: int, total: int) -> None:
        """Show the progress of a judge."""
        self.update(f"judge {judge}", done, total)


def _time_left(now: Progress) -> str:
    seconds = now.seconds_left
    if seconds is None:
        return "time left not known yet"
    figure = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"{'at least' if now.is_at_least else 'about'} {figure} left for this subject"
