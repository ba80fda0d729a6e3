"""`mosa judge` and `mosa judge check`, and how commands build judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from mosa.chat import ChatOptions, check_endpoints
from mosa.cli.options import Command, ListOf, add_fields, given_fields, run_argument
from mosa.cli.progress import ProgressBar
from mosa.cli.results import end_status, nothing_from, show_results
from mosa.inputs import sha256
from mosa.judges.calibrate import (
    REFUSAL_ROWS,
    calibrate,
    claim_calibration,
    load_labelled,
    measured_errors,
    sha256_of,
    testbed_rows,
    write_calibration,
)
from mosa.results.figures import world_of_run
from mosa.runs.judging import (
    JudgeConfig,
    NamedJudge,
    build_judges,
    chats_of,
    check_apart,
    help_judges,
    judge_run,
    loop_judges,
    written_parts,
)
from mosa.runs.processes import join
from mosa.runs.store import Run
from mosa.stats.rates import format_rate, once, rate_of
from mosa.terminal import new_console
from mosa.testbed import world_of
from mosa.types import UserError
from mosa.worker import run_coroutine

CHAT_HELP = "chat model: URL#MODEL (with the key in MOSA_API_KEY) or local:FOLDER_OR_GGUF_FILE"
JUDGES_HELP = (
    "comma-separated judges (`mosa judges` lists them); NAME=BACKEND names the model of one, and "
    "NAME@canvas reads what comes after the first end token, too"
)

OF_REPLIES = ("enable_thinking", "thought_tokens", "chat_extra", "reply_cache")
"""The options of endpoints that are for chat models alone, and not for a subject."""
SHOWN_LETTERS = 300
"""Of a judge's reply, as an example."""


def judge_options(parser: ArgumentParser) -> None:
    """How judges are built."""
    parser.add_argument("--judge_model", type=str, help=f"{CHAT_HELP}; judges that need one ask it")
    parser.add_argument(
        "--judge_templates",
        type=Path,
        help="folder of prompts, each a file NAME.txt that replaces that judge's own",
    )
    add_fields(parser, ChatOptions, group="chat endpoints")


def chat_options(args: Namespace, named: Sequence[str], served: Sequence[str] = ()) -> ChatOptions:
    """How endpoints are asked; UserError where that is set and none of the chat models `named` is
    one, nor of the `served` subjects, which have their own fields of requests."""
    given = given_fields(ChatOptions, args)
    for name in given:
        meant = named if name in OF_REPLIES else (*named, *served)
        if not any("://" in spec for spec in meant):
            own = " (a served subject has `request` for it)" if served else ""
            raise UserError(
                f"--{name} is for chat endpoints, and none is named{own}; leave it out or name one "
                "as URL#MODEL"
            )
    return ChatOptions(**given)


def judge_config(
    args: Namespace, others: Sequence[str] = (), served: Sequence[str] = ()
) -> JudgeConfig:
    """How the options build judges; `others` are chat models that are named beside theirs, and
    subjects that are `served`."""
    return JudgeConfig(
        model=args.judge_model,
        templates=args.judge_templates,
        device=args.device,
        chat=chat_options(args, [args.judge_model or "", *(args.judges or ()), *others], served),
    )


def _named_judges(parser: ArgumentParser) -> None:
    """Which judges, how they are built, and where."""
    parser.add_argument("--judges", type=ListOf(str, num_least=1), required=True, help=JUDGES_HELP)
    judge_options(parser)
    parser.add_argument("--device", type=str, help="device of local judges")


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
    with Run(args.run) as run:

        def build() -> list[NamedJudge]:
            phrases = tuple(t for s in run.subjects().values() for t in s.refusals)
            config = replace(judge_config(args), refusal_phrases=phrases)
            judges = build_judges(args.judges, config, world_of_run(run))
            check_apart(judges, loop_judges(run))
            waiting = [judge for judge in judges if run.num_unjudged(judge.id)]
            run_coroutine(check_endpoints(chats_of(waiting)))
            return judges

        judges = processes.agree(build)
        with ProgressBar() as bar:
            judge_run(run, judges, on_progress=bar.judging, processes=processes)
        judged = {judge.id for judge in judges}
        processes.disband()
        show_results(run)
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
    if args.out is not None:  # before the work, so that nothing is lost
        if not args.out.parent.exists():
            raise UserError(
                f"the folder {args.out.parent} is missing; make it or name another --out"
            )
        claim_calibration(args.out)
    named = build_judges(args.judges, judge_config(args), world)
    run_coroutine(check_endpoints(chats_of(named)))
    judges = [each.judge for each in named]
    found = run_coroutine(calibrate(judges, rows))
    if args.out is not None:
        kept = {q.judge: measured_errors(q, data, digest) for q in found.qualities}
        write_calibration(args.out, kept)
    table = Table(title=f"Judges against {found.num_rows} labelled rows")
    for heading in ("judge", "readable", "declined"):
        table.add_column(heading)
    for heading in ("agreement", "false positives", "false negatives", "kappa"):
        table.add_column(heading)
    for quality in found.qualities:
        table.add_row(
            quality.judge,
            f"{quality.num_scored} of {found.num_rows}",
            str(quality.num_declined),
            _share(quality.num_agreed, quality.num_scored),
            _share(quality.num_false_positives, quality.num_negatives),
            _share(quality.num_false_negatives, quality.num_positives),
            "-" if quality.kappa is None else f"{quality.kappa:.2f}",
        )
    console = new_console(is_wide=True)
    console.print(table)
    for pair in found.pairs:
        console.print(
            f"{pair.judges[0]} and {pair.judges[1]} agree: "
            f"{_share(pair.num_agreed, pair.num_scored)}"
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
            console.print(f"{quality.judge} is unread on {share}: {reason}")
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


def _share(count: int, total: int) -> str:
    if not total:
        return format_rate(None)
    return format_rate(rate_of(once([True] * count + [False] * (total - count))), with_n=True)


COMMANDS: dict[str, Command] = {
    "judge": Command(
        "score the responses of a run again, without generating them again",
        _judge_arguments,
        _judge,
        "Verdicts so far are recorded; the same command judges the rest.",
        runs_on_several_processes=True,
    ),
    "judge check": Command(
        "measure judges against labelled rows: readable, declined, agreement, with examples",
        _check_arguments,
        _check,
        "Nothing is written before all judges are done.",
    ),
}
