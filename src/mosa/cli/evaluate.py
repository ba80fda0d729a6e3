"""`mosa evaluate`: attacks, harmless requests and useful tasks on subjects, judged, in one run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from mosa.cli.judge import CHAT_HELP, chat_options, judge_config, judge_options
from mosa.cli.options import (
    FILES,
    MODEL_HELP,
    Command,
    add_fields,
    config_argument,
    entries,
    given_fields,
    integers,
    placement_arguments,
    show,
)
from mosa.cli.progress import ProgressBar
from mosa.cli.results import show_results
from mosa.types import UserError

if TYPE_CHECKING:
    from mosa.chat import ChatModel
    from mosa.runs.responder import Tally
    from mosa.runs.subject import Subject

ROLES = {"attacker": "attacker", "judge": "loop_judge", "translator": "translator"}
"""The roles of chat models in attacks, and the options that name them."""


def _arguments(parser: ArgumentParser) -> None:
    config_argument(parser)
    subject_arguments(parser)
    parser.add_argument(
        "--sets",
        type=str,
        required=True,
        help=f"case sets with commas (`mosa sets`): harmful, harmless or useful; or {FILES}",
    )
    parser.add_argument(
        "--attacks",
        type=str,
        default="direct",
        help="attacks on the harmful sets, with commas, or all; NAME:PRESET for another preset "
        "(see `mosa attacks`)",
    )
    parser.add_argument("--preset", type=str, default="paper", help="preset of attacks")
    parser.add_argument(
        "--attack_options",
        type=dict[str, dict[str, Any]],
        default={},
        help='settings over a preset, by attack: {"prefill": {"positions": [1, 30]}}',
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--judges",
        type=str | None,
        help="names with commas (`mosa judges`); NAME=BACKEND, NAME@canvas; unset: truth on the "
        "testbed, else refusal",
    )
    judge_options(parser)
    for role, of in (
        ("attacker", "writes for attacks that need a writer"),
        ("loop_judge", "rates tries inside attacks that need a judge"),
        ("translator", "translates for attacks that need it"),
    ):
        parser.add_argument(f"--{role}", type=str | None, help=f"{CHAT_HELP}; {of}")
    running_arguments(parser)


def subject_arguments(parser: ArgumentParser, *, taken: Collection[str] = ()) -> None:
    """What is measured, and how it decodes, without the decoder settings that are `taken`."""
    from mosa.denoising import DecoderConfig

    parser.add_argument("--model", type=str | None, help=MODEL_HELP)
    parser.add_argument(
        "--adapter",
        type=str,
        nargs="+",
        default=["none"],
        help="folders of adapters, one subject each; `none` is the model as it is",
    )
    parser.add_argument(
        "--system_prompt", type=str | None, help="what the defender puts before every prompt"
    )
    parser.add_argument(
        "--subjects",
        type=list[dict[str, Any]] | None,
        sub_configs=True,
        help="YAML file with a list of subjects in place of --model: name, model, adapter, "
        "system_prompt, decoder, grants, offers",
    )
    add_fields(parser, DecoderConfig, leave_out=("seed", *taken))


def running_arguments(parser: ArgumentParser) -> None:
    """How much is run, and where."""
    from mosa.runs.sets import SetOptions

    add_fields(parser, SetOptions)
    parser.add_argument("--seeds", type=str, default="0", help="seeds with commas")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="responses per forward pass, in each process"
    )
    placement_arguments(parser)


def subjects_from(args: Namespace, *, taken: Collection[str] = ()) -> tuple[Subject, ...]:
    """The subjects that the options describe, as `subject_arguments` has asked for them."""
    from mosa.denoising import DecoderConfig
    from mosa.runs.subject import subject_from, subjects_of

    decoder = given_fields(DecoderConfig, args, leave_out=tuple(taken))
    if args.subjects is None:
        if args.model is None:
            raise UserError("nothing is named to be measured; give --model, or --subjects FILE")
        return subjects_of(
            args.model, args.adapter, decoder=decoder, system_prompt=args.system_prompt
        )
    alone = [f"--{name}" for name in ("model", "system_prompt") if args[name] is not None]
    alone += ["--adapter"] if args.adapter != ["none"] else []
    alone += [f"--{name}" for name in decoder]
    if alone:
        raise UserError(f"{alone[0]} and --subjects exclude each other; put it into the file")
    return tuple(subject_from(record) for record in args.subjects)


def _evaluate(args: Namespace) -> int | None:
    from mosa.runs.evaluate import EvaluateConfig, evaluate
    from mosa.runs.processes import join
    from mosa.runs.sets import SetOptions

    processes = join()

    def settings() -> tuple[EvaluateConfig, dict[str, ChatModel]]:
        config = EvaluateConfig(
            subjects=subjects_from(args),
            sets=entries(args.sets),
            attacks=entries(args.attacks),
            preset=args.preset,
            attack_options=args.attack_options,
            judges=None if args.judges is None else entries(args.judges),
            seeds=integers("--seeds", args.seeds),
            options=SetOptions(**given_fields(SetOptions, args)),
            batch_size=args.batch_size,
            dtype=args.dtype,
            device=args.device,
        )
        return config, _chats(args) if processes.is_main else {}

    config, chats = processes.agree(settings)
    with ProgressBar() as bar:
        run = evaluate(
            args.out,
            config,
            chats=chats,
            judge_config=judge_config(args, _named(args)),
            on_progress=bar.evaluation,
            on_judged=bar.judging,
            on_shared=_show_shares,
            processes=processes,
        )
    processes.disband()
    if run is None:
        return None
    with run:
        show_results(run)
        counts = run.counts().values()
        if counts and not any(states["done"] for states in counts):
            show("No task was done, for the reasons above.")
            return EXIT_NOTHING_DONE
    return None


EXIT_NOTHING_DONE = 3
"""The status of an evaluation in which every task failed."""


def _named(args: Namespace) -> list[str]:
    """The models that attacks ask, as they were written."""
    return [args[option] for option in ROLES.values() if args[option] is not None]


def _chats(args: Namespace) -> dict[str, ChatModel]:
    """The chat models by role, where named; one that plays several roles is loaded once."""
    from mosa.chat import chat_model

    named = {role: args[option] for role, option in ROLES.items() if args[option] is not None}
    if not named:
        return {}
    options = chat_options(args, [*named.values(), args.judge_model or "", args.judges or ""])
    chats: dict[str, ChatModel] = {}
    for role, spec in named.items():
        if spec not in chats:
            try:
                chats[spec] = chat_model(spec, options, device=args.device)
            except UserError as error:
                raise UserError(f"--{ROLES[role]}: {error}") from error
    return {role: chats[spec] for role, spec in named.items()}


def _show_shares(subject: str, shares: Sequence[Tally]) -> None:
    """How the work on a subject was split over processes, where it was."""
    if len(shares) > 1:
        responses = " + ".join(str(share.num_responses) for share in shares)
        show(f"{subject}, responses by process: {responses}")


EVALUATE_COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "measure models: attacks, harmless requests and useful tasks, judged, in one run",
        _arguments,
        _evaluate,
        "All but the batch in flight is recorded; the same command goes on from there.",
        runs_on_several_processes=True,
    ),
}
