"""`mosa evaluate`: attacks, harmless requests and useful tasks on subjects, judged, in one run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel, chat_model, key_variables
from mosa.cli.judge import CHAT_HELP, JUDGES_HELP, chat_options, judge_config, judge_options
from mosa.cli.options import (
    FILES,
    MODEL_HELP,
    Command,
    FileOf,
    ListOf,
    add_fields,
    config_argument,
    given_fields,
    placement_arguments,
)
from mosa.cli.progress import ProgressBar
from mosa.cli.report import show_page
from mosa.cli.results import end_status, nothing_from, show_results
from mosa.denoising import DecoderConfig
from mosa.report.build import ReportConfig, build
from mosa.report.page import claim_page
from mosa.results.figures import CONTROL
from mosa.runs.evaluate import EvaluateConfig, evaluate
from mosa.runs.processes import join
from mosa.runs.sets import SetOptions
from mosa.runs.subject import Subject, subject_from, subjects_of
from mosa.terminal import show
from mosa.types import UserError
from mosa.worker import Tally

ROLES: dict[ChatRole, str] = {
    "attacker": "attacker",
    "judge": "loop_judge",
    "translator": "translator",
}
"""The roles of chat models in attacks, and the options that name them."""
EXIT_STOPPED = 4
"""The status of an evaluation that stopped where its tokens were spent."""
BATCH_SIZE = 8
"""Replies of a local chat model at once."""


def role_options(parser: ArgumentParser) -> None:
    """The chat models of attacks."""
    for role, of in (
        ("attacker", "writes for attacks that need a writer"),
        ("loop_judge", "rates tries inside attacks that need a judge"),
        ("translator", "translates for attacks that need translations"),
    ):
        parser.add_argument(f"--{role}", type=str, help=f"{CHAT_HELP}; it {of}")


def _arguments(parser: ArgumentParser) -> None:
    evaluation_arguments(
        parser,
        sets_help="harmful, harmless or useful case sets",
        preset="paper",
        preset_help="preset of the attacks; `mosa attacks` lists those of each",
    )
    parser.add_argument(
        "--attacks",
        type=ListOf(str),
        default="direct",
        help="comma-separated attacks on the harmful sets (`mosa attacks` lists them), or all; "
        "NAME:PRESET takes another preset for one",
    )
    parser.add_argument(
        "--attack_options",
        type=dict[str, dict[str, Any]],
        default={},
        help='settings that change an attack\'s preset: {"prefill": {"positions": [1, 30]}}',
    )
    role_options(parser)
    parser.add_argument(
        "--report",
        type=Path,
        help="also write the page of `mosa report` about the run",
    )


def evaluation_arguments(
    parser: ArgumentParser,
    *,
    sets_help: str,
    preset: str,
    preset_help: str,
    taken: Collection[str] = (),
) -> None:
    """What is measured, on which cases, by which judges, and where; the decoder's settings are
    options but for those that are `taken`."""
    config_argument(parser)
    parser.add_argument(
        "--model",
        type=str,
        help=f"{MODEL_HELP}, or URL#MODEL, a chat model served elsewhere (URL#MODEL@VARIABLE: with "
        "the key in that variable)",
    )
    parser.add_argument(
        "--adapter",
        type=str,
        nargs="+",
        default=["none"],
        help="folders of adapters, one subject each; `none` is the model without an adapter",
    )
    parser.add_argument(
        "--system_prompt", type=str, help="system prompt of the defender, before every turn"
    )
    parser.add_argument(
        "--subjects",
        type=FileOf(list[dict[str, Any]]),
        help="YAML file with a list of subjects, instead of --model: name, model, adapter, "
        "system_prompt, decoder, grants, offers, request, i_am_authorized",
    )
    parser.add_argument(
        "--i_am_authorized",
        action="store_true",
        help="say that the models served elsewhere are yours to attack, or that their owners have "
        "allowed it; without it none is asked",
    )
    parser.add_argument(
        "--max_tokens_total",
        type=int | None,
        help="stop once served models and chat models of attacks have taken so many tokens in this "
        "run, asked and answered; the same command with a larger number goes on",
    )
    parser.add_argument(
        "--sets",
        type=ListOf(str),
        required=True,
        help=f"comma-separated {sets_help} (`mosa sets` lists them), each a name or {FILES}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--preset", type=str, default=preset, help=preset_help)
    parser.add_argument(
        "--judges",
        type=ListOf(str),
        help=f"{JUDGES_HELP}; unset: truth on the testbed, refusal elsewhere",
    )
    judge_options(parser)
    add_fields(parser, SetOptions)
    parser.add_argument("--seeds", type=ListOf(int), default="0", help="comma-separated seeds")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="responses per forward pass in each process"
    )
    placement_arguments(parser)
    add_fields(parser, DecoderConfig, leave_out=("seed", *taken), group="decoder of the subjects")


def evaluation_config(
    args: Namespace,
    *,
    attacks: tuple[str, ...],
    attack_options: dict[str, dict[str, Any]],
    taken: Collection[str] = (),
    set_defaults: Mapping[str, Any] | None = None,
    decoder_defaults: Mapping[str, Any] | None = None,
) -> EvaluateConfig:
    """What the options of `evaluation_arguments` describe; defaults hold where none was given."""
    sets = {**(set_defaults or {}), **given_fields(SetOptions, args)}
    return EvaluateConfig(
        subjects=_subjects(args, taken, decoder_defaults or {}),
        sets=args.sets,
        attacks=attacks,
        preset=args.preset,
        attack_options=attack_options,
        judges=args.judges,
        seeds=args.seeds,
        options=SetOptions(**sets),
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
        max_tokens_total=args.max_tokens_total,
    )


def _subjects(
    args: Namespace, taken: Collection[str], defaults: Mapping[str, Any]
) -> tuple[Subject, ...]:
    """The subjects that the options describe, as `evaluation_arguments` has asked for them, with
    `defaults` for settings of the decoder that are not given."""
    decoder = given_fields(DecoderConfig, args, leave_out=taken)
    if args.subjects is None:
        if args.model is None:
            raise UserError("no subject is named; give --model, or --subjects FILE")
        settings = {**defaults, **decoder}
        found = subjects_of(
            args.model,
            args.adapter,
            decoder=settings,
            system_prompt=args.system_prompt,
            i_am_authorized=args.i_am_authorized,
        )
        return _checked(found, args)
    given = [name for name in ("model", "system_prompt") if args[name] is not None]
    given += ["adapter"] if args.adapter != ["none"] else []
    for name in (*given, *decoder):
        raise UserError(f"--{name} and --subjects exclude each other; put {name} into the file")
    said = {"i_am_authorized": True} if args.i_am_authorized else {}
    return _checked(
        [subject_from({**record, **said}, decoder=defaults) for record in args.subjects], args
    )


def _checked(subjects: Sequence[Subject], args: Namespace) -> tuple[Subject, ...]:
    """The subjects; UserError for an option that none of them uses."""
    if args.i_am_authorized and not any(subject.is_served for subject in subjects):
        raise UserError("--i_am_authorized is for models served elsewhere; leave it out")
    return tuple(subjects)


def _evaluate(args: Namespace) -> int | None:
    processes = join()
    if args.report is not None and processes.is_main:
        claim_page(args.report)  # before the work

    def settings() -> tuple[EvaluateConfig, dict[str, ChatModel]]:
        config = evaluation_config(args, attacks=args.attacks, attack_options=args.attack_options)
        return config, _chats(args, _served(config)) if processes.is_main else {}

    config, chats = processes.agree(settings)
    others, served = list(named_roles(args).values()), _served(config)
    judged: set[str] = set()
    stopped: list[str] = []
    with ProgressBar() as bar:

        def on_judged(judge: str, done: int, total: int) -> None:
            judged.add(judge)
            bar.judging(judge, done, total)

        run = evaluate(
            args.out,
            config,
            chats=chats,
            judge_config=judge_config(args, others, served),
            endpoint_options=judge_config(args, others, served).chat,
            on_progress=bar.evaluation,
            on_judged=on_judged,
            on_shared=_show_shares,
            on_stopped=stopped.append,
            processes=processes,
        )
    processes.disband()
    if run is None:
        return None
    subjects = {subject.name for subject in config.subjects}
    attacks = {CONTROL, *(name.partition(":")[0] for name in config.attacks)}
    with run:
        show_results(run)
        for message in stopped:
            show(f"{message[0].upper()}{message[1:]}.")
        status = end_status(
            nothing_from(
                run,
                judged,
                lambda cell: cell.subject in subjects and bool({"all", cell.attack} & attacks),
            )
        )
        has_verdicts = bool(run.judges())
    if args.report is not None and has_verdicts:
        show_page(args.report, build([args.out], ReportConfig()))
    return EXIT_STOPPED if stopped else status


def named_roles(args: Namespace) -> dict[ChatRole, str]:
    """The models that attacks ask, as they were written, by role."""
    return {role: args[option] for role, option in ROLES.items() if args[option] is not None}


def _served(config: EvaluateConfig) -> list[str]:
    return [subject.model for subject in config.subjects if subject.is_served]


def _chats(args: Namespace, served: Sequence[str]) -> dict[str, ChatModel]:
    judges = [args.judge_model or "", *(args.judges or ())]
    return {**role_chats(args, beside=judges, served=served, batch_size=BATCH_SIZE)}


def role_chats(
    args: Namespace,
    *,
    beside: Sequence[str] = (),
    served: Sequence[str] = (),
    batch_size: int,
) -> dict[ChatRole, ChatModel]:
    """The chat models by role, where named; one that plays several roles under one key is loaded
    once. Options for endpoints may be for those of `beside`, or for subjects that are `served`."""
    named = named_roles(args)
    if not named:
        return {}
    options = chat_options(args, [*named.values(), *beside], served)
    chats: dict[tuple[str, tuple[str, ...]], ChatModel] = {}
    by_role: dict[ChatRole, ChatModel] = {}
    for role, spec in named.items():
        key = spec, () if spec.startswith("local:") else key_variables(ROLES[role])
        if key not in chats:
            try:
                chats[key] = chat_model(
                    spec, options, role=ROLES[role], device=args.device, batch_size=batch_size
                )
            except UserError as error:
                raise UserError(f"--{ROLES[role]}: {error}") from error
        by_role[role] = chats[key]
    return by_role


def _show_shares(subject: str, shares: Sequence[Tally]) -> None:
    """How the work on a subject was split over processes, where it was."""
    if len(shares) > 1:
        responses = " + ".join(str(share.num_responses) for share in shares)
        show(f"{subject}, responses by process: {responses}")


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "attack models, ask them harmless requests and useful tasks, and judge the responses",
        _arguments,
        _evaluate,
        "All but the batch in flight is recorded; the same command resumes the run.",
        runs_on_several_processes=True,
    ),
}
