"""What a run is asked for, by the command line's names: from options to settings of the library.

    config = evaluation_config({"model": "testbed", "sets": ("testbed",), ...})

The command line and `mosa.evaluate` give options by the same names and share these rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel, ChatOptions, chat_model, check_endpoints, key_variables
from mosa.denoising import DecoderConfig
from mosa.denoising.published import over_published
from mosa.probes import PROBES, PROTOCOLS, probe_named
from mosa.runs.evaluate import EvaluateConfig
from mosa.runs.judging import (
    JudgeConfig,
    NamedJudge,
    build_judges,
    chats_of,
    check_apart,
    loop_judges,
)
from mosa.runs.plan import ROLES
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject, default_decoder, subject_from, subjects_of
from mosa.types import UserError, fields_in
from mosa.worker import run_coroutine
from mosa.world import World

Options = Mapping[str, Any]
"""Options by their names; those that are fields of settings may be left out."""

OF_REPLIES = ("enable_thinking", "thought_tokens", "chat_extra", "reply_cache")
"""The options of endpoints that are for chat models alone, and not for a subject."""
BATCH_SIZE = 8
"""Replies of a local chat model at once."""


# --- chat models and judges -----------------------------------------------------------------------


def chat_options(options: Options, served: Sequence[str] = ()) -> ChatOptions:
    """How endpoints are asked; UserError where that is set and none of the chat models named in
    the options is one, nor of the `served` subjects, which have their own fields of requests."""
    named = [*_named_roles(options).values(), *(options.get("judges") or ())]
    named.append(options.get("judge_model") or "")
    given = fields_in(ChatOptions, options)
    for name in given:
        meant = named if name in OF_REPLIES else (*named, *served)
        if not any("://" in spec for spec in meant):
            own = " (a served subject has `request` for it)" if served else ""
            raise UserError(
                f"--{name} is for chat endpoints, and none is named{own}; leave it out or name one "
                "as URL#MODEL"
            )
    return ChatOptions(**given)


def judge_config(options: Options, served: Sequence[str] = ()) -> JudgeConfig:
    """How the options build judges; those for endpoints may be for subjects that are `served`."""
    return JudgeConfig(
        model=options["judge_model"],
        templates=options["judge_templates"],
        device=options["device"],
        chat=chat_options(options, served),
    )


def served_by(config: EvaluateConfig) -> list[str]:
    """The addresses of the subjects that are served elsewhere."""
    return [subject.model for subject in config.subjects if subject.is_served]


def _named_roles(options: Options) -> dict[ChatRole, str]:
    """The models that attacks ask, as they were written, by role."""
    return {
        role: options[option] for role, option in ROLES.items() if options.get(option) is not None
    }


def role_chats(
    options: Options, served: Sequence[str] = (), *, batch_size: int = BATCH_SIZE
) -> dict[ChatRole, ChatModel]:
    """The chat models of attacks by role, where named; one that plays several roles under one key
    is loaded once. Options for endpoints may be for subjects that are `served`."""
    named = _named_roles(options)
    if not named:
        return {}
    asked = chat_options(options, served)
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


def probe_config(name: str, options: Options, settings: Options) -> EvaluateConfig:
    """The evaluation by one probe with its own `settings`: on what its preset is meant to be run,
    and over that the options; UserError for a probe or a preset that is none."""
    probe_named(name).config(options["preset"], settings)  # before its protocol is looked up
    meant = PROTOCOLS[name][options["preset"]]
    length = meant.max_new_tokens
    return evaluation_config(
        {
            "limit": meant.num_cases,
            "sample_seed": meant.sample_seed,
            **options,
            "attacks": (name,),
            "attack_options": {name: dict(settings)} if settings else {},
        },
        taken=taken_by(name),
        decoder_defaults={} if length is None else {"max_new_tokens": length},
    )


def taken_by(probe: str) -> set[str]:
    """The decoder settings that a probe sets, so that they are options of the probe or none; the
    length of a response is the subject's."""
    fields = {field.name for field in dataclasses.fields(PROBES[probe].config_class)}
    return fields | {*PROBES[probe].takes} - {"max_new_tokens"}


def evaluation_config(
    options: Options,
    *,
    taken: Collection[str] = (),
    decoder_defaults: Options | None = None,
) -> EvaluateConfig:
    """The evaluation that options describe; the settings of the decoder that are `taken` are no
    options, and of the others the defaults hold where none were given."""
    return EvaluateConfig(
        subjects=_subjects(options, taken, decoder_defaults or {}),
        options=SetOptions(**fields_in(SetOptions, options)),
        **fields_in(EvaluateConfig, options, leave_out=("subjects", "options")),
    )


def _subjects(options: Options, taken: Collection[str], defaults: Options) -> tuple[Subject, ...]:
    """The subjects that the options describe, with `defaults` for settings of the decoder that are
    not given; UserError for an option that none of them uses."""
    decoder = fields_in(DecoderConfig, options, leave_out=("seed", *taken))
    adapters = list(options["adapter"])
    if options["subjects"] is not None:
        names = ("model", "system_prompt", "tokenizer", "decoder")
        given = [name for name in names if options[name] is not None]
        given += ["adapter"] if adapters != [NO_ADAPTER] else []
        for name in (*given, *decoder):
            raise UserError(f"--{name} and --subjects exclude each other; put {name} into the file")
        said = {"i_am_authorized": True} if options["i_am_authorized"] else {}
        found = tuple(
            record
            if isinstance(record, Subject)
            else subject_from({**record, **said}, decoder=defaults)
            for record in options["subjects"]
        )
    elif options["model"] is None:
        raise UserError("no subject is named; give --model, or --subjects FILE")
    else:
        length = default_decoder(options["model"]).max_new_tokens
        found = subjects_of(
            options["model"],
            adapters,
            decoder=over_published(options["decoder"], {**defaults, **decoder}, length),
            system_prompt=options["system_prompt"],
            tokenizer=options["tokenizer"],
            i_am_authorized=options["i_am_authorized"],
        )
    if options["i_am_authorized"] and not any(subject.is_served for subject in found):
        raise UserError("--i_am_authorized is for models served elsewhere; leave it out")
    return found
