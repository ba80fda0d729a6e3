"""Progress of evaluations and judges."""

from __future__ import annotations

from mosa.terminal import LiveBar


class ProgressBar(LiveBar):
    """One bar, for evaluations and judges."""

    def __init__(self, *, is_shown: bool = True) -> None:
        super().__init__(is_shown=is_shown)
        self.judged: set[str] = set()
        """The judges that had work."""

    def judging(self, judge: str, done: int, total: int) -> None:
        """Show the progress of a judge."""
        self.judged.add(judge)
        self.update(f"judge {judge}", done, total)
