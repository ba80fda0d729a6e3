"""What an analysis comes to: tidy rows, estimates with intervals, charts, and a paragraph.

Nothing here knows a model, so a report can be drawn from `result.json` alone.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mosa.evaluation.metrics import Rate, rate_of
from mosa.files import writing

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its number of independent cases and its 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n})"


@dataclass(frozen=True)
class LineChart:
    """Estimates along an axis, one line per series."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, Estimate]]]
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    """Whether the axis doubles at equal distances, for counts such as queries."""


@dataclass(frozen=True)
class HeatMap:
    """One estimate for each cell of a grid: `cells[y][x]`; None where nothing was measured."""

    title: str
    x_label: str
    y_label: str
    x_values: list[float]
    y_values: list[float]
    cells: list[list[Estimate | None]]
    value_label: str


@dataclass(frozen=True)
class AnalysisResult:
    """One finished analysis."""

    analysis: str
    header: dict[str, Any]
    """Every setting, the models, the behaviors and the versions."""
    estimates: list[dict[str, Any]]
    """One record per figure: what it is of, and value, n, low, high."""
    charts: dict[str, LineChart | HeatMap]
    paragraph: str
    """What was found, with intervals."""


def rate(values: Sequence[float]) -> Estimate:
    """The mean of values in [0, 1] over independent cases, with Wilson's interval."""
    return estimate_of(rate_of(values))


def estimate_of(found: Rate) -> Estimate:
    """A rate as an estimate, as charts take it."""
    return Estimate(found.rate, found.n, found.low, found.high)


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean over independent cases, with a percentile bootstrap interval (2,000 resamples).

    For figures that are no rates: differences within a case, correlations, nats. One case gives an
    interval without ends (NaN). Where all cases agree, the interval is that point: it then says
    only that these cases do not differ.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.size == 0:
        raise ValueError("a mean needs at least one value")
    centre = float(numbers.mean())
    if numbers.size == 1:
        return Estimate(centre, 1, float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(numbers.size, size=(NUM_RESAMPLES, numbers.size))
    low, high = np.quantile(numbers[draws].mean(axis=1), (0.025, 0.975))
    return Estimate(centre, int(numbers.size), float(low), float(high))


def per_case(rows: Sequence[dict[str, Any]], measure: str) -> list[float]:
    """Each case's mean over its rows: what is independent are the cases, not the rows."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["case"], []).append(row[measure])
    return [sum(values) / len(values) for values in groups.values()]


def record(estimate: Estimate, **of: Any) -> dict[str, Any]:
    """An estimate with what it is of, as one flat row."""
    return of | dataclasses.asdict(estimate)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with writing(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def result_json(result: AnalysisResult) -> str:
    """The result as JSON text; `read_result` turns it back."""
    content = dataclasses.asdict(result)
    for name, chart in result.charts.items():
        content["charts"][name]["kind"] = type(chart).__name__
    return json.dumps(content, indent=1, ensure_ascii=False)


def read_result(path: Path) -> AnalysisResult:
    """A finished analysis from its folder's result.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["charts"] = {name: _chart(chart) for name, chart in content["charts"].items()}
    return AnalysisResult(**content)


def _chart(content: dict[str, Any]) -> LineChart | HeatMap:
    kind = content.pop("kind")
    if kind == "LineChart":
        content["series"] = {
            name: [(x, Estimate(**estimate)) for x, estimate in points]
            for name, points in content["series"].items()
        }
        if content["y_range"] is not None:
            content["y_range"] = tuple(content["y_range"])
        return LineChart(**content)
    content["cells"] = [
        [None if cell is None else Estimate(**cell) for cell in row] for row in content["cells"]
    ]
    return HeatMap(**content)
