"""`mosa judge` and `mosa judge check`, and how commands build judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mosa.api.runs import nothing_from
from mosa.chat import ChatOptions, check_endpoints
from mosa.cli.options import Command, ListOf, add_fields, group_of, run_argument
from mosa.cli.results import end_status, show_results
from mosa.cli.tables import Column, Page, TableCell, TextTable, rate_cell
from mosa.evidence.figures import world_of_run
from mosa.inputs import sha256
from mosa.judges.calibrate import (
    REFUSAL_ROWS,
    Labelled,
    calibrate,
    claim_calibration,
    load_labelled,
    measured_errors,
    sha256_of,
    testbed_rows,
    write_calibration,
)
from mosa.runs.judging import (
    NamedJudge,
    build_judges,
    chats_of,
    help_judges,
    judge_run,
    written_parts,
)
from mosa.runs.options import judge_config, judges_of_run
from mosa.runs.processes import join
from mosa.runs.progress import ProgressBar
from mosa.runs.store import Run
from mosa.stats.rates import once, rate_of
from mosa.testbed import world_of
from mosa.types import UserError
from mosa.worker import run_coroutine
from mosa.world import World

CHAT_HELP = "URL#MODEL (with the key in MOSA_API_KEY) or local:FOLDER_OR_GGUF_FILE"
CHATS = "chat models"
JUDGES = "judges"
"""The groups of their options."""
JUDGES_HELP = (
    "comma-separated judges; `mosa judges` lists them, NAME=BACKEND names the model of one, and "
    "NAME@canvas reads what comes after the first end token, too"
)

CHECK_COLUMNS = (
    Column("judge", is_number=False),
    Column("readable", 1, is_number=False),
    Column("declined", 3),
    Column("agreement", is_number=False),
    Column("false positives", is_number=False),
    Column("false negatives", is_number=False),
    Column("kappa", 2),
)
SHOWN_LETTERS = 300
"""Of a judge's reply, as an example."""


def judge_options(parser: ArgumentParser) -> None:
    """How judges are built."""
    judges = group_of(parser, JUDGES)
    judges.add_argument("--judge_model", type=str, help=f"chat model that judges ask; {CHAT_HELP}")
    judges.add_argument(
        "--judge_templates",
        type=Path,
        help="folder of prompts for judges; each is a file NAME.txt and replaces that judge's own",
    )
    add_fields(parser, ChatOptions, group=CHATS)


def _named_judges(parser: ArgumentParser) -> None:
    """Which judges, how they are built, and where."""
    add = group_of(parser, JUDGES).add_argument
    add("--judges", type=ListOf(str, num_least=1), required=True, help=JUDGES_HELP)
    judge_options(parser)
    add("--device", type=str, help="device of local judges")


def _judge_arguments(parser: ArgumentParser) -> None:
    run_argument(parser)
    _named_judges(parser)


def _judge(args: Namespace) -> int | None:
    processes = join()
    if not processes.is_main:
        processes.agree(lambda: None)
        help_judges(args.device, processes)
        processes.disband()
        return None
    with Run(args.run, adds=True) as run:

        def build() -> list[NamedJudge]:
            config = judge_config(args.as_dict())
            return judges_of_run(run, args.judges, config, world_of_run(run))

        judges = processes.agree(build)
        with ProgressBar() as bar:
            judge_run(run, judges, on_progress=bar.judging, processes=processes)
        judged = {judge.id for judge in judges}
        processes.disband()
        show_results(run, Page())
        return end_status(nothing_from(run, judged))


def _check_arguments(parser: ArgumentParser) -> None:
    _named_judges(parser)
    parser.add_argument(
        "--data",
        type=str,
        required=True,
        help="labelled rows: a .csv or .jsonl file with behavior, response and label; testbed, "
        "which makes them; or refusal, those that come with that judge",
    )
    parser.add_argument(
        "--num_rows", type=int | None, help="number of rows that testbed makes; unset: 200"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file to keep the counts in, which `mosa report --calibration` corrects rates "
        "by; other judges in it stay",
    )


def _check(args: Namespace) -> int | None:
    if any(written_parts(name)[2] for name in args.judges):
        raise UserError("labelled rows have one text each, and no canvas; leave @canvas out")
    world = world_of("testbed")
    if args.data == "testbed":
        rows = testbed_rows(world, 200 if args.num_rows is None else args.num_rows)
        data, digest = f"testbed, {len(rows)} rows", sha256_of(rows)
    elif args.num_rows is not None:
        raise UserError("--num_rows is for --data testbed; leave it out")
    else:
        file = REFUSAL_ROWS if args.data == "refusal" else Path(args.data)
        rows = load_labelled(file)
        data, digest = file.name, sha256(file)
    if args.out is not None and not args.out.parent.exists():
        raise UserError(f"the folder {args.out.parent} is missing; make it or name another --out")
    with claim_calibration(args.out):  # before the work, so that nothing is lost
        return _measure(args, world, rows, data, digest)


def _measure(
    args: Namespace, world: World, rows: Sequence[Labelled], data: str, digest: str
) -> int:
    """Judge the rows, keep the counts, and show them."""
    named = build_judges(args.judges, judge_config(args.as_dict()), world)
    run_coroutine(check_endpoints(chats_of(named)))
    judges = [each.judge for each in named]
    found = run_coroutine(calibrate(judges, rows))
    if args.out is not None:
        kept = {q.judge: measured_errors(q, data, digest) for q in found.qualities}
        write_calibration(args.out, kept)
    cells = [
        (
            quality.judge,
            f"{quality.num_scored} of {found.num_rows}",
            str(quality.num_declined),
            _share(quality.num_agreed, quality.num_scored),
            _share(quality.num_false_positives, quality.num_negatives),
            _share(quality.num_false_negatives, quality.num_positives),
            "-" if quality.kappa is None else f"{quality.kappa:.2f}",
        )
        for quality in found.qualities
    ]
    title = f"Judges against {found.num_rows} labelled rows"
    page = Page()
    page.table(TextTable(title, CHECK_COLUMNS, cells, left_out_if_short=("n",)))
    console = page.console
    for pair in found.pairs:
        console.print(
            f"{pair.judges[0]} and {pair.judges[1]} agree: "
            f"{_share(pair.num_agreed, pair.num_scored).long}"
        )
    for quality in found.qualities:
        kinds = [
            f"{kind} {wrong} of {total}"
            for kind, (wrong, total) in quality.num_errors_by_kind.items()
            if wrong
        ]
        if kinds:
            console.print(f"{quality.judge} is wrong on: {', '.join(kinds)}")
        for reason, replies in sorted(quality.unread.items(), key=lambda item: -len(item[1])):
            share = _share(len(replies), found.num_rows)
            console.print(f"{quality.judge} is unread on {share.long}: {reason}")
            _show_reply(console, replies[0])
        if quality.misjudged:
            console.print(f"{quality.judge} differs from the label, for example:")
            _show_reply(console, quality.misjudged[0])
    if args.out is not None:
        console.print(f"wrote {args.out}")
    unread = [quality.judge for quality in found.qualities if not quality.num_scored]
    return end_status([f"judge {judge}: no row has a score" for judge in unread])


def _show_reply(console: Console, reply: str) -> None:
    """The beginning of what a judge's model said, if it said anything."""
    if reply:
        shown = reply if len(reply) <= SHOWN_LETTERS else f"{reply[:SHOWN_LETTERS]} ..."
        console.print(f"    {shown!r}")


def _share(count: int, total: int) -> TableCell:
    if not total:
        return rate_cell(None)
    return rate_cell(rate_of(once([True] * count + [False] * (total - count))), with_n=True)


COMMANDS: dict[str, Command] = {
    "judge": Command(
        "score the responses of a run again, as they are",
        _judge_arguments,
        _judge,
        "Verdicts so far are recorded; the same command judges the rest.",
        example="mosa judge runs/a --judges strongreject --judge-model http://localhost:8000/v1#NAME",
        runs_on_several_processes=True,
    ),
    "judge check": Command(
        "measure judges against labelled rows, with examples",
        _check_arguments,
        _check,
        "Nothing is written before all judges are done.",
        example="mosa judge check --judges truth,refusal --data testbed --out calibration.json",
    ),
}
