"""A run of useful tasks: models x tasks, recorded case by case, under the decoder of the attacks.

What a defence costs is the difference of two models on the same cases, decoded alike; so a run is
about one decoder, and that of the campaign in the same folder, where there is one.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosa.denoising import DecoderConfig
from mosa.evaluation.campaign import (
    NO_ADAPTER,
    free_memory,
    model_names,
    note_model,
)
from mosa.evaluation.defaults import default_decoder
from mosa.evaluation.runs import (
    UTILITY,
    check_decoder,
    check_weights,
    decoder_beside,
    decoder_of,
    plain_decoder,
    session,
    session_record,
)
from mosa.evaluation.store import FILE, Store
from mosa.evaluation.utility.answers import NUM_DRAWS, Answerer, Tally
from mosa.evaluation.utility.code_sandbox import best_isolation
from mosa.evaluation.utility.harness import HarnessTask, has_turns, plan_task, score_task
from mosa.evaluation.utility.results import figures_name
from mosa.evaluation.utility.testbed import TESTBED_TASKS, headline, score_testbed_task
from mosa.families import DiffusionLM, load_model, packaged_folder
from mosa.testbed import world_of
from mosa.types import UserError
from mosa.world import World

TESTBED = "testbed"
"""Stands for all tasks of the invented world."""


@dataclass(frozen=True)
class UtilityConfig:
    """What is asked of which models."""

    model: str
    """The model, or the one that adapters are put on."""
    tasks: tuple[str, ...]
    """Names of tasks; `testbed` stands for all of the invented world's."""
    adapters: tuple[str, ...] = (NO_ADAPTER,)
    """Adapter folders, one model each; `none` is the model as it is."""
    limit: int | None = None
    """Only the first so many cases of each task (of each subject, where a task has such)."""
    num_fewshot: int | None = None
    """Worked examples before each question; unset: as many as the task says."""
    num_draws: int | None = None
    """Maskings of an answer of several tokens whose likelihood is asked for; unset: 128."""
    run_code: bool = False
    """Whether code that the model wrote is run, in a sandbox; else its cases are unscored."""
    data_dir: Path | None = None
    """Where known benchmark files lie; unset: MOSA_DATA, else ./data."""
    batch_size: int = 32
    """Canvases per forward pass."""
    dtype: str = "auto"
    """Number format of the weights."""
    device: str | None = None
    """Where the model runs; unset: a GPU if there is one."""


@dataclass(frozen=True)
class UtilityProgress:
    """How far a run has come."""

    model: str
    task: str
    num_done: int
    """Tasks of all models that are done."""
    num_tasks: int
    tally: Tally
    """Questions of this model so far."""


@dataclass(frozen=True)
class _Setup:
    """What all models of a run share."""

    config: UtilityConfig
    decoder: DecoderConfig
    world: World | None
    tasks: Mapping[str, HarnessTask | None]
    """By name, in the order in which they are asked; None for those of the testbed."""


def run_utility(
    out: Path,
    config: UtilityConfig,
    decoder: DecoderConfig | None = None,
    *,
    on_progress: Callable[[UtilityProgress], object] = lambda progress: None,
) -> Store:
    """Ask every model every task, into the folder `out/utility`; returns its records, open.

    What is recorded there already is not asked again. `decoder` unset is `utility_decoder`. Raises
    UserError for whatever cannot be run as it is asked for, before anything is asked.
    """
    setup = _setup(out, config, decoder)
    names = model_names(config.model, config.adapters)
    store = Store(out / UTILITY, create=True)
    try:
        _check_same_run(store, setup.decoder)
        store.set_meta("kind", UTILITY)
        store.set_meta("decoder", plain_decoder(setup.decoder))
        store.set_meta("seed", setup.decoder.seed)
        store.set_meta("world_seed", None if setup.world is None else setup.world.seed)
        tallies: dict[str, Tally] = {}
        with session(store, _session(setup), tallies) as note:

            def told(progress: UtilityProgress) -> None:
                note()
                on_progress(progress)

            for name, adapter in names.items():
                _run_model(store, out, setup, name, adapter, tallies, told)
                free_memory()
    except BaseException:
        store.close()
        raise
    return store


# --- what is asked --------------------------------------------------------------------------------


def utility_decoder(out: Path, model: str) -> DecoderConfig:
    """How responses are decoded where nothing is said: as before, as those of the other runs in the
    folder, else the testbed's own way on the testbed, else the defaults."""
    before = decoder_of(out / UTILITY) if (out / UTILITY / FILE).is_file() else None
    return before or decoder_beside(out) or default_decoder(_world_of(model))


def task_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of tasks, `testbed` spelled out."""
    names = [name for entry in wanted for name in (TESTBED_TASKS if entry == TESTBED else (entry,))]
    if not names:
        raise UserError("no task is named; name some with --tasks, for example gsm8k,mmlu")
    if len(set(names)) < len(names):
        raise UserError("a task is named twice; leave one of them out")
    return tuple(names)


def _setup(out: Path, config: UtilityConfig, decoder: DecoderConfig | None) -> _Setup:
    for name in ("batch_size", "num_draws", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise UserError(f"num_fewshot must be 0 or more, not {config.num_fewshot}")
    decoder = decoder or utility_decoder(out, config.model)
    check_decoder(out, decoder)
    names = task_names(config.tasks)
    on_testbed = set(names) & set(TESTBED_TASKS)
    world = world_of(config.model) if on_testbed else None
    tasks = {
        name: None
        if name in on_testbed
        else plan_task(
            name,
            data_dir=config.data_dir,
            num_fewshot=config.num_fewshot,
            run_code=config.run_code,
        )
        for name in names
    }
    if all(task is None for task in tasks.values()):
        for name in ("num_fewshot", "data_dir"):
            if getattr(config, name) is not None:
                raise UserError(f"--{name} is for tasks of lm_eval; leave it out with the testbed")
    compares = any(task is not None and task.asks_likelihoods for task in tasks.values())
    if config.num_draws is not None and not compares:
        raise UserError("--num_draws is given and none of the tasks compares likelihoods")
    if config.run_code:
        if not any(task is not None and "limits" in task.settings for task in tasks.values()):
            raise UserError("--run_code is given and none of the tasks has code to run")
        best_isolation()
    return _Setup(config, decoder, world, tasks)


def _world_of(model: str) -> World | None:
    """The world of a testbed model; None for any other."""
    folder = packaged_folder(model) or Path(model)
    return world_of(model) if (folder / "recipe.json").is_file() else None


def _check_same_run(store: Store, decoder: DecoderConfig) -> None:
    """UserError where the folder holds something else, or responses of another seed."""
    kind, seed = store.meta("kind"), store.meta("seed")
    if kind != UTILITY and (kind is not None or store.models()):
        raise UserError(f"{store.folder} holds another run; name a new folder with --out")
    if seed not in (None, decoder.seed):
        raise UserError(
            f"{store.folder} holds a run with seed {seed} and not {decoder.seed}; leave --seed "
            "out, or name a new folder with --out"
        )


def _session(setup: _Setup) -> dict[str, Any]:
    record = session_record(setup.config, setup.decoder)
    if any(task is not None for task in setup.tasks.values()):
        packages = {name: importlib.metadata.version(name) for name in ("lm_eval", "datasets")}
        record["versions"] |= packages
    return record


# --- asking ---------------------------------------------------------------------------------------


def _run_model(
    store: Store,
    out: Path,
    setup: _Setup,
    name: str,
    adapter: str | None,
    tallies: dict[str, Tally],
    on_progress: Callable[[UtilityProgress], object],
) -> None:
    """One model: load it, and ask it every task."""
    config = setup.config
    model = load_model(config.model, adapter=adapter, dtype=config.dtype, device=config.device)
    weights = model.content_hash()
    store.commit()
    check_weights(out, name, weights)
    note_model(store, config.model, name, adapter, model, weights)
    _note_tasks(store, setup, model)
    store.commit()
    num_before = len(tallies) * len(setup.tasks)

    def told(task: str, num_done: int) -> None:
        num_tasks = len(config.adapters) * len(setup.tasks)
        on_progress(UtilityProgress(name, task, num_before + num_done, num_tasks, answerer.tally))

    answerer = Answerer(
        model,
        setup.decoder,
        batch_size=config.batch_size,
        num_draws=config.num_draws or NUM_DRAWS,
        store=store,
        weights=weights,
    )
    tallies[name] = answerer.tally
    for number, (task_name, task) in enumerate(setup.tasks.items()):
        answerer.on_answers = lambda tally, t=task_name, n=number: told(t, n)
        if task is None:
            assert setup.world is not None
            measurements = score_testbed_task(
                setup.world, task_name, answerer, model_name=name, limit=config.limit
            )
        else:
            scores = score_task(task, answerer, model_name=name, limit=config.limit)
            measurements = scores.measurements
            store.set_meta(figures_name(name, task_name), scores.figures)
        for measurement in measurements:
            store.add_measurement(measurement)
        _note_tasks(store, setup, model)  # another process may have written its own meanwhile
        store.commit()
        told(task_name, number + 1)


def _note_tasks(store: Store, setup: _Setup, model: DiffusionLM) -> None:
    """Keep what the tasks' figures depend on; UserError where it was something else before."""
    known = store.meta("tasks") or {}
    for name, task in setup.tasks.items():
        if task is None:
            assert setup.world is not None
            settings: dict[str, Any] = {
                "source": TESTBED,
                "headline": headline(name),
                "licence": "Apache-2.0",
                "origin": f"the testbed, world {setup.world.seed}",
            }
        else:
            settings = task.settings | {"chat_template": has_turns(model)}
            if task.asks_likelihoods:
                settings["num_draws"] = setup.config.num_draws or NUM_DRAWS
        before = known.get(name, settings)
        changed = [key for key in settings if settings[key] != before.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                f"{store.folder} holds {name} with other settings ({key} {before.get(key)}, not "
                f"{settings[key]}); repeat them, or name a new folder with --out"
            )
        known[name] = settings
    store.set_meta("tasks", known)
