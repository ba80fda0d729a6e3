"""Charts of an analysis as SVG and PNG files, drawn with matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no window is ever opened

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from mosa.analysis.result import HeatMap, LineChart  # noqa: E402
from mosa.files import replacing

COLOURS = ("#4b5563", "#c2660a", "#2563eb", "#0f8a6d", "#9333ea", "#be123c", "#0891b2", "#a16207")
"""The first four are those of the demo's report."""
MARKERS = "os^DvPXd"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MAX_POINTS_WITH_BARS = 12
"""Lines of more points have a band for their intervals."""
MAX_COLUMNS_IN_NUMBERS = 16
"""Wider maps show colours alone."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ebebe8",
    "axes.edgecolor": "#5d6068",
    "legend.frameon": False,
    # Text stays text, and nothing in the file depends on when it was drawn.
    "svg.fonttype": "none",
    "svg.hashsalt": "mosa",
}


def draw(chart: LineChart | HeatMap, path: Path) -> None:
    """Write `path` with the suffixes .svg and .png."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        if isinstance(chart, LineChart):
            draw_lines(chart, axes)
            if len(chart.series) > 1:
                axes.legend(fontsize=8)
        else:
            _draw_cells(chart, axes)
        title = "\n".join(textwrap.wrap(chart.title, 72))
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        with replacing(path.with_suffix(".svg")) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
        with replacing(path.with_suffix(".png")) as file:
            figure.savefig(file, format="png", dpi=150)
        plt.close(figure)


def series_style(index: int, colours: Sequence[str] = COLOURS) -> dict[str, Any]:
    """Colour, marker and dashes of a series; no two of the first 64 share colour and marker."""
    turn = index // len(MARKERS)
    return {
        "color": colours[index % len(colours)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
        "linestyle": DASHES[(index + turn) % len(DASHES)],
    }


def draw_lines(
    chart: LineChart,
    axes: Axes,
    *,
    colours: Sequence[str] = COLOURS,
    indices: Sequence[int] | None = None,
) -> None:
    """One line for each series with the intervals of its points; `indices` choose the styles."""
    for place, (name, points) in enumerate(chart.series.items()):
        if not points:
            continue
        style = series_style(place if indices is None else indices[place], colours)
        xs = [x for x, _ in points]
        axes.plot(
            xs,
            [estimate.value for _, estimate in points],
            **style,
            markersize=4,
            markevery=max(1, len(points) // MAX_POINTS_WITH_BARS),
            linewidth=1.4,
            label=name,
        )
        if not all(math.isfinite(e.low) and math.isfinite(e.high) for _, e in points):
            continue
        lows = [estimate.low for _, estimate in points]
        highs = [estimate.high for _, estimate in points]
        colour = style["color"]
        if len(points) > MAX_POINTS_WITH_BARS:
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
        else:  # bands of several lines would cover each other
            shift = (place - len(chart.series) / 2) * (max(xs) - min(xs)) / 150
            axes.vlines([x + shift for x in xs], lows, highs, color=colour, alpha=0.45, lw=1.2)
    if chart.y_range is not None:
        margin = 0.03 * (chart.y_range[1] - chart.y_range[0])
        axes.set_ylim(chart.y_range[0] - margin, chart.y_range[1] + margin)


def _draw_cells(chart: HeatMap, axes: Axes) -> None:
    values = [[math.nan if cell is None else cell.value for cell in row] for row in chart.cells]
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="Blues", vmin=0.0, vmax=1.0)
    axes.grid(visible=False)
    every = -(-len(chart.x_values) // MAX_COLUMNS_IN_NUMBERS)
    places = range(0, len(chart.x_values), every)
    axes.set_xticks(places, [f"{chart.x_values[x]:g}" for x in places])
    axes.set_yticks(range(len(chart.y_values)), [f"{y:g}" for y in chart.y_values])
    for y, row in enumerate(values if every == 1 else []):
        for x, value in enumerate(row):
            if not math.isnan(value):
                ink = "white" if value > 0.55 else "#1c1d21"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.figure.colorbar(image, ax=axes, label=chart.value_label)
