"""What a run of useful tasks came to: a line for each model, task and metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from mosa.evaluation.store import Store
from mosa.stats.rates import Rate, once, rate_of


@dataclass(frozen=True)
class UtilityLine:
    """One metric of one task for one model."""

    model: str
    task: str
    metric: str
    is_headline: bool
    """Whether this metric stands for its task."""
    rate: Rate | None
    """The mean over the cases that are scored; None where none is."""
    num_unscored: int
    reasons: tuple[tuple[str, int], ...]
    """Why cases are unscored, and how many for each reason."""


def figures_name(model: str, task: str) -> str:
    """Under which name a run keeps lm_eval's own figures of a task."""
    return f"figures/{model}/{task}"


def utility_lines(store: Store) -> Iterator[UtilityLine]:
    """The lines of a run, models in the order of their first use, headlines first in a task."""
    tasks = store.meta("tasks") or {}
    models = list(store.models())
    order = list(tasks)
    found = []
    for (model, task, metric), group in groupby(
        store.measurements(), key=lambda m: (m.model, m.task, m.metric)
    ):
        cases = list(group)
        values = {case.case: case.value for case in cases}
        num_unscored = sum(value is None for value in values.values())
        found.append(
            UtilityLine(
                model=model,
                task=task,
                metric=metric,
                is_headline=metric == tasks[task]["headline"],
                rate=rate_of(once(values)) if num_unscored < len(values) else None,
                num_unscored=num_unscored,
                reasons=tuple(Counter(case.reason for case in cases if case.reason).items()),
            )
        )
    yield from sorted(
        found, key=lambda x: (models.index(x.model), order.index(x.task), not x.is_headline)
    )
