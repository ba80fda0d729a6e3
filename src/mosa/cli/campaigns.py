"""Commands about campaigns: evaluate, judge, status, results, and the tables they choose from."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.compliance import EXPLANATION, show_compliance
from mosa.cli.options import (
    FILES,
    MODEL_HELP,
    Command,
    add_fields,
    config_argument,
    placement_arguments,
    show,
)
from mosa.types import Budget, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mosa.chat import ChatModel, ChatOptions
    from mosa.denoising import DecoderConfig
    from mosa.evaluation.campaign import CampaignConfig, Progress, Share
    from mosa.evaluation.judging import NamedJudge
    from mosa.evaluation.results import Line
    from mosa.evaluation.store import Store
    from mosa.world import World

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is told where there is no terminal to redraw."""
CHAT_HELP = "chat model: URL#MODEL (the key from MOSA_API_KEY) or local:FOLDER"


def _run_argument(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")


def judge_options(parser: ArgumentParser) -> None:
    """How judges are built."""
    from mosa.chat import ChatOptions

    parser.add_argument(
        "--judge_model", type=str | None, help=f"{CHAT_HELP}, for judges that ask one"
    )
    parser.add_argument(
        "--judge_templates",
        type=Path | None,
        help="folder of prompts NAME.txt that take the place of the judges' own",
    )
    add_fields(parser, ChatOptions)


def entries(text: str | None) -> tuple[str, ...]:
    """The entries of a list with commas."""
    return tuple(entry.strip() for entry in (text or "").split(",") if entry.strip())


# --- evaluate -------------------------------------------------------------------------------------


def _evaluate_arguments(parser: ArgumentParser) -> None:
    config_argument(parser)
    models_arguments(parser)
    parser.add_argument(
        "--attacks",
        type=str,
        required=True,
        help="names with commas, or all; NAME:PRESET for another preset (see `mosa attacks`)",
    )
    parser.add_argument("--preset", type=str, default="paper", help="preset of attacks")
    parser.add_argument(
        "--attack_options",
        type=dict[str, dict[str, Any]],
        default={},
        help='settings over a preset, by attack: {"prefill": {"positions": [1, 30]}}',
    )
    parser.add_argument(
        "--behaviors",
        type=str,
        required=True,
        help=f"a set of the testbed or a known one (docs/behaviors.md), or {FILES}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    judges_arguments(parser)
    for role, of in (
        ("attacker", "writes for attacks that need a writer"),
        ("loop_judge", "rates tries inside attacks that need a judge"),
        ("translator", "translates for attacks that need it"),
    ):
        parser.add_argument(f"--{role}", type=str | None, help=f"{CHAT_HELP}; {of}")
    running_arguments(parser)


def models_arguments(parser: ArgumentParser) -> None:
    """A model, and adapters for it."""
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument(
        "--adapter",
        type=str,
        nargs="+",
        default=["none"],
        help="folders of adapters, one model each; `none` is the model as it is",
    )


def judges_arguments(parser: ArgumentParser) -> None:
    """Which judges, and how they are built."""
    parser.add_argument(
        "--judges",
        type=str | None,
        help="names with commas (`mosa judges`); NAME=BACKEND, NAME@canvas; unset: truth on the "
        "testbed, else refusal",
    )
    judge_options(parser)


def running_arguments(parser: ArgumentParser) -> None:
    """How much is run, where, and how responses are decoded."""
    from mosa.denoising import DecoderConfig

    parser.add_argument("--limit", type=int | None, help="only the first so many behaviors")
    parser.add_argument("--seeds", type=str, default="0", help="seeds with commas")
    parser.add_argument(
        "--data_dir",
        type=Path | None,
        help="where known benchmark files lie (unset: MOSA_DATA, else ./data)",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="responses per forward pass")
    placement_arguments(parser)
    add_fields(parser, DecoderConfig, leave_out=("seed",))


def _evaluate(args: Namespace) -> None:
    from mosa.evaluation.campaign import help_campaign, run_campaign
    from mosa.evaluation.processes import join

    processes = join()
    settings = processes.agree(lambda: _settings(args, judges_here=processes.is_main))
    # The first has looked into the folder of the run, which is its own to read and write.
    decoder = processes.gather(settings.decoder)[0]
    assert decoder is not None
    if not processes.is_main:
        help_campaign(args.out, settings.config, decoder, processes, chats=settings.chats)
        processes.disband()
        return
    with Shown() as shown:
        store = run_campaign(
            args.out,
            settings.config,
            decoder,
            chats=settings.chats,
            on_progress=shown.progress,
            on_shared=_show_shares,
            processes=processes,
        )
    processes.disband()
    with store:
        judge_all(store, settings.judges)
        _show_results(store, by_variant=False)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the options of `evaluate` come to."""

    config: CampaignConfig
    decoder: DecoderConfig | None
    """None on the processes that take it from the main one."""
    judges: Sequence[NamedJudge]
    """Empty on those processes: the main one judges."""
    chats: dict[str, ChatModel]


def _settings(args: Namespace, *, judges_here: bool) -> _Settings:
    from mosa.evaluation.campaign import CampaignConfig, world_in
    from mosa.evaluation.defaults import default_decoder
    from mosa.evaluation.judging import check_apart
    from mosa.evaluation.runs import decoder_beside

    config = CampaignConfig(
        model=args.model,
        behaviors=args.behaviors,
        adapters=tuple(args.adapter),
        attacks=entries(args.attacks),
        preset=args.preset,
        attack_options=args.attack_options,
        seeds=integers("--seeds", args.seeds),
        limit=args.limit,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
    )
    world = world_in(config)
    written = written_judges(args, world)
    decoder, judges = None, []
    if judges_here:
        decoder = decoder_beside(args.out) or default_decoder(world)
        decoder = dataclasses.replace(decoder, **decoder_settings(args))
        # Built before the work, so that one that lacks something is told of.
        judges = judges_of(args, written, world)
    chats = _chats(args, written)
    if "judge" in chats:
        check_apart([judge.id for judge in judges], {chats["judge"].name})
    return _Settings(config, decoder, judges, chats)


def _show_shares(model: str, shares: Sequence[Share]) -> None:
    """How the work on one model was split, where it was."""
    if len(shares) > 1:
        tasks = " + ".join(str(share.num_tasks) for share in shares)
        responses = " + ".join(str(share.tally.num_rows) for share in shares)
        show(f"{model}, by process: {tasks} tasks, {responses} responses")


def decoder_settings(args: Namespace) -> dict[str, Any]:
    """What is said of the decoder."""
    from mosa.denoising import DecoderConfig

    names = {field.name for field in dataclasses.fields(DecoderConfig)}
    return {name: value for name, value in args.as_dict().items() if name in names}


def written_judges(args: Namespace, world: World | None) -> tuple[str, ...]:
    """The judges as they are named, or those that judge where none is."""
    from mosa.evaluation.defaults import default_judges

    if args.judges is None:
        return default_judges(world)
    if not entries(args.judges):
        raise UserError("--judges names no judge; `mosa judges` lists them")
    return entries(args.judges)


def wide_console() -> Console:
    """The terminal; a file or a pipe has room for whole rows."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=110)


def _backends(args: Namespace, judges: Sequence[str]) -> set[str]:
    """The models that judges are told to ask, as they were written."""
    from mosa.evaluation.judging import written_parts

    named = {written_parts(written)[1] for written in judges}
    return (named | {args.judge_model or ""}) - {""}


def integers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list with commas; UserError where it holds anything else."""
    try:
        return tuple(int(word) for word in entries(text))
    except ValueError:
        raise UserError(f"{option} {text} is no list of whole numbers; write 0,1,2") from None


def _chats(args: Namespace, judges: Sequence[str]) -> dict[str, ChatModel]:
    """The chat models by role, as far as they are named."""
    from mosa.chat import chat_model

    options = _chat_options(args, judges)
    roles = {"attacker": "attacker", "judge": "loop_judge", "translator": "translator"}
    named = {role: args[option] for role, option in roles.items() if args[option] is not None}
    # One that plays several roles is loaded once.
    chats = {spec: chat_model(spec, options, device=args.device) for spec in set(named.values())}
    return {role: chats[spec] for role, spec in named.items()}


def _chat_options(args: Namespace, judges: Sequence[str]) -> ChatOptions:
    """How endpoints are asked; UserError where something is said of that and none is asked."""
    from mosa.chat import ChatOptions

    given = args.as_dict()
    names = [field.name for field in dataclasses.fields(ChatOptions) if field.name in given]
    specs = [given.get(role) or "" for role in ("attacker", "loop_judge", "translator")]
    specs += _backends(args, judges)
    if names and not any(spec.startswith(("http://", "https://")) for spec in specs):
        raise UserError(
            f"--{names[0]} is for chat endpoints, and none is named; leave it out or name one as "
            "URL#MODEL"
        )
    return ChatOptions(**{name: given[name] for name in names})


class Shown:
    """Progress of a campaign: a bar in a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=None, left="")
        self.last_line = time.monotonic()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal to others until there is more progress."""
        if self.bar.live.is_started:
            self.bar.stop()

    def progress(self, now: Progress) -> None:
        """Take in how far the campaign has come."""
        if self.console.is_terminal and not self.bar.live.is_started:
            self.bar.start()
        left = f"{now.tally.num_rows} responses, {_time_left(now)}"
        self.bar.update(
            self.task,
            description=now.model,
            total=now.num_tasks,
            completed=now.num_done,
            left=left,
        )
        if (
            not self.console.is_terminal
            and time.monotonic() > self.last_line + SECONDS_BETWEEN_LINES
        ):
            self.last_line = time.monotonic()
            show(f"{now.model}: {now.num_done} of {now.num_tasks} tasks, {left}")


def _time_left(now: Progress) -> str:
    """A rough figure for one model, at the pace so far."""
    seconds = now.seconds_left
    if now.is_at_least and seconds < 1:
        return "time left not known yet"
    figure = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"{'at least' if now.is_at_least else 'about'} {figure} left for this model"


# --- judge ----------------------------------------------------------------------------------------


def judges_of(args: Namespace, names: Sequence[str], world: World | None) -> list[NamedJudge]:
    """The judges, built as the options say."""
    from mosa.evaluation.judging import JudgeConfig, build_judges

    config = JudgeConfig(
        model=args.judge_model,
        templates=args.judge_templates,
        device=args.device,
        chat=_chat_options(args, names),
    )
    return build_judges(names, config, world)


def judge_all(store: Store, judges: Sequence[NamedJudge]) -> None:
    """Let the judges score what they have not scored, with a bar for each."""
    from rich.progress import Progress

    from mosa.evaluation.judging import judge_run

    with Progress(transient=True) as bar:
        tasks = {
            judge.id: bar.add_task(judge.id, total=store.num_unjudged(judge.id)) for judge in judges
        }
        judge_run(store, judges, on_progress=lambda judge, n: bar.advance(tasks[judge], n))


def _judge_arguments(parser: ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument(
        "--judge",
        type=str,
        required=True,
        help="names with commas (`mosa judges` lists them); NAME=BACKEND, NAME@canvas",
    )
    judge_options(parser)
    parser.add_argument("--device", type=str | None, help="where local judges run")


def _judge(args: Namespace) -> None:
    from mosa.evaluation.runs import is_utility
    from mosa.evaluation.store import Store

    if not entries(args.judge):
        raise UserError("--judge names no judge; `mosa judges` lists them")
    with Store(args.run) as store:
        if is_utility(store):
            raise UserError(
                f"{args.run} is about useful tasks, which need no judge; `mosa results` shows them"
            )
        judge_all(store, judges_of(args, entries(args.judge), _world(store)))
        _show_results(store, by_variant=False)


def _world(store: Store) -> Any:
    """The testbed's world, where a run is about it."""
    from mosa.world import World

    seed = store.meta("world_seed")
    return None if seed is None else World(seed)


def _calibrate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--judges", type=str, required=True, help="names with commas")
    parser.add_argument(
        "--data",
        type=str,
        required=True,
        help="labelled rows: a .csv or .jsonl file with behavior, response and label; testbed; or "
        "refusal (the rows that come with that judge)",
    )
    parser.add_argument("--num", type=int | None, help="rows that testbed makes (unset: 200)")
    parser.add_argument(
        "--out",
        type=Path | None,
        help="JSON file that keeps the counts, to correct rates by; judges that it has stay in it",
    )
    judge_options(parser)
    parser.add_argument("--device", type=str | None, help="where local judges run")


def _calibrate(args: Namespace) -> None:
    from rich.table import Table

    from mosa.evaluation.judging import written_parts
    from mosa.judges import (
        REFUSAL_ROWS,
        calibrate,
        load_labelled,
        measured_errors,
        read_calibration,
        sha256_of,
        testbed_rows,
        write_calibration,
    )
    from mosa.testbed import world_of

    names = entries(args.judges)
    if not names:
        raise UserError("--judges names no judge; `mosa judges` lists them")
    if any(written_parts(name)[2] for name in names):
        raise UserError("labelled rows have one text each, and no canvas; leave @canvas out")
    world = world_of("testbed")
    if args.data == "testbed":
        rows = testbed_rows(world, 200 if args.num is None else args.num)
        data, sha256 = f"testbed, {len(rows)} rows", sha256_of(rows)
    elif args.num is not None:
        raise UserError("--num is for --data testbed alone; leave it out")
    else:
        file = REFUSAL_ROWS if args.data == "refusal" else Path(args.data)
        rows = load_labelled(file)
        data, sha256 = file.name, hashlib.sha256(file.read_bytes()).hexdigest()
    if args.out is not None:
        # Before the work, so that a file that cannot be added to is told of.
        if args.out.exists():
            read_calibration(args.out)
        elif not args.out.parent.is_dir():
            raise UserError(f"there is no folder {args.out.parent}; make it or name another --out")
    judges = [named.judge for named in judges_of(args, names, world)]
    found = asyncio.run(calibrate(judges, rows))
    if args.out is not None:
        kept = {q.judge: measured_errors(q, data, sha256) for q in found.qualities}
        write_calibration(args.out, kept)
    table = Table(title=f"Judges against {found.num_rows} labelled rows")
    for heading in ("judge", "agreement", "false positives", "false negatives", "kappa"):
        table.add_column(heading)
    table.add_column("unscored", justify="right")
    for quality in found.qualities:
        table.add_row(
            quality.judge,
            _share(quality.num_agreed, quality.num_scored),
            _share(quality.num_false_positives, quality.num_negatives),
            _share(quality.num_false_negatives, quality.num_positives),
            "-" if quality.kappa is None else f"{quality.kappa:.2f}",
            str(quality.num_unscored),
        )
    console = wide_console()
    console.print(table)
    for pair in found.pairs:
        console.print(
            f"{pair.judges[0]} and {pair.judges[1]} say the same: "
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
    if args.out is not None:
        console.print(f"wrote {args.out}")


def _share(count: int, total: int) -> str:
    from mosa.evaluation.metrics import rate_of

    return str(rate_of([True] * count + [False] * (total - count))) if total else "-"


# --- status and results ---------------------------------------------------------------------------


def _status(args: Namespace) -> None:
    from rich.table import Table

    from mosa.evaluation.processes import parts_of
    from mosa.evaluation.runs import is_utility
    from mosa.evaluation.store import Store

    with Store(args.run) as store:
        if is_utility(store):
            _show_state_of_tasks(store)
            return
        cells: dict[tuple[str, str, str], dict[str, int]] = {}
        for model, attack, preset, status, count in store.counts():
            cells.setdefault((model, attack, preset), {})[status] = count
        table = Table(title=f"{args.run}: {store.meta('behavior_set')}")
        for heading in ("model", "attack", "preset"):
            table.add_column(heading)
        for heading in ("done", "failed", "left"):
            table.add_column(heading, justify="right")
        for cell, counts in cells.items():
            numbers = [str(counts.get(name, 0)) for name in ("done", "failed", "todo")]
            table.add_row(*cell, *numbers)
        console = wide_console()
        console.print(table)
        _show_failures(store, console)
        for judge in store.judges():
            unscored = store.num_unjudged(judge)
            console.print(f"judge {judge}: {unscored} attempts without a score")
        spent = Budget()
        for task in store.tasks():
            spent += task.budget or Budget()
        shown = [f"{v} {k.replace('_', ' ')}" for k, v in vars(spent).items() if v]
        console.print(f"spent: {', '.join(shown) or 'nothing yet'}")
        sessions = store.sessions()
        waiting = len(sessions[-1]["settings"]["adapters"]) - len(store.models()) if sessions else 0
        if waiting > 0:
            console.print(f"{waiting} models have not begun, so that their tasks are not counted")
        if parts := parts_of(args.run):
            console.print(
                f"not counted: what {len(parts)} other process{'es' * (len(parts) != 1)} of a "
                "launch recorded; the next `mosa evaluate` of this run adds it"
            )
        _show_sessions(sessions, console)


def _show_sessions(sessions: Sequence[dict[str, Any]], console: Console) -> None:
    seconds = sum(session.get("seconds", 0.0) for session in sessions)
    cut = sum("ended" not in session for session in sessions)
    console.print(
        f"{len(sessions)} session{'s' * (len(sessions) != 1)}, {seconds:.0f} s"
        + (f", {cut} of them running or cut off" if cut else "")
    )


def _show_state_of_tasks(store: Store) -> None:
    """Which useful tasks are done, model by model."""
    from rich.table import Table

    done: dict[tuple[str, str], set[str]] = {}
    for found in store.measurements():
        done.setdefault((found.model, found.task), set()).add(found.case)
    table = Table(title=f"{store.folder}: useful tasks")
    table.add_column("model")
    table.add_column("task")
    table.add_column("cases done", justify="right")
    for model in store.models():
        for task in store.meta("tasks") or {}:
            table.add_row(model, task, str(len(done.get((model, task), ()))))
    console = wide_console()
    console.print(table)
    console.print("A task's cases are scored together, when the last of them is answered.")
    _show_sessions(store.sessions(), console)


def _results_arguments(parser: ArgumentParser) -> None:
    from mosa.evaluation.exports import EXPORTS

    _run_argument(parser)
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
        help="a row for each attack and a column for each model, as a Markdown table",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="the MOSA paper's eight attacks beside its tables 1, 2 and 4, as Markdown",
    )
    parser.add_argument(
        "--export",
        type=str | None,
        help=f"write the run to --out in another format: {', '.join(EXPORTS)}",
    )
    parser.add_argument("--out", type=Path | None, help="folder for --export")
    parser.add_argument(
        "--no_redact",
        action="store_true",
        help="exports hold prompts and responses in words (the testbed's always do)",
    )


def _results(args: Namespace) -> None:
    from mosa.evaluation.over_refusal import is_benign
    from mosa.evaluation.runs import is_utility
    from mosa.evaluation.store import Store

    if (args.export is None) != (args.out is None):
        raise UserError("--export and --out go together; give both or neither")
    ways = [name for name in ("export", "matrix", "by_queries", "paper") if args[name]]
    if len(ways) > 1 or (args.by_variant and ways not in ([], ["matrix"])):
        raise UserError(
            "--export, --matrix, --by_queries and --paper exclude each other, and --by_variant "
            "goes with the plain table and the matrix alone; leave some out"
        )
    if args.no_redact and args.export is None:
        raise UserError("--no_redact is about exports; leave it out, or name one with --export")
    with Store(args.run) as store:
        if is_utility(store):
            from mosa.cli.utility import show_utility

            if ways or args.by_variant or args.judge is not None:
                raise UserError(
                    f"{args.run} is about useful tasks, which have one table; leave out all "
                    "options (`mosa report --tables` writes it as CSV, JSON and LaTeX)"
                )
            show_utility(store)
            return
        if is_benign(store) and (args.by_variant or ways not in ([], ["export"])):
            raise UserError(
                f"{args.run} is about harmless requests, where an answer is no success of an "
                "attack; leave out all but --judge, --export and --out"
            )
        if args.judge is not None and args.judge not in store.judges():
            known = ", ".join(store.judges()) or "none yet"
            raise UserError(f"no judge {args.judge} has judged {args.run}; there are: {known}")
        if args.export is None and not store.judges():
            show_nothing(store)
            return
        if args.by_queries:
            _show_queries(store, only=args.judge)
            return
        if args.paper:
            _show_paper(store, only=args.judge)
            return
        if args.matrix:
            _show_matrix(store, by_variant=args.by_variant, only=args.judge)
            return
        if args.export is None:
            _show_results(store, by_variant=args.by_variant, only=args.judge)
            return
        from mosa.evaluation.exports import EXPORTS, ExportSetting

        if args.export not in EXPORTS:
            raise UserError(f"there is no export {args.export}; choose from {', '.join(EXPORTS)}")
        setting = ExportSetting(judge=args.judge, redact=not args.no_redact)
        for path in EXPORTS[args.export].write(store, args.out, setting):
            show(f"wrote {path}")


def _show_matrix(store: Store, *, by_variant: bool, only: str | None) -> None:
    """Success rates with their intervals, and mean scores, as Markdown, judge by judge."""
    from mosa.evaluation.results import lines, names_of

    for judge in store.judges() if only is None else [only]:
        found = lines(store, judge, by_variant=by_variant)
        models = list(dict.fromkeys(line.model for line in found))
        names = names_of(found)
        cells = {(names[line], line.model): line for line in found}
        show(f"\njudge {judge}: success rate (95 % Wilson interval, n); mean score\n")
        show(f"| attack | {' | '.join(models)} |")
        show(f"|---|{'---|' * len(models)}")
        for name in dict.fromkeys(names.values()):
            shown = [_cell(cells.get((name, model))) for model in models]
            show(f"| {name} | {' | '.join(shown)} |")
        _show_left_out(found)


def _show_left_out(found: Sequence[Line]) -> None:
    """How much is in no rate."""
    unscored = sum(line.num_unscored for line in found)
    # Tasks are not those of one way, so they are counted once for each attack.
    tasks = {(x.model, x.attack, x.preset): (x.num_failed, x.num_left) for x in found}
    failed, left = (sum(counts) for counts in zip(*tasks.values(), strict=True))
    show(f"\nIn no rate: {unscored} unscored cases, {failed} failed and {left} open tasks.")


def _show_paper(store: Store, *, only: str | None) -> None:
    """The eight attacks of the MOSA paper beside its tables."""
    from mosa.evaluation.paper_tables import ATTACKS, beside_the_paper
    from mosa.evaluation.results import lines

    for judge in store.judges() if only is None else [only]:
        found = lines(store, judge)
        table = list(beside_the_paper(found))
        if not table:
            raise UserError(f"{store.folder} has none of the attacks {', '.join(ATTACKS)}")
        show(f"\njudge {judge}: success rate (95 % Wilson interval); mean score.")
        show("Paper: percent by its own judge (by StrongREJECT), on LLaDA.\n")
        show("\n".join(table))
        _show_left_out(found)


def _show_queries(store: Store, *, only: str | None) -> None:
    """How success grows with the queries that an attack may ask."""
    from mosa.evaluation.results import success_by_queries

    for judge in store.judges() if only is None else [only]:
        show(f"\njudge {judge}: success within so many queries of the target\n")
        for (model, attack, preset), curve in success_by_queries(store, judge).items():
            points = ", ".join(f"{queries}: {share:.2f}" for queries, share in curve)
            show(f"{model}  {attack}:{preset}  {points}")


def _cell(line: Line | None) -> str:
    if line is None or line.success is None or line.score is None:
        return "-"
    rate = line.success
    return f"{rate.rate:.2f} ({rate.low:.2f} to {rate.high:.2f}, n={rate.n}); {line.score.rate:.2f}"


def _show_failures(store: Store, console: Console) -> None:
    for attack, reason, count in store.failures():
        console.print(f"{attack}: {count} failed: {reason}")


def show_nothing(store: Store) -> None:
    """What there is to say of a run without verdicts."""
    console = wide_console()
    _show_failures(store, console)
    remedy = "run the same command again" if store.failures() else "`mosa judge` adds them"
    console.print(f"{store.folder} has no verdicts yet; {remedy}.")


def _show_results(store: Store, *, by_variant: bool, only: str | None = None) -> None:
    from rich import box
    from rich.table import Table

    from mosa.evaluation.over_refusal import is_benign
    from mosa.evaluation.results import lines, names_of

    console = wide_console()
    judges = store.judges() if only is None else [only]
    if not judges:
        show_nothing(store)
        return
    if is_benign(store):
        show_compliance(store, console, only=only)
        console.print(EXPLANATION)
        return
    for judge in judges:
        table = Table(title=f"judge {judge}", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("attack")
        table.add_column("success")
        for heading in ("n", "score", "queries", "broken", "empty", "unscored"):
            table.add_column(heading, justify="right", no_wrap=True)
        last = ""
        found = lines(store, judge, by_variant=by_variant)
        names = names_of(found)
        for line in found:
            if line.model != last:
                last = line.model
                table.add_section()
                table.add_row(f"[bold]{last}[/bold]")
            rate = line.success
            broken = (
                "-" if line.num_incoherent is None else f"{line.num_incoherent}/{line.num_tries}"
            )
            table.add_row(
                f"  {names[line]}",
                "-" if rate is None else f"{rate.rate:.2f} ({rate.low:.2f} to {rate.high:.2f})",
                "0" if rate is None else str(rate.n),
                "-" if line.score is None else f"{line.score.rate:.2f}",
                "-" if line.mean_queries is None else f"{line.mean_queries:.0f}",
                broken,
                f"{line.num_empty}/{line.num_tries}",
                str(line.num_unscored),
            )
        console.print(table)
        missing = {
            f"{line.model}, {line.attack}: {line.num_failed} failed, {line.num_left} left"
            for line in found
            if line.num_failed or line.num_left
        }
        if missing:
            console.print(f"Tasks in no rate (`mosa status {store.folder}` tells why):")
            console.print(*sorted(missing), sep="\n")
        if judge.startswith("refusal/"):
            console.print("This judge sees phrases and not harm; `mosa judge` adds another.")
    console.print(
        "success: share of the n scored behaviors with at least one successful try, with its 95 % "
        "Wilson interval; score: mean of their best scores; broken, empty: tries whose text is "
        "neither a refusal nor an answer, or holds nothing; unscored: in no rate. Run: "
        f"{store.folder}."
    )


# --- the tables -----------------------------------------------------------------------------------


def _no_arguments(parser: ArgumentParser) -> None:
    del parser


def _attacks(args: Namespace) -> None:
    from mosa.attacks import ATTACKS

    del args
    for attack in ATTACKS.values():
        chats = f"; asks: {', '.join(attack.roles)}" if attack.roles else ""
        answer = "; behaviors need an answer" if attack.needs_answer else ""
        _entry(
            attack.name,
            attack.summary,
            f"needs access to: {', '.join(attack.access)}{chats}{answer}",
            f"presets: {', '.join(attack.presets)}; paper takes {attack.cost} a behavior",
            f"source: {attack.source}",
        )


def _judges(args: Namespace) -> None:
    from mosa.judges import JUDGES

    del args
    for judge in JUDGES.values():
        tells = "; tells refusals of harmless requests" if judge.tells_refusals else ""
        _entry(
            judge.name,
            judge.summary,
            f"needs: {judge.needs}; success: {judge.threshold}{tells}",
            f"source: {judge.source}",
        )


def _entry(name: str, *texts: str) -> None:
    """A name, and beside it lines about it."""
    for i, text in enumerate(texts):
        show(f"{name if i == 0 else '':<24}{text}")


def _overlap_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("train", type=Path, help=f"training prompts: {FILES}")
    parser.add_argument("evaluation", type=str, help=f"a known set of behaviors, or {FILES}")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.7,
        help="share of words in common from which on two requests are near-duplicates",
    )
    parser.add_argument(
        "--data_dir", type=Path | None, help="where known benchmark files lie (unset: MOSA_DATA)"
    )


def _overlap(args: Namespace) -> None:
    from mosa.data import describe_overlap

    found = describe_overlap(
        args.train, args.evaluation, threshold=args.threshold, data_dir=args.data_dir
    )
    show(
        f"{len(found.train_indices)} of {found.num_train} training prompts have a near-duplicate "
        f"among the {found.num_eval} behaviors of {found.evaluation.name} (threshold "
        f"{found.threshold:g}, share of words in common)."
    )
    for pair in found.pairs:
        behavior = found.evaluation.items[pair.eval_index]
        show(f"row {pair.train_index + 1} ~ {behavior.id}: {pair.similarity:.2f}")


CAMPAIGN_COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "run attacks against models on a set of behaviors, and judge the responses",
        _evaluate_arguments,
        _evaluate,
        "All but the batch in flight is recorded; the same command goes on from there.",
        runs_on_several_processes=True,
    ),
    "judge": Command(
        "let a judge score the responses of a run, without generating again",
        _judge_arguments,
        _judge,
        "Verdicts so far are recorded; the same command goes on from there.",
    ),
    "judge calibrate": Command(
        "measure judges against labelled rows, and against each other",
        _calibrate_arguments,
        _calibrate,
        "Nothing is written before all judges are done.",
    ),
    "status": Command(
        "tell what of a run is done, left and failed", _run_argument, _status, "Nothing is written."
    ),
    "results": Command(
        "show the rates of a run, or export it",
        _results_arguments,
        _results,
        "The run is as it was.",
    ),
    "attacks": Command("list the attacks", _no_arguments, _attacks, "Nothing is written."),
    "judges": Command("list the judges", _no_arguments, _judges, "Nothing is written."),
    "data overlap": Command(
        "find training prompts that recur in a set of behaviors",
        _overlap_arguments,
        _overlap,
        "Nothing is written.",
    ),
}
