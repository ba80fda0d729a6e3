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

from mosa.stats.pairs import mean_unbounded, mean_within
from mosa.stats.rates import Estimate, Rate, once, rate_of


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
    return estimate_of(rate_of(once(values)))


def estimate_of(found: Rate) -> Estimate:
    """A rate as an estimate, as charts take it."""
    return Estimate(found.rate, found.n, found.low, found.high)


Bounds = tuple[float, float] | None
"""The least and the greatest value that a measure can have; None where it has no bounds."""


def mean(values: Sequence[float], bounds: Bounds) -> Estimate:
    """The mean over independent cases of a measure within `bounds`.

    A share, between 0 and 1, is a rate. Other bounded measures (differences within a case,
    correlations) have `mean_within`'s interval, which is never a point; those without bounds (nats)
    Student's.
    """
    if bounds is None:
        return mean_unbounded(values)
    return rate(values) if bounds == (0.0, 1.0) else mean_within(values, *bounds)


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
    with path.open("w", encoding="utf-8", newline="") as file:
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
