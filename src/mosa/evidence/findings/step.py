"""Position by step: what the probe `step` shows of when and where a span is written."""

from __future__ import annotations

from mosa.evidence.findings.base import (
    INTERVALS,
    Finding,
    Group,
    HeatMap,
    Probed,
    cells_of,
    rate,
    slug,
    without_room,
)
from mosa.evidence.findings.sides import add_sides, row_of
from mosa.probes.step import POSITIONS
from mosa.stats.rates import Rate, format_rate

FACTORS = ("position", "step")


def read(probed: Probed) -> None:
    """A map of rates for each span, and how far they move by position and by step."""
    finding = probed.finding
    finding.rows += [row_of(o, group) for group in probed.groups for o in group.observations]
    for group in probed.groups:
        for measure in group.measures:
            _add_maps(finding, group, measure)
            _add_sentences(finding, group, measure)
        add_sides(finding, group, ("span", *FACTORS), "span")
        if finding.header["settings"]["positions"] is None:
            finding.sentences += without_room(group, POSITIONS)
    finding.sentences.append(INTERVALS)


def _add_maps(finding: Finding, group: Group, measure: str) -> None:
    grid: dict[tuple[str, int | None, int | None], Rate | None] = {}
    for (span, position, step), here in cells_of(group.observations, ("span", *FACTORS)).items():
        figure = grid[span, position, step] = rate(here, measure)
        finding.add(figure, **group.of, measure=measure, span=span, position=position, step=step)
    for span in _spans(group):
        xs = sorted({p for s, p, _ in grid if s == span and p is not None})
        ys = sorted({t for s, _, t in grid if s == span and t is not None})
        finding.charts[slug(measure, span, group.label)] = HeatMap(
            f"{measure.capitalize()}, {span} span written during generation: {group.label}",
            "position of the span's first token",
            "denoising step before which it is written",
            [float(x) for x in xs],
            [float(y) for y in ys],
            [[grid.get((span, x, y)) for x in xs] for y in ys],
            measure,
        )


def _add_sentences(finding: Finding, group: Group, measure: str) -> None:
    """How much the position moves a measure, and how much the step does: spread of the means."""
    without = rate(group.where(lambda o: o["span"] == "none"), measure)
    told = format_rate(without, with_n=True)
    finding.sentences.append(f"{group.label}: {measure} without a span is {told}.")
    label = f"{group.label}, {measure}"
    finding.add_key(label, "no span", without)
    for span in _spans(group):
        ends, moved = [], []
        for factor in FACTORS:
            means: dict[int, Rate] = {}
            for level in sorted(group.levels(factor)):
                found = rate(
                    group.where(lambda o, s=span, f=factor, v=level: (o["span"], o[f]) == (s, v)),
                    measure,
                )
                if found is not None:
                    means[level] = found
            if not means:
                continue
            least = min(means, key=lambda level, m=means: m[level].value)
            most = max(means, key=lambda level, m=means: m[level].value)
            moved.append(f"{means[most].value - means[least].value:.2f} by {factor}")
            for extreme, level in {"lowest": least, "highest": most}.items():
                what = f"{span}, {extreme} by {factor}, at {level}"
                finding.add_key(label, what, means[level])
            if means[least].value == means[most].value:
                ends.append(f"is {means[least]} at every {factor}")
            else:
                ends.append(
                    f"goes by {factor} from {means[least]} at {least} to {means[most]} at {most}"
                )
        if moved:
            finding.key_sentences.append(
                f"{label}: means with a {span} span move by {' and '.join(moved)}."
            )
        if ends:
            finding.sentences.append(f"With a {span} span it {' and '.join(ends)}.")


def _spans(group: Group) -> list[str]:
    return [span for span in group.levels("span") if span != "none"]
