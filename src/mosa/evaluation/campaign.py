"""A campaign: models x attacks x behaviors x seeds, run into one folder, judged apart.

    plan       a model's tasks are written down before the first runs, so that a status knows them
    generate   model by model, through the engine; what is recorded already is not done again
    judge      attempts that a judge has not scored; a new judge needs no new generation

The same command again goes on where it stopped, adds what is new, and tries again what failed. If a
launcher starts several processes, each takes a share of the tasks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mosa.attacks import ATTACKS, ENGLISH, Attack, Target, Wording
from mosa.chat.base import ChatModel
from mosa.data import BehaviorSet, load_behaviors
from mosa.denoising import DecoderConfig
from mosa.evaluation.defaults import default_decoder
from mosa.evaluation.engine import Engine, Job, LocalResponder, Tally
from mosa.evaluation.processes import Processes, base_file, merge_parts, part_folder, shares
from mosa.evaluation.runs import (
    check_decoder,
    check_weights,
    decoder_beside,
    plain_decoder,
    session,
    session_record,
)
from mosa.evaluation.store import Store, Task
from mosa.families import DiffusionLM, load_model
from mosa.testbed import world_of
from mosa.testbed.attacker import ScriptedAttacker
from mosa.testbed.behaviors import TESTBED_SETS, names_testbed, testbed_wording
from mosa.types import Attempt, Behavior, UserError, as_plain, content_key
from mosa.world import World

NO_ADAPTER = "none"
ALONE = Processes()


@dataclass(frozen=True)
class CampaignConfig:
    """What is run against what, and how it is decoded."""

    model: str
    """The model under attack."""
    behaviors: str
    """A known set, a file, or a set of the testbed's (`testbed`, `testbed:benign`, ...)."""
    adapters: tuple[str, ...] = (NO_ADAPTER,)
    """Adapter folders, one model each; `none` is the model as it is."""
    attacks: tuple[str, ...] = ("direct",)
    """Attacks, each with a preset of its own after a colon if it is not `preset`; `all`: all."""
    preset: str = "paper"
    """The preset of attacks that name none."""
    attack_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings over a preset, by attack."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of decoder and attacks; one run of everything for each."""
    limit: int | None = None
    """Only the first so many behaviors."""
    is_benign: bool = False
    """Whether the requests of a file of the user's own are harmless; known sets say so themselves.
    """
    data_dir: Path | None = None
    """Where known benchmark files lie; unset: MOSA_DATA, else ./data."""
    batch_size: int = 32
    """Responses per forward pass."""
    dtype: str = "auto"
    """Number format of the weights."""
    device: str | None = None
    """Where the model runs; unset: a GPU if there is one."""


@dataclass(frozen=True)
class Progress:
    """How far a campaign has come."""

    model: str
    num_done: int
    """Tasks of all models that are done or have failed; of those that several processes are running
    now, as many as this one's part of its share makes likely."""
    num_tasks: int
    tally: Tally
    seconds_left: float
    """For this model, at the pace of each attack so far."""
    is_at_least: bool
    """Whether attacks without a pace yet are left, which `seconds_left` leaves out."""


@dataclass(frozen=True)
class Share:
    """What one of several processes has done for one model."""

    num_tasks: int
    tally: Tally


@dataclass(frozen=True)
class _Setup:
    """What all models of a campaign share."""

    config: CampaignConfig
    behaviors: BehaviorSet
    world: World | None
    wording: Wording
    decoder: DecoderConfig
    chats: Mapping[str, ChatModel]
    attacks: Sequence[tuple[Attack, str, Any]]
    """Each with the name of its settings (a preset, and what was changed) and the settings."""
    beside: Path
    """The folder whose runs have the same decoder, and the same models by their names."""


@dataclass(frozen=True)
class _Plan:
    """One task and all that determines its attempts."""

    setup: _Setup
    attack: Attack
    config: Any
    behavior: Behavior
    task: Task
    identity: dict[str, Any]

    def target(self, backend: Any) -> Target:
        """The model as this task sees it."""
        return Target(
            backend,
            decoder=dataclasses.replace(self.setup.decoder, seed=self.task.seed),
            wording=self.setup.wording,
            identity=self.identity,
            model_name=self.task.model,
            behavior=self.behavior,
            attack=self.attack.name,
            preset=self.task.preset,
            seed=self.task.seed,
        )


def run_campaign(
    out: Path,
    config: CampaignConfig,
    decoder: DecoderConfig | None = None,
    *,
    chats: Mapping[str, ChatModel] | None = None,
    beside: Path | None = None,
    on_progress: Callable[[Progress], object] = lambda progress: None,
    on_shared: Callable[[str, Sequence[Share]], object] = lambda model, shares: None,
    processes: Processes = ALONE,
) -> Store:
    """Plan and generate into the run folder `out`; returns its records, open.

    `decoder` unset is that of the runs in and below `beside` (unset: `out`), else
    `default_decoder`. `chats` are the chat models by role; on the testbed its scripted attacker
    plays those that are not given. Of several `processes` the main one calls this and each other
    one `help_campaign`; `on_shared` then gets what each has done for a model. Raises UserError for
    whatever cannot be run as it is asked for, before anything is generated.
    """

    def begin() -> tuple[_Setup, Store]:
        setup = _setup(config, decoder, chats or {}, beside or out)
        check_decoder(setup.beside, setup.decoder)
        store = Store(out, create=True)
        try:
            merge_parts(store)
            _check_same_run(store, setup)
            _note_run(store, setup)
        except BaseException:
            store.close()
            raise
        return setup, store

    setup, store = processes.agree(begin)
    try:
        tallies: dict[str, Tally] = {}
        with session(store, _session(setup, processes), tallies) as note:

            def told(progress: Progress) -> None:
                note()
                on_progress(progress)

            for name, adapter in model_names(config.model, config.adapters).items():
                shared = _run_model(store, setup, name, adapter, tallies, told, processes)
                on_shared(name, shared)
                free_memory()
    except BaseException:
        store.close()
        raise
    return store


def help_campaign(
    out: Path,
    config: CampaignConfig,
    decoder: DecoderConfig,
    processes: Processes,
    *,
    chats: Mapping[str, ChatModel] | None = None,
) -> None:
    """Do a share of the campaign that the main one of several processes runs.

    The arguments are those of its `run_campaign`, with the decoder that it has settled on. The
    run's own file is neither read nor written here.
    """
    setup = processes.agree(lambda: _setup(config, decoder, chats or {}, out))
    for name, adapter in model_names(config.model, config.adapters).items():
        _help_model(out, setup, name, adapter, processes)
        free_memory()


def free_memory() -> None:
    """Give back what a model has taken, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _setup(
    config: CampaignConfig,
    decoder: DecoderConfig | None,
    chats: Mapping[str, ChatModel],
    beside: Path,
) -> _Setup:
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {config.batch_size}")
    behaviors, world = behaviors_of(config)
    given = dict(chats)
    chats = dict(chats)
    if world is not None:
        for role in ("attacker", "judge", "translator"):
            chats.setdefault(role, ScriptedAttacker(world))
    if len(set(config.seeds)) != len(config.seeds) or not config.seeds:
        raise UserError(f"seeds {list(config.seeds)} must be different, and one at least")
    attacks = choose_attacks(config, behaviors, chats)
    model_names(config.model, config.adapters)
    for role in given.keys() - {role for attack, _, _ in attacks for role in attack.roles}:
        raise UserError(f"{_option(role)} is given and none of the attacks asks for one")
    return _Setup(
        config,
        behaviors,
        world,
        ENGLISH if world is None else testbed_wording(world),
        decoder or decoder_beside(beside) or default_decoder(world),
        chats,
        attacks,
        beside,
    )


def _option(role: str) -> str:
    """The option that names the chat model of a role."""
    return "--loop_judge" if role == "judge" else f"--{role}"


def behaviors_of(config: CampaignConfig) -> tuple[BehaviorSet, World | None]:
    """The behaviors, and the world that they belong to, if it is the testbed's."""
    world = world_in(config)
    if world is not None:
        if config.data_dir is not None:
            raise UserError("--data_dir is for benchmark files; leave it out with the testbed")
        return TESTBED_SETS[config.behaviors](world, limit=config.limit), world
    loaded = load_behaviors(config.behaviors, data_dir=config.data_dir, limit=config.limit)
    if config.is_benign and loaded.known_as is None:
        loaded = dataclasses.replace(loaded, is_benign=True)
    return loaded, None


def world_in(config: CampaignConfig) -> World | None:
    """The world that a campaign is about, if it is the testbed's."""
    return world_of(config.model) if names_testbed(config.behaviors) else None


def choose_attacks(
    config: CampaignConfig, behaviors: BehaviorSet, chats: Mapping[str, ChatModel]
) -> list[tuple[Attack, str, Any]]:
    """The attacks with preset and settings; UserError where one lacks what it needs."""
    wanted = [
        name for entry in config.attacks for name in (ATTACKS if entry == "all" else (entry,))
    ]
    if not wanted:
        raise UserError(f"no attack is named; choose from {', '.join(ATTACKS)}, or all")
    chosen = []
    for entry in wanted:
        name, _, preset = entry.partition(":")
        if name not in ATTACKS:
            raise UserError(f"there is no attack {name}; choose from {', '.join(ATTACKS)}, or all")
        attack = ATTACKS[name]
        preset = preset or config.preset
        options = config.attack_options.get(name, {})
        settings = attack.config(preset, options)
        if options:  # what was changed is part of the name, so that results are not mixed
            plain = as_plain(settings)
            changes = ", ".join(f"{key}={plain[key]}" for key in sorted(options))
            preset = f"{preset} ({changes})"
        chosen.append((attack, preset, settings))
        for role in attack.roles:
            if role not in chats:
                raise UserError(
                    f"{name} asks for a chat model as {role}; name one with {_option(role)}, or "
                    "leave the attack out"
                )
        if attack.needs_answer and any(b.answer is None for b in behaviors.items):
            raise UserError(
                f"{name} shows the model a compliant answer, and {behaviors.name} has none; give a "
                "file with an `answer` column, or leave the attack out"
            )
    for name in config.attack_options:
        if name not in {attack.name for attack, _, _ in chosen}:
            raise UserError(f"attack_options are given for {name}, which is not among the attacks")
    if len({(attack.name, preset) for attack, preset, _ in chosen}) < len(chosen):
        raise UserError("an attack is named twice with one preset; leave one of them out")
    return chosen


def model_names(model: str, adapters: Sequence[str]) -> dict[str, str | None]:
    """What each model is called, and its adapter."""
    base = Path(model).name.replace(":", "-")
    names = {
        base if adapter == NO_ADAPTER else f"{base}+{Path(adapter).name}": (
            None if adapter == NO_ADAPTER else adapter
        )
        for adapter in adapters
    }
    for adapter in adapters:
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", adapter) is not None
        if adapter != NO_ADAPTER and not Path(adapter).is_dir() and not is_hub_id:
            raise UserError(f"there is no adapter folder {adapter}; check the path")
    if len(names) < len(adapters) or not names:
        raise UserError(
            "two adapters have folders of one name, by which the results would be mixed; rename one"
        )
    return names


def _check_same_run(store: Store, setup: _Setup) -> None:
    """A run is about one set of behaviors; UserError where the folder holds something else."""
    known = store.meta("behavior_set")
    if store.meta("kind") is not None or known not in (None, setup.behaviors.name):
        raise UserError(
            f"{store.folder} holds a run with other behaviors; name a new folder with --out, or "
            "repeat the settings that it was begun with"
        )
    known = store.meta("behaviors")
    if known is not None and known["content_hash"] != setup.behaviors.content_hash:
        raise UserError(
            f"{store.folder} was begun with another {setup.behaviors.name} (content hash "
            f"{known['content_hash']}, now {setup.behaviors.content_hash}); name a new folder with "
            "--out, or give the file as it was"
        )


def _note_run(store: Store, setup: _Setup) -> None:
    behaviors = setup.behaviors
    store.set_meta("behavior_set", behaviors.name)
    store.set_meta("decoder", plain_decoder(setup.decoder))
    about = {name: value for name, value in vars(behaviors).items() if name != "items"}
    store.set_meta("behaviors", about)
    store.set_meta("world_seed", None if setup.world is None else setup.world.seed)
    store.add_behaviors(behaviors.items)


def _session(setup: _Setup, processes: Processes) -> dict[str, Any]:
    record = session_record(setup.config, setup.decoder)
    chats = {role: {"name": chat.name, "place": chat.place} for role, chat in setup.chats.items()}
    return record | {"chat_models": chats, "processes": processes.count}


def _run_model(
    store: Store,
    setup: _Setup,
    name: str,
    adapter: str | None,
    tallies: dict[str, Tally],
    on_progress: Callable[[Progress], object],
    processes: Processes,
) -> list[Share]:
    """One model: load it, plan its tasks, and run this process's share of those not done; returns
    what each process has done."""
    model, weights = _load(setup, name, adapter, processes)

    def plan() -> tuple[dict[str, _Plan], list[list[Task]]]:
        store.commit()
        check_weights(setup.beside, name, weights)
        note_model(store, setup.config.model, name, adapter, model, weights)
        plans = _plans(setup, name, weights)
        _check_settings(store, list(plans.values()))
        store.add_tasks(plan.task for plan in plans.values())
        store.commit()
        done = {task.key for task in store.tasks(status="done", model=name)}
        todo = [plan.task for plan in plans.values() if plan.task.key not in done]
        if processes.count > 1:
            store.write_base(base_file(store.folder))
        return plans, shares(todo, processes.count)

    plans, split = processes.agree(plan)
    processes.gather(split)
    share = [plans[task.key] for task in split[0]]
    tally = tallies[name] = Tally()
    left = {plan.task.key: plan.attack.name for plan in share}
    finished: Counter[str] = Counter()
    num_todo = sum(map(len, split))
    before = len(tallies) * len(plans) - num_todo

    def tell() -> None:
        num_left = Counter(left.values())
        paces = {
            attack: tally.seconds_by_attack.get(attack, 0.0) / count
            for attack, count in finished.items()
        }
        num_ended = len(share) - len(left)
        on_progress(
            Progress(
                model=name,
                num_done=before + (num_ended * num_todo // len(share) if left else num_todo),
                num_tasks=len(setup.config.adapters) * len(plans),
                tally=tally,
                seconds_left=math.fsum(paces.get(a, 0.0) * n for a, n in num_left.items()),
                is_at_least=bool(num_left.keys() - paces.keys()),
            )
        )

    def end(plan: _Plan) -> None:
        del left[plan.task.key]
        finished[plan.attack.name] += 1

    _run_share(store, setup, model, weights, share, tally, on_end=end, on_change=tell)
    shared = processes.gather(Share(len(share), tally))
    tallies[name] = _total([each.tally for each in shared])
    merge_parts(store)
    return shared


def _help_model(
    out: Path, setup: _Setup, name: str, adapter: str | None, processes: Processes
) -> None:
    """One model, as a process that is not the main one sees it."""
    model, weights = _load(setup, name, adapter, processes)
    plans = processes.agree(lambda: _plans(setup, name, weights))
    split, *_ = processes.gather(list[list[Task]]())  # the main process says who does what
    share = [plans[task.key] for task in split[processes.index]]
    tally = Tally()
    with Store(part_folder(out, processes.index), create=True, base=base_file(out)) as part:
        part.add_tasks(plan.task for plan in share)
        part.commit()
        _run_share(part, setup, model, weights, share, tally)
    processes.gather(Share(len(share), tally))


def _total(tallies: Sequence[Tally]) -> Tally:
    """What several processes have done together; their seconds add up, though they ran at once."""
    total = Tally()
    for tally in tallies:
        for name, value in vars(tally).items():
            so_far = getattr(total, name)
            if isinstance(value, dict):
                added = {key: so_far.get(key, 0.0) + seconds for key, seconds in value.items()}
                setattr(total, name, so_far | added)
            else:
                setattr(total, name, so_far + value)
    return total


def _load(
    setup: _Setup, name: str, adapter: str | None, processes: Processes
) -> tuple[DiffusionLM, str]:
    """A model and the hash of its weights; UserError where processes have loaded different ones."""
    config = setup.config

    def load() -> tuple[DiffusionLM, str]:
        model = load_model(config.model, adapter=adapter, dtype=config.dtype, device=config.device)
        return model, model.content_hash()

    model, weights = processes.agree(load)
    first, *others = processes.gather(weights)

    def check() -> None:
        if any(weights != first for weights in others):
            raise UserError(
                f"the processes have loaded different weights as {name}; give every machine the "
                "same files"
            )

    processes.agree(check)
    return model, weights


def _run_share(
    store: Store,
    setup: _Setup,
    model: DiffusionLM,
    weights: str,
    share: Sequence[_Plan],
    tally: Tally,
    *,
    on_end: Callable[[_Plan], object] = lambda plan: None,
    on_change: Callable[[], object] = lambda: None,
) -> None:
    """Run tasks against a loaded model, into a run or a part of one."""

    def attempts(plan: _Plan, target: Target) -> AsyncIterator[Attempt]:
        return plan.attack.run(plan.behavior, target, plan.config)

    engine = Engine(
        LocalResponder(model, weights),
        store,
        batch_size=setup.config.batch_size,
        chats=setup.chats,
        tally=tally,
        on_change=on_change,
    )
    jobs = [
        Job(
            plan.task.key,
            plan.attack.name,
            plan.target,
            functools.partial(attempts, plan),
            functools.partial(on_end, plan),
        )
        for plan in share
    ]
    asyncio.run(engine.run(jobs))


def note_model(
    store: Store,
    source: str,
    name: str,
    adapter: str | None,
    model: DiffusionLM,
    weights: str,
) -> None:
    """Keep what the name stands for; UserError where it stood for something else in this run."""
    if model.tokenizer is None:
        raise UserError(f"{source} has no tokenizer.json, so it cannot read a request")
    # Judges read texts without what steers the model, however it is spelled.
    record = {"source": source, "adapter": adapter, "weights": weights}
    store.add_model(name, record | {"special_tokens": sorted(model.special_tokens)})


def _check_settings(store: Store, plans: Sequence[_Plan]) -> None:
    """UserError where a preset meant other settings, or another chat model, earlier in this run.

    Tasks of that kind that are not done are forgotten: these take their place.
    """
    planned = {_cell(plan.task): plan.task.key for plan in plans}
    for task in store.tasks(model=plans[0].task.model):
        if planned.get(_cell(task), task.key) == task.key:
            continue
        if task.status == "done":
            raise UserError(
                f"{store.folder} holds {task.attack}:{task.preset} with other settings or another "
                "chat model (or of another version of mosa); name a new folder with --out, so that "
                "results are not mixed"
            )
        store.drop_task(task.key)


def _cell(task: Task) -> tuple[str, str, str, int, str]:
    return task.model, task.attack, task.preset, task.seed, task.behavior


def _plans(setup: _Setup, name: str, weights: str) -> dict[str, _Plan]:
    """Every task of a model, by its key."""
    plans = {}
    decoder = plain_decoder(setup.decoder)
    asked = {behavior.id: as_plain(behavior) for behavior in setup.behaviors.items}
    for attack, preset, config in setup.attacks:
        for seed in setup.config.seeds:
            for behavior in setup.behaviors.items:
                identity = {
                    "model": name,
                    "weights": weights,
                    "attack": attack.name,
                    "version": attack.version,
                    "preset": preset,
                    "config": as_plain(config),
                    "behavior": asked[behavior.id],
                    "decoder": decoder,
                    "seed": seed,
                    "wording": setup.wording.name,
                    "chat_models": {role: setup.chats[role].name for role in attack.roles},
                }
                task = Task(
                    key=content_key(**identity),
                    model=name,
                    attack=attack.name,
                    preset=preset,
                    seed=seed,
                    behavior=behavior.id,
                    config=as_plain(config),
                )
                plans[task.key] = _Plan(setup, attack, config, behavior, task, identity)
    return plans
