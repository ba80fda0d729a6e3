"""A report's tables as CSV, JSON and LaTeX, the data behind its charts among them.

The page carries the same texts, so its buttons save what `mosa report --tables` writes.

    scoreboard.csv    one column for a text; rate, low, high and n for a rate
    scoreboard.json   rates as objects, nothing as null
    scoreboard.tex    a table of the booktabs package: 0.86 (0.65 to 0.95)
    summary.json      the first screen, for a program: the headline and a few rates of each subject
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosa.evidence.findings import HeatMap, LineChart
from mosa.evidence.findings.base import numbers_of
from mosa.files import claim_folder, filling, plain_cell, write_json, write_text
from mosa.reporting.content import (
    AnyChart,
    CellValue,
    Content,
    Histogram,
    Paths,
    Points,
    ReportTable,
)
from mosa.stats.rates import Interval, Rate, format_rate, format_value

TABLES_BY = "mosa report --tables"
"""The mark of a folder of tables."""
SUMMARY = "summary"
"""The name of the file with the first screen's figures."""
NOTHING = "\N{EN DASH}"
"""What a cell without a figure shows."""


# ------------------------------------------------------------------------------------ cells


def shown(cell: CellValue) -> str:
    """A cell as the page and LaTeX show it, without a rate's interval and cases.

    >>> shown(0.5), shown(12), shown(None), shown(0.00314), shown(6e-08)
    ('0.50', '12', '–', '0.0031', '< 0.001')
    """
    if isinstance(cell, Interval):
        return format_value(cell.value)
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return NOTHING
    if isinstance(cell, float) and 0 < cell < 0.001:  # p values
        return "< 0.001"
    if isinstance(cell, float):
        return f"{cell:.2g}" if 0 < abs(cell) < 0.1 else format_value(cell)
    return str(cell)


def numeric_columns(table: ReportTable) -> list[bool]:
    """By column, whether it holds figures and otherwise only gaps."""
    columns = [
        [row[i] for row in table.rows if row[i] is not None] for i in range(len(table.columns))
    ]
    return [bool(cells) and not any(isinstance(c, str) for c in cells) for cells in columns]


# ---------------------------------------------------------------------------------- formats


def to_csv(table: ReportTable) -> str:
    """Rows under one heading line; a column with rates becomes four: rate, low, high and n."""
    columns: list[list[Any]] = []
    for i, name in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        columns.append([name, *(getattr(cell, "value", cell) for cell in cells)])
        if any(isinstance(cell, Interval) for cell in cells):
            for part in ("low", "high", "n"):
                columns.append([f"{name} {part}", *(getattr(cell, part, None) for cell in cells)])
    text = io.StringIO()
    rows = (map(plain_cell, map(_or_none, row)) for row in zip(*columns, strict=True))
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_json(table: ReportTable) -> str:
    """The table with its caption; a rate is an object of rate (or value), n, low and high."""
    content = {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
        "judge": table.judge or None,
        "columns": table.columns,
        "rows": [[_plain(cell) for cell in row] for row in table.rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_latex(table: ReportTable) -> str:
    """A `table` environment for the booktabs package, with the numbers of cases in its note."""
    kinds = "".join("r" if numeric else "l" for numeric in numeric_columns(table))
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape_latex(_caption(table))}}}",
        f"\\label{{tab:{slug(f'{table.name} {table.base} {table.judge}')}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        "\\toprule",
        " & ".join(map(escape_latex, table.columns)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_latex_cell, row)) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if note := _cases_note(table):
        lines.append(f"\\par\\smallskip{{\\footnotesize {escape_latex(note)}}}")
    return "\n".join([*lines, "\\end{table}", ""])


FORMATS: Mapping[str, Callable[[ReportTable], str]] = {
    "csv": to_csv,
    "json": to_json,
    "tex": to_latex,
}
"""By suffix of the file."""


def _or_none(cell: Any) -> Any:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _plain(cell: CellValue) -> Any:
    if isinstance(cell, Interval):
        return cell.record() if isinstance(cell, Rate) else numbers_of(cell)
    return _or_none(cell)


def _caption(table: ReportTable) -> str:
    title = table.title if table.title.endswith((".", "?", "!")) else f"{table.title}."
    judged = f" Judge: {table.judge}." if table.judge else ""
    return f"{title} {table.caption}{judged}".strip()


def _latex_cell(cell: CellValue) -> str:
    return format_rate(cell) if isinstance(cell, Interval) else escape_latex(shown(cell))


def _cases_note(table: ReportTable) -> str:
    """How many cases the rates rest on: one sentence if all on as many, else column by column."""
    cases: dict[str, set[int]] = {}
    for i, column in enumerate(table.columns):
        found = {row[i].n for row in table.rows if isinstance(row[i], Interval)}  # pyright: ignore
        if found:
            cases[column] = cases.get(column, set()) | found
    every = set().union(*cases.values())
    if not every:
        return ""
    if len(every) == 1:
        return f"n = {every.pop()}; 95 % intervals in parentheses."
    told = (
        f"{column} {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")
        for column, found in cases.items()
    )
    return f"n: {'; '.join(told)}. 95 % intervals in parentheses."


_LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "\N{EN DASH}": "--",
    "\n": " ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints as it stands.

    >>> escape_latex("100 % of a_b")
    '100 \\% of a\\_b'
    """
    return "".join(_LATEX.get(character, character) for character in text)


# ----------------------------------------------------------------------------------- charts


def chart_table(name: str, chart: AnyChart) -> ReportTable:
    """The figures that a chart draws, as a table."""
    columns: Iterable[str]
    rows: Iterable[Sequence[CellValue]]
    caption = ""
    match chart:
        case LineChart():
            columns = ("series", chart.x_label, chart.y_label)
            rows = ((name, *point) for name, points in chart.series.items() for point in points)
        case HeatMap():
            columns = (f"{chart.y_label} \\ {chart.x_label}", *(f"{x:g}" for x in chart.x_values))
            rows = ((f"{y:g}", *row) for y, row in zip(chart.y_values, chart.cells, strict=True))
            caption = f"Rows: {chart.y_label}. Columns: {chart.x_label}. {chart.value_label}."
        case Histogram():
            columns = (f"{chart.x_label}, from", "to below", *chart.series)
            rows = zip(chart.edges, chart.edges[1:], *chart.series.values(), strict=False)
            cases = ", ".join(f"{name} {count}" for name, count in chart.counts.items())
            caption = f"Shares of cases in each class. Cases: {cases}."
        case Points():
            columns = ("subject", chart.x_label, chart.y_label, chart.size_label)
            rows = ((name, *rates) for name, rates in chart.points.items())
        case Paths():
            columns = ("series", "point", chart.x_label, chart.y_label)
            rows = ((name, *point) for name, points in chart.series.items() for point in points)
    return ReportTable(name, chart.title, caption, tuple(columns), tuple(map(tuple, rows)))


# ------------------------------------------------------------------------------------ files


def slug(text: str) -> str:
    """Text as a part of a file's name or an anchor.

    >>> slug("truth/1/World 0")
    'truth-1-world-0'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unnamed"


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; adds the result to `taken`."""
    counted = (f"{name}-{number}" for number in itertools.count(2))
    free = next(n for n in itertools.chain([name], counted) if n not in taken)
    taken.add(free)
    return free


def named_tables(content: Content) -> list[tuple[str, ReportTable]]:
    """Every table of a report in its order: that of the picture, then section by section, those of
    a section's charts behind.

    Each gets a name of its own that a file can have: judges, and subjects that others are compared
    with, share the names of tables.
    """
    picture = content.overview.picture
    tables = [] if picture is None else [chart_table(picture.name, picture.chart)]
    for section in content.sections:
        tables += section.tables
        tables += [chart_table(figure.name, figure.chart) for figure in section.figures]
    taken = {SUMMARY}
    return [
        (unique(slug(f"{table.name} {table.base} {table.judge}"), taken), table) for table in tables
    ]


def summary(content: Content) -> dict[str, Any]:
    """What a program wants to know of a report: the headline, the cautions, and of each subject the
    rates of its tile, with None for what was not measured."""
    return {
        "title": content.title,
        "headline": content.overview.headline,
        "judge": next(iter(content.judges), None),
        "subjects": {
            subject: {
                measure.title.replace(" ", "_"): measure.rate and measure.rate.record()
                for measure in measures
            }
            for subject, measures in content.overview.tiles.items()
        },
        "cautions": list(content.cautions),
        "made_with": content.made_with,
    }


def write_tables(folder: Path, content: Content) -> list[Path]:
    """Every table of a report into a folder, as NAME.csv, NAME.json and NAME.tex, and its summary:
    all files or none.

    Returns the files in the order of writing. Raises UserError where the disk refuses, and for a
    folder of others.
    """
    paths = []
    with claim_folder(folder, TABLES_BY), filling(folder) as part:
        for name, table in named_tables(content):
            for suffix, text_of in FORMATS.items():
                paths.append(folder / f"{name}.{suffix}")
                write_text(part / paths[-1].name, text_of(table))
        paths.append(folder / f"{SUMMARY}.json")
        write_json(part / paths[-1].name, summary(content))
    return paths
