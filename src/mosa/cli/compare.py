"""The command that puts two runs side by side, and fails where a condition holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.api.pages import compare
from mosa.cli.options import Command
from mosa.cli.tables import Column, Page, TextTable, format_argument, rate_cell
from mosa.evidence.compare import KINDS, ComparedFigure, Comparison, Part
from mosa.evidence.conditions import MAX_UNSCORED, check_share, parse_condition
from mosa.evidence.labels import legend, length_of, marked, place_of, worst_of
from mosa.stats.rates import NOTHING, format_p

EXIT_CONDITION_HOLDS = 1


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run_a", type=Path, help="folder of runs with subject A, the subject before"
    )
    parser.add_argument(
        "run_b", type=Path, help="folder of runs with subject B, the subject in question"
    )
    parser.add_argument("--subject_a", type=str, help="subject A, where run_a has several")
    parser.add_argument("--subject_b", type=str, help="subject B, where run_b has several")
    parser.add_argument(
        "--judge", type=str, help="judge by its id or name; unset: the most trusted that both have"
    )
    parser.add_argument(
        "--fail_if",
        type=str,
        action="append",
        default=[],
        help="condition that sets the exit status to 1, such as 'asr>0.10' or "
        "'utility_drop>0.02' (docs/compare.md); can be given several times",
    )
    parser.add_argument(
        "--max_unscored",
        type=float,
        default=MAX_UNSCORED,
        help="largest share of cases without a score; above it a condition counts as undecided and "
        "sets the exit status to 1",
    )
    format_argument(parser)


def _compare(args: Namespace) -> int:
    check_share(args.max_unscored)
    for text in args.fail_if:
        parse_condition(text)  # refused before the runs are read
    found = compare(
        args.run_a,
        args.run_b,
        subject_a=args.subject_a,
        subject_b=args.subject_b,
        judge=args.judge,
    )
    # Before anything is shown, so that an unknown name is all that is printed.
    outcomes = [found.fail_if(text, max_unscored=args.max_unscored) for text in args.fail_if]
    page = Page(args.format)
    _show_comparison(found.comparison, page)
    if outcomes:
        page.head("Conditions")
        page.say_each(map(str, outcomes))
    return EXIT_CONDITION_HOLDS if any(outcome.holds for outcome in outcomes) else 0


def _show_comparison(found: Comparison, page: Page) -> None:
    page.say_each(_facts(found))
    page.table(_table("Headlines", found.headlines))
    page.say_each(_worst(found.headlines))
    for kind, rows in found.tables.items():
        page.table(_table(f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}", rows))
    if told := legend(figure for row in found.headlines for figure in row.figures):
        page.say(told)
    page.say(
        "tokens: length of a response. A, B: rate with its 95 % interval and number of cases. "
        "B - A: on the cases scored in both. p: McNemar's test (yes or no) or sign flips; p "
        "(Holm): adjusted for the rows of the table. only A, only B: cases with a yes in one of "
        "them. left out: cases without a score in A, B (+ tasks without a result)."
    )


def _facts(found: Comparison) -> Iterator[str]:
    """What was compared, and how it differs beside the subject."""
    for letter, each in (("A", found.first), ("B", found.second)):
        record = each.record
        what = f"served at {place_of(record)}" if record.server else f"weights {record.weights}"
        yield f"{letter}: {each.subject} in {each.folder} ({what})"
    for kind, judge in found.judges.items():
        yield f"Judge of {KINDS[kind]}: {judge}"
    for note in found.notes:
        yield f"Note: {note}"


def _table(title: str, rows: Sequence[ComparedFigure]) -> TextTable:
    is_adjusted = any(row.p_adjusted is not None for row in rows)
    columns = (
        Column("figure", is_number=False),
        Column("tokens", 6),
        Column("A", is_number=False),
        Column("B", is_number=False),
        Column("B - A", is_number=False),
        Column("p", 5 if is_adjusted else 1),
        *([Column("p (Holm)", 1)] if is_adjusted else []),
        Column("only A, only B", 4),
        Column("left out", 3),
    )
    cells = []
    for row in rows:
        p_value = row.difference.p_value if row.difference is not None and row.has_test else None
        cells.append(
            (
                marked(row.name, row.figures),
                length_of(row.figures),
                rate_cell(row.first.rate, with_n=True),
                rate_cell(row.second.rate, with_n=True),
                rate_cell(row.difference, with_n=True, signed=True),
                format_p(p_value),
                *([format_p(row.p_adjusted)] if is_adjusted else []),
                NOTHING if row.only is None else f"{row.only[0]}, {row.only[1]}",
                f"{_left_out(row.first)}, {_left_out(row.second)}",
            )
        )
    return TextTable(title, columns, cells, left_out_if_short=("n",))


def _worst(rows: Sequence[ComparedFigure]) -> Iterator[str]:
    """The names of the worst attacks, which have no test: they were picked by looking."""
    for row in rows:
        if not row.has_test:
            names = (worst_of(part) or NOTHING for part in (row.first, row.second))
            yield f"{row.name}: {' in A, '.join(names)} in B"


def _left_out(part: Part) -> str:
    return str(part.num_unscored) + (f" (+{part.num_missing})" if part.num_missing else "")


COMMANDS: dict[str, Command] = {
    "compare": Command(
        "compare two subjects, with status 1 if a condition holds",
        _compare_arguments,
        _compare,
        "The runs are unchanged.",
        example="mosa compare runs/a runs/a --subject-a testbed --subject-b testbed+mosa "
        '--fail-if "asr>0.10" --fail-if "utility_drop>0.02"',
    ),
}
