"""Charts, drawn with matplotlib: as SVG inside a page, or as SVG and PNG files.

For a page, matplotlib draws with stand-in colours, which then become variables of the page's style
sheet, so that a chart follows the light and the dark scheme. A series has a colour and a marker,
and lines have dashes, so that neither print nor colour blindness loses it; a subject has the same
in all charts. Text stays text in the page's own font. Equal charts give equal bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FormatStrFormatter, MaxNLocator
from matplotlib.transforms import Affine2D

from mosa.evidence.findings import HeatMap, LineChart
from mosa.files import replacing
from mosa.reporting.content import AnyChart, Histogram, Paths, Points
from mosa.reporting.tables import shown

SERIES_COLOURS = (
    # Light and dark scheme. At least 3:1 against the cards that they stand on, and apart from each
    # other for the three kinds of colour blindness too, the first four most of all; tests measure
    # both.
    ("#525468", "#b0b1b5"),
    ("#d0740f", "#f98c14"),
    ("#1f48e6", "#6c7aff"),
    ("#0a9d8f", "#86f0d6"),
    ("#a36ae6", "#a371a9"),
    ("#2c2e6b", "#5ab4f8"),
    ("#8a0f22", "#cc4a36"),
    ("#80560a", "#e8e650"),
)

WIDTH = 380
"""Units of every chart, about a phone's width, so that text stays readable where it shrinks."""
FONT = 12.5
NUM_LEVELS = 25
"""Depths of colour of a map; cells of one depth are one shape, which keeps large maps small."""
MAX_COLUMNS_IN_NUMBERS = 8
"""Wider maps show colours alone."""
MAX_TICKS = 12

MARKERS = "os^DvPXd"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MAX_POINTS_WITH_BARS = 12
"""Lines of more points have a band for their intervals."""

FILE_COLOURS = ("#1c1d21", "#5d6068", "#ebebe8")
"""Text, soft text and grid of charts in files."""
FILE_HEAT = "#d63031"
FILE_SIZE = (7.2, 4.8)
"""Inches."""

_TEXT, _SOFT, _GRID, _HEAT = "#fe0001", "#fe0002", "#fe0003", "#fe0004"
_SERIES = tuple(f"#00fe{i:02x}" for i in range(len(SERIES_COLOURS)))
_HEAT_OF_STYLE = f"C{len(_SERIES)}"
"""matplotlib's name for the colour behind those of the series."""
_STAND_INS = {
    _TEXT: "var(--text)",
    _SOFT: "var(--soft)",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES)},
}


def _style(text: str, soft: str, grid: str, colours: Sequence[str]) -> dict[Any, Any]:
    """matplotlib's settings; `colours` are those of the series, and that of maps."""
    return {
        "font.size": FONT,
        "text.color": text,
        "text.parse_math": False,
        "axes.edgecolor": soft,
        "axes.labelcolor": soft,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=colours),
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "grid.color": grid,
        "grid.linewidth": 1.0,
        "hatch.color": soft,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "svg.fonttype": "none",
        "svg.hashsalt": "mosa",
    }


# ------------------------------------------------------------------------------------ series


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of a series; no two of the first 64 share colour and marker."""
    turn = index // len(MARKERS)
    return {
        "color": f"C{index % len(_SERIES)}",
        "marker": MARKERS[(index + turn) % len(MARKERS)],
        "linestyle": DASHES[(index + turn) % len(DASHES)],
    }


def series_indices(names: Sequence[str], subjects: Collection[str]) -> list[int]:
    """Which colour and marker each series has: a subject's own, if all of them are subjects.

    >>> series_indices(["mosa", "original"], ["original", "initial", "mosa"])
    [2, 0]
    """
    places = {subject: place for place, subject in enumerate(subjects)}
    if all(name in places for name in names):
        return [places[name] for name in names]
    return list(range(len(names)))


def mark(index: int, *, is_line: bool = False) -> Markup:
    """The mark of a series beside a line of text; with `is_line`, on its line."""
    width = 34 if is_line else 14
    style = series_style(index)
    line = ""
    if is_line:
        dashes = style["linestyle"]
        pattern = "" if dashes == "-" else " ".join(f"{1.6 * length:g}" for length in dashes[1])
        line = f'<path d="M1 7H33" fill="none" stroke-width="1.6" stroke-dasharray="{pattern}"/>'
    colour = f"var(--series-{index % len(_SERIES)})"
    return Markup(
        f'<svg class="mark" viewBox="0 0 {width} 14" width="{width}" height="14" '
        f'aria-hidden="true" style="fill: {colour}; stroke: {colour}">{line}'
        f'<path d="{_marker(style["marker"], width / 2, 7.0)}"/></svg>'
    )


def _marker(name: str, x: float, y: float) -> str:
    """matplotlib's marker as the path of an SVG, around (x, y) and about 9 units across."""
    style = MarkerStyle(name)
    size = 9.0 if name in "os^D" else 10.0
    place = Affine2D().scale(size, -size).translate(x, y)
    path = style.get_path().transformed(style.get_transform() + place)
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    return "".join(
        "Z" if code == Path.CLOSEPOLY else letters[code] + " ".join(map(_short, points))
        for points, code in path.iter_segments(simplify=False)
    )


def chart_legend(chart: AnyChart, subjects: Collection[str]) -> list[tuple[Markup, str]]:
    """(mark, label) of each series of a chart; empty where the chart itself names them."""
    if isinstance(chart, Points):
        names, is_line = list(chart.points), False
        labels = [f"{name} ({_size_in_words(chart, name)})" for name in names]
    elif isinstance(chart, LineChart | Paths):
        labels = names = list(chart.series)
        is_line = True
    else:
        return []
    marks = [mark(i, is_line=is_line) for i in series_indices(names, subjects)]
    return list(zip(marks, labels, strict=True))


def axis_labels(chart: AnyChart) -> tuple[str, str]:
    """The labels of both axes, which the page sets: text in an SVG cannot wrap."""
    if isinstance(chart, Histogram):
        return chart.x_label, "share of cases"
    return chart.x_label, chart.y_label


def _size_in_words(chart: Points, name: str) -> str:
    size = chart.points[name][2]
    return f"{chart.size_label} {'not measured, hollow' if size is None else shown(size)}"


# ----------------------------------------------------------------------------------- drawing


def draw_chart(chart: AnyChart, name: str, subjects: Collection[str] = ()) -> Markup:
    """The chart as an `svg` element; `name` is unique on the page and begins all ids inside.

    Series with the names of `subjects` have the colours and markers of these subjects.
    """
    with matplotlib.rc_context(_style(_TEXT, _SOFT, _GRID, (*_SERIES, _HEAT))):
        figure = _DRAW[type(chart)](chart, subjects)
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return _for_page(text.getvalue(), name, chart.title, describe(chart))


def save(chart: LineChart | HeatMap, path: FilePath) -> None:
    """Write the chart beside `path`, with .svg and .png behind its name, in the light scheme."""
    colours = [light for light, _ in SERIES_COLOURS]
    with matplotlib.rc_context(_style(*FILE_COLOURS, (*colours, FILE_HEAT))):
        figure = _DRAW[type(chart)](chart, ())
        figure.set_size_inches(*FILE_SIZE)
        (axes,) = figure.axes
        title = "\n".join(textwrap.wrap(chart.title, 60))
        if isinstance(chart, HeatMap):
            title += f"\n{chart.value_label}: 0 is pale, 1 is dark"
        elif len(chart.series) > 1:
            figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)
        axes.set_title(title, loc="left")
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        for suffix, facts in (("svg", {"Date": None}), ("png", None)):
            with replacing(path.with_name(f"{path.name}.{suffix}")) as file:
                figure.savefig(file, format=suffix, dpi=150, facecolor="white", metadata=facts)


def describe(chart: AnyChart) -> str:
    """What a chart shows, for readers who do not see it; a table beside it has the figures."""
    axes = f"{chart.x_label} and {axis_labels(chart)[1]}"
    match chart:
        case LineChart():
            xs = [x for points in chart.series.values() for x, _ in points]
            span = f" from {min(xs):g} to {max(xs):g}" if xs else ""
            over = f"{chart.y_label} over {chart.x_label}{span}"
            return f"Lines with 95 % intervals: {over}, for {', '.join(chart.series)}."
        case HeatMap():
            cells = [cell.value for row in chart.cells for cell in row if cell is not None]
            span = f", from {min(cells):.2f} to {max(cells):.2f}" if cells else ""
            told = f"Map of {chart.value_label} by {axes}{span}."
            if chart.borders:
                places = ", ".join(f"{chart.x_values[column]:g}" for column in chart.borders)
                told += f" A block begins between these columns and those on their left: {places}."
            return told
        case Histogram():
            return f"Bars: share of cases by {chart.x_label}, for {', '.join(chart.series)}."
        case Points():
            each = (
                f"{name} at {shown(x)} and {shown(y)}, {_size_in_words(chart, name)}"
                for name, (x, y, _) in chart.points.items()
            )
            return f"Points with 95 % intervals of {axes}: {'; '.join(each)}."
        case Paths():
            each = (
                f"{name} from {shown(points[0][1])} and {shown(points[0][2])} ({points[0][0]}) "
                f"to {shown(points[-1][1])} and {shown(points[-1][2])} ({points[-1][0]})"
                for name, points in chart.series.items()
                if points
            )
            return f"Paths through {axes}: {'; '.join(each)}."


def _figure(height: int) -> Figure:
    # Sizes are in inches; a unit of the SVG is a point.
    layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=2 / 72)
    return Figure(figsize=(WIDTH / 72, height / 72), layout=layout)


def _lines(chart: LineChart, subjects: Collection[str]) -> Figure:
    figure = _figure(220)
    axes = figure.subplots()
    indices = series_indices(list(chart.series), subjects)
    for place, (name, points) in enumerate(chart.series.items()):
        if not points:
            continue
        style = series_style(indices[place])
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
    if chart.band is not None:
        axes.axhspan(*chart.band, color="#888888", alpha=0.18, linewidth=0)
    if chart.y_range is not None:
        margin = 0.03 * (chart.y_range[1] - chart.y_range[0])
        axes.set_ylim(chart.y_range[0] - margin, chart.y_range[1] + margin)
    is_counted = all(float(x).is_integer() for points in chart.series.values() for x, _ in points)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=is_counted))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _cells(chart: HeatMap, subjects: Collection[str]) -> Figure:
    del subjects  # a map has no series
    rows, columns = len(chart.y_values), len(chart.x_values)
    figure = _figure(26 + min(250, max(90, 24 * rows)))
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.set(xlim=(0, columns), ylim=(0, rows))
    gap = 0.03 if columns <= 2 * MAX_TICKS else 0.0
    by_level: dict[int, list[Path]] = {}
    for y, row in enumerate(chart.cells):
        for x, cell in enumerate(row):
            if cell is None or math.isnan(cell.value):
                continue
            level = round(min(1.0, max(0.0, cell.value)) * NUM_LEVELS)
            left, right, low, high = x + gap, x + 1 - gap, y + gap, y + 1 - gap
            corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
            by_level.setdefault(level, []).append(Path(corners, closed=True))
            if columns <= MAX_COLUMNS_IN_NUMBERS:
                axes.text(x + 0.5, y + 0.5, shown(cell), ha="center", va="center", size=11)
    for level, cells in sorted(by_level.items()):
        shape = Path.make_compound_path(*cells)
        # Never quite nothing: a cell at zero was measured.
        alpha = 0.04 + 0.96 * level / NUM_LEVELS
        axes.add_patch(PathPatch(shape, facecolor=_HEAT_OF_STYLE, alpha=alpha, linewidth=0))
    for column in chart.borders:
        axes.axvline(column, color="C0", linewidth=1.4)
    for axis, values in ((axes.xaxis, chart.x_values), (axes.yaxis, chart.y_values)):
        every = -(-len(values) // MAX_TICKS)
        places = range(0, len(values), every)
        labels = [f"{values[place]:g}" for place in places]
        axis.set_ticks([place + 0.5 for place in places], labels)
    return figure


def _classes(chart: Histogram, subjects: Collection[str]) -> Figure:
    names = list(chart.series)
    figure = _figure(26 + 62 * len(names))
    all_axes = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    top = max((max(shares, default=0.0) for shares in chart.series.values()), default=0.0) or 1.0
    for axes, name, index in zip(all_axes, names, series_indices(names, subjects), strict=True):
        colour = series_style(index)["color"]
        axes.stairs(chart.series[name], chart.edges, fill=True, color=colour, linewidth=0)
        axes.set(ylim=(0, 1.05 * top), xlim=(chart.edges[0], chart.edges[-1]))
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(visible=False, axis="x")
        label = f"{textwrap.shorten(name, 40, placeholder=' …')} (n = {chart.counts[name]})"
        axes.set_title(label, loc="left", size=FONT, pad=3)
    return figure


def _unit_square() -> tuple[Figure, Axes]:
    figure = _figure(320)
    axes = figure.subplots()
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    return figure, axes


def _points(chart: Points, subjects: Collection[str]) -> Figure:
    figure, axes = _unit_square()
    if chart.corner:
        axes.add_patch(Rectangle((0.7, -0.04), 0.34, 0.34, facecolor=_SOFT, alpha=0.1, linewidth=0))
        axes.text(0.715, 0.285, chart.corner, color=_SOFT, va="top")
    indices = series_indices(list(chart.points), subjects)
    for (x, y, size), index in zip(chart.points.values(), indices, strict=True):
        style = series_style(index)
        colour = style["color"]
        axes.hlines([y.value], x.low, x.high, color=colour, alpha=0.5, lw=1.4)
        axes.vlines([x.value], y.low, y.high, color=colour, alpha=0.5, lw=1.4)
        axes.plot(
            [x.value],
            [y.value],
            color=colour,
            marker=style["marker"],
            markersize=9.0 if size is None else 5.0 + 10.0 * math.sqrt(size.value),
            markerfacecolor="none" if size is None else colour,
            markeredgewidth=1.8,
            alpha=0.9,
        )
    return figure


def _paths(chart: Paths, subjects: Collection[str]) -> Figure:
    figure, axes = _unit_square()
    indices = series_indices(list(chart.series), subjects)
    for points, index in zip(chart.series.values(), indices, strict=True):
        xs, ys = [x.value for _, x, _ in points], [y.value for _, _, y in points]
        axes.plot(xs, ys, **series_style(index), markersize=6, linewidth=1.6)
    return figure


_DRAW: Mapping[type, Callable[[Any, Collection[str]], Figure]] = {
    LineChart: _lines,
    HeatMap: _cells,
    Histogram: _classes,
    Points: _points,
    Paths: _paths,
}


# -------------------------------------------------------------------------- into the page


def _for_page(text: str, name: str, title: str, description: str) -> Markup:
    """matplotlib's document as an element of the page.

    A style sheet inside would hold for the whole page, ids would clash between charts, and fonts
    and colours are the page's.
    """
    # What it reads was written a moment ago by matplotlib, so there is nothing to distrust.
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            element.attrib[key.rpartition("}")[2]] = element.attrib.pop(key)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    numbers = {old: f"{name}-{i}" for i, old in enumerate(sorted(used), 1)}
    _tidy(root, numbers)
    box = root.attrib["viewBox"]
    inside = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Markup(
        f'<svg class="chart" viewBox="{box}" role="img" stroke-linejoin="round" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{inside}</svg>'
    )


def _tidy(element: ElementTree.Element, ids: Mapping[str, str]) -> None:
    children: list[ElementTree.Element] = []
    for child in element:
        child.tail = None
        if child.tag in ("metadata", "style"):
            continue
        _tidy(child, ids)
        is_bare = child.tag in ("g", "defs") and not child.attrib
        if is_bare and (child.tag == "g" or not len(child)):
            children += child
        else:
            children.append(child)
    if element.tag != "text":
        element.text = None
    element[:] = children
    element.attrib = {key: value for key, value in _attributes(element, ids).items() if value}


def _attributes(element: ElementTree.Element, ids: Mapping[str, str]) -> dict[str, str]:
    """An element's attributes for the page; those to be left out are empty."""
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            value = ids.get(value, "")
        elif key == "href":
            value = f"#{ids[value[1:]]}"
        elif key == "style":
            value = _css(value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            value = ""
        elif key != "viewBox":
            value = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{ids[found[1]]})", value)
        if key in ("d", "x", "y", "width", "height", "transform"):
            value = re.sub(r"-?\d+\.\d+", lambda found: _short(float(found[0])), value)
            value = " ".join(value.split())
        attributes[key] = value
    return attributes


def _short(number: float) -> str:
    return f"{number:z.2f}".rstrip("0").rstrip(".")


def _css(style: str) -> str:
    rules = dict(rule.split(": ", 1) for rule in style.split("; ") if rule)
    rules = {key: _STAND_INS.get(value, value) for key, value in rules.items()}
    rules.pop("font-family", None)
    if rules.get("fill") == _HEAT:
        depth = rules.pop("fill-opacity", rules.pop("opacity", "1"))
        rules["fill"] = f"rgb(var(--heat) / calc(var(--heat-most) * {float(depth):.3g}))"
        rules["shape-rendering"] = "crispEdges"
    return "; ".join(f"{key}: {value}" for key, value in rules.items())
