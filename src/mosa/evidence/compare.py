"""Two subjects side by side on the same cases.

    comparison = compare_sides(side(Path("runs/old"), None, "a"), side(Path("runs/new"), None, "b"))
    [(row.name, row.difference) for row in comparison.headlines]

A is the subject before, B the subject in question. Attacks are compared where both were run with
the same preset on the same set, and judged by the same judge; rates are each side's own, the
difference is B minus A on the cases that both have scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from mosa.evidence.figures import (
    CONTROL,
    REFUSED,
    Evidence,
    Figure,
    FigureKind,
    Headline,
    check_sets,
    gather,
    headline,
    headline_of,
    moment_of,
    task_pairs,
)
from mosa.evidence.labels import UNKNOWN, place_of, served_facts
from mosa.runs.judging import judge_meant, short_name
from mosa.runs.records import SubjectRecord
from mosa.stats.pairs import (
    PairedDifference,
    holm,
    paired_difference,
    paired_difference_over_groups,
)
from mosa.stats.rates import case_means, mean_of
from mosa.types import UserError

KINDS: dict[FigureKind, str] = {
    "safety": "attacks",
    "over_refusal": "harmless requests",
    "utility": "useful tasks",
}
"""The subject matter of each kind of figures, in words."""

FigureKey = tuple[str, str, str]
"""(set, attack, preset), or (set, "", "") for harmless requests, or ("", task, metric)."""


# --- one side -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One subject in the runs of one folder."""

    folder: Path
    subject: str
    evidence: Evidence

    @property
    def record(self) -> SubjectRecord:
        """What the subject's name means."""
        return self.evidence.subjects[self.subject]

    def judges(self, kind: FigureKind) -> list[str]:
        """Who judged this subject, most trusted first."""
        own = {figure.judge for figure in self.evidence.select(kind, subject=self.subject)}
        return [judge for judge in self.evidence.judges(kind) if judge in own]

    def figures(self, kind: FigureKind, judge: str) -> dict[FigureKey, Figure]:
        """This subject's figures of a kind; UserError where one of them occurs twice."""
        found: dict[FigureKey, Figure] = {}
        measure = REFUSED if kind == "over_refusal" else ""
        for figure in self.evidence.select(
            kind, subject=self.subject, judge=judge, measure=measure
        ):
            key = _key(figure)
            if key in found:
                raise UserError(
                    f"{self.folder} holds {figure.name} on {self.subject} in two runs; name the "
                    "folder of one of them"
                )
            found[key] = figure
        return found

    def headline(self, name: str, figures: Mapping[FigureKey, Figure]) -> Part:
        """A headline over these figures of this subject."""
        of = list(figures.values())
        of = [f for f in of if f.kind != "safety" or f.name != CONTROL] or of
        attacks = [(figure.case_set, figure.name) for figure in of]
        found = headline(replace(self.evidence, figures=of), name, self.subject, attacks=attacks)
        parts = [part_of([figure]) for figure in of]
        num_missing = sum(part.num_missing for part in parts)
        num_scored, num_out = found.num_scored, _num_planned(of) - found.num_scored
        if name not in ("asr", "any_asr"):
            num_scored = sum(part.num_scored for part in parts)
            num_out = num_missing + sum(part.num_unscored for part in parts)
        left_out = _share(num_out, num_scored)
        return Part(**vars(found), num_missing=num_missing, share_left_out=left_out)


def _num_planned(figures: Sequence[Figure]) -> int:
    """How many behaviors, once for each seed, were planned for the attacks: the most of any attack
    on each set."""
    planned: dict[str, int] = {}
    for figure in figures:
        part = part_of([figure])
        num = part.num_scored + part.num_unscored + part.num_missing
        planned[figure.case_set] = max(num, planned.get(figure.case_set, 0))
    return sum(planned.values())


def _key(figure: Figure) -> FigureKey:
    if figure.kind == "utility":
        return "", figure.name, figure.measure
    if figure.kind == "over_refusal":
        return figure.case_set, "", ""
    # The name includes the preset where the run has several of the attack.
    attack = figure.name.removesuffix(f":{figure.preset}")
    return figure.case_set, attack, figure.preset


def side(folder: Path, subject: str | None, letter: str) -> Side:
    """The runs in and below a folder, and the subject in them; UserError where it is ambiguous."""
    evidence = gather([folder])
    names = [name for name in evidence.subjects if moment_of(evidence, name) is None]
    if subject is None and len(names) != 1:
        raise UserError(
            f"{folder} has the subjects {', '.join(names)}; name one with --subject_{letter}"
        )
    if subject is not None and subject not in evidence.subjects:
        raise UserError(f"{folder} has no subject {subject}; it has {', '.join(evidence.subjects)}")
    return Side(folder, subject or names[0], evidence)


# --- figures of both ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Headline):
    """One side of a figure."""

    num_missing: int = 0
    """Tasks that failed or have not been run."""
    share_left_out: Fraction = Fraction(0)
    """Share of the cases that have no value, for any reason."""


def part_of(figures: Sequence[Figure]) -> Part:
    """Figures of other cases each, taken together."""
    found = headline_of(
        {case: of for figure in figures for case, of in figure.by_seed.items()},
        sum(figure.num_unscored for figure in figures),
        figures,
    )
    num_missing = sum(figure.num_failed + figure.num_left for figure in figures)
    left_out = _share(found.num_unscored + num_missing, found.num_scored)
    return Part(**vars(found), num_missing=num_missing, share_left_out=left_out)


def _share(num_out: int, num_in: int) -> Fraction:
    return Fraction(num_out, num_out + num_in) if num_out else Fraction(0)


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of both sides."""

    name: str
    first: Part
    second: Part
    difference: PairedDifference | None
    """B minus A on the same cases; None where they have none in common."""
    only: tuple[int, int] | None = None
    """Cases with a yes only in A and only in B; None for graded values."""
    has_test: bool = True
    """False for the worst attack, which was picked by looking."""
    p_adjusted: float | None = None
    """Holm's, over the rows of the table; None in the table of headlines."""
    share_left_out: Fraction = Fraction(0)
    """Share of the cases outside all differences: without a value on a side, or not asked there.
    An attack, set or task that one side lacks counts with all of its cases."""

    @property
    def figures(self) -> list[Figure]:
        """What it is made of, of both sides."""
        return [*self.first.figures, *self.second.figures]


def _row(
    name: str,
    first: Part,
    second: Part,
    pairs: Sequence[tuple[Figure | None, Figure | None]],
    *,
    has_test: bool = True,
) -> ComparedFigure:
    """One figure of both sides; `pairs` are what each side has of all that it is about."""
    shared = first.by_seed.keys() & second.by_seed.keys()
    left_out = max(first.share_left_out, second.share_left_out, _share_of_one_side(pairs))
    only = None
    if shared and has_test:  # the worst attack may be another one on either side, on another set
        num_cases = len(set().union(*(_cases(f) for pair in pairs for f in pair)))
        left_out = max(left_out, _share(num_cases - len(shared), len(shared)))
        a, b = (case_means({c: part.by_seed[c] for c in shared}) for part in (first, second))
        if {*a.values(), *b.values()} <= {0, 1}:
            only = sum(a[c] > b[c] for c in shared), sum(b[c] > a[c] for c in shared)
    difference = paired_difference(first.by_seed, second.by_seed) if shared else None
    return ComparedFigure(name, first, second, difference, only, has_test, share_left_out=left_out)


def _share_of_one_side(pairs: Sequence[tuple[Figure | None, Figure | None]]) -> Fraction:
    """The share of the cases that only one side was asked, over all figures or, where that is
    more, as the mean over them."""
    cases = [(_cases(first), _cases(second)) for first, second in pairs]
    counts = [(len(a ^ b), len(a | b)) for a, b in cases if a or b]
    if not counts:
        return Fraction(0)
    pooled = Fraction(sum(alone for alone, _ in counts), sum(num for _, num in counts))
    return max(pooled, mean_of([Fraction(alone, num) for alone, num in counts]))


def _adjusted(rows: Sequence[ComparedFigure]) -> list[ComparedFigure]:
    adjusted = holm({row.name: row.difference.p_value for row in rows if row.difference})
    return [replace(row, p_adjusted=adjusted.get(row.name)) for row in rows]


@dataclass(frozen=True)
class Comparison:
    """What was found of both sides, and what only of B."""

    first: Side
    second: Side
    judges: dict[FigureKind, str]
    """Whose verdicts count, for kinds that are judged."""
    headlines: list[ComparedFigure]
    tables: dict[FigureKind, list[ComparedFigure]]
    """Each attack, set or task that both have."""
    levels: dict[str, Part]
    """Every figure of B by the name that a condition gives it."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know."""


def compare_sides(first: Side, second: Side, *, judge: str | None = None) -> Comparison:
    """A against B, by `judge` or the most trusted of those that both have.

    Raises UserError where the two were not asked the same, or not judged by the same.
    """
    check_sets([*first.evidence.runs, *second.evidence.runs])
    judges: dict[FigureKind, str] = {}
    headlines: list[ComparedFigure] = []
    tables: dict[FigureKind, list[ComparedFigure]] = {}
    levels: dict[str, Part] = {}
    notes = list(_notes(first, second))
    for kind in KINDS:
        chosen = _judge(first, second, kind, judge)
        own = [
            {} if used is None else each.figures(kind, used)
            for each, used in zip((first, second), chosen, strict=True)
        ]
        levels |= _levels(second, kind, own[1])
        notes += _unshared(kind, own[0], own[1])
        shared = [key for key in own[0] if key in own[1]]
        if chosen[1]:
            judges[kind] = chosen[1]
        if not shared:
            continue
        figures = [{key: of_side[key] for key in shared} for of_side in own]
        names = _names(kind, figures[0])
        tables[kind] = _adjusted(
            [
                _row(names[key], part_of([a]), part_of([b]), [(a, b)])
                for key in shared
                for a, b in [(figures[0][key], figures[1][key])]
            ]
        )
        headlines += _headlines(kind, (first, second), figures, _pairs(own))
    if not tables:
        raise UserError(
            f"{first.folder} and {second.folder} have no attack, set or task in common; compare "
            "runs of the same"
        )
    return Comparison(first, second, judges, headlines, tables, levels, notes)


def _pairs(own: Sequence[Mapping[FigureKey, Figure]]) -> list[tuple[Figure | None, Figure | None]]:
    """What each side has of the attacks (except the plain request), sets or tasks of either."""
    either = [
        (own[0].get(key), own[1].get(key))
        for key in dict.fromkeys([*own[0], *own[1]])
        if (own[0].get(key) or own[1][key]).is_headline
    ]
    attacks = [pair for pair in either if CONTROL not in [f.name for f in pair if f is not None]]
    return attacks or either


def _headlines(
    kind: FigureKind,
    sides: tuple[Side, Side],
    figures: Sequence[Mapping[FigureKey, Figure]],
    pairs: Sequence[tuple[Figure | None, Figure | None]],
) -> Iterator[ComparedFigure]:
    for name in HEADLINES_OF[kind]:
        parts = [each.headline(name, of_side) for each, of_side in zip(sides, figures, strict=True)]
        row = _row(name, parts[0], parts[1], pairs, has_test=name != "worst_asr")
        if kind == "utility":
            # Its rate is a mean over tasks, and so is the difference.
            tasks = list(task_pairs(*(of_side.values() for of_side in figures)).values())
            if tasks:
                row = replace(row, difference=paired_difference_over_groups(tasks), only=None)
        yield row


HEADLINES_OF: dict[FigureKind, tuple[str, ...]] = {
    "safety": ("asr", "worst_asr", "any_asr"),
    "over_refusal": ("over_refusal",),
    "utility": ("utility",),
}


def _names(kind: FigureKind, figures: Mapping[FigureKey, Figure]) -> dict[FigureKey, str]:
    """The names of figures: only as much of the key as distinguishes them; a task's first metric
    has the name of the task."""
    keys = list(figures)
    if kind == "over_refusal":
        return {key: key[0] for key in keys}
    several_sets = len({key[0] for key in keys}) > 1
    found = {}
    for key in keys:
        case_set, name, detail = key
        if kind == "utility":
            is_plain = figures[key].is_headline
        else:
            is_plain = sum(other[:2] == key[:2] for other in keys) == 1 and "(" not in detail
        found[key] = name if is_plain else f"{name}:{detail}"
        if several_sets:
            found[key] += f" on {case_set}"
    return found


def _levels(second: Side, kind: FigureKind, figures: Mapping[FigureKey, Figure]) -> dict[str, Part]:
    """B's figures by the names of conditions; an attack on several sets is one figure."""
    if not figures:
        return {}
    found = {name: second.headline(name, figures) for name in HEADLINES_OF[kind]}
    wanted = {key: ("", *key[1:]) if kind == "safety" else key for key in figures}
    names = _names(kind, {wanted[key]: figure for key, figure in figures.items()})
    groups: dict[str, list[Figure]] = {}
    for key, figure in figures.items():
        groups.setdefault(names[wanted[key]], []).append(figure)
    word = HEADLINES_OF[kind][0]
    return found | {f"{word}:{name}": part_of(of_name) for name, of_name in groups.items()}


# --- what may be compared -------------------------------------------------------------------------


def _judge(
    first: Side, second: Side, kind: FigureKind, wanted: str | None
) -> tuple[str | None, str | None]:
    """Whose verdicts of A and of B are taken; None for a side without a figure of this kind."""
    judges = first.judges(kind), second.judges(kind)
    if not judges[0] or not judges[1]:
        return _preferred(judges[0], wanted), _preferred(judges[1], wanted)
    shared = [judge for judge in judges[0] if judge in judges[1]]
    if not shared:
        raise UserError(
            f"{KINDS[kind]} were judged by {', '.join(judges[0])} in {first.folder} and by "
            f"{', '.join(judges[1])} in {second.folder}; let one judge judge both (`mosa judge`)"
        )
    if wanted is not None and kind == "safety":
        judge = judge_meant(wanted, shared, "both runs")
    else:
        judge = _preferred(shared, wanted)
    return judge, judge


def _preferred(judges: Sequence[str], wanted: str | None) -> str | None:
    """The wanted judge, by its id or name, where it is among these; else the first of them."""
    named = (judge for judge in judges if wanted in (judge, short_name(judge)))
    return next(named, next(iter(judges), None))


def _notes(first: Side, second: Side) -> Iterator[str]:
    """How the runs differ, apart from the subject."""
    decoders = first.record.decoder, second.record.decoder
    yield from _changed("Decoder", *decoders, absent=UNKNOWN)
    for letter, each in (("A", first), ("B", second)):
        if each.record.server is not None:
            yield f"{letter} is served at {place_of(each.record)}: {served_facts(each.record)}."
    prompts = first.record.system_prompt, second.record.system_prompt
    if prompts[0] != prompts[1]:
        yield "System prompt: not the same in A and B."
    for name, one in first.evidence.sets.items():
        other = second.evidence.sets.get(name)
        if other is not None:
            yield from _changed(f"Settings of {name}", one.settings, other.settings)
    asked, others = _chat_models(first), _chat_models(second)
    both = sorted(asked.keys() & others.keys())
    yield from _changed(
        "Chat models", {role: asked[role] for role in both}, {role: others[role] for role in both}
    )
    for kind in KINDS:
        seeds = [_seeds(each, kind) for each in (first, second)]
        if all(seeds) and seeds[0] != seeds[1]:
            yield f"Seeds of {KINDS[kind]}: {seeds[0]} in A, {seeds[1]} in B."


def _changed(
    what: str, one: Mapping[str, Any], other: Mapping[str, Any], *, absent: str | None = None
) -> Iterator[str]:
    names = dict.fromkeys([*one, *other])
    values = ((name, one.get(name, absent), other.get(name, absent)) for name in names)
    changed = [f"{name} {a} in A, {b} in B" for name, a, b in values if a != b]
    if changed:
        yield f"{what}: {', '.join(changed)}."


def _chat_models(each: Side) -> dict[str, str]:
    """The names of the chat models that attacks asked, by role."""
    return {
        role: chat["name"]
        for run in each.evidence.runs
        if each.subject in run.subjects
        for session in run.sessions
        for role, chat in session.get("chat_models", {}).items()
    }


def _seeds(each: Side, kind: FigureKind) -> str:
    found = {
        seed
        for figure in each.evidence.select(kind, subject=each.subject)
        for values in figure.by_seed.values()
        for seed in values
    }
    return ", ".join(map(str, sorted(found)))


def _unshared(
    kind: FigureKind, first: Mapping[FigureKey, Figure], second: Mapping[FigureKey, Figure]
) -> Iterator[str]:
    """What only one side has, and cases that only one side has."""
    for letter, own, other in (("A", first, second), ("B", second, first)):
        alone = [key for key in own if key not in other]
        if not alone:
            continue
        if not other:
            yield f"{letter} alone has {KINDS[kind]}."
            continue
        names = _names(kind, own)
        listed = (f"{names[key]} ({key[2]})" if key[2] else names[key] for key in alone)
        yield f"{letter} alone has {', '.join(listed)}: not compared."
    shared = [key for key in first if key in second]
    num_first, num_second = (
        len(set().union(*(_cases(own[key]) - _cases(other[key]) for key in shared)))
        for own, other in ((first, second), (second, first))
    )
    if num_first or num_second:
        yield (
            f"Of the cases of {KINDS[kind]} only A has {num_first}, only B {num_second}; "
            "differences are over the others."
        )


def _cases(figure: Figure | None) -> set[str]:
    return set() if figure is None else set(figure.values)
