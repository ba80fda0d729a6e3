"""What a probe has found: tidy rows, estimates with intervals, charts as data, and a paragraph.

A finding is computed only from a run, with the verdicts of any judge. Its figures have the
intervals of `mosa.stats`. What is independent are the cases; several attempts at a case count as
one.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from mosa.evidence.figures import by_trust
from mosa.judges import REFUSAL_CLASSES, compliance_of
from mosa.probes import PROBES
from mosa.runs.judging import tells_refusals
from mosa.runs.records import Task
from mosa.runs.store import Run
from mosa.stats.pairs import PairedDifference, mean_unbounded, mean_within, paired_difference
from mosa.stats.rates import (
    Interval,
    Rate,
    Values,
    case_means,
    exactly,
    format_rate,
    mean_of,
    once,
    rate_of,
)
from mosa.tables import html_table
from mosa.terminal import printable
from mosa.types import Response, Verdict

INTERVALS = (
    "Intervals are 95 % over cases: Wilson's for shares, the bound of Gaffke for differences "
    "within cases and other figures with bounds, Student's t for the rest."
)


# --- charts as data -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineChart:
    """Figures along an axis, one line per series."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, Interval]]]
    y_range: tuple[float, float] | None = None
    band: tuple[float, float] | None = None
    """Values of y that are marked: where others have seen the figure."""


@dataclass(frozen=True)
class HeatMap:
    """One figure for each cell of a grid: `cells[y][x]`; None where nothing was measured."""

    title: str
    x_label: str
    y_label: str
    x_values: list[float]
    y_values: list[float]
    cells: list[list[Interval | None]]
    value_label: str
    borders: list[int] = field(default_factory=list[int])
    """Columns (from 0) before which a block of the response begins."""


Chart = LineChart | HeatMap


@dataclass(frozen=True)
class KeyFigure:
    """One of the few figures that a finding is about."""

    of: str
    """Subject and set."""
    what: str
    figure: Interval
    p_adjusted: float | None = None
    """Holm's, of a difference that was tested."""


@dataclass(repr=False)
class Finding:
    """What one probe, with one preset, has found in a run; the probe's reader fills it."""

    probe: str
    preset: str
    header: dict[str, Any]
    """Every setting, the subjects' weights and lengths of responses, the sets, the judges and the
    versions."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The data, one row per attempt (or per position)."""
    estimates: list[dict[str, Any]] = field(default_factory=list)
    """One record per figure: what it is of, and value, n, low, high."""
    charts: dict[str, Chart] = field(default_factory=dict)
    """By a name that can be a file's."""
    sentences: list[str] = field(default_factory=list)
    """What was found, with intervals."""
    key_figures: list[KeyFigure] = field(default_factory=list)
    """The figures of `sentences`, as a table of a few rows."""
    key_sentences: list[str] = field(default_factory=list)
    """What the key figures say, in a sentence for each group."""

    def __repr__(self) -> str:
        return f"<Finding {self.name}: {self.paragraph}>"

    def _repr_html_(self) -> str:
        """The key figures as a table, and what they say."""
        headings = ("subject and set", "figure", "value (95 % interval)")
        rows = [
            (key.of, key.what, format_rate(key.figure, with_n=True)) for key in self.key_figures
        ]
        told = (f"<p>{html.escape(printable(text))}</p>" for text in self.key_sentences)
        return html_table(headings, rows) + "".join(told)

    @property
    def name(self) -> str:
        """Probe and preset, as a file's name."""
        return chart_name(f"{self.probe} {self.preset}")

    @property
    def length(self) -> str:
        """The tokens of the subjects' responses, each length once; a probe may try others beside
        it."""
        return ", ".join(dict.fromkeys(map(str, self.header["max_new_tokens"].values())))

    @property
    def paragraph(self) -> str:
        """Its sentences."""
        return " ".join(self.sentences)

    def add(self, figure: Interval | None, **of: Any) -> None:
        """Keep a figure with its labels, as one flat record; None, which no judge could score, is
        left out."""
        if figure is not None:
            self.estimates.append(of | numbers_of(figure))

    def add_key(
        self, of: str, what: str, figure: Interval | None, *, p_adjusted: float | None = None
    ) -> None:
        """Keep a figure for the table of key figures; None is left out."""
        if figure is not None:
            self.key_figures.append(KeyFigure(of, what, figure, p_adjusted))


def numbers_of(figure: Interval) -> dict[str, float | None]:
    """A figure as plain numbers; an end that a single case does not give is None."""
    low, high = (end if math.isfinite(end) else None for end in (figure.low, figure.high))
    return {"value": figure.value, "n": figure.n, "low": low, "high": high}


def chart_name(*words: str) -> str:
    """Words as a part of a file's name.

    >>> slug("score", "testbed+mosa, testbed:benign")
    'score-testbed+mosa-testbed-benign'
    """
    return re.sub(r"[^\w.+]+", "-", " ".join(words)).strip("-")


def without_room(group: Group, positions: Iterable[int]) -> list[str]:
    """Which of the positions that a probe wanted leave no room, as a sentence or none."""
    there = {o.details.get("position") for o in group.observations}  # a plain request has none
    left = ", ".join(map(str, sorted(set(positions) - there)))
    told = f"{group.label}: the response has no room for the phrase at position {left}; left out."
    return [told] * bool(left)


def not_read(probed: Probed) -> list[str]:
    """The cases that failed and the responses that no judge could score, as sentences."""
    finding, sentences = probed.finding, []
    failed = Counter(
        (task.subject, task.case_set)
        for task, _ in probed.run.tasks(status="failed")
        if (task.attack, task.preset) == (finding.probe, finding.preset)
    )
    for group in probed.groups:
        if number := failed[group.subject, group.case_set]:
            sentences.append(f"{group.label}: cases that failed, left out: {number}.")
        unscored = [o for o in group.observations if None in o.values.values()]
        if unscored:
            sentences.append(f"{group.label}: unscored responses, in no rate: {len(unscored)}.")
    return sentences


# --- what a run holds of a probe ------------------------------------------------------------------

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Profile(TypedDict):
    step: int
    end: list[_Share | None]
    refusal: list[_Share | None]
    kl: NotRequired[list[float | None]]


class _Details(TypedDict, total=False):
    """What an attempt of a probe says, of what is read; it says more."""

    phrase_type: str
    span: str
    method: str
    condition: str
    end_tokens: Literal["allow", "forbid"]
    block_length: int | None
    remasking: str
    position: int | None
    step: int | None
    text_before: str
    text_after: str
    in_place: bool
    in_whole_canvas: bool
    anywhere: bool
    best_loss: float
    losses: list[float]
    profiles: list[_Profile]
    num_packaged_refusals: int
    num_trained_refusals: int


_KINDS = ("phrase_type", "span", "method")
"""Factors of which one level, none, is the plain request: that alone has no position."""


def _checked(details: dict[str, Any]) -> dict[str, Any]:
    """The details of an attempt, by their types; ValueError for those that no probe has written."""
    known = msgspec.convert(details, _Details)
    position = known.get("position")
    kinds = {details[name] for name in _KINDS if name in details}
    if kinds and (position is None) != (kinds == {"none"}):
        raise ValueError("its position is not of its kind")
    if "text_before" in details and position is None:
        raise ValueError("it has sides without a position")
    for profile in known.get("profiles", ()):
        if len({len(values) for values in profile.values() if isinstance(values, list)}) > 1:
            raise ValueError("its profiles are not of one length")
    return {**details, **known}


def _check_settings(task: Task) -> None:
    """ValueError for settings with which no probe was run."""
    config_class = PROBES[task.attack].config_class
    lacking = {field.name for field in dataclasses.fields(config_class)} - task.config.keys()
    if lacking:
        raise ValueError(f"its settings lack {min(lacking)}")
    msgspec.convert(task.config, config_class)


class MissingDetail(Exception):
    """An attempt that a probe has made does not say what the probe's reader needs."""


@dataclass(frozen=True)
class Observation:
    """One attempt of a probe."""

    subject: str
    case_set: str
    case: str
    seed: int
    key: str
    """The attempt's key."""
    details: dict[str, Any]
    """The factors of its cell, and what the probe recorded."""
    values: dict[str, float | None]
    """By measure; None where the judge could not score it."""

    def __getitem__(self, factor: str) -> Any:
        try:
            return self.details[factor]
        except KeyError as error:
            raise MissingDetail(f"attempts, {self.key}", f"it does not say its {factor}") from error

    def row(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Everything but the key, as one flat record."""
        about = {name: getattr(self, name) for name in ("subject", "case_set", "case", "seed")}
        kept = {name: value for name, value in self.details.items() if name not in leave_out}
        return about | kept | self.values


@dataclass(frozen=True)
class Group:
    """The observations of one subject on one set."""

    subject: str
    case_set: str
    label: str
    """What it is called in tables and charts: the subject, with the set where there are several."""
    measures: tuple[str, ...]
    """Its judge's measures."""
    observations: list[Observation]
    refusals: tuple[str, ...] = ()
    """What the subject was trained to say as a refusal, as far as its adapter tells."""

    @property
    def of(self) -> dict[str, str]:
        """What its figures are of."""
        return {"subject": self.subject, "case_set": self.case_set}

    def where(self, **levels: Any) -> list[Observation]:
        """Its observations at these levels of factors."""
        return [o for o in self.observations if all(o[name] == of for name, of in levels.items())]

    def levels(self, factor: str) -> list[Any]:
        """The values of a factor, in the order of the experiment; None is not a level."""
        found = dict.fromkeys(o[factor] for o in self.observations)
        return [level for level in found if level is not None]


def cells_of(
    observations: Iterable[Observation], factors: Sequence[str]
) -> dict[tuple[Any, ...], list[Observation]]:
    """Observations by the levels of some factors; those of other factors together."""
    cells: dict[tuple[Any, ...], list[Observation]] = {}
    for observation in observations:
        cells.setdefault(tuple(observation[f] for f in factors), []).append(observation)
    return cells


@dataclass(frozen=True)
class Probed:
    """All attempts of one probe, with one preset, in a run, and what its reader finds in them."""

    run: Run
    groups: list[Group]
    finding: Finding

    def response(self, observation: Observation) -> Response:
        """The response of an attempt that has one."""
        responses = self.run.responses_of(observation.key)
        if len(responses) != 1:
            raise self.run.damage(f"attempts, {observation.key}", "it has not one response")
        return responses[0]


def probed_of(
    run: Run, probes: Collection[str], judge: str | None, labels: Mapping[str, str]
) -> list[Probed]:
    """Every probe in a run with each of its presets, in the order of planning.

    `judge` is the id of the judge that is read; unset, and where it has not read a set: the set's
    most trusted one. `labels` says what subjects are called, where not by their names.
    """
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    for task, _ in run.tasks(status="done"):
        if task.attack in probes:
            try:
                _check_settings(task)
            except ValueError as error:
                raise run.damage(f"tasks, {task.key}", error) from error
            settings.setdefault((task.attack, task.preset), task.config)
    if not settings:
        return []
    judges: dict[str, str | None] = {}
    for name in run.sets():
        known = run.judges(name)
        judges[name] = judge if judge in known else min(known, key=by_trust, default=None)
    found: dict[tuple[str, str], dict[tuple[str, str], list[Observation]]] = {}
    for case_set, name in judges.items():
        pairs = ((a, None) for a in run.attempts(case_set=case_set))
        for attempt, verdict in pairs if name is None else run.judged(name, case_set):
            if (attempt.attack, attempt.preset) in settings:
                try:
                    details = _checked(attempt.details)
                except ValueError as error:
                    raise run.damage(f"attempts, {attempt.key}", error) from error
                observation = Observation(
                    attempt.subject,
                    case_set,
                    attempt.case,
                    attempt.seed,
                    attempt.key,
                    details,
                    {m: _value(verdict, m) for m in _measures(name)},
                )
                cells = found.setdefault((attempt.attack, attempt.preset), {})
                cells.setdefault((attempt.subject, case_set), []).append(observation)
    versions = [session.get("versions") for session in run.sessions()][-1:]
    subjects = run.subjects()
    probed = []
    for (probe, preset), cells in found.items():
        sets = {name: len({o.case for o in cells[s, name]}) for s, name in cells}
        groups = [
            Group(
                subject,
                case_set,
                ", ".join([labels.get(subject, subject), *([case_set] if len(sets) > 1 else [])]),
                _measures(judges[case_set]),
                cells[subject, case_set],
                tuple(subjects[subject].refusals),
            )
            for subject, case_set in sorted(cells, key=lambda cell: list(sets).index(cell[1]))
        ]
        header = {
            "probe": probe,
            "preset": preset,
            "settings": settings[probe, preset],
            "subjects": {subject: subjects[subject].weights for subject, _ in cells},
            "max_new_tokens": {
                subject: subjects[subject].decoder.get("max_new_tokens") for subject, _ in cells
            },
            "sets": sets,
            "judges": {case_set: judges[case_set] for case_set in sets},
            "versions": versions,
        }
        probed.append(Probed(run, groups, Finding(probe, preset, header)))
    return probed


def _measures(judge: str | None) -> tuple[str, ...]:
    if judge is None:
        return ()
    return ("score", "refused") if tells_refusals(judge) else ("score",)


def _value(verdict: Verdict | None, measure: str) -> float | None:
    if verdict is None or verdict.score is None:
        return None
    return verdict.score if measure == "score" else float(compliance_of(verdict) in REFUSAL_CLASSES)


# --- figures --------------------------------------------------------------------------------------


def values_of(
    observations: Iterable[Observation], measure: str | Callable[[Observation], float | None]
) -> Values:
    """By case and seed, the mean over the observations of a measure, or of a number in [0, 1] that
    is taken of each."""
    found: dict[str, dict[int, list[Fraction | int]]] = {}
    for observation in observations:
        value = observation.values[measure] if isinstance(measure, str) else measure(observation)
        of_seed = found.setdefault(observation.case, {}).setdefault(observation.seed, [])
        if value is not None:
            of_seed.append(exactly(value))
    return {
        case: {seed: mean_of(values) if values else None for seed, values in seeds.items()}
        for case, seeds in found.items()
    }


def rate(
    observations: Iterable[Observation], measure: str | Callable[[Observation], float | None]
) -> Rate | None:
    """The mean over cases; None where nothing was scored."""
    values = values_of(observations, measure)
    return rate_of(values) if case_means(values) else None


Level = tuple[int, Rate]
"""A level of a factor, and the rate at it."""


def extremes(
    observations: Sequence[Observation], factor: str, measure: str
) -> tuple[Level, Level] | None:
    """The levels of a factor at which a measure is lowest and highest, the first of equal ones;
    None where nothing was scored."""
    cells = sorted(cells_of(observations, (factor,)).items())
    scored = [(level, found) for (level,), here in cells if (found := rate(here, measure))]
    if not scored:
        return None
    return min(scored, key=lambda one: one[1].value), max(scored, key=lambda one: one[1].value)


def format_ends(factor: str, lowest: Level, highest: Level) -> str:
    """Where a measure goes by a factor."""
    if lowest[1].value == highest[1].value:
        return f"is {lowest[1]} at every {factor}"
    return f"goes by {factor} from {lowest[1]} at {lowest[0]} to {highest[1]} at {highest[0]}"


def difference(
    first: Iterable[Observation], second: Iterable[Observation], measure: str
) -> PairedDifference | None:
    """How far the second is above the first within cases; None where no case has both."""
    a, b = values_of(first, measure), values_of(second, measure)
    return paired_difference(a, b) if case_means(a).keys() & case_means(b).keys() else None


Bounds = tuple[float, float] | None
"""The least and the greatest value that a figure can have; None where it has no bounds."""


def mean(values: Iterable[float], bounds: Bounds = None) -> Interval | None:
    """The mean over cases of a figure within `bounds`; None of nothing.

    A share, between 0 and 1, is a rate. Other bounded figures (differences within a case,
    correlations) have `mean_within`'s interval, which is never a point; those without bounds (nats)
    Student's.
    """
    numbers = list(values)
    if not numbers:
        return None
    if bounds is None:
        return mean_unbounded(numbers)
    return rate_of(once(numbers)) if bounds == (0.0, 1.0) else mean_within(numbers, *bounds)


def per_case(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each case's numbers."""
    cases: dict[str, list[float]] = {}
    for case, value in found:
        cases.setdefault(case, []).append(value)
    return {case: sum(values) / len(values) for case, values in cases.items()}


def points(found: Iterable[tuple[float, Interval | None]]) -> list[tuple[float, Interval]]:
    """A line without the points that have no figure."""
    return [(x, figure) for x, figure in found if figure is not None]
