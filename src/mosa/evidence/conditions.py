"""Conditions on the result of a comparison: NAME OP NUMBER, as `mosa compare --fail-if` takes them.

    comparison = compare_sides(side(Path("runs/old"), None, "a"), side(Path("runs/new"), None, "b"))
    check(parse_condition("asr_rise>0.05"), comparison).holds

A condition never passes because data are missing: a figure that was not scored is a mistake, and
too many cases without a score leave it undecided, which counts as a failure.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mosa.evidence.compare import HEADLINES_OF, ComparedFigure, Comparison
from mosa.inputs import MOST_DIGITS
from mosa.stats.rates import exactly, format_rate, format_value
from mosa.types import UserError

MAX_UNSCORED = 0.05
"""A larger share of cases without a value decides a condition by itself."""
OPERATORS: dict[str, Callable[[Fraction, Fraction], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(
    r"\s*(?P<word>[a-z_]+?)(?P<change>_drop|_rise)?(?::(?P<of>[^<>=]+?))?\s*"
    r"(?P<operator>>=|<=|>|<)\s*(?P<bound>[+-]?(\d+\.?\d*|\.\d+))\s*"
)
_WORDS = tuple(word for words in HEADLINES_OF.values() for word in words)
_WITH_NAMES = tuple(words[0] for words in HEADLINES_OF.values())


@dataclass(frozen=True)
class Condition:
    """NAME OP NUMBER: a figure of B, or its change against A, with a bound."""

    text: str
    """As it was written."""
    word: str
    change: str
    """`_drop` (A minus B), `_rise` (B minus A), or empty for B by itself."""
    of: str
    """Which attack, set or task; empty for the headline."""
    operator: str
    bound: Fraction
    """The decimal as it was written."""

    @property
    def figure(self) -> str:
        """The name of the figure, without the change."""
        return f"{self.word}:{self.of}" if self.of else self.word


def parse_condition(text: str) -> Condition:
    """A condition as it is written on the command line; UserError for anything else.

    >>> parse_condition("asr_rise:prefill > 0.05").figure
    'asr:prefill'
    """
    match = _CONDITION.fullmatch(text)
    if match is None or len(match["bound"]) > MOST_DIGITS:
        raise UserError(
            f"{text[:100]!r} is no condition; write NAME OP NUMBER with >, >=, < or <=, as in "
            "asr>0.10"
        )
    word, of = match["word"], (match["of"] or "").strip()
    if word not in _WORDS or (of and word not in _WITH_NAMES):
        raise UserError(
            f"{text!r} names no figure; there are {', '.join(_WORDS)}, each with _drop or _rise "
            f"for a change, and {', '.join(f'{w}:NAME' for w in _WITH_NAMES)}"
        )
    change, bound = match["change"] or "", Fraction(match["bound"])
    least = -1 if change else 0
    is_decided = {">": bound == 1, "<=": bound == 1, "<": bound == least, ">=": bound == least}
    if not least <= bound <= 1 or is_decided[match["operator"]]:
        raise UserError(
            f"{text!r} would hold always or never, since rates go from 0 to 1 and changes from -1 "
            "to 1; write 0.1 for 10 %"
        )
    return Condition(text, word, change, of, match["operator"], bound)


@dataclass(frozen=True)
class Decision:
    """The outcome of a condition."""

    condition: Condition
    holds: bool
    """Whether it holds, or could not be decided: both are a failure."""
    text: str
    """The value with its interval, or why it could not be decided."""

    def __str__(self) -> str:
        """For example `ok: asr>0.10 does not hold: 0.02 (0.00 to 0.11)`."""
        if self.holds:
            return f"FAIL: {self.condition.text}: {self.text}"
        return f"ok: {self.condition.text} does not hold: {self.text}"

    def __repr__(self) -> str:
        return f"<Decision {self}>"


def check_share(max_unscored: float) -> None:
    """UserError where the largest share of cases without a score is no share."""
    if not 0 <= max_unscored < 1:
        raise UserError("--max_unscored is a share, from 0 to below 1; write 0.05 for 5 %")


def check(
    condition: Condition, comparison: Comparison, *, max_unscored: float = MAX_UNSCORED
) -> Decision:
    """Whether a condition holds, by exact fractions; it counts as holding where more cases than
    `max_unscored` (a share) are without a value, on either side that it is about.

    A change also needs the same cases, attacks, sets or tasks on both sides: those that one side
    lacks count as cases without a value.

    Raises UserError for a figure that the runs do not have: missing data must not pass.
    """
    if condition.change:
        share, value, text = _change(condition, comparison)
    else:
        share, value, text = _level(condition, comparison)
    if share > exactly(max_unscored):
        without = "without a score" + (" on both sides" if condition.change else "")
        return Decision(
            condition,
            True,
            f"not decided: {format_value(float(share), digits=3)} of the cases are {without}, and "
            f"--max_unscored allows {max_unscored:g}; the others come to {text}",
        )
    return Decision(condition, OPERATORS[condition.operator](value, condition.bound), text)


def _level(condition: Condition, comparison: Comparison) -> tuple[Fraction, Fraction, str]:
    part = comparison.levels.get(condition.figure)
    if part is None or part.rate is None:
        known = [name for name, level in comparison.levels.items() if level.rate is not None]
        raise _no_figure(condition, known, f"{comparison.second.folder} has")
    assert part.rate.exact is not None, "a rate of recorded values is exact"
    return part.share_left_out, part.rate.exact, format_rate(part.rate, with_n=True)


def _change(condition: Condition, comparison: Comparison) -> tuple[Fraction, Fraction, str]:
    rows = {row.name: row for row in comparison.headlines}
    for kind, of_kind in comparison.tables.items():
        rows |= {f"{HEADLINES_OF[kind][0]}:{row.name}": row for row in of_kind}
    row = rows.get(condition.figure)
    if row is None:
        known = [name for name, row in rows.items() if row.difference is not None]
        raise _no_figure(condition, known, "both runs have")
    if row.difference is None:
        raise _no_change(condition, comparison, row)
    difference = -row.difference if condition.change == "_drop" else row.difference
    return row.share_left_out, difference.exact, str(difference)


def _no_change(condition: Condition, comparison: Comparison, row: ComparedFigure) -> UserError:
    """What has no score, and where."""
    tables = comparison.tables.items()
    (of_kind,) = (rows for kind, rows in tables if condition.word in HEADLINES_OF[kind])
    rows = [row] if condition.of else of_kind
    gaps = [
        f"{each.name} has no score in {side.folder}"
        for each in rows
        for part, side in ((each.first, comparison.first), (each.second, comparison.second))
        if part.rate is None
    ]
    return UserError(
        f"there is no change of {condition.figure}, which the condition {condition.text!r} is "
        f"about: {'; '.join(gaps) or 'no case is scored in both runs'}"
    )


def _no_figure(condition: Condition, known: Sequence[str], who: str) -> UserError:
    prefix = f"{condition.word}:" if condition.of else ""
    alike = [
        name.removeprefix(prefix)
        for name in known
        if (name.startswith(prefix) if prefix else ":" not in name)
    ]
    return UserError(
        f"no figure {condition.figure} was scored, which the condition {condition.text!r} is about;"
        f" {who} {prefix}{', '.join(alike) or 'nothing of the kind'}"
    )
