"""What a run holds, in an order that no timing decides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from mosa.runs.records import Outcome, Task
from mosa.runs.store import Run
from mosa.types import Attempt, Verdict


class Contents(NamedTuple):
    """Everything that two runs of one plan have in common."""

    attempts: list[Attempt]
    outcomes: list[tuple[Task, Outcome | None]]
    verdicts: dict[str, dict[str, Verdict]]


def contents(run: Run | Path) -> Contents:
    """Attempts with their responses, tasks with their outcomes, verdicts by judge."""
    if isinstance(run, Path):
        with Run(run) as opened:
            return contents(opened)
    attempts = [
        dataclasses.replace(attempt, responses=run.responses_of(attempt.key))
        for attempt in run.attempts()
    ]
    return Contents(
        sorted(attempts, key=lambda attempt: attempt.key),
        sorted(run.tasks(), key=lambda pair: pair[0].key),
        {judge: run.verdicts(judge) for judge in run.judges()},
    )


def num_generated(run: Run) -> int:
    """How many responses the last session asked for."""
    subjects: dict[str, dict[str, Any]] = run.sessions()[-1]["subjects"]
    return sum(tally["num_responses"] for tally in subjects.values())
