"""Where and when a model puts refusals: the profiles of the probe `depth`."""

from __future__ import annotations

from mosa.evidence.findings.base import (
    INTERVALS,
    Bounds,
    Group,
    HeatMap,
    LineChart,
    Probed,
    chart_name,
    mean,
    per_case,
)
from mosa.stats.rates import Interval, format_rate

MEASURES = {
    "refusal": "mean token probability of the likeliest refusal that begins here",
    "end": "probability of an end token",
    "kl": "KL of the model from itself without its adapter, in nats",
}
KEY_WORDS = {
    "refusal": "likeliest refusal",
    "end": "end token",
    "kl": "KL from itself without adapter, nats",
}
"""The same, as key figures are named."""
BOUNDS: dict[str, Bounds] = {"refusal": (0.0, 1.0), "end": (0.0, 1.0), "kl": None}
Grid = dict[tuple[str, str, int, int], Interval]
"""By group, measure, step and position (from 1)."""


def read(probed: Probed) -> None:
    """Every measure by step and position, and how it looks before the first step."""
    finding = probed.finding
    finding.rows += [row for group in probed.groups for row in _rows(group)]
    grid: Grid = {}
    for group in probed.groups:
        for (measure, step, position), figure in _grid_of(group).items():
            grid[group.label, measure, step, position] = figure
            finding.add(figure, **group.of, measure=measure, step=step, position=position)
    steps = sorted({step for _, _, step, _ in grid})
    positions = sorted({position for _, _, _, position in grid})
    first: dict[str, dict[str, dict[int, Interval]]] = {measure: {} for measure in MEASURES}
    for group in probed.groups:
        packaged, trained = (
            max(o[f"num_{kind}_refusals"] for o in group.observations)
            for kind in ("packaged", "trained")
        )
        finding.sentences.append(
            f"{group.label}: refusals are {packaged} packaged phrases"
            + (f" and {trained} more that the adapter was trained to say." if trained else ".")
        )
        for measure, meaning in MEASURES.items():
            keys = {p: (group.label, measure, steps[0], p) for p in positions}
            line = {p: grid[key] for p, key in keys.items() if key in grid}
            if line:
                first[measure][group.label] = line
                most = max(line, key=lambda p, of=line: of[p].value)
                finding.add_key(group.label, f"{KEY_WORDS[measure]}, highest at {most}", line[most])
                finding.sentences.append(
                    f"{group.label}, before the first step: the {meaning} is highest at position "
                    f"{most}, {format_rate(line[most], with_n=True)}."
                )
                if measure == "refusal":
                    finding.key_sentences.append(
                        f"{group.label}, before the first step: a refusal is likeliest at position "
                        f"{most} of {positions[-1]}."
                    )
    for measure, meaning in MEASURES.items():
        if first[measure]:
            finding.charts[chart_name(measure, "first step")] = LineChart(
                f"Before the first step: {meaning}",
                "position",
                measure,
                {
                    label: [(float(p), y) for p, y in of.items()]
                    for label, of in first[measure].items()
                },
                None if measure == "kl" else (0.0, 1.0),
            )
        for label in first[measure] if measure != "kl" else ():
            finding.charts[chart_name(measure, label)] = HeatMap(
                f"{meaning.capitalize()}: {label}",
                "position",
                "denoising step",
                [float(p) for p in positions],
                [float(step) for step in steps],
                [[grid.get((label, measure, step, p)) for p in positions] for step in steps],
                measure,
            )
    finding.sentences.append(INTERVALS)


def _rows(group: Group) -> list[dict[str, object]]:
    """One row for each position of each profile."""
    rows = []
    for observation in group.observations:
        about = {"case": observation.case, "seed": observation.seed}
        for profile in observation["profiles"]:
            for place in range(len(profile["end"])):
                values = {name: profile[name][place] for name in MEASURES if name in profile}
                at = {"step": profile["step"], "position": place + 1}
                rows.append(group.of | about | at | values)
    return rows


def _grid_of(group: Group) -> dict[tuple[str, int, int], Interval]:
    """The mean over cases of each measure, by step and position."""
    found: dict[tuple[str, int, int], list[tuple[str, float]]] = {}
    for observation in group.observations:
        for profile in observation["profiles"]:
            for measure in MEASURES:
                for place, value in enumerate(profile.get(measure, ())):
                    if value is not None:
                        cell = measure, profile["step"], place + 1
                        found.setdefault(cell, []).append((observation.case, value))
    grid = {
        cell: mean(per_case(values).values(), BOUNDS[cell[0]]) for cell, values in found.items()
    }
    return {cell: figure for cell, figure in grid.items() if figure is not None}
