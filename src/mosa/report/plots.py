"""Dots with intervals, drawn as SVG by hand: no plotting library, no script, no external file.

Colours and fonts are classes of the page's style sheet, so that a chart follows the light and the
dark scheme. A model has a colour and a shape, so that neither print nor colour blindness loses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from mosa.evaluation.metrics import Rate

WIDTH = 400
"""Of the view box. About a phone's width, so that text stays readable where a chart shrinks."""
_LEFT, _RIGHT = 12, 352
_LINE, _GROUP_HEAD, _GROUP_GAP = 17, 21, 11
_TOP = 6

SHAPES = {
    # Each drawn around (0, 0), about 9 units across.
    "circle": '<circle r="4.5"/>',
    "square": '<rect x="-4" y="-4" width="8" height="8"/>',
    "diamond": '<path d="M0-5.5 5.5 0 0 5.5-5.5 0Z"/>',
    "triangle": '<path d="M0-5.2 5.2 4.2H-5.2Z"/>',
}
SERIES = tuple(SHAPES)
"""One shape per series, in order; the style sheet has a colour class `series-0`, `series-1`, ... to
go with each."""


def shape(index: int) -> Markup:
    """The mark of a series, for a legend."""
    mark = SHAPES[SERIES[index % len(SERIES)]]
    return Markup(
        f'<svg class="mark series-{index}" viewBox="-7 -7 14 14" width="14" height="14" '
        f'aria-hidden="true">{mark}</svg>'
    )


def dot_plot(
    groups: Mapping[str, Sequence[tuple[str, Rate]]], *, title: str, axis_label: str
) -> Markup:
    """A dot with its interval for each (series, rate) of each group, one group below the other.

    Every group lists the same series in the same order. The axis runs from 0 to 1, and each dot's
    value is written at the right.
    """
    parts: list[str] = []
    y = float(_TOP)
    for group, rates in groups.items():
        y += _GROUP_HEAD
        parts.append(f'<text class="group" x="{_LEFT}" y="{y - 6:.0f}">{escape(group)}</text>')
        for index, (series, rate) in enumerate(rates):
            y += _LINE
            parts.append(_row(index, series, rate, y - _LINE / 2))
        y += _GROUP_GAP
    bottom = y
    axis = [
        f'<line class="grid" x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" y1="{_TOP}" '
        f'y2="{bottom:.0f}"/>'
        f'<text class="tick" x="{_x(tick):.1f}" y="{bottom + 15:.0f}">{tick:g}</text>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    height = bottom + 36
    label = (
        f'<text class="axis" x="{(_LEFT + _RIGHT) / 2:.0f}" y="{height - 5:.0f}">'
        f"{escape(axis_label)}</text>"
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{''.join(axis)}{''.join(parts)}{label}</svg>"
    )


def path_plot(
    paths: Mapping[str, Sequence[tuple[str, float | int, float | int]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    first_series: int = 0,
) -> Markup:
    """One line per series through its (label, x, y) points in order; both axes run from 0 to 1.

    Every point has its mark, and its label as a tooltip. `first_series` is the colour and shape of
    the first path.
    """
    left, top, size = 56.0, 12.0, 300.0

    def at(x: float | int, y: float | int) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, bottom), (_, y) = at(tick, 0), at(0, tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.1f}"/>'
            f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.1f}">{tick:g}</text>'
            f'<text class="tick" x="{left - 20}" y="{y + 4:.1f}">{tick:g}</text>'
        )
    for index, (series, points) in enumerate(paths.items(), start=first_series):
        mark = SHAPES[SERIES[index % len(SERIES)]]
        places = [at(x, y) for _, x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<g class="series-{index}"><polyline class="path" points="{line}"/>')
        for (label, x, y), (px, py) in zip(points, places, strict=True):
            tip = f"{series}, {label}: {x:.2f}, {y:.2f}"
            parts.append(
                f'<g class="dot" transform="translate({px:.1f} {py:.1f})"><title>{escape(tip)}'
                f"</title>{mark}</g>"
            )
        parts.append("</g>")
    centre = left + size / 2
    parts.append(
        f'<text class="axis" x="{centre:.0f}" y="{top + size + 34:.0f}">{escape(x_label)}</text>'
        f'<text class="axis" transform="translate(14 {top + size / 2:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {top + size + 42:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _row(index: int, series: str, rate: Rate, y: float) -> str:
    mark = SHAPES[SERIES[index % len(SERIES)]]
    return (
        f'<g class="series-{index}"><title>{escape(series)}: {escape(str(rate))}</title>'
        f'<line class="interval" x1="{_x(rate.low):.1f}" x2="{_x(rate.high):.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<g class="dot" transform="translate({_x(rate.rate):.1f} {y:.1f})">{mark}</g>'
        f'<text class="value" x="{WIDTH - 4}" y="{y + 4:.1f}">{rate.rate:.2f}</text></g>'
    )


def _x(value: float) -> float:
    return _LEFT + value * (_RIGHT - _LEFT)
