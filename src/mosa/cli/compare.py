"""The command that puts two runs side by side, and fails where a condition holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.api.pages import compare
from mosa.cli.options import Command, escaped
from mosa.evidence.compare import KINDS, ComparedFigure, Comparison, Part
from mosa.evidence.conditions import MAX_UNSCORED, check_share, parse_condition
from mosa.evidence.labels import legend, length_of, marked, place_of, worst_of
from mosa.stats.rates import format_rate
from mosa.terminal import show

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
        "--judge", type=str, help="judge by its id; unset: the most trusted that both have"
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
    _show_comparison(found.comparison)
    if outcomes:
        show("\n### Conditions\n")
    for outcome in outcomes:
        show(f"- {outcome}")
    return EXIT_CONDITION_HOLDS if any(outcome.holds for outcome in outcomes) else 0


def _show_comparison(found: Comparison) -> None:
    """As Markdown, which reads in a terminal and in a pull request."""
    for letter, each in (("A", found.first), ("B", found.second)):
        record = each.record
        what = f"served at {place_of(record)}" if record.server else f"weights {record.weights}"
        show(f"{letter}: {each.subject} in {each.folder} ({what})  ")
    for kind, judge in found.judges.items():
        show(f"Judge of {KINDS[kind]}: {judge}  ")
    for note in found.notes:
        show(f"Note: {note}  ")
    show("\n### Headlines\n")
    _show_table(found.headlines)
    for kind, rows in found.tables.items():
        show(f"\n### {KINDS[kind][0].upper()}{KINDS[kind][1:]}\n")
        _show_table(rows)
    figures = [
        f for row in found.headlines for part in (row.first, row.second) for f in part.figures
    ]
    if told := legend(figures):
        show(f"\n{escaped(told)}")
    show(
        "\ntokens: length of a response. A, B: rate with its 95 % interval and number of cases. "
        "B - A: on the cases scored in both. p: McNemar's test (yes or no) or sign flips; p "
        "(Holm): adjusted for the rows of the table. only A, only B: cases with a yes in one of "
        "them. left out: cases without a score in A, B (+ tasks without a result)."
    )


def _show_table(rows: Sequence[ComparedFigure]) -> None:
    is_adjusted = any(row.p_adjusted is not None for row in rows)
    holm = " p (Holm) |" if is_adjusted else ""
    show(f"| | tokens | A | B | B - A | p |{holm} only A, only B | left out |")
    show(f"|---|---|---|---|---|---|{'---|' * is_adjusted}---|---|")
    for row in rows:
        p_value = row.difference.p_value if row.difference is not None and row.has_test else None
        figures = [*row.first.figures, *row.second.figures]
        cells = [
            escaped(marked(row.name, figures)),
            length_of(figures),
            _format_part(row.first, is_worst=not row.has_test),
            _format_part(row.second, is_worst=not row.has_test),
            "-" if row.difference is None else str(row.difference),
            _format_p(p_value),
            *([_format_p(row.p_adjusted)] if is_adjusted else []),
            "-" if row.only is None else f"{row.only[0]}, {row.only[1]}",
            f"{_format_left_out(row.first)}, {_format_left_out(row.second)}",
        ]
        show(f"| {' | '.join(cells)} |")


def _format_part(part: Part, *, is_worst: bool) -> str:
    name = f", {escaped(worst_of(part))}" if is_worst and part.figures else ""
    return format_rate(part.rate, with_n=True) + name


def _format_left_out(part: Part) -> str:
    return str(part.num_unscored) + (f" (+{part.num_missing})" if part.num_missing else "")


def _format_p(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


COMMANDS: dict[str, Command] = {
    "compare": Command(
        "compare two subjects on the same cases, and exit with 1 where a condition holds",
        _compare_arguments,
        _compare,
        "The runs are unchanged.",
        example="mosa compare runs/a runs/a --subject-a testbed --subject-b testbed+mosa "
        '--fail-if "asr>0.10" --fail-if "utility_drop>0.02"',
    ),
}
