"""The content of a report without its looks: tables, charts, samples, sentences.

`mosa.report.build` makes it from runs, `mosa.report.page` draws it as one HTML page and
`mosa.report.tables` writes its tables as CSV, JSON and LaTeX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mosa.results.findings import HeatMap, LineChart
from mosa.stats.rates import Interval, Rate

Cell = str | int | float | Interval | None
"""One entry of a table; None for no value, shown as a dash."""


@dataclass(frozen=True)
class ReportTable:
    """Rows under headings; the page shows the same rows that the exports hold."""

    name: str
    """Its file's name, for example `scoreboard`."""
    title: str
    caption: str
    """What its figures are, on how many cases, and by which judge."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    judge: str = ""
    """The judge whose verdicts it counts, where the page can switch between judges."""
    is_heat: bool = False
    """Whether its rates are coloured by their size (0: held, 1: succeeded)."""


@dataclass(frozen=True)
class Histogram:
    """Shares of cases by class, one row of bars for each series."""

    title: str
    x_label: str
    edges: tuple[float, ...]
    """One more than there are classes."""
    series: dict[str, tuple[float, ...]]
    """Share of the series' cases in each class, from 0 to 1."""
    counts: dict[str, int]
    """How many cases each series has."""


@dataclass(frozen=True)
class Points:
    """One point for each subject, with intervals on both axes and a size."""

    title: str
    x_label: str
    y_label: str
    size_label: str
    points: dict[str, tuple[Rate, Rate, Rate | None]]
    """By subject: x, y, and the rate that the size shows; None where it was not measured."""


@dataclass(frozen=True)
class Paths:
    """Points in an order, joined by a line, one line for each series; both axes from 0 to 1."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[str, Rate, Rate]]]
    """(what the point is, x, y), in order."""


Chart = LineChart | HeatMap | Histogram | Points | Paths


@dataclass(frozen=True)
class ReportFigure:
    """A chart with the sentence below it."""

    name: str
    """Short and unique, for the page's anchors."""
    chart: Chart
    caption: str


@dataclass(frozen=True)
class SampleResponse:
    """One generation, position by position."""

    commit_step: tuple[int, ...]
    """The step (from 0) that wrote each position, -1 where the attacker pinned it; of a served
    subject, whose steps are not known, 0 for each word."""
    end_positions: tuple[int, ...]
    """The positions (from 0) that hold an end token."""
    tokens: tuple[str, ...] | None
    """The words; None under redaction."""
    prompt: tuple[tuple[str, str], ...] | None
    """(role, text) of each turn that was sent; None under redaction."""


@dataclass(frozen=True)
class Sample:
    """One try of one attack, for the browser of samples."""

    subject: str
    attack: str
    threat: str
    case_set: str
    case: str
    """The case's id."""
    request: str | None
    """The case's own text, as its benchmark has it; None under redaction."""
    category: str
    seed: int
    number: int
    """Which try of the attack it is, from 0."""
    variant: str
    outcomes: dict[str, str]
    """By judge: `succeeded`, `held`, `unscored`; for harmless requests what `compliance` says."""
    scores: dict[str, float | None]
    """By judge, from 0 to 1."""
    queries: int
    """Responses that the attack had asked for, up to and with this try."""
    is_garbled: bool
    responses: tuple[SampleResponse, ...]
    """Empty where the page keeps only the outcome, because it would grow too large."""


@dataclass(frozen=True)
class Section:
    """One part of the page, in its order."""

    name: str
    """The page's anchor, for example `scoreboard`."""
    title: str
    paragraphs: tuple[str, ...] = ()
    """Plain text."""
    tables: tuple[ReportTable, ...] = ()
    figures: tuple[ReportFigure, ...] = ()

    def filled(self) -> Section | None:
        """The section without tables that have no rows; None where nothing is left."""
        tables = tuple(table for table in self.tables if table.rows)
        is_empty = not (self.paragraphs or tables or self.figures)
        return None if is_empty else replace(self, tables=tables)


@dataclass(frozen=True)
class Content:
    """A whole report."""

    title: str
    verdict: tuple[str, ...]
    """The findings in plain sentences with their uncertainty; the first is the headline."""
    cautions: tuple[str, ...]
    """What a reader must know before quoting a figure: unscored cases, unequal decoders, few
    cases."""
    subjects: Mapping[str, str]
    """Subjects in their order, each with a sentence about it ("" where nothing is known)."""
    judges: tuple[str, ...]
    """Judges of the safety figures; the deciding one first."""
    sections: tuple[Section, ...]
    """Scoreboard, attacks, trade-off, diffusion, categories, budget, ..., settings, citation."""
    samples: Sequence[Sample] = field(default_factory=list)
    is_redacted: bool = True
    made_with: str = ""
    """Version of mosa and the day, for the foot of the page."""
