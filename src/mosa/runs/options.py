"""What a run is asked for, by the command line's names: from options to settings of the library.

    config = evaluation_config({"model": "testbed", "sets": ("testbed",), ...}, attacks=("direct",))

The command line and `mosa.evaluate` give options by the same names and share these rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel, ChatOptions, chat_model, check_endpoints, key_variables
from mosa.denoising import DecoderConfig
from mosa.runs.evaluate import EvaluateConfig
from mosa.runs.judging import (
    JudgeConfig,
    NamedJudge,
    build_judges,
    chats_of,
    check_apart,
    loop_judges,
)
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject, subject_from, subjects_of
from mosa.types import UserError, fields_in
from mosa.worker import run_coroutine
from mosa.world import World

Options = Mapping[str, Any]
"""Options by their names; those that are fields of settings may be left out."""

ROLES: dict[ChatRole, str] = {
    "attacker": "attacker",
    "judge": "loop_judge",
    "translator": "translator",
}
"""The roles of chat models in attacks, and the options that name them."""
BATCH_SIZE = 8
"""Replies of a local chat model at once."""


# --- chat models and judges -----------------------------------------------------------------------


def chat_options(options: Options, named: Sequence[str]) -> ChatOptions:
    """How endpoints are asked; UserError where that is set and none of the chat models `named` is
    one."""
    given = fields_in(ChatOptions, options)
    if given and not any("://" in spec for spec in named):
        raise UserError(
            f"--{next(iter(given))} is for chat endpoints, and none is named; leave it out or name "
            "one as URL#MODEL"
        )
    return ChatOptions(**given)


def judge_config(options: Options, others: Sequence[str] = ()) -> JudgeConfig:
    """How the options build judges; `others` are chat models that are named beside theirs."""
    named = [options["judge_model"] or "", *(options["judges"] or ()), *others]
    return JudgeConfig(
        model=options["judge_model"],
        templates=options["judge_templates"],
        device=options["device"],
        chat=chat_options(options, named),
    )


def named_roles(options: Options) -> dict[ChatRole, str]:
    """The models that attacks ask, as they were written, by role."""
    return {role: options[option] for role, option in ROLES.items() if options[option] is not None}


def role_chats(
    options: Options, *, beside: Sequence[str] = (), batch_size: int = BATCH_SIZE
) -> dict[ChatRole, ChatModel]:
    """The chat models by role, where named; one that plays several roles under one key is loaded
    once. Options for endpoints may be for those of `beside`."""
    named = named_roles(options)
    if not named:
        return {}
    asked = chat_options(options, [*named.values(), *beside])
    chats: dict[tuple[str, tuple[str, ...]], ChatModel] = {}
    by_role: dict[ChatRole, ChatModel] = {}
    for role, spec in named.items():
        key = spec, () if spec.startswith("local:") else key_variables(ROLES[role])
        if key not in chats:
            try:
                chats[key] = chat_model(
                    spec, asked, role=ROLES[role], device=options["device"], batch_size=batch_size
                )
            except UserError as error:
                raise UserError(f"--{ROLES[role]}: {error}") from error
        by_role[role] = chats[key]
    return by_role


def attack_chats(options: Options) -> dict[str, ChatModel]:
    """The chat models of attacks, by role, beside the judges' own."""
    judges = [options["judge_model"] or "", *(options["judges"] or ())]
    return {**role_chats(options, beside=judges)}


def judges_of_run(
    run: Run, names: Sequence[str], config: JudgeConfig, world: World | None
) -> list[NamedJudge]:
    """The judges of these names for a run that is there, those that have work asked whether they
    answer; UserError for one that steered its attacks."""
    phrases = tuple(text for subject in run.subjects().values() for text in subject.refusals)
    config = dataclasses.replace(config, refusal_phrases=phrases)
    judges = build_judges(names, config, world)
    check_apart(judges, loop_judges(run))
    waiting = [judge for judge in judges if run.num_unjudged(judge.id)]
    run_coroutine(check_endpoints(chats_of(waiting)))
    return judges


# --- what is measured -----------------------------------------------------------------------------


def evaluation_config(
    options: Options,
    *,
    attacks: tuple[str, ...],
    attack_options: dict[str, dict[str, Any]],
    taken: Collection[str] = (),
    set_defaults: Options | None = None,
    decoder_defaults: Options | None = None,
) -> EvaluateConfig:
    """The evaluation that options describe; defaults hold where none was given, and the settings
    of the decoder that are `taken` are no options."""
    sets = {**(set_defaults or {}), **fields_in(SetOptions, options)}
    return EvaluateConfig(
        subjects=_subjects(options, taken, decoder_defaults or {}),
        sets=options["sets"],
        attacks=attacks,
        preset=options["preset"],
        attack_options=attack_options,
        judges=options["judges"],
        seeds=options["seeds"],
        options=SetOptions(**sets),
        batch_size=options["batch_size"],
        dtype=options["dtype"],
        device=options["device"],
    )


def _subjects(options: Options, taken: Collection[str], defaults: Options) -> tuple[Subject, ...]:
    """The subjects that the options describe, with `defaults` for settings of the decoder that are
    not given."""
    decoder = fields_in(DecoderConfig, options, leave_out=("seed", *taken))
    adapters = list(options["adapter"])
    if options["subjects"] is None:
        if options["model"] is None:
            raise UserError("no subject is named; give --model, or --subjects FILE")
        return subjects_of(
            options["model"],
            adapters,
            decoder={**defaults, **decoder},
            system_prompt=options["system_prompt"],
        )
    given = [name for name in ("model", "system_prompt") if options[name] is not None]
    given += ["adapter"] if adapters != [NO_ADAPTER] else []
    for name in (*given, *decoder):
        raise UserError(f"--{name} and --subjects exclude each other; put {name} into the file")
    return tuple(
        record if isinstance(record, Subject) else subject_from(record, decoder=defaults)
        for record in options["subjects"]
    )
