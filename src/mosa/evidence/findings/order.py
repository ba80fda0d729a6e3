"""In which order positions were committed: read from the responses of the probe `order`.

Blocks that are filled left to right give a line by construction, so order is also taken within
blocks. Example, four positions, one a step:

    committed in the order 1, 2, 3, 4     Kendall's tau  1, leftmost share 1
    committed in the order 4, 3, 2, 1     Kendall's tau -1, leftmost share 0.25 (the last one)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy import stats

from mosa.evidence.findings.base import (
    INTERVALS,
    Bounds,
    Finding,
    Group,
    LineChart,
    Probed,
    chart_name,
    mean,
    per_case,
    points,
)
from mosa.probes.order import BASE
from mosa.stats.rates import Interval, format_rate

# R response positions


MEASURES: dict[str, Bounds] = {
    "kendall_tau": (-1.0, 1.0),  # tau-b of position and step
    "kendall_tau_in_block": (-1.0, 1.0),  # the same within each block, mean over blocks
    "kendall_tau_text": (-1.0, 1.0),  # the same before the first end token
    "spearman_rho": (-1.0, 1.0),  # rank correlation of position and step
    "slope": None,  # of the mean position of new tokens by step, in positions
    "r_squared": (0.0, 1.0),  # share of that curve's variance that the line explains
    "leftmost_share": (0.0, 1.0),  # commits among the leftmost masks, as many as were committed
    "spread": None,  # standard deviation of the positions committed in a step, mean over steps
    "end_from_right": (0.0, 1.0),  # share of end tokens committed at the rightmost masks
}
"""What is taken of each response, with its bounds; NaN where it is not defined (no end token, one
commit)."""

KEY_MEASURES = {
    "kendall_tau": "tau",
    "kendall_tau_text": "tau before the first end token",
    "leftmost_share": "commits at the leftmost masks",
}
"""Those of one block that stand among the key figures, in words."""
BLOCK_MEASURES = {"kendall_tau": "tau", "kendall_tau_in_block": "tau within a block"}
"""Those of several blocks."""

OrderKey = tuple[str, str, str]
"""Subject, set and condition."""
Taken = dict[OrderKey, dict[str, dict[str, float]]]
"""By measure, the value of each case where it is defined."""
Figures = dict[OrderKey, dict[str, Interval | None]]
"""By measure, the mean over cases; None where no case defines it."""


def read(probed: Probed) -> None:
    """The mean of every measure under every condition, and the mean position by step."""
    finding = probed.finding
    taken: Taken = {}
    figures: Figures = {}
    curves: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for group in probed.groups:
        for condition in group.levels("condition"):
            key = group.subject, group.case_set, condition
            taken[key] = _taken(probed, group, condition, finding, curves)
            figures[key] = {
                measure: mean(values.values(), MEASURES[measure])
                for measure, values in taken[key].items()
            }
            for measure, figure in figures[key].items():
                finding.add(figure, **group.of, condition=condition, measure=measure)
    _add_changes(finding, taken)
    for condition, series in curves.items():
        if condition == BASE or condition.startswith("block"):
            title = "one block" if condition == BASE else f"blocks of {condition.split()[1]}"
            finding.charts[chart_name("order", condition)] = LineChart(
                f"Mean position of newly committed tokens, {title}", "step", "position", series
            )
    _add_sentences(finding, probed, figures)


def _taken(
    probed: Probed,
    group: Group,
    condition: str,
    finding: Finding,
    curves: dict[str, dict[str, list[tuple[float, Interval]]]],
) -> dict[str, dict[str, float]]:
    """The measures of every response under a condition; adds its rows and its curve."""
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in MEASURES}
    by_step: dict[int, list[tuple[str, float]]] = {}
    for observation in group.where(condition=condition):
        response = probed.response(observation)
        steps = np.array(response.commit_step)
        is_end = np.isin(np.arange(len(steps)), response.end_positions)
        measures = measures_of(steps, is_end, response.block_starts)
        finding.rows.append(observation.row() | measures)
        for name, value in measures.items():
            if not math.isnan(value):
                found[name].append((observation.case, value))
        for step, position in mean_positions(steps):
            by_step.setdefault(step, []).append((observation.case, position))
    curves.setdefault(condition, {})[group.label] = points(
        (float(step + 1), mean(per_case(by_step[step]).values())) for step in sorted(by_step)
    )
    return {name: per_case(values) for name, values in found.items()}


def measures_of(
    steps: Int[np.ndarray, " R"], is_end: Bool[np.ndarray, " R"], block_starts: Sequence[int]
) -> dict[str, float]:
    """Every measure of `MEASURES` for one response, from the step that committed each position,
    where end tokens are, and where blocks begin."""
    positions = np.arange(1, len(steps) + 1)
    in_block = [
        _tau(positions[start:end], steps[start:end])
        for start, end in zip(block_starts, [*block_starts[1:], len(steps)], strict=True)
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


def _add_changes(finding: Finding, taken: Taken) -> None:
    """Of two subjects: each measure of the second less that of the first, within cases."""
    if len(finding.header["subjects"]) != 2:
        return
    first, second = finding.header["subjects"]
    for case_set in finding.header["sets"]:
        conditions = [c for s, name, c in taken if (s, name) == (first, case_set)]
        for condition in conditions:
            if (second, case_set, condition) not in taken:
                continue
            for measure, of_one in MEASURES.items():
                a = taken[first, case_set, condition][measure]
                b = taken[second, case_set, condition][measure]
                bounds = of_one and (of_one[0] - of_one[1], of_one[1] - of_one[0])
                change = mean((b[case] - a[case] for case in a if case in b), bounds)
                of = {"subject": f"{second} - {first}", "case_set": case_set}
                finding.add(change, **of, condition=condition, measure=measure)
                if change is not None and (condition, measure) == (BASE, "kendall_tau"):
                    told = format_rate(change, with_n=True, signed=True)
                    finding.sentences.append(
                        f"From {first} to {second}, on {case_set}, tau changes by {told}."
                    )


def _add_sentences(finding: Finding, probed: Probed, figures: Figures) -> None:
    def told(key: OrderKey, measure: str) -> str | None:
        figure = figures.get(key, {}).get(measure)
        return None if figure is None else format_rate(figure, with_n=True)

    sentences = []
    for group in probed.groups:
        key = group.subject, group.case_set, BASE
        tau, left = told(key, "kendall_tau"), told(key, "leftmost_share")
        if tau is None or left is None:
            continue
        base = map(probed.response, group.where(condition=BASE))
        has_own = any(len(response.block_starts) > 1 for response in base)
        blocks = "the model's own blocks" if has_own else "one block"
        for measure, what in KEY_MEASURES.items():
            finding.add_key(group.label, f"{what}, {blocks}", figures[key][measure])
        text, inside = told(key, "kendall_tau_text"), told(key, "kendall_tau_in_block")
        before_end = "" if text is None else f", {text} before the first end token"
        within = f", {inside} within a block" if has_own and inside is not None else ""
        where = f"in {blocks}" if has_own else "one block over the canvas"
        sentences.append(
            f"{group.subject} on {group.case_set}, {where}: Kendall's tau of position and step is "
            f"{tau}{before_end}{within}; {left} of commits are at the leftmost masks."
        )
    finding.key_sentences += [
        "Kendall's tau of position and step is 1 where a response is written from left to right, "
        "and 0 where position does not tell the step."
    ] * bool(sentences)
    group = probed.groups[0]
    for condition in group.levels("condition"):
        key = group.subject, group.case_set, condition
        tau, inside = told(key, "kendall_tau"), told(key, "kendall_tau_in_block")
        if condition.startswith("block") and tau is not None and inside is not None:
            for measure, what in BLOCK_MEASURES.items():
                finding.add_key(group.label, f"{what}, {condition}", figures[key][measure])
            sentences.append(
                f"With {condition} the same figure is {tau}, of which the blocks' own order is a "
                f"part by construction; within a block it is {inside}."
            )
    finding.sentences[:0] = sentences
    finding.sentences.append(INTERVALS)
