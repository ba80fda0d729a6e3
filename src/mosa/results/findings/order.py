"""In which order positions were committed: read from the responses of the probe `order`.

Blocks that are filled left to right give a line by construction, so order is also taken within
blocks. Example, four positions, one a step:

    committed in the order 1, 2, 3, 4     Kendall's tau  1, leftmost share 1
    committed in the order 4, 3, 2, 1     Kendall's tau -1, leftmost share 0.25 (the last one)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy import stats

from mosa.probes.order import BASE
from mosa.results.findings.base import (
    INTERVALS,
    Bounds,
    Finding,
    Group,
    LineChart,
    Probed,
    Report,
    mean,
    per_case,
    points,
    slug,
)
from mosa.stats.rates import Interval, format_rate
from mosa.types import Response

# R response positions


@dataclass(frozen=True)
class Measure:
    """A figure that is taken of each response."""

    meaning: str
    bounds: Bounds


MEASURES = {
    "kendall_tau": Measure("Kendall's tau-b of position and step", (-1.0, 1.0)),
    "kendall_tau_in_block": Measure("the same within each block, mean over blocks", (-1.0, 1.0)),
    "kendall_tau_text": Measure("the same before the first end token", (-1.0, 1.0)),
    "spearman_rho": Measure("Spearman's rank correlation of position and step", (-1.0, 1.0)),
    "slope": Measure("slope of the mean position of new tokens by step, in positions", None),
    "r_squared": Measure("share of that curve's variance that the line explains", (0.0, 1.0)),
    "leftmost_share": Measure(
        "share of commits among the leftmost masks, as many as were committed", (0.0, 1.0)
    ),
    "spread": Measure(
        "standard deviation of the positions committed in one step, mean over steps", None
    ),
    "end_from_right": Measure(
        "share of end tokens that were committed at the rightmost masks", (0.0, 1.0)
    ),
}
"""What is taken of each response; NaN where it is not defined (no end token, one commit)."""

Taken = dict[tuple[str, str, str], dict[str, dict[str, float]]]
"""By subject, set and condition: by measure, the value of each case where it is defined."""


def finding(probed: Probed) -> Finding:
    """The mean of every measure under every condition, and the mean position by step."""
    report = Report()
    taken: Taken = {}
    curves: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for group in probed.groups:
        for condition in group.levels("condition"):
            here = _taken(probed, group, condition, report, curves)
            taken[group.subject, group.case_set, condition] = here
            for measure, values in here.items():
                report.add(
                    mean(values.values(), MEASURES[measure].bounds),
                    **group.of,
                    condition=condition,
                    measure=measure,
                )
    _add_changes(report, probed, taken)
    for condition, series in curves.items():
        if condition == BASE or condition.startswith("block"):
            title = "one block" if condition == BASE else f"blocks of {condition.split()[1]}"
            report.charts[slug("order", condition)] = LineChart(
                f"Mean position of newly committed tokens, {title}", "step", "position", series
            )
    _add_sentences(report, probed, taken)
    return probed.finding(report)


def _taken(
    probed: Probed,
    group: Group,
    condition: str,
    report: Report,
    curves: dict[str, dict[str, list[tuple[float, Interval]]]],
) -> dict[str, dict[str, float]]:
    """The measures of every response under a condition; adds its rows and its curve."""
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in MEASURES}
    by_step: dict[int, list[tuple[str, float]]] = {}
    for observation in group.where(lambda o: o["condition"] == condition):
        response = probed.response(observation)
        measures = measures_of(*commits_of(response))
        report.rows.append(observation.row() | measures)
        for name, value in measures.items():
            if not math.isnan(value):
                found[name].append((observation.case, value))
        for step, position in mean_positions(np.array(response.commit_step)):
            by_step.setdefault(step, []).append((observation.case, position))
    curves.setdefault(condition, {})[group.label] = points(
        (float(step + 1), mean(per_case(by_step[step]).values())) for step in sorted(by_step)
    )
    return {name: per_case(values) for name, values in found.items()}


def commits_of(
    response: Response,
) -> tuple[Int[np.ndarray, " R"], Bool[np.ndarray, " R"], int | None]:
    """The step that committed each position, where end tokens are, and the block length."""
    is_end = np.zeros(len(response.token_ids), dtype=bool)
    is_end[response.end_positions] = True
    return np.array(response.commit_step), is_end, response.decoder["block_length"]


def measures_of(
    steps: Int[np.ndarray, " R"], is_end: Bool[np.ndarray, " R"], block_length: int | None
) -> dict[str, float]:
    """Every measure of `MEASURES` for one response, from the step that committed each position."""
    positions = np.arange(1, len(steps) + 1)
    block = block_length or len(steps)
    in_block = [
        _tau(positions[start : start + block], steps[start : start + block])
        for start in range(0, len(steps), block)
    ]
    first_end = int(is_end.argmax()) if is_end.any() else len(steps)
    curve = mean_positions(steps)
    slope, r_squared = float("nan"), float("nan")
    if len(curve) > 1:
        line = stats.linregress([step for step, _ in curve], [mean for _, mean in curve])
        slope, r_squared = float(line.slope), float(line.rvalue) ** 2  # pyright: ignore
    leftmost, from_right, num_ends, spreads = 0, 0, 0, []
    for step in np.unique(steps):
        new = positions[steps == step]
        masked = positions[steps >= step]
        leftmost += int(np.isin(new, masked[: len(new)]).sum())
        ends = new[is_end[new - 1]]
        num_ends += len(ends)
        from_right += int(np.isin(ends, masked[-len(new) :]).sum())
        spreads.append(float(new.std()))
    return {
        "kendall_tau": _tau(positions, steps),
        "kendall_tau_in_block": _nan_mean(in_block),
        "kendall_tau_text": _tau(positions[:first_end], steps[:first_end]),
        "spearman_rho": _correlation(stats.spearmanr, positions, steps),
        "slope": slope,
        "r_squared": r_squared,
        "leftmost_share": leftmost / len(steps),
        "spread": float(np.mean(spreads)),
        "end_from_right": from_right / num_ends if num_ends else float("nan"),
    }


def mean_positions(steps: Int[np.ndarray, " R"]) -> list[tuple[int, float]]:
    """(step, mean 1-based position of what it committed) for each step that committed something."""
    positions = np.arange(1, len(steps) + 1)
    return [(int(step), float(positions[steps == step].mean())) for step in np.unique(steps)]


def _tau(positions: np.ndarray, steps: np.ndarray) -> float:
    return _correlation(stats.kendalltau, positions, steps)


def _correlation(of: Any, positions: np.ndarray, steps: np.ndarray) -> float:
    """NaN where all steps are one, so that there is no order."""
    if len(positions) < 2 or len(np.unique(steps)) < 2:
        return float("nan")
    return float(of(positions, steps).statistic)


def _nan_mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _add_changes(report: Report, probed: Probed, taken: Taken) -> None:
    """Of two subjects: each measure of the second less that of the first, within cases."""
    if len(probed.header["subjects"]) != 2:
        return
    first, second = probed.header["subjects"]
    for case_set in probed.header["sets"]:
        conditions = [c for s, name, c in taken if (s, name) == (first, case_set)]
        for condition in conditions:
            if (second, case_set, condition) not in taken:
                continue
            for measure, about in MEASURES.items():
                a = taken[first, case_set, condition][measure]
                b = taken[second, case_set, condition][measure]
                width = None if about.bounds is None else about.bounds[1] - about.bounds[0]
                bounds = None if width is None else (-width, width)
                change = mean((b[case] - a[case] for case in a if case in b), bounds)
                of = {"subject": f"{second} - {first}", "case_set": case_set}
                report.add(change, **of, condition=condition, measure=measure)
                if change is not None and (condition, measure) == (BASE, "kendall_tau"):
                    told = format_rate(change, with_n=True, signed=True)
                    report.sentences.append(
                        f"From {first} to {second}, on {case_set}, tau changes by {told}."
                    )


def _add_sentences(report: Report, probed: Probed, taken: Taken) -> None:
    def told(key: tuple[str, str, str], measure: str) -> str | None:
        values = taken.get(key, {}).get(measure)
        return (
            format_rate(mean(values.values(), MEASURES[measure].bounds), with_n=True)
            if values
            else None
        )

    sentences = []
    for group in probed.groups:
        key = group.subject, group.case_set, BASE
        tau, left = told(key, "kendall_tau"), told(key, "leftmost_share")
        if tau is None or left is None:
            continue
        text = told(key, "kendall_tau_text")
        before_end = "" if text is None else f", {text} before the first end token"
        sentences.append(
            f"{group.subject} on {group.case_set}, one block over the canvas: Kendall's tau of "
            f"position and step is {tau}{before_end}; {left} of commits are at the leftmost masks."
        )
    group = probed.groups[0]
    for condition in group.levels("condition"):
        key = group.subject, group.case_set, condition
        tau, inside = told(key, "kendall_tau"), told(key, "kendall_tau_in_block")
        if condition.startswith("block") and tau is not None and inside is not None:
            sentences.append(
                f"With {condition} the same figure is {tau}, of which the blocks' own order is a "
                f"part by construction; within a block it is {inside}."
            )
    report.sentences[:0] = sentences
    report.sentences.append(INTERVALS)
