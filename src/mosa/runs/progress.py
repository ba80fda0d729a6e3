"""Progress of evaluations and judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mosa.terminal import LiveBar, duration

if TYPE_CHECKING:
    from mosa.runs.evaluate import Progress


class ProgressBar(LiveBar):
    """One bar, for evaluations and judges."""

    def __init__(self, *, is_shown: bool = True) -> None:
        super().__init__(is_shown=is_shown)
        self.judged: set[str] = set()
        """The judges that had work."""

    def evaluation(self, now: Progress) -> None:
        """Show the progress of an evaluation."""
        left = f"{now.num_responses} responses, {_time_left(now)}"
        self.update(now.subject, now.num_done, now.num_tasks, left)

    def judging(self, judge: str, done: int, total: int) -> None:
        """Show the progress of a judge."""
        self.judged.add(judge)
        self.update(f"judge {judge}", done, total)


def _time_left(now: Progress) -> str:
    seconds = now.seconds_left
    if seconds is None:
        return "time left not known yet"
    return f"{'at least' if now.is_at_least else 'about'} {duration(seconds)} left"
