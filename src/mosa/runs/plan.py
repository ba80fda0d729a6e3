"""The work of a run: attacks x cases x seeds of each subject, and what is not applicable."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mosa.attacks import ATTACKS, ENGLISH, Attack, Target, Wording
from mosa.attacks.base import Backend, ChatRole
from mosa.chat.base import ChatModel
from mosa.denoising.config import OF_NOISE
from mosa.inputs import did_you_mean
from mosa.probes import PROBES
from mosa.runs.records import NotApplicable, Task
from mosa.runs.store import FILE, Run
from mosa.runs.subject import Subject, plain_decoder, refusals_of
from mosa.served import SENT
from mosa.testbed.attacker import ScriptedAttacker
from mosa.testbed.behaviors import testbed_wording
from mosa.types import Attempt, Behavior, CaseSet, UserError, as_plain, content_key
from mosa.utility import DECODER
from mosa.world import World

PLAIN = "direct"
"""The plain request: the control on harmful sets, and how all other sets are asked."""
ROLES: dict[ChatRole, str] = {
    "attacker": "attacker",
    "judge": "loop_judge",
    "translator": "translator",
}
"""The roles of chat models in attacks, and the options that name them."""


@dataclass(frozen=True)
class ChosenAttack:
    """An attack with its settings."""

    attack: Attack
    preset: str
    """The preset's name, and the changes to it."""
    config: Any


@dataclass(frozen=True)
class Course:
    """A set with all that its tasks need."""

    cases: CaseSet
    attacks: tuple[ChosenAttack, ...]
    wording: Wording
    chats: Mapping[ChatRole, ChatModel]


@dataclass(frozen=True)
class Planned:
    """One task and what determines its attempts."""

    task: Task
    subject: Subject
    course: Course
    chosen: ChosenAttack
    case: Behavior
    identity: dict[str, Any]

    def target(self, backend: Backend) -> Target:
        """The subject as this task sees it."""
        attack = self.chosen.attack
        # A useful task may ask the same prompt several times, each with its own seed, and under a
        # decoder of its own.
        cases = self.course.cases
        own = ("seed", *cases.settings.get(DECODER, ())) if cases.kind == "useful" else ()
        return Target(
            backend,
            decoder=self.subject.decoder_for(attack, self.task.seed),
            wording=self.course.wording,
            identity=self.identity,
            subject=self.subject.name,
            case_set=self.course.cases.name,
            behavior=self.case,
            attack=attack.name,
            preset=self.task.preset,
            seed=self.task.seed,
            takes=(*attack.takes, *own),
            system_prompt=self.subject.system_prompt,
            refusals=self.identity.get("refusals", ()),
        )

    def attempts(self, target: Target) -> AsyncIterator[Attempt]:
        """What the attack, or the set's own way of asking, yields."""
        ask = self.course.cases.ask
        if self.chosen.attack.name == PLAIN and ask is not None:
            return ask(self.case, target)
        return self.chosen.attack.run(target, self.chosen.config)


def courses_of(
    sets: Sequence[CaseSet],
    attacks: Sequence[ChosenAttack],
    world: World | None,
    chats: Mapping[ChatRole, ChatModel],
) -> list[Course]:
    """Which attacks run on each set, and which chat models write for them.

    Harmful sets get all attacks. Harmless ones get the plain request and the probes; where only
    probes are named, only these. Useful tasks are asked in their own way. On the testbed a script
    plays the roles for which no chat model is given. Raises UserError where a chat model is
    missing, or given and not used.
    """
    scripted: dict[ChatRole, ChatModel] = {}
    if world is not None:
        scripted = dict.fromkeys(ROLES, ScriptedAttacker(world))
    plain = ChosenAttack(ATTACKS[PLAIN], "paper", ATTACKS[PLAIN].config("paper"))
    courses = []
    for cases in sets:
        is_testbed = cases.world_seed is not None
        if cases.kind == "harmful":
            chosen = tuple(attacks)
        else:
            probes = [c for c in attacks if c.attack.name in PROBES]
            chosen = (plain,)
            if probes and cases.kind == "harmless":
                chosen = tuple(probes) if len(probes) == len(attacks) else (plain, *probes)
        assert not is_testbed or world is not None, "checked when sets are loaded"
        wording = testbed_wording(world) if is_testbed and world is not None else ENGLISH
        own: Mapping[ChatRole, ChatModel] = {**scripted, **chats} if is_testbed else chats
        courses.append(Course(cases, chosen, wording, own))
    used = {role for course in courses for c in course.attacks for role in c.attack.roles}
    for role in chats.keys() - used:
        raise UserError(f"no attack uses --{ROLES[role]}; leave it out")
    for course in courses:
        for chosen in course.attacks:
            for role in chosen.attack.roles:
                if role not in course.chats:
                    raise UserError(
                        f"{chosen.attack.name} asks for a chat model as {role}; name one with "
                        f"--{ROLES[role]}, or leave the attack out"
                    )
    others = [c.attack.name for c in attacks if c.attack.name not in (PLAIN, *PROBES)]
    if others and not any(course.cases.kind == "harmful" for course in courses):
        raise UserError(
            f"{others[0]} is for harmful requests, and no set has any; add a harmful set, or leave "
            "the attack out"
        )
    return courses


def choose_attacks(
    names: Sequence[str], preset: str, options: Mapping[str, Mapping[str, Any]]
) -> list[ChosenAttack]:
    """The attacks of these names, each with its own preset after a colon if it is not
    `preset`; `all` are all attacks, and no probes. UserError for any that does not exist."""
    table = ATTACKS | PROBES
    wanted = [name for entry in names for name in (ATTACKS if entry == "all" else (entry,))]
    if not wanted:
        raise UserError(f"no attack is named; choose from {', '.join(ATTACKS)}, or all")
    chosen = []
    for entry in wanted:
        name, _, own = entry.partition(":")
        if name not in table:
            raise UserError(
                f"there is no attack {name}{did_you_mean(name, ATTACKS)}; choose from "
                f"{', '.join(ATTACKS)}, or all"
            )
        attack = table[name]
        changes = options.get(name, {})
        config = attack.config(own or preset, changes)
        label = own or preset
        if changes:  # what was changed is part of the name, so that results are not mixed
            plain = as_plain(config)
            label += f" ({', '.join(f'{key}={plain[key]}' for key in sorted(changes))})"
        chosen.append(ChosenAttack(attack, label, config))
    for name in options:
        if name not in {c.attack.name for c in chosen}:
            raise UserError(
                f"attack_options configure {name}, which is not among the attacks; add or remove it"
            )
    counts = Counter(f"{c.attack.name}:{c.preset}" for c in chosen)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"the attack {name} is named twice; leave one of them out")
    return chosen


def plan(
    subject: Subject,
    weights: str,
    courses: Sequence[Course],
    seeds: Sequence[int],
    *,
    block_length: int | None = None,
) -> tuple[list[Planned], list[NotApplicable]]:
    """Every task of a subject, and the attacks that are not applicable to it.

    `weights` is the content hash of what was loaded; `block_length` are the tokens of its blocks,
    where it fills block after block.
    """
    planned, left_out = [], []
    for course in courses:
        plain_cases = [as_plain(case) for case in course.cases.cases]
        for chosen in course.attacks:
            attack = chosen.attack
            reason = (
                subject.missing_for(attack)
                or _missing_in(course.cases, attack)
                or _missing_of(subject, course.cases)
                or _unseen_in_blocks(subject, attack, block_length)
            )
            if reason:
                pair = subject.name, course.cases.name, attack.name, chosen.preset
                left_out.append(NotApplicable(*pair, attack.threat, reason))
                continue
            shared = _identity(subject, weights, course, chosen)
            for seed in seeds:
                for case, plain in zip(course.cases.cases, plain_cases, strict=True):
                    identity = {**shared, "seed": seed, "case": plain}
                    task = Task(
                        key=content_key(**identity),
                        subject=subject.name,
                        case_set=course.cases.name,
                        case=case.id,
                        attack=attack.name,
                        preset=chosen.preset,
                        seed=seed,
                        threat=attack.threat,
                        config=shared["config"],
                    )
                    planned.append(Planned(task, subject, course, chosen, case, identity))
    return planned, left_out


def _unseen_in_blocks(subject: Subject, attack: Attack, block_length: int | None) -> str:
    if block_length is None or not attack.blind_in_blocks:
        return ""
    decoder = subject.full_decoder
    if decoder.renoise is not None and decoder.max_new_tokens <= block_length:  # one canvas
        return ""
    return attack.blind_in_blocks.format(subject=subject.name)


def _missing_in(cases: CaseSet, attack: Attack) -> str:
    if attack.needs_answer and any(case.answer is None for case in cases.cases):
        return f"shows the model a compliant answer, and {cases.name} has none"
    return ""


def _missing_of(subject: Subject, cases: CaseSet) -> str:
    """What a set needs, of a useful task, and a served model does not give."""
    is_noise = subject.full_decoder.renoise is not None
    own = cases.settings.get(DECODER, ())
    if is_noise and cases.needs_likelihoods:
        return f"asks how likely answers are, which {subject.name}, a model of noise, does not say"
    if is_noise and any(name not in OF_NOISE for name in own):
        return f"sets {', '.join(n for n in own if n not in OF_NOISE)}, which are about masks"
    if not subject.is_served:
        return ""
    if cases.needs_likelihoods:
        return f"asks how likely answers are, which the server of {subject.name} does not say"
    own = [name for name in own if name not in SENT]
    if own:
        return f"sets {', '.join(own)}, which are for the server of {subject.name} to set"
    return ""


def _identity(
    subject: Subject, weights: str, course: Course, chosen: ChosenAttack
) -> dict[str, Any]:
    """What decides the outcome of every case alike; held once, however many cases there are."""
    attack = chosen.attack
    refusals = {"refusals": refusals_of(subject.adapter)} if attack.reads_refusals else {}
    return {
        "subject": subject.name,
        "weights": weights,
        "system_prompt": subject.system_prompt,
        "decoder": plain_decoder(subject, subject.decoder_for(attack, 0)),
        "attack": attack.name,
        "version": attack.version,
        "preset": chosen.preset,
        "config": as_plain(chosen.config),
        "case_set": course.cases.name,
        "set_settings": dict(course.cases.settings),
        "wording": course.wording.name,
        "chat_models": {role: course.chats[role].name for role in attack.roles},
        **refusals,
    }


def check_unchanged(run: Run, planned: Sequence[Planned], subject: str) -> set[str]:
    """UserError where a preset meant other settings, or another chat model, earlier in this run.

    Unfinished tasks of that kind are deleted: the planned ones replace them. Returns the keys of
    the subject's tasks that are done.
    """
    keys = {p.task.place: p.task.key for p in planned}
    done: set[str] = set()
    for task, outcome in run.tasks(subject=subject):
        is_done = outcome is not None and outcome.status == "done"
        if is_done:
            done.add(task.key)
        if keys.get(task.place, task.key) == task.key:
            continue
        if is_done:
            raise UserError(
                f"{run.folder / FILE} holds {task.attack}:{task.preset} on {task.case_set} with "
                "other settings or another chat model (or of another version of mosa); name a new "
                "folder with --out, so that results are not mixed"
            )
        run.drop_task(task.key)
    return done
