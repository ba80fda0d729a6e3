"""Position by step: what the probe `step` shows of when and where a span is written.

Where responses have several blocks it says the same by block.
"""

from __future__ import annotations

from typing import Literal

from mosa.evidence.findings.base import (
    INTERVALS,
    Finding,
    Group,
    HeatMap,
    Probed,
    cells_of,
    chart_name,
    extremes,
    format_ends,
    rate,
    without_room,
)
from mosa.evidence.findings.blocks import borders_of, in_several_blocks, with_blocks
from mosa.evidence.findings.sides import add_sides, row_of
from mosa.probes.step import POSITIONS
from mosa.stats.rates import Rate, format_rate

FACTORS = ("position", "step")
X_LABELS = {
    "position": "position of the span's first token",
    "block": "block that the span's first token is in",
}
"""Where a span is written."""


def read(probed: Probed) -> None:
    """A map of rates for each span, and how far they move by position and by step."""
    finding = probed.finding
    groups = [with_blocks(probed, group) for group in probed.groups]
    finding.rows += [row_of(o, group) for group in groups for o in group.observations]
    for group in groups:
        for measure in group.measures:
            _add_maps(finding, group, measure, "position")
            if in_several_blocks(group.observations):
                _add_maps(finding, group, measure, "block")
            _add_sentences(finding, group, measure)
        add_sides(finding, group, ("span", *FACTORS), "span")
        if finding.header["settings"]["positions"] is None:
            finding.sentences += without_room(group, POSITIONS)
    finding.sentences.append(INTERVALS)


def _add_maps(
    finding: Finding, group: Group, measure: str, where: Literal["position", "block"]
) -> None:
    grid: dict[tuple[str, int | None, int | None], Rate | None] = {}
    for (span, place, step), here in cells_of(group.observations, ("span", where, "step")).items():
        figure = grid[span, place, step] = rate(here, measure)
        if where == "position" or place is not None:  # nothing written is told once
            of = {"span": span, where: place, "step": step}
            finding.add(figure, **group.of, measure=measure, **of)
    for span in _spans(group):
        xs = sorted({p for s, p, _ in grid if s == span and p is not None})
        ys = sorted({t for s, _, t in grid if s == span and t is not None})
        borders = borders_of(group.where(span=span), xs) if where == "position" else []
        name = chart_name(measure, span, *(["by block"] if where == "block" else []), group.label)
        finding.charts[name] = HeatMap(
            f"{measure.capitalize()}, {span} span written during generation: {group.label}",
            X_LABELS[where] + " (a line: a new block)" * bool(borders),
            "denoising step before which it is written",
            [float(x) for x in xs],
            [float(y) for y in ys],
            [[grid.get((span, x, y)) for x in xs] for y in ys],
            measure,
            borders,
        )


def _add_sentences(finding: Finding, group: Group, measure: str) -> None:
    """How much the position moves a measure, how much the step does, and how much the block does
    where there are several: spread of the means."""
    factors = (*FACTORS, "block") if in_several_blocks(group.observations) else FACTORS
    without = rate(group.where(span="none"), measure)
    told = format_rate(without, with_n=True)
    finding.sentences.append(f"{group.label}: {measure} without a span is {told}.")
    label = f"{group.label}, {measure}"
    finding.add_key(label, "no span", without)
    for span in _spans(group):
        ends, moved = [], []
        for factor in factors:
            found = extremes(group.where(span=span), factor, measure)
            if found is None:
                continue
            lowest, highest = found
            moved.append(f"{highest[1].value - lowest[1].value:.2f} by {factor}")
            for extreme, (level, figure) in {"lowest": lowest, "highest": highest}.items():
                finding.add_key(label, f"{span}, {extreme} by {factor}, at {level}", figure)
            ends.append(format_ends(factor, lowest, highest))
        if moved:
            finding.key_sentences.append(
                f"{label}: means with a {span} span move by {' and '.join(moved)}."
            )
        if ends:
            finding.sentences.append(f"With a {span} span it {' and '.join(ends)}.")


def _spans(group: Group) -> list[str]:
    return [span for span in group.levels("span") if span != "none"]
