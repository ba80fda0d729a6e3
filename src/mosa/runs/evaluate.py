"""Measure subjects: attacks, harmless requests and useful tasks, in one run.

    config = EvaluateConfig(subjects_of("testbed"), sets=("testbed", "testbed:benign"))
    run = run_evaluation(Path("runs/a"), config)

    plan       a subject's tasks are written down before the first runs
    generate   subject by subject, through a responder; recorded work is skipped
    judge      attempts that a judge has not scored; a new judge needs no new generation

The same call again resumes where it stopped, adds what is new, and retries what failed. If a
launcher starts several processes, all of them call it, and the others answer the main one's
queries.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel, ChatOptions, check_endpoints
from mosa.denoising import DecoderConfig, check_decoder
from mosa.families import DiffusionLM, load_model
from mosa.responder import LocalResponder, Responder
from mosa.runs.judging import (
    JudgeConfig,
    NamedJudge,
    build_judges,
    chats_of,
    check_apart,
    default_judges,
    help_judges,
    judge_run,
)
from mosa.runs.plan import (
    Course,
    Planned,
    check_unchanged,
    choose_attacks,
    courses_of,
    plan,
)
from mosa.runs.pool import Pool, serving
from mosa.runs.processes import ALONE, Processes
from mosa.runs.recorder import PlannedTask, Recorder, TokenMeter, TokensSpent
from mosa.runs.records import Outcome, SubjectRecord
from mosa.runs.sessions import session, session_record
from mosa.runs.sets import SetOptions, is_testbed_set, load_sets
from mosa.runs.store import FILE, Run
from mosa.runs.subject import (
    Subject,
    check_authorized,
    check_names,
    plain_decoder,
    refusals_of,
    training_of,
)
from mosa.served import ServedResponder
from mosa.terminal import duration
from mosa.testbed import find_world
from mosa.types import CaseSet, SetRecord, UserError, as_plain
from mosa.worker import Tally, run_coroutine
from mosa.world import World


@dataclass(frozen=True)
class EvaluateConfig:
    """The subjects, and what they are measured on."""

    subjects: tuple[Subject, ...]
    """The subjects to measure."""
    sets: tuple[str, ...]
    """Names of case sets: the testbed's, known benchmarks, files, useful tasks."""
    attacks: tuple[str, ...] = ("direct",)
    """Attacks on the harmful sets, each with its own preset after a colon if it is not
    `preset`; `all`: all."""
    preset: str = "paper"
    """The preset of attacks that name none."""
    attack_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings over a preset, by attack."""
    judges: tuple[str, ...] | None = None
    """Names of judges; null: the truth on the testbed, phrases of refusal elsewhere."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of decoder and attacks; one run of everything for each."""
    options: SetOptions = SetOptions()
    """How sets are read."""
    batch_size: int = 32
    """Responses per forward pass, in each process."""
    dtype: str = "auto"
    """Number format of the weights."""
    device: str | None = None
    """Where the models run; unset: a GPU if there is one."""
    max_tokens_total: int | None = None
    """Stops the run once served models and chat models of attacks have counted so many tokens,
    asked and answered, in all its sessions; unset: never."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise UserError(f"seeds {list(self.seeds)} must be different, and one at least")
        if any(abs(seed) >= 1 << 63 for seed in self.seeds):
            raise UserError(f"seeds {list(self.seeds)} must be below 2**63")
        if self.max_tokens_total is not None and self.max_tokens_total < 1:
            raise UserError(f"max_tokens_total must be at least 1, not {self.max_tokens_total}")
        check_names(self.subjects)
        check_authorized(self.subjects)


OnProgress = Callable[[str, int, int, str], object]
"""Hears the subject, how many tasks of all subjects are done or have failed, how many there are,
and in words this subject's responses so far and the time that it still takes."""


@dataclass(frozen=True)
class _Setup:
    """What all subjects of an evaluation share; other processes than the main one plan nothing."""

    config: EvaluateConfig
    processes: Processes
    models: Mapping[str, DiffusionLM]
    """Models that are loaded already, by the names of their subjects."""
    subjects: tuple[Subject, ...]
    """Each with its decoder."""
    sets: Sequence[CaseSet] = ()
    courses: Sequence[Course] = ()
    served: Mapping[str, ServedResponder] = field(default_factory=dict)
    """Subjects that are served elsewhere, by name."""
    meter: TokenMeter = field(default_factory=TokenMeter)
    tallies: dict[str, Tally] = field(default_factory=dict)
    """What has been asked of each subject, by name."""


def run_evaluation(
    out: Path,
    config: EvaluateConfig,
    *,
    chats: Mapping[ChatRole, ChatModel] | None = None,
    judge_config: JudgeConfig | None = None,
    models: Mapping[str, DiffusionLM] | None = None,
    endpoint_options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
    on_progress: OnProgress = lambda subject, done, total, left: None,
    on_judged: Callable[[str, int, int], object] = lambda judge, done, total: None,
    on_shared: Callable[[str, Sequence[Tally]], object] = lambda subject, tallies: None,
    on_stopped: Callable[[str], object] = lambda message: None,
    processes: Processes = ALONE,
    is_judged: bool = True,
) -> Run | None:
    """Plan, generate and judge into the run folder `out`; returns its records, open.

    `chats` are the chat models by role; on the testbed a script plays those that are not given.
    `models` are those that are loaded already, by the names of their subjects, and
    `endpoint_options` say how served subjects are asked: how long, how often, how many at once. Of
    several `processes` the others than the main one return None, and neither read nor write the
    run; `on_shared` receives what each process has done for a subject, and `on_stopped` why the
    run has stopped before its end, where its tokens are spent. Unless it `is_judged`, judging is
    left to a later `judge_run`, as where several evaluations record into one run. Raises UserError
    for anything that cannot be run as requested, before anything is generated.
    """
    chats = dict(chats or {})
    setup = _Setup(config, processes, models or {}, config.subjects)

    def begin() -> tuple[_Setup, Run, list[NamedJudge]] | None:
        if not processes.is_main:
            return None
        return _begin(out, setup, chats, judge_config or JudgeConfig(), endpoint_options)

    begun = processes.agree(begin)
    if begun is None:
        for subject in setup.subjects:
            _run_subject(setup, None, subject, _Board(on_progress, 0))
            if any(processes.gather(False)):
                break
        if is_judged:
            help_judges(config.device, processes)
        return None
    setup, run, judges = begun
    try:
        with session(run, _session(setup, chats), setup.tallies) as note:

            def heard(subject: str, done: int, total: int, left: str) -> None:
                note()
                on_progress(subject, done, total, left)

            board = _Board(heard, len(setup.subjects))
            for subject in setup.subjects:
                stopped = ""
                try:
                    on_shared(subject.name, _run_subject(setup, run, subject, board))
                except TokensSpent as error:
                    stopped = str(error)
                if any(processes.gather(bool(stopped))):
                    on_stopped(stopped)
                    break
        if is_judged:
            judge_run(run, judges, sets=setup.sets, on_progress=on_judged, processes=processes)
    except BaseException:
        run.close()
        raise
    return run


def world_of_subjects(config: EvaluateConfig) -> World | None:
    """The world that the subjects know; UserError where they know different ones."""
    worlds = {
        subject.model: None if subject.is_served else find_world(subject.model)
        for subject in config.subjects
    }
    seeds = {None if world is None else world.seed for world in worlds.values()}
    if len(seeds) > 1 and any(map(is_testbed_set, config.sets)):
        raise UserError(
            "the subjects do not share one invented world, so that the testbed's sets would ask "
            "some of them about things they never heard of; run them one after the other"
        )
    return next(iter(worlds.values()))


def _begin(
    out: Path,
    setup: _Setup,
    chats: Mapping[ChatRole, ChatModel],
    judge_config: JudgeConfig,
    endpoint_options: ChatOptions,
) -> tuple[_Setup, Run, list[NamedJudge]]:
    """Check everything that can be checked without weights, and open the run."""
    config = setup.config
    world = world_of_subjects(config)
    sets = load_sets(config.sets, world, config.options)
    attacks = choose_attacks(config.attacks, config.preset, config.attack_options)
    courses = courses_of(sets, attacks, world, chats)
    phrases = [text for subject in config.subjects for text in refusals_of(subject.adapter)]
    judge_config = replace(judge_config, refusal_phrases=tuple(phrases))
    judges = judges_for(sets, config.judges, judge_config, world)
    check_apart(judges, {chats["judge"].name} if "judge" in chats else set())
    served = {
        subject.name: ServedResponder(
            subject.model, _options_of(subject, endpoint_options), tokenizer=subject.tokenizer
        )
        for subject in config.subjects
        if subject.is_served
    }
    run = Run(out, create=True)
    try:
        recorded = run.subjects()
        subjects = tuple(_with_decoder(subject, recorded) for subject in config.subjects)
        known = run.sets()
        for cases in sets:
            _check_set(run, cases, known.get(cases.name))
        _check_draw(run, config)
        for cases in sets:
            run.add_set(cases)
        run.checkpoint()
        # Before the weights, which may take long; a run that is done asks nobody.
        states = run.counts().values()
        if not states or any(of_cell["failed"] or of_cell["todo"] for of_cell in states):
            asked = [*chats.values(), *chats_of(judges)]
        else:
            asked = chats_of([judge for judge in judges if _has_unjudged(run, judge)])
        waiting: dict[str, tuple[ServedResponder, DecoderConfig]] = {}
        for subject in subjects:
            if subject.name in served:
                responder = served[subject.name]
                planned, _ = plan(subject, responder.identity, courses, config.seeds)
                if not all(run.is_done(each.task.key) for each in planned):
                    waiting[subject.name] = responder, subject.full_decoder
                elif subject.name in recorded:
                    responder.told = recorded[subject.name].server or {}
        run_coroutine(_greet(asked, list(waiting.values())))
        meter = TokenMeter(config.max_tokens_total)
        if meter.most is not None:
            for name, (responder, _) in waiting.items():
                if not responder.counts_tokens:
                    raise UserError(
                        f"the server of {name} does not say how many tokens it takes (`usage`), so "
                        "that max_tokens_total cannot be kept; leave it out, and set --limit"
                    )
            meter.num_tokens = run.num_tokens()
    except BaseException:
        run.close()
        raise
    whole = replace(
        setup, subjects=subjects, sets=sets, courses=courses, served=served, meter=meter
    )
    return whole, run, judges


def _options_of(subject: Subject, options: ChatOptions) -> ChatOptions:
    """How a served subject is asked: of what changes replies, only its own."""
    own = subject.request
    return replace(
        options, enable_thinking=None, thought_tokens=0, chat_extra=own, reply_cache=None
    )


async def _greet(
    asked: Sequence[ChatModel], waiting: Sequence[tuple[ServedResponder, DecoderConfig]]
) -> None:
    """Ask chat models whether they answer, and served subjects under their decoders."""
    await check_endpoints(asked, [responder.endpoint for responder, _ in waiting])
    await asyncio.gather(*(responder.greet(decoder) for responder, decoder in waiting))


def _has_unjudged(run: Run, judge: NamedJudge) -> bool:
    return any(
        judge.reads(record) and run.num_unjudged(judge.id, name)
        for name, record in run.sets().items()
    )


def judges_for(
    sets: Sequence[CaseSet],
    names: Sequence[str] | None,
    config: JudgeConfig,
    world: World | None,
) -> list[NamedJudge]:
    """The judges of these names, and the default one for each set that none of them reads."""
    if names is not None and not names:
        raise UserError("no judge is named; `mosa judges` lists them")
    judges = build_judges(default_judges(sets) if names is None else names, config, world)
    unread = [
        cases
        for cases in sets
        if cases.kind != "useful" and not any(judge.reads(cases) for judge in judges)
    ]
    return judges + build_judges(
        default_judges(unread), JudgeConfig(refusal_phrases=config.refusal_phrases), world
    )


def _with_decoder(subject: Subject, recorded: Mapping[str, SubjectRecord]) -> Subject:
    """The subject with its decoder: the given one, else the recorded one, else the default."""
    decoder = subject.full_decoder
    if subject.decoder is None and subject.name in recorded:
        decoder = DecoderConfig.from_dict(recorded[subject.name].decoder)
    return replace(subject, decoder=decoder)


def _check_set(run: Run, cases: CaseSet, known: SetRecord | None) -> None:
    """UserError where the run holds another set under this name."""
    if known is None:
        return
    place = run.folder / FILE
    for name in ("kind", "content_hash", "world_seed", "settings"):
        before, now = getattr(known, name), getattr(cases, name)
        if before != (dict(now) if name == "settings" else now):
            raise UserError(
                f"{place} holds another set {cases.name} ({name} {before}, not {now}); name a new "
                "folder with --out, or rename the file"
            )
    recorded = run.cases(cases.name)
    for case in cases.cases:
        if recorded.get(case.id, case) != case:
            raise UserError(
                f"case {case.id} of {cases.name} differs from that in {place}; name a new folder "
                "with --out"
            )


def _check_draw(run: Run, config: EvaluateConfig) -> None:
    """UserError where some of a set's cases are asked for and the run has others of it: its attacks
    would face different cases. A larger sample of the same seed has those of a smaller one."""
    draw = config.options.limit, config.options.sample_seed
    for past in run.sessions():
        before = past["settings"].get("options") or {}
        shared = sorted(set(past["settings"].get("sets") or ()) & set(config.sets))
        earlier = before.get("limit"), before.get("sample_seed")
        if shared and None not in (draw[0], earlier[0]) and earlier[1] != draw[1]:
            raise UserError(
                f"{run.folder / FILE} holds cases of {shared[0]} drawn with sample_seed "
                f"{earlier[1]}, not {draw[1]}; give the same, or name a new folder with --out"
            )


def _session(setup: _Setup, chats: Mapping[ChatRole, ChatModel]) -> dict[str, Any]:
    return session_record(as_plain(setup.config), device=setup.config.device) | {
        "chat_models": {
            role: {"name": chat.name, "place": chat.place} for role, chat in chats.items()
        },
        "processes": setup.processes.count,
    }


# --- one subject ----------------------------------------------------------------------------------


def _run_subject(setup: _Setup, run: Run | None, subject: Subject, board: _Board) -> list[Tally]:
    """Load a subject, plan its tasks and run those not done; returns what each process did."""
    if subject.is_served:
        return _ask_server(setup, run, subject, board)
    model, weights = _load(setup, subject)
    local = LocalResponder(model, weights, batch_size=setup.config.batch_size)
    try:
        facts = {
            "special_tokens": sorted(model.special_tokens),
            "approximations": list(subject.full_decoder.approximations(model.attention)),
            "block_length": model.attention.block_length,
        }
        todo = setup.processes.agree(
            lambda: [] if run is None else _plan(setup, run, subject, weights, facts, board)
        )
        with serving(local, setup.processes) as responder:
            if responder is not None:
                assert run is not None and isinstance(responder, Responder)
                run_coroutine(_run_tasks(run, todo, responder, setup.meter, board))
        shared = responder.tallies if isinstance(responder, Pool) else [local.tally]
        setup.tallies[subject.name] = sum(shared, Tally())
        return shared
    finally:
        local.close()
        del model, local
        free_memory()


def _ask_server(setup: _Setup, run: Run | None, subject: Subject, board: _Board) -> list[Tally]:
    """Plan a served subject's tasks and run those not done, in the main process alone."""
    if run is None:
        setup.processes.agree(lambda: None)
        return []
    responder = setup.served[subject.name]
    facts = {"server": responder.told, "request": subject.request, "special_tokens": []}
    todo = setup.processes.agree(
        lambda: _plan(setup, run, subject, responder.identity, facts, board)
    )
    try:
        run_coroutine(_run_tasks(run, todo, responder, setup.meter, board))
    finally:
        setup.tallies[subject.name] = responder.tally
    return [responder.tally]


def _load(setup: _Setup, subject: Subject) -> tuple[DiffusionLM, str]:
    """A model and its content hash; UserError where processes have loaded different ones."""

    def load() -> tuple[DiffusionLM, str]:
        config = setup.config
        model = setup.models.get(subject.name) or load_model(
            subject.model, adapter=subject.adapter, dtype=config.dtype, device=config.device
        )
        check_decoder(subject.full_decoder, model)
        return model, model.content_hash()

    model, weights = setup.processes.agree(load)
    first, *others = setup.processes.gather(weights)

    def check() -> None:
        if any(weights != first for weights in others):
            raise UserError(
                f"the processes have loaded different weights as {subject.name}; give every "
                "machine the same files"
            )

    setup.processes.agree(check)
    return model, weights


def _plan(
    setup: _Setup,
    run: Run,
    subject: Subject,
    weights: str,
    facts: Mapping[str, Any],
    board: _Board,
) -> list[Planned]:
    """Write a subject's tasks down; returns those that are not done. `facts` are the fields of its
    record that are known once it is loaded or has answered."""
    record = SubjectRecord(
        name=subject.name,
        source=subject.source,
        adapter=subject.adapter,
        weights=weights,
        system_prompt=subject.system_prompt,
        decoder=plain_decoder(subject, subject.full_decoder),
        grants=list(subject.access),
        offers=list(subject.offers),
        training=training_of(subject.adapter),
        refusals=refusals_of(subject.adapter),
        **facts,
    )
    _check_subject(run, record)
    run.add_subject(record)
    planned, left_out = plan(
        subject,
        weights,
        setup.courses,
        setup.config.seeds,
        block_length=facts.get("block_length"),
    )
    done = check_unchanged(run, planned, subject.name)
    run.add_tasks(each.task for each in planned)
    for pair in left_out:
        run.add_not_applicable(pair)
    run.checkpoint()
    todo = [each for each in planned if each.task.key not in done]
    board.begin(subject.name, planned, todo)
    return todo


def _check_subject(run: Run, record: SubjectRecord) -> None:
    """UserError where the run has another subject under this name."""
    known = run.subjects().get(record.name)
    if known is None:
        return
    place = run.folder / FILE
    if known.server is not None and record.server is not None:
        _check_server(known, record, place)
    if known.weights != record.weights:
        raise UserError(
            f"{record.name} has other weights than in {place} (trained again?); name a new folder "
            "with --out, so that results are not mixed"
        )
    changed = [
        f"{name} {known.decoder.get(name)} and not {value}"
        for name, value in record.decoder.items()
        if known.decoder.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{record.name} is decoded with {', '.join(changed)} in {place}; leave these settings "
            "out, give the subject another name, or name a new folder with --out"
        )
    for name in ("system_prompt", "grants", "offers"):
        if getattr(known, name) != getattr(record, name):
            raise UserError(
                f"{record.name} has another {name} in {place}; give the subject another name, or "
                "name a new folder with --out"
            )


def _check_server(known: SubjectRecord, record: SubjectRecord, place: Path) -> None:
    """UserError where a subject is now served from elsewhere, or by another server, as far as it
    tells: what it did not tell once is not known to differ."""
    assert known.server is not None and record.server is not None, "it is served"
    before = {"address and name": known.source, "request": known.request, **known.server}
    now = {"address and name": record.source, "request": record.request, **record.server}
    changed = [
        f"{name} is {now[name]} and was {before[name]}"
        for name in before
        if name in now and name != "system_fingerprint" and now[name] != before[name]
    ]
    if changed:
        raise UserError(
            f"the server of {record.name} is not the one in {place} ({', '.join(changed)}); name a "
            "new folder with --out, so that results are not mixed"
        )


async def _run_tasks(
    run: Run, todo: Sequence[Planned], responder: Responder, meter: TokenMeter, board: _Board
) -> None:
    """Run a subject's tasks, all sets in one batch."""

    def show() -> None:
        board.show(responder.tally.num_responses)

    recorder = Recorder(run, responder, meter=meter, on_change=show)
    await recorder.run_all(
        [
            PlannedTask(
                each.task.key,
                each.target,
                each.attempts,
                each.course.chats,
                functools.partial(board.end, each),
            )
            for each in todo
        ]
    )
    show()


def free_memory() -> None:
    """Free a model's memory before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Board:
    """Progress over the subjects, and the time left for the current one, by how long tasks take for
    their attacks' forward passes, or queries of a served subject."""

    def __init__(self, on_progress: OnProgress, num_subjects: int) -> None:
        self.on_progress, self.num_subjects = on_progress, num_subjects
        self.num_begun = self.num_before = self.num_planned = 0

    def begin(self, subject: str, planned: Sequence[Planned], todo: Sequence[Planned]) -> None:
        """The tasks of the next subject."""
        self.subject = subject
        self.num_before += self.num_planned
        self.num_planned = len(planned)
        self.num_begun += 1
        self.left = Counter(each.task.attack for each in todo)
        self.passes: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.begun = time.monotonic()

    def end(self, each: Planned, outcome: Outcome | None) -> None:
        """One of them has ended."""
        attack = each.task.attack
        self.left[attack] -= 1
        if outcome is not None:
            budget = outcome.budget  # a server does not say how many passes it made
            self.passes[attack] += budget.forward_passes or budget.target_queries
            self.ended[attack] += 1

    def show(self, num_responses: int) -> None:
        """Report the progress."""
        num_done = self.num_before + self.num_planned - self.left.total()
        # Later subjects are assumed to be as large as this one.
        num_tasks = self.num_before + self.num_planned * (1 + self.num_subjects - self.num_begun)
        left = f"{num_responses} responses, {self._time_left()}"
        self.on_progress(self.subject, num_done, num_tasks, left)

    def _time_left(self) -> str:
        """At the pace so far; attacks of which no task has ended have none."""
        if not self.passes.total():
            return "time left not known yet"
        known = {attack: count for attack, count in self.left.items() if self.ended[attack]}
        passes = sum(count * self.passes[of] / self.ended[of] for of, count in known.items())
        seconds = (time.monotonic() - self.begun) * passes / self.passes.total()
        is_all = sum(known.values()) == self.left.total()
        return f"{'about' if is_all else 'at least'} {duration(seconds)} left"
