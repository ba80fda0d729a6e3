"""`mosa status` and `mosa results`: what a run has done, and its rates as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.options import Command, run_argument, show
from mosa.cli.progress import wide_console
from mosa.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mosa.results.figures import Figure
    from mosa.runs.store import Run

EXPORT_NAMES = ("csv", "json", "harmbench", "jailbreakbench", "inspect")
EXPLANATIONS = {
    "safety": "success: share of the n scored cases with at least one successful try, with its "
    "95 % interval; score: mean of their best scores; garbled, empty: tries whose text cannot be "
    "read, or that hold nothing; unscored: in no rate. Threat models: prompt (a user of a chat "
    "API), canvas (an API that takes prefills and masks), open (weights and sampler).",
    "over_refusal": "refused: share of the n scored requests that are refused in full or in part, "
    "with its 95 % interval; garbled: text that neither refuses nor answers.",
    "utility": "value: mean over the n scored cases, with its 95 % interval.",
}


# --- status ---------------------------------------------------------------------------------------


def _status(args: Namespace) -> None:
    from rich.table import Table

    from mosa.runs.judging import METRIC
    from mosa.runs.store import Run
    from mosa.types import Budget

    with Run(args.run) as run:
        table = Table(title=str(args.run))
        for heading in ("subject", "set", "attack", "preset"):
            table.add_column(heading)
        for heading in ("done", "failed", "left"):
            table.add_column(heading, justify="right")
        for cell, states in run.counts().items():
            numbers = [str(states[name]) for name in ("done", "failed", "todo")]
            table.add_row(cell.subject, cell.case_set, cell.attack, cell.preset, *numbers)
        console = wide_console()
        console.print(table)
        _show_left_out(run, console)
        for judge in run.judges():
            if not judge.startswith(METRIC):
                sets = [name for name in run.sets() if judge in run.judges(name)]
                unscored = sum(run.num_unjudged(judge, name) for name in sets)
                console.print(f"judge {judge}: {unscored} attempts without a score")
        spent = Budget()
        for _, outcome in run.tasks():
            spent += outcome.budget if outcome is not None else Budget()
        shown = [f"{v} {k.replace('_', ' ')}" for k, v in vars(spent).items() if v]
        console.print(f"spent: {', '.join(shown) or 'nothing yet'}")
        sessions = run.sessions()
        if sessions:
            wanted = [subject["name"] for subject in sessions[-1]["settings"].get("subjects", [])]
            waiting = [name for name in wanted if name not in run.subjects()]
            if waiting:
                console.print(f"not begun, so not counted: {', '.join(waiting)}")
        seconds = sum(session.get("seconds", 0.0) for session in sessions)
        cut = sum("ended" not in session for session in sessions)
        console.print(
            f"{len(sessions)} session{'s' * (len(sessions) != 1)}, {seconds:.0f} s"
            + (f", {cut} of them running or cut off" if cut else "")
        )


def _show_left_out(run: Run, console: Console) -> None:
    """What failed or is not applicable, with the reasons."""
    for attack, reason, count in run.failures():
        console.print(f"{attack}: {count} failed: {reason}")
    for pair in run.not_applicable():
        console.print(
            f"not applicable: {pair.attack} on {pair.case_set} against {pair.subject}: it "
            f"{pair.reason}"
        )


# --- results --------------------------------------------------------------------------------------


def _results_arguments(parser: ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument("--judge", type=str | None, help="id of one judge; unset: all")
    parser.add_argument("--by_variant", action="store_true", help="each way of an attack by itself")
    parser.add_argument(
        "--by_queries",
        action="store_true",
        help="success within 1, 2, 4, ... queries of the target",
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="a row for each attack and a column for each subject, as a Markdown table",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="the MOSA paper's eight attacks beside its tables 1, 2 and 4, as Markdown",
    )
    parser.add_argument(
        "--export",
        type=str | None,
        help=f"write the run to --out in another format: {', '.join(EXPORT_NAMES)}",
    )
    parser.add_argument("--out", type=Path | None, help="folder for --export")
    parser.add_argument(
        "--no_redact",
        action="store_true",
        help="exports hold prompts and responses in words (the testbed's always do)",
    )


def _results(args: Namespace) -> None:
    from mosa.runs.store import Run

    if (args.export is None) != (args.out is None):
        raise UserError("--export and --out go together; give both or neither")
    ways = [name for name in ("export", "matrix", "by_queries", "paper") if args[name]]
    if len(ways) > 1 or (args.by_variant and ways not in ([], ["matrix"])):
        raise UserError(
            "--export, --matrix, --by_queries and --paper exclude each other, and --by_variant "
            "goes with the plain table and the matrix; leave some out"
        )
    if args.no_redact and args.export is None:
        raise UserError("--no_redact is about exports; leave it out, or name one with --export")
    with Run(args.run) as run:
        if args.judge is not None and args.judge not in run.judges():
            known = ", ".join(run.judges()) or "none yet"
            raise UserError(f"no judge {args.judge} has judged {args.run}; there are: {known}")
        if args.export is not None:
            _export(run, args)
        elif not run.judges():
            show_results(run)
        elif args.by_queries:
            _show_queries(run, only=args.judge)
        elif args.paper:
            _show_paper(run, only=args.judge)
        elif args.matrix:
            _show_matrix(run, by_variant=args.by_variant, only=args.judge)
        else:
            show_results(run, by_variant=args.by_variant, only=args.judge)


def _export(run: Run, args: Namespace) -> None:
    from mosa.exports import EXPORTS, ExportSetting

    assert tuple(EXPORTS) == EXPORT_NAMES
    if args.export not in EXPORTS:
        raise UserError(f"there is no export {args.export}; choose from {', '.join(EXPORTS)}")
    setting = ExportSetting(judge=args.judge, redact=not args.no_redact)
    for path in EXPORTS[args.export].write(run, args.out, setting):
        show(f"wrote {path}")


def show_results(run: Run, *, by_variant: bool = False, only: str | None = None) -> None:
    """The rates of a run: attacks by judge, harmless sets by judge, useful tasks."""
    from mosa.results.figures import figures_of

    console = wide_console()
    found = [f for f in figures_of(run, by_variant=by_variant) if only in (None, f.judge)]
    if not found:
        _show_left_out(run, console)
        remedy = "run the same command again" if run.failures() else "`mosa judge` adds them"
        console.print(f"{run.folder} has no verdicts yet; {remedy}.")
        return
    for judge in dict.fromkeys(f.judge for f in found if f.kind == "safety"):
        _show_attacks(judge, [f for f in found if (f.kind, f.judge) == ("safety", judge)], console)
    for judge in dict.fromkeys(f.judge for f in found if f.kind == "over_refusal"):
        own = [f for f in found if (f.kind, f.judge) == ("over_refusal", judge)]
        _show_harmless(judge, own, console)
    _show_useful([f for f in found if f.kind == "utility"], console)
    _show_missing(found, console)
    _show_left_out(run, console)
    if any(f.judge.startswith("refusal/") for f in found):
        console.print("The judge `refusal` sees phrases and no harm; `mosa judge` adds another.")
    for kind in dict.fromkeys(f.kind for f in found):
        console.print(EXPLANATIONS[kind])
    console.print(f"Run: {run.folder}.")


def _show_attacks(judge: str, found: Sequence[Figure], console: Console) -> None:
    from rich import box
    from rich.table import Table

    from mosa.stats.rates import format_rate, format_value

    several = len({figure.case_set for figure in found}) > 1
    table = Table(title=f"attacks, judge {judge}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("attack")
    table.add_column("threat")
    table.add_column("success")
    for heading in ("n", "score", "queries", "garbled", "empty", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for figure in found:
        if figure.subject != last:
            last = figure.subject
            table.add_section()
            table.add_row(f"[bold]{last}[/bold]")
        garbled = "-" if figure.num_garbled is None else f"{figure.num_garbled}/{figure.num_tries}"
        table.add_row(
            f"  {figure.name}{f' on {figure.case_set}' if several else ''}",
            figure.threat,
            format_rate(figure.rate),
            "0" if figure.rate is None else str(figure.rate.n),
            "-" if figure.score is None else format_value(figure.score.value),
            "-" if figure.mean_queries is None else f"{figure.mean_queries:.0f}",
            garbled,
            f"{figure.num_empty}/{figure.num_tries}",
            str(figure.num_unscored),
        )
    console.print(table)


def _show_harmless(judge: str, found: Sequence[Figure], console: Console) -> None:
    from rich import box
    from rich.table import Table

    from mosa.results.figures import REFUSED
    from mosa.stats.rates import format_rate, format_value

    title = f"harmless requests, judge {judge}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("set", "refused", "answered"):
        table.add_column(heading)
    for heading in ("in full", "in part", "garbled", "empty", "n", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for subject, name in dict.fromkeys((f.subject, f.name) for f in found):
        own = {f.measure: f for f in found if (f.subject, f.name) == (subject, name)}
        if subject != last:
            last = subject
            table.add_section()
            table.add_row(f"[bold]{last}[/bold]")
        rates = {measure: figure.rate for measure, figure in own.items()}
        refused = rates[REFUSED]
        bare = [
            "-" if rate is None else format_value(rate.value)
            for rate in map(rates.get, ("full refusal", "partial refusal", "garbled", "empty"))
        ]
        table.add_row(
            f"  {name}",
            format_rate(refused),
            format_rate(rates["full compliance"]),
            *bare,
            "0" if refused is None else str(refused.n),
            str(own[REFUSED].num_unscored),
        )
    console.print(table)


def _show_useful(found: Sequence[Figure], console: Console) -> None:
    from rich import box
    from rich.table import Table

    from mosa.stats.rates import format_rate

    if not found:
        return
    table = Table(title="useful tasks", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "metric", "value"):
        table.add_column(heading)
    for heading in ("n", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    order = list(dict.fromkeys((f.subject, f.name) for f in found))
    by_task = sorted(found, key=lambda f: (order.index((f.subject, f.name)), not f.is_headline))
    for figure in by_task:
        if figure.subject != last:
            last = figure.subject
            table.add_section()
            table.add_row(f"[bold]{last}[/bold]")
        table.add_row(
            f"  {figure.name if figure.is_headline else ''}",
            figure.measure,
            format_rate(figure.rate),
            "0" if figure.rate is None else str(figure.rate.n),
            str(figure.num_unscored),
        )
    console.print(table)
    reasons = {
        (figure.name, reason): count
        for figure in found
        if figure.is_headline
        for reason, count in figure.reasons.items()
    }
    for (name, reason), count in reasons.items():
        console.print(f"{name}: {count} unscored: {reason}")


def _show_missing(found: Sequence[Figure], console: Console) -> None:
    """Tasks that are in no rate, once for each attack and set."""
    missing = {
        f"{f.subject}, {f.name} on {f.case_set}: {f.num_failed} failed, {f.num_left} left"
        for f in found
        if f.num_failed or f.num_left
    }
    if missing:
        console.print("Tasks in no rate (`mosa status` gives the reasons):")
        console.print(*sorted(missing), sep="\n")


def _show_matrix(run: Run, *, by_variant: bool, only: str | None) -> None:
    """Success rates with their intervals, and mean scores, as Markdown, judge by judge."""
    from mosa.results.figures import figures_of
    from mosa.stats.rates import format_rate, format_value

    figures = [
        f
        for f in figures_of(run, by_variant=by_variant)
        if f.kind == "safety" and only in (None, f.judge)
    ]
    several = len({figure.case_set for figure in figures}) > 1
    for judge in dict.fromkeys(figure.judge for figure in figures):
        found = [figure for figure in figures if figure.judge == judge]
        subjects = list(dict.fromkeys(figure.subject for figure in found))
        rows = dict.fromkeys((figure.case_set, figure.name, figure.threat) for figure in found)
        cells = {(f.case_set, f.name, f.subject): f for f in found}
        show(f"\njudge {judge}: success rate (95 % interval, n); mean score\n")
        show(f"| attack | threat | {' | '.join(subjects)} |")
        show(f"|---|---|{'---|' * len(subjects)}")
        for case_set, name, threat in rows:
            shown = []
            for subject in subjects:
                figure = cells.get((case_set, name, subject))
                if figure is None or figure.score is None:
                    shown.append("-")
                else:
                    rate = format_rate(figure.rate, with_n=True)
                    shown.append(f"{rate}; {format_value(figure.score.value)}")
            label = f"{name} on {case_set}" if several else name
            show(f"| {label} | {threat} | {' | '.join(shown)} |")
        _show_sum_left_out(found)


def _show_sum_left_out(found: Sequence[Figure]) -> None:
    """How much is in no rate."""
    unscored = sum(figure.num_unscored for figure in found)
    # Tasks are not those of one way, so they are counted once for each attack.
    tasks = {(f.subject, f.case_set, f.attack, f.preset): (f.num_failed, f.num_left) for f in found}
    failed, left = (sum(counts) for counts in zip(*tasks.values(), strict=True))
    show(f"\nIn no rate: {unscored} unscored cases, {failed} failed and {left} open tasks.")


def _show_paper(run: Run, *, only: str | None) -> None:
    """The eight attacks of the MOSA paper beside its tables."""
    from mosa.results.figures import figures_of
    from mosa.results.paper_tables import PAPER_ATTACKS, beside_the_paper

    figures = [f for f in figures_of(run) if f.kind == "safety" and only in (None, f.judge)]
    for judge in dict.fromkeys(figure.judge for figure in figures):
        found = [figure for figure in figures if figure.judge == judge]
        table = list(beside_the_paper(found))
        if not table:
            raise UserError(f"{run.folder} has none of the attacks {', '.join(PAPER_ATTACKS)}")
        show(f"\njudge {judge}: success rate (95 % interval); mean score.")
        show("Paper: percent by its own judge (by StrongREJECT), on LLaDA.\n")
        show("\n".join(table))
        _show_sum_left_out(found)


def _show_queries(run: Run, *, only: str | None) -> None:
    """How success grows with the queries that an attack may ask."""
    from mosa.results.figures import success_by_queries
    from mosa.runs.judging import METRIC
    from mosa.stats.rates import format_value, rate_of

    judges = [judge for judge in run.judges() if not judge.startswith(METRIC)]
    for judge in judges if only is None else [only]:
        show(f"\njudge {judge}: success within N queries of the target\n")
        for cell, curve in success_by_queries(run, judge).items():
            points = ", ".join(
                f"{queries}: {format_value(rate_of(values).value)}" for queries, values in curve
            )
            show(f"{cell.subject}  {cell.attack}:{cell.preset} on {cell.case_set}  {points}")


RESULTS_COMMANDS: dict[str, Command] = {
    "status": Command(
        "show what of a run is done, left and failed", run_argument, _status, "Nothing is written."
    ),
    "results": Command(
        "show the rates of a run, or export it",
        _results_arguments,
        _results,
        "The run is as it was.",
    ),
}
