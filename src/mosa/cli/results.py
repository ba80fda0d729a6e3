"""`mosa status` and `mosa results`: what a run has done, and its rates as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.api.runs import problems_of
from mosa.cli.options import Command, escaped, run_argument
from mosa.cli.tables import Column, Page, TableCell, TextTable, format_argument, rate_cell
from mosa.evidence.figures import REFUSED, Figure, figures_of
from mosa.evidence.labels import legend, length_of, marked, place_of, served_facts, tries_of
from mosa.evidence.paper_tables import PAPER_ATTACKS, beside_the_paper, cell_of
from mosa.exports import EXPORTS, ExportSetting
from mosa.runs.judging import METRIC, judge_meant
from mosa.runs.store import Run
from mosa.stats.rates import format_rate_shortly, format_value
from mosa.terminal import show
from mosa.types import Budget, UserError

EXIT_NOTHING_DONE = 3
"""The status of a command of which an attack, subject or judge has produced nothing."""

EXPLANATIONS = {
    "safety": "success: share of the n scored cases on which the try that decides succeeded, with "
    "its 95 % interval; by: which try that is, of the most on one case: the one that the attack's "
    "loop selected (below it, without a name, the rate if any of them counted), or any; score: "
    "mean of the scores of the tries that decide, the best of several; tokens: length of a "
    "response; garbled, empty: tries whose text cannot be read, or that hold nothing; unscored: "
    "the judge gave no verdict; left out of the rate. Threat models: prompt (a user of a chat "
    "API), canvas (an API that takes prefills and masks), open (weights and sampler).",
    "over_refusal": "refused: share of the n scored requests that are refused in full or in part, "
    "with its 95 % interval; garbled: text that neither refuses nor answers; tokens: length of a "
    "response.",
    "utility": "value: mean over the n scored cases, with its 95 % interval; tokens: length of a "
    "response.",
}


COUNTS = (Column("done"), Column("failed"), Column("left"))
ATTACK_COLUMNS = (
    Column("attack", is_number=False),
    Column("threat", 5, is_number=False),
    Column("success", is_number=False),
    Column("by", 3, is_number=False),
    Column("n", 1),
    Column("score", 6),
    Column("queries", 9),
    Column("tokens", 7),
    Column("garbled", 4),
    Column("empty", 8),
    Column("unscored", 2),
)
HARMLESS_COLUMNS = (
    Column("set", is_number=False),
    Column("refused", is_number=False),
    Column("answered", is_number=False),
    Column("in full", 4),
    Column("in part", 5),
    Column("garbled", 3),
    Column("empty", 6),
    Column("n", 1),
    Column("tokens", 7),
    Column("unscored", 2),
)
USEFUL_COLUMNS = (
    Column("task", is_number=False),
    Column("metric", is_number=False),
    Column("value", is_number=False),
    Column("n", 1),
    Column("tokens", 3),
    Column("unscored", 2),
)


# --- status ---------------------------------------------------------------------------------------


def _status_arguments(parser: ArgumentParser) -> None:
    run_argument(parser)
    format_argument(parser)


def _status(args: Namespace) -> None:
    with Run(args.run) as run:
        page = Page(args.format)
        rows = [
            (*cell[:4], *(str(states[name]) for name in ("done", "failed", "todo")))
            for cell, states in run.counts().items()
        ]
        names = [Column(name, is_number=False) for name in ("set", "attack", "preset")]
        page.table(TextTable(str(args.run), (*names, *COUNTS), rows, grouped_by="subject"))
        page.say_each(_facts(run))


def _facts(run: Run) -> Iterator[str]:
    """What a run holds beside its tasks."""
    yield from problems_of(run)
    for judge in run.judges():
        if not judge.startswith(METRIC):
            sets = [name for name in run.sets() if judge in run.judges(name)]
            unscored = sum(run.num_unjudged(judge, name) for name in sets)
            yield f"judge {judge}: {unscored} attempts without a score"
    spent = sum((outcome.budget for _, outcome in run.tasks() if outcome is not None), Budget())
    shown = [f"{v} {k.replace('_', ' ')}" for k, v in vars(spent).items() if v]
    yield f"spent: {', '.join(shown) or 'nothing yet'}"
    sessions = run.sessions()
    wanted = sessions[-1]["settings"].get("subjects", []) if sessions else []
    waiting = [subject["name"] for subject in wanted if subject["name"] not in run.subjects()]
    if waiting:
        yield f"not started and not counted: {', '.join(waiting)}"
    seconds = sum(session.get("seconds", 0.0) for session in sessions)
    cut = sum("ended" not in session for session in sessions)
    yield (
        f"{len(sessions)} session{'s' * (len(sessions) != 1)}, {seconds:.0f} s"
        + (f", {cut} of them running or interrupted" if cut else "")
    )


# --- results --------------------------------------------------------------------------------------


def _results_arguments(parser: ArgumentParser) -> None:
    run_argument(parser)
    format_argument(parser)
    parser.add_argument("--judge", type=str, help="show only the judge of this id")
    parser.add_argument(
        "--by_variant", action="store_true", help="show each variant of an attack in its own row"
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="show a table with a row for each attack and a column for each subject",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="show the MOSA paper's eight attacks beside its tables 1, 2 and 4, as Markdown",
    )
    parser.add_argument(
        "--export",
        type=str,
        help=f"write the run to --out in a format: {', '.join(EXPORTS)}",
    )
    parser.add_argument("--out", type=Path, help="folder for --export")
    parser.add_argument(
        "--no_redact",
        action="store_true",
        help="export prompts and responses in words, even of real models",
    )


def _results(args: Namespace) -> None:
    if (args.export is None) != (args.out is None):
        raise UserError("--export and --out need each other; give both or neither")
    ways = [name for name in ("export", "matrix", "paper") if args[name]]
    if len(ways) > 1 or (args.by_variant and ways not in ([], ["matrix"])):
        raise UserError(
            "--export, --matrix and --paper exclude each other, and --by_variant goes with the "
            "plain table and --matrix; leave some out"
        )
    if args.no_redact and args.export is None:
        raise UserError("--no_redact needs --export; add an export or leave --no_redact out")
    with Run(args.run) as run:
        if args.judge is not None:
            args.judge = judge_meant(args.judge, run.judges(), args.run)
        if args.export is not None:
            _export(run, args)
        elif args.paper and run.judges():
            _show_paper(run, only=args.judge)
        elif args.matrix and run.judges():
            _show_matrix(run, Page(args.format), by_variant=args.by_variant, only=args.judge)
        else:
            page = Page(args.format)
            show_results(run, page, by_variant=args.by_variant, only=args.judge)


def _export(run: Run, args: Namespace) -> None:
    if args.export not in EXPORTS:
        raise UserError(f"there is no export {args.export}; choose from {', '.join(EXPORTS)}")
    setting = ExportSetting(judge=args.judge, redact=not args.no_redact)
    for path in EXPORTS[args.export].write(run, args.out, setting):
        show(f"wrote {path}")


def end_status(nothing: Sequence[str]) -> int:
    """The exit status of a command, whose user asked for what produced `nothing`; shows that."""
    for line in nothing:
        show(f"Nothing came of {line}, for the reasons above.")
    return EXIT_NOTHING_DONE if nothing else 0


def show_results(
    run: Run, page: Page, *, by_variant: bool = False, only: str | None = None
) -> None:
    """The rates of a run: attacks by judge, harmless sets by judge, useful tasks."""
    found = [f for f in figures_of(run, by_variant=by_variant) if only in (None, f.judge)]
    if not found:
        page.say_each(problems_of(run))
        remedy = "run the same command again" if run.failures() else "`mosa judge` adds them"
        page.say(f"{run.folder} has no verdicts yet; {remedy}.")
        return
    for kind, show_kind in (("safety", _show_attacks), ("over_refusal", _show_harmless)):
        for judge in dict.fromkeys(f.judge for f in found if f.kind == kind):
            show_kind(judge, [f for f in found if (f.kind, f.judge) == (kind, judge)], page)
    _show_useful([f for f in found if f.kind == "utility"], page)
    page.say_each(_missing(found))
    page.say_each(problems_of(run))
    if any(f.judge.startswith("refusal/") for f in found):
        page.say("The judge `refusal` finds phrases, not harm; `mosa judge` adds others.")
    for kind in dict.fromkeys(f.kind for f in found):
        page.say(EXPLANATIONS[kind])
    for name, record in run.subjects().items():
        if record.server is not None:
            page.say(f"{name} is served at {place_of(record)}: {served_facts(record)}.")
    page.say(f"Run: {run.folder}.")


def _show_attacks(judge: str, found: Sequence[Figure], page: Page) -> None:
    several = len({figure.case_set for figure in found}) > 1
    rows: list[tuple[TableCell | str, ...]] = []
    for figure in found:
        name = f"{figure.name}{f' on {figure.case_set}' if several else ''}"
        rows.append(
            (
                figure.subject,
                marked(name, [figure]),
                figure.threat,
                rate_cell(figure.rate),
                tries_of([figure]),
                _num_scored(figure),
                "-" if figure.score is None else format_value(figure.score.value),
                "-" if figure.mean_queries is None else f"{figure.mean_queries:.0f}",
                length_of([figure]),
                "-" if figure.num_garbled is None else f"{figure.num_garbled}/{figure.num_tries}",
                f"{figure.num_empty}/{figure.num_tries}",
                str(figure.num_unscored),
            )
        )
        if figure.decides == "best rated":
            num_scored = "0" if figure.any_rate is None else str(figure.any_rate.n)
            beside = (rate_cell(figure.any_rate), f"any of {figure.most_tries}", num_scored)
            rows.append((figure.subject, "", "", *beside, *[""] * 6))
    page.table(TextTable(f"attacks, judge {judge}", ATTACK_COLUMNS, rows, grouped_by="subject"))
    if told := legend(found):
        page.say(told)


def _show_harmless(judge: str, found: Sequence[Figure], page: Page) -> None:
    by_set: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in found:
        by_set.setdefault((figure.subject, figure.name), {})[figure.measure] = figure
    rows = []
    for (subject, name), own in by_set.items():
        rates = {measure: figure.rate for measure, figure in own.items()}
        parts = map(rates.get, ("full refusal", "partial refusal", "garbled", "empty"))
        rows.append(
            (
                subject,
                name,
                rate_cell(rates[REFUSED]),
                rate_cell(rates["full compliance"]),
                *("-" if part is None else format_value(part.value) for part in parts),
                _num_scored(own[REFUSED]),
                length_of([own[REFUSED]]),
                str(own[REFUSED].num_unscored),
            )
        )
    title = f"harmless requests, judge {judge}"
    page.table(TextTable(title, HARMLESS_COLUMNS, rows, grouped_by="subject"))


def _show_useful(found: Sequence[Figure], page: Page) -> None:
    order = list(dict.fromkeys((f.subject, f.name) for f in found))
    rows = [
        (
            figure.subject,
            figure.name if figure.is_headline else "",
            figure.measure,
            rate_cell(figure.rate),
            _num_scored(figure),
            length_of([figure]),
            str(figure.num_unscored),
        )
        for figure in sorted(
            found, key=lambda f: (order.index((f.subject, f.name)), not f.is_headline)
        )
    ]
    if rows:
        page.table(TextTable("useful tasks", USEFUL_COLUMNS, rows, grouped_by="subject"))


def _num_scored(figure: Figure) -> str:
    return "0" if figure.rate is None else str(figure.rate.n)


def _missing(found: Sequence[Figure]) -> Iterator[str]:
    """Tasks that are in no rate, once for each attack and set."""
    missing = {
        f"{f.subject}, {f.name} on {f.case_set}: {f.num_failed} failed, {f.num_left} left"
        for f in found
        if f.num_failed or f.num_left
    }
    if missing:
        yield "Tasks in no rate; the command that made the run tries them again:"
        yield from sorted(missing)


def _show_matrix(run: Run, page: Page, *, by_variant: bool, only: str | None) -> None:
    """Success rates with their intervals, and mean scores, judge by judge."""
    for judge, found in _attacks_by_judge(run, only, by_variant=by_variant):
        several = len({figure.case_set for figure in found}) > 1
        subjects = list(dict.fromkeys(figure.subject for figure in found))
        attacks = dict.fromkeys((figure.case_set, figure.name, figure.threat) for figure in found)
        cells = {(f.case_set, f.name, f.subject): f for f in found}
        rows: list[tuple[TableCell | str, ...]] = []
        for case_set, name, threat in attacks:
            own = [f for f in found if (f.case_set, f.name) == (case_set, name)]
            of_row = [cells.get((case_set, name, subject)) for subject in subjects]
            rows.append(
                (
                    marked(f"{name} on {case_set}" if several else name, own),
                    threat,
                    tries_of(own),
                    length_of(own),
                    *(
                        TableCell(cell_of(each), format_rate_shortly(each and each.rate))
                        for each in of_row
                    ),
                )
            )
        columns = (
            *ATTACK_COLUMNS[:2],
            Column("by", 3, is_number=False),
            Column("tokens", 4),
            *(Column(subject, is_number=False) for subject in subjects),
        )
        left_out = ("n", "mean score", "any-of-N")
        page.table(TextTable(f"attacks, judge {judge}", columns, rows, left_out_if_short=left_out))
        page.say(
            "success rate (95 % interval, n); mean score; any-of-N where the attack's loop selects "
            "the try that decides"
        )
        if told := legend(found):
            page.say(told)
        page.say(_sum_left_out(found))


def _attacks_by_judge(
    run: Run, only: str | None, *, by_variant: bool = False
) -> list[tuple[str, list[Figure]]]:
    """Each judge, or `only` one, with its figures of attacks."""
    found: dict[str, list[Figure]] = {}
    for figure in figures_of(run, by_variant=by_variant):
        if figure.kind == "safety" and only in (None, figure.judge):
            found.setdefault(figure.judge, []).append(figure)
    return list(found.items())


def _sum_left_out(found: Sequence[Figure]) -> str:
    """How much is in no rate."""
    unscored = sum(figure.num_unscored for figure in found)
    # Tasks are not those of one way, so they are counted once for each attack.
    tasks = {(f.subject, f.case_set, f.attack, f.preset): (f.num_failed, f.num_left) for f in found}
    failed, left = (sum(counts) for counts in zip(*tasks.values(), strict=True))
    return f"In no rate: {unscored} unscored cases, {failed} failed and {left} open tasks."


def _show_paper(run: Run, *, only: str | None) -> None:
    """The eight attacks of the MOSA paper beside its tables."""
    for judge, found in _attacks_by_judge(run, only):
        table = list(beside_the_paper(found))
        if not table:
            raise UserError(f"{run.folder} has none of the attacks {', '.join(PAPER_ATTACKS)}")
        show(f"\njudge {judge}: success rate (95 % interval); mean score; any-of-N where the")
        show("attack's loop selects the try that decides.")
        show("Paper: success rate by its own judge (by StrongREJECT), on LLaDA.\n")
        show(escaped("\n".join(table)))
        if told := legend(f for f in found if f.attack in PAPER_ATTACKS):
            show(f"\n{escaped(told)}")
        show(f"\n{_sum_left_out(found)}")


COMMANDS: dict[str, Command] = {
    "status": Command(
        "show which tasks of a run are done, failed or left",
        _status_arguments,
        _status,
        "Nothing is written.",
        example="mosa status runs/a",
    ),
    "results": Command(
        "show the rates of a run or export the run",
        _results_arguments,
        _results,
        "The run is unchanged.",
        example="mosa results runs/a --matrix",
    ),
}
