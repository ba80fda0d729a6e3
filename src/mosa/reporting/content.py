"""The content of a report without its looks: tables, charts, samples, sentences.

`mosa.reporting.build` makes it from runs, `mosa.reporting.page` draws it as one HTML page and
`mosa.reporting.tables` writes its tables as CSV, JSON and LaTeX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mosa.evidence.findings import HeatMap, LineChart
from mosa.player import SampleResponse, display, player_html
from mosa.stats.rates import Interval, Rate

CellValue = str | int | float | Interval | None
"""One entry of a table; None for no value, shown as a dash."""


@dataclass(frozen=True)
class Change:
    """A difference between two subjects that is beyond chance."""

    is_safer: bool
    told: str
    """The difference with its interval, and its p value."""


@dataclass(frozen=True)
class ReportTable:
    """Rows under headings; the page shows the same rows that the exports hold."""

    name: str
    """Its file's name, for example `scoreboard`."""
    title: str
    caption: str
    """What its figures are, on how many cases, and by which judge."""
    columns: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    judge: str = ""
    """The judge whose verdicts it counts, where the page can switch between judges."""
    is_heat: bool = False
    """Whether its rates are coloured by their size (0: held, 1: succeeded)."""
    base: str = ""
    """The subject that others are compared with, where the page can switch between these."""
    changes: Mapping[str, Mapping[tuple[str, str], Change]] = field(default_factory=dict)
    """Of a map: by the subject compared with, what differs from it: (row, column) and how."""
    is_detail: bool = False
    """Whether the page shows it only to readers who unfold it."""


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
    corner: str = ""
    """What the lower right corner is, where it is the best place; empty for no mark there."""


@dataclass(frozen=True)
class Paths:
    """Points in an order, joined by a line, one line for each series; both axes from 0 to 1."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[str, Rate, Rate]]]
    """(what the point is, x, y), in order."""


AnyChart = LineChart | HeatMap | Histogram | Points | Paths


@dataclass(frozen=True)
class ReportFigure:
    """A chart with the sentence below it."""

    name: str
    """Short and unique, for the page's anchors."""
    chart: AnyChart
    caption: str


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

    @property
    def about(self) -> str:
        """Which try it is and what came of it, in one line."""
        outcomes = ", ".join(f"{outcome} ({judge})" for judge, outcome in self.outcomes.items())
        return (
            f"{self.subject}, {self.attack} on {self.case_set}, {self.case}, seed {self.seed}, try "
            f"{self.number + 1}: {outcomes or 'not judged'}"
        )

    def without_words(self) -> Sample:
        """The same sample under redaction."""
        responses = tuple(response.without_words() for response in self.responses)
        return replace(self, request=None, responses=responses)

    def __repr__(self) -> str:
        return f"<Sample {self.about}>"

    def _repr_html_(self) -> str:
        return player_html(self.responses, f"{self.about}.")

    def show(self) -> None:
        """Play its denoising in a notebook; elsewhere print what was asked and answered."""
        texts = [self.about]
        for response in self.responses:
            texts += [f"{role}: {text}" for role, text in response.prompt or ()]
            if response.tokens is not None:
                texts.append(f"model: {response.text_read}")
        display(self._repr_html_(), "\n".join(texts))


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
    findings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(what they are about, sentences, one a line)."""
    is_open: bool = False
    """Whether the page shows it unfolded."""
    more: str = ""
    """What its tables with `is_detail` are about; empty where there are none."""

    def filled(self) -> Section | None:
        """The section without tables that have no rows; None where nothing is left."""
        tables = tuple(table for table in self.tables if table.rows)
        is_empty = not (self.paragraphs or tables or self.figures or self.findings)
        more = self.more if any(table.is_detail for table in tables) else ""
        return None if is_empty else replace(self, tables=tables, more=more)


@dataclass(frozen=True)
class Named:
    """What the name of an attack or a useful task in a table means."""

    title: str
    """In plain words."""
    paper: str = ""
    """The address of the paper; empty where there is none."""
    attack: str = ""
    """The attack's name among the samples; empty for a task."""
    case_set: str = ""
    """The set's name among the samples."""


@dataclass(frozen=True)
class Measure:
    """One of the few figures of a subject that are seen first."""

    title: str
    rate: Rate | None
    """None where it was not measured."""
    is_good: bool
    """Whether 1 is best, and not 0."""
    note: str = ""
    shown_by: Mapping[str, str] | None = None
    """Where samples show what the note says: by column, the value that the browser filters for."""


@dataclass(frozen=True)
class Showcase:
    """Responses to look at first: the rows are what was asked, the columns subjects."""

    rows: Mapping[str, tuple[int, ...]]
    """By what was asked, in plain words: the place of each subject's sample among all samples."""
    caption: str
    """How the case was chosen."""


@dataclass(frozen=True)
class Overview:
    """What fits on the first screen."""

    headline: str = ""
    """One sentence of at most twenty words, names of subjects included."""
    tiles: Mapping[str, tuple[Measure, ...]] = field(default_factory=dict)
    """By subject."""
    picture: ReportFigure | None = None
    """What safety costs, one mark for each subject."""
    showcase: Showcase | None = None


@dataclass(frozen=True)
class Content:
    """A whole report."""

    title: str
    verdict: tuple[str, ...]
    """The findings in plain sentences with their uncertainty."""
    cautions: tuple[str, ...]
    """What a reader must know before quoting a figure: unscored cases, unequal decoders, few
    cases."""
    subjects: Mapping[str, str]
    """Subjects in their order, each with a sentence about it ("" where nothing is known)."""
    judges: Mapping[str, str]
    """Judges of the safety figures by id, each with a short name; the deciding one first."""
    sections: tuple[Section, ...]
    """Attacks, scoreboard, trade-off, diffusion, categories, budget, ..., settings, citation."""
    overview: Overview = field(default_factory=Overview)
    names: Mapping[str, Named] = field(default_factory=dict)
    """Attacks and useful tasks as tables and samples call them."""
    samples: Sequence[Sample] = field(default_factory=list)
    is_redacted: bool = True
    shows_words: bool = False
    """Whether the page shows words at once, because nothing in them can be harmful."""
    made_with: str = ""
    """Version of mosa and the day, for the foot of the page."""
