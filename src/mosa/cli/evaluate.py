"""`mosa evaluate`: attacks, harmless requests and useful tasks on subjects, judged, in one run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mosa.api.pages import report
from mosa.api.runs import asked_for, nothing_from
from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel
from mosa.cli.judge import CHAT_HELP, CHATS, JUDGES, JUDGES_HELP, judge_options
from mosa.cli.options import (
    AUTHORIZED_HELP,
    FILES,
    MODEL_HELP,
    SERVED_HELP,
    Command,
    FileOf,
    ListOf,
    add_fields,
    config_argument,
    group_of,
    in_words,
    placement_arguments,
)
from mosa.cli.report import show_written
from mosa.cli.results import end_status, show_results
from mosa.cli.tables import Page
from mosa.denoising import PUBLISHED, DecoderConfig
from mosa.reporting.page import claim_page
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.options import (
    evaluation_config,
    judge_config,
    role_chats,
    served_by,
)
from mosa.runs.price import (
    ANSWER_TOKENS,
    PASSES,
    AskedRow,
    Price,
    most_asked,
    seconds_of_a_pass,
    spent_on_served,
    total,
)
from mosa.runs.processes import Processes, join
from mosa.runs.progress import ProgressBar
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.terminal import duration, show
from mosa.types import UserError
from mosa.worker import Tally

EXIT_STOPPED = 4
"""The status of an evaluation that stopped where its tokens were spent."""
MEASURED, ATTACKS, RUNNING = "what to measure", "attacks", "running"
DECODER, SERVED = "decoder of the subjects", "served models"
"""The groups of options, beside those of judges and chat models."""


def role_options(parser: ArgumentParser) -> None:
    """The chat models of attacks."""
    for role, of in (
        ("attacker", "writes for attacks"),
        ("loop_judge", "rates tries inside attacks"),
        ("translator", "translates for attacks"),
    ):
        told = f"chat model that {of}; {CHAT_HELP}"
        group_of(parser, CHATS).add_argument(f"--{role}", type=str, help=told)


def _arguments(parser: ArgumentParser) -> None:
    begin_groups(parser, ATTACKS)
    attacks, running = group_of(parser, ATTACKS), group_of(parser, RUNNING)
    attacks.add_argument(
        "--attacks",
        type=ListOf(str),
        default="direct",
        help="comma-separated attacks, or all; `mosa attacks` lists them, they take the harmful "
        "sets, and NAME:PRESET takes another preset for one",
    )
    role_options(parser)
    running.add_argument(
        "--dry_run",
        action="store_true",
        help="show what would be asked at most; by attack and in all, with the time of the forward "
        "passes of local models, which are loaded to measure one; nothing is written",
    )
    evaluation_arguments(
        parser,
        sets_help="harmful, harmless or useful",
        group=ATTACKS,
        preset="paper",
        preset_help="preset of the attacks; `mosa attacks` lists those of each",
    )
    attacks.add_argument(
        "--attack_options",
        type=dict[str, dict[str, Any]],
        default={},
        help='settings that change an attack\'s preset; {"prefill": {"positions": [1, 30]}}',
    )
    group_of(parser, SERVED).add_argument(
        "--price",
        type=ListOf(float),
        help="US dollars for a million tokens of served models, asked and answered, as IN,OUT; "
        "--dry-run and the end of a run then say what they come to",
    )
    running.add_argument(
        "--report",
        type=Path,
        help="also write the page of `mosa report` about the run",
    )


def begin_groups(parser: ArgumentParser, of_what_runs: str) -> None:
    """The groups of an evaluation's options, in the order in which the help has them."""
    for title in (MEASURED, of_what_runs, JUDGES, CHATS, DECODER, SERVED, RUNNING):
        group_of(parser, title)


def evaluation_arguments(
    parser: ArgumentParser,
    *,
    sets_help: str,
    group: str,
    preset: str,
    preset_help: str,
    taken: Collection[str] = (),
) -> None:
    """What is measured, on which cases, by which judges, and where; the decoder's settings are
    options but for those that are `taken`, and the preset is in the `group` of what runs."""
    measured, judges, decoder, served, running = (
        group_of(parser, title) for title in (MEASURED, JUDGES, DECODER, SERVED, RUNNING)
    )
    measured.add_argument(
        "--model",
        type=str,
        help=f"{MODEL_HELP}, and {SERVED_HELP}",
    )
    measured.add_argument(
        "--sets",
        type=ListOf(str),
        required=True,
        help=f"comma-separated sets of cases; each {sets_help}, a name (`mosa sets` lists them) or "
        f"{FILES}",
    )
    measured.add_argument("--out", type=Path, required=True, help="folder of the run")
    measured.add_argument(
        "--adapter",
        type=str,
        nargs="+",
        default=["none"],
        help="folders of adapters with commas, one subject each; `none` is the model without one",
    )
    add_fields(parser, SetOptions, group=MEASURED)
    measured.add_argument(
        "--system_prompt", type=str, help="system prompt of the defender, before every turn"
    )
    measured.add_argument(
        "--subjects",
        type=FileOf(list[dict[str, Any]]),
        help="YAML file with a list of subjects, instead of --model; each has name, model, "
        "adapter, system_prompt, decoder, grants, offers, request, tokenizer, i_am_authorized",
    )
    measured.add_argument("--seeds", type=ListOf(int), default="0", help="comma-separated seeds")
    group_of(parser, group).add_argument("--preset", type=str, default=preset, help=preset_help)
    judges.add_argument(
        "--judges",
        type=ListOf(str),
        help=f"{JUDGES_HELP}; unset: truth on the testbed, refusal elsewhere",
    )
    judge_options(parser)
    decoder.add_argument(
        "--decoder", type=str, help="published decoder to start from; " + ", ".join(PUBLISHED)
    )
    add_fields(parser, DecoderConfig, leave_out=("seed", *taken), group=DECODER)
    served.add_argument(
        "--i_am_authorized",
        action="store_true",
        help=AUTHORIZED_HELP,
    )
    served.add_argument(
        "--max_tokens_total",
        type=int | None,
        help="stop once this run has taken N tokens; those of served models and chat models "
        "of attacks, asked and answered, and the same command with a larger number goes on",
    )
    served.add_argument(
        "--tokenizer",
        type=str,
        help="folder or hub id of a served model's tokenizer; where its server takes canvases "
        "(vLLM's diffusion_seed_canvas), attacks on the canvas then run on it",
    )
    config_argument(parser, group=RUNNING)
    running.add_argument(
        "--batch_size", type=int, default=32, help="responses per forward pass in each process"
    )
    placement_arguments(parser, group=RUNNING)


def _evaluate(args: Namespace) -> int | None:
    processes = join()
    with claim_page(args.report if processes.is_main else None):  # before the work
        return _measure(args, processes)


def _measure(args: Namespace, processes: Processes) -> int | None:
    options = args.as_dict()

    def settings() -> tuple[EvaluateConfig, dict[ChatRole, ChatModel]]:
        config = evaluation_config(options)
        chats = role_chats(options, served_by(config)) if processes.is_main else {}
        return config, chats

    config, chats = processes.agree(settings)
    price = _price(args.price, config)
    if args.dry_run:
        if processes.is_main:
            _show_price(config, most_asked(config, chats), price)
        processes.disband()
        return None
    judging = judge_config(options, served_by(config))
    stopped: list[str] = []
    with ProgressBar() as bar:
        run = run_evaluation(
            args.out,
            config,
            chats=chats,
            judge_config=judging,
            endpoint_options=judging.chat,
            on_progress=bar.update,
            on_judged=bar.judging,
            on_shared=_show_shares,
            on_stopped=stopped.append,
            processes=processes,
        )
    processes.disband()
    if run is None:
        return None
    with run:
        show_results(run, Page())
        _show_spent(run, price)
        for message in stopped:
            show(f"{message[0].upper()}{message[1:]}.")
        status = end_status(
            nothing_from(run, bar.judged, asked_for(config.subjects, config.attacks))
        )
        has_verdicts = bool(run.judges())
    if args.report is not None and has_verdicts:
        show_written(report(args.out, args.report))
    return EXIT_STOPPED if stopped else status


def _price(given: Sequence[float] | None, config: EvaluateConfig) -> Price | None:
    """The price that `--price` states."""
    if given is None:
        return None
    if len(given) != 2:
        raise UserError(
            "--price takes two numbers, US dollars for a million tokens asked and answered, for "
            f"example 0.5,2; not {len(given)}"
        )
    if not any(subject.is_served for subject in config.subjects):
        raise UserError("--price is that of served models, and no subject is one; leave it out")
    return Price(*given)


def _show_spent(run: Run, price: Price | None) -> None:
    """What a run has spent on served models, over all of its sessions."""
    spent = spent_on_served(run)
    if not spent.target_queries:
        return
    counted = f"{spent.prompt_tokens:,} tokens asked and {spent.target_tokens:,} answered"
    told = counted if spent.prompt_tokens else "whose tokens the server does not count"
    if price is not None and spent.prompt_tokens:
        told += f", {price.of(spent.prompt_tokens, spent.target_tokens)} at --price"
    if spent.chat_tokens:
        told += f"; {spent.chat_tokens:,} tokens of attacks' chat models apart"
    show(f"Served models were asked for {spent.target_queries:,} responses: {told}.")


def _show_price(config: EvaluateConfig, rows: Sequence[AskedRow], price: Price | None) -> None:
    """What an evaluation asks at most, how long the forward passes of local models take, and what
    the answers of served models cost."""
    for row in rows:
        what = f"{row.subject}: {row.attack}:{row.preset} on {row.case_set}"
        if row.reason:
            show(f"{what}: not applicable: it {row.reason}")
        elif row.asked is None:
            show(f"{what}, {row.num_tasks} tasks: no bound is known")
        else:
            show(f"{what}, {row.num_tasks} tasks: {in_words(row.asked)}")
    show(
        f"In all at most {in_words(total(rows)) or 'nothing'}; judges, requests that a server is "
        "sent again, and what is on record already are not counted."
    )
    if price is not None:
        answered = total(rows)[ANSWER_TOKENS]
        show(
            f"The answers of served models cost at most {price.of(0, answered)}. What asking costs "
            f"is not known before the prompts are: {price.of(1_000_000, 0)} for a million tokens. "
            "Chat models are not counted."
        )
    for subject in config.subjects:
        if passes := total([row for row in rows if row.subject == subject.name])[PASSES]:
            seconds = seconds_of_a_pass(config, subject)
            show(
                f"{subject.name}: at most {duration(passes * seconds)}, at {1000 * seconds:.3g} ms "
                "for a pass of one response, measured on plain requests in batches of "
                f"{config.batch_size}."
            )


def _show_shares(subject: str, shares: Sequence[Tally]) -> None:
    """How the work on a subject was split over processes, where it was."""
    if len(shares) > 1:
        responses = " + ".join(str(share.num_responses) for share in shares)
        show(f"{subject}, responses by process: {responses}")


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "measure models under attack, on harmless and useful tasks",
        _arguments,
        _evaluate,
        "All but the batch in flight is recorded; the same command resumes the run.",
        example="mosa evaluate --model testbed --adapter none,runs/mosa --attacks direct,prefill "
        "--preset smoke --sets testbed,testbed:benign,testbed:tasks --limit 20 --out runs/a",
        runs_on_several_processes=True,
    ),
}
