"""Aligned models of the testbed: trained once for each recipe, and measured into one run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from mosa.alignment import METHODS, load_config, run_training
from mosa.alignment.config import config_dict
from mosa.alignment.run import MADE_BY
from mosa.evidence.figures import MOMENT
from mosa.experiments.workers import Emit
from mosa.families import DiffusionLM, load_model
from mosa.files import claim_folder, write_json
from mosa.inputs import is_file, read_json
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.judging import JudgeConfig, build_judges, judge_run
from mosa.runs.sets import SetOptions, load_sets
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject, subjects_of
from mosa.stats.rates import Rate, Values, rate_of
from mosa.testbed import world_of
from mosa.testbed.corpora import alignment_prompts, benign_prompts
from mosa.testbed.measure import DECODER
from mosa.types import UserError
from mosa.world import World

NUM_PROMPTS = 960
"""Harmful prompts for each alignment, and harmless ones where its settings use some."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter on the testbed is trained; equal recipes make equal adapters."""

    method: str
    preset: str
    seed: int = 0
    """Draws the prompts, the adapter's first weights, the order of the data and the phrases."""
    is_wrapped: bool = True
    """Whether most harmful prompts come in the wrappings that alignment may use; otherwise all ask
    plainly."""
    max_steps: int | None = None
    """Updates; none: the number in the preset."""
    moments: tuple[float, ...] = ()
    """The shares of the training after which the adapter is kept too."""


@dataclass(frozen=True)
class ExperimentConfig:
    """What every experiment on the testbed is sized by."""

    testbed: str = "testbed"
    """The model to align and attack: testbed, testbed:block (its block-causal twin), or one that
    `mosa testbed build` made."""
    num_objects: int = 25
    """Restricted objects to attack with (25 are held out)."""
    num_benign: int = 50
    """Harmless requests of each set (50 objects are held out)."""
    num_tasks: int = 25
    """Cases of each useful task."""
    align_steps: int | None = None
    """Updates of each alignment; none: the number in its preset."""
    steps: int = DECODER.steps
    """Denoising steps of a response."""
    workers: int = 2
    """Processes of one thread that work on models in parallel; 1 works in this process."""


def run_folder(out: Path) -> Path:
    """The folder of an experiment's records."""
    return out / "run"


def load_testbed(testbed: str) -> DiffusionLM:
    """A model of the testbed as experiments use it: float32, on the CPU."""
    return load_model(testbed, dtype="float32", device="cpu")


def testbed_subject(testbed: str, adapter: Path | None, *, steps: int) -> Subject:
    """The testbed with an adapter, under its own decoder in this number of steps."""
    adapters = [NO_ADAPTER if adapter is None else str(adapter)]
    (subject,) = subjects_of(testbed, adapters, decoder={"steps": steps})
    return subject


def keep_settings(out: Path, what: str, config: ExperimentConfig, model: DiffusionLM) -> None:
    """Keep the settings of an experiment in its folder, which is held; UserError where it has the
    same experiment with other settings, those aside that only say how much of it is done."""
    amounts = ("workers", "tables", "cells", "num_seeds")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in amounts}
    settings["testbed_hash"] = model.content_hash()
    file = out / f"{what}.json"
    if is_file(file):
        known = read_json(file)
        changed = [name for name in settings if known.get(name) != settings[name]]
        if changed:
            raise UserError(
                f"{out} holds a run of this experiment with other settings "
                f"({', '.join(changed)}); name a new folder with --out"
            )
        return
    write_json(file, settings)


def train(recipe: Recipe, testbed: str, folder: Path, emit: Emit) -> Path:
    """Train the adapter into `folder` unless the finished one of this recipe is there.

    Its moments stand below it (`moments_of`). Raises KeyboardInterrupt where the training was
    stopped.
    """
    overrides: dict[str, Any] = {"seed": recipe.seed}
    if recipe.max_steps is not None:
        overrides["max_steps"] = recipe.max_steps
    config = load_config(
        METHODS[recipe.method].trainer_class.config_class, recipe.preset, overrides
    )
    model = load_testbed(testbed)
    made = dataclasses.asdict(recipe) | {
        "moments": list(recipe.moments),
        "settings": config_dict(config),
        "testbed": model.content_hash(),
    }
    finished = folder / "recipe.json"
    with claim_folder(folder, MADE_BY) as own:
        if "recipe.json" in own.files and is_file(finished):
            known = read_json(finished)
            if {name: known.get(name) for name in made} == made:
                return folder
        own.discard_all()  # one of another recipe, or interrupted
    emit("stage", "aligning")
    world, rng = world_of(testbed), random.Random(f"demo-{recipe.seed}")
    harmful = alignment_prompts(world, rng, NUM_PROMPTS, is_wrapped=recipe.is_wrapped)
    benign = benign_prompts(world, rng, NUM_PROMPTS)
    result = run_training(
        recipe.method,
        model,
        harmful,
        folder,
        benign=benign if "benign" in config.needs else None,
        config=config,
        callbacks=[_Watch(emit, model, folder, recipe.moments)],
        progress=False,
    )
    if not result.finished:
        raise KeyboardInterrupt
    # Written last: a folder without it was interrupted and is trained again.
    with claim_folder(folder, MADE_BY):
        write_json(finished, made | {"num_steps": result.num_steps})
    return folder


def moments_of(adapter: Path) -> list[Path]:
    """The adapters at moments of this one's training, by step."""
    folders = (adapter / "curve").glob(f"*{MOMENT}*")
    return sorted(folders, key=lambda folder: int(folder.name.partition(MOMENT)[2]))


def measure_into(
    out: Path,
    config: ExperimentConfig,
    emit: Emit,
    adapters: Sequence[Path | None],
    sets: Sequence[str],
    attacks: Sequence[str],
    *,
    limit: int,
    seed: int,
    preset: str = "smoke",
) -> None:
    """Record what the experiment's run does not hold yet of the testbed with each of some adapters;
    nothing is judged."""
    run = run_evaluation(
        run_folder(out),
        EvaluateConfig(
            tuple(
                testbed_subject(config.testbed, adapter, steps=config.steps) for adapter in adapters
            ),
            tuple(sets),
            tuple(attacks),
            preset,
            seeds=(seed,),
            options=SetOptions(limit=limit),
            dtype="float32",
            device="cpu",
        ),
        on_progress=lambda _, done, total, left: emit("advance", (done, total)),
        is_judged=False,
    )
    assert run is not None, "this is the only process of its launch"
    run.close()


def judge_recorded(
    out: Path, world: World, judges: Sequence[str], sets: Sequence[str], *, limit: int
) -> frozenset[str]:
    """Judge what the experiment's run holds so far; returns the names of its subjects. `sets` are
    those of harmless requests and useful tasks, with at most `limit` cases each."""
    with Run(run_folder(out), adds=True) as run:
        loaded = load_sets(sets, world, SetOptions(limit=limit))
        judge_run(run, build_judges(judges, JudgeConfig(), world), sets=loaded)
        return frozenset(run.subjects())


def rate_by_device(values: Values, world: World) -> Rate | None:
    """A rate over objects of a world, None where there is no case; those of one device share their
    steps, so they are one cluster."""
    clusters = {case: world.by_name[case.rpartition("/")[2]].device for case in values}
    return rate_of(values, clusters=clusters) if values else None


class _Watch(transformers.TrainerCallback):
    """Passes the trainer's progress on, and keeps the adapter at some steps of its training, below
    the folder of the finished one."""

    def __init__(self, emit: Emit, model: DiffusionLM, folder: Path, moments: Sequence[float]):
        self.emit, self.model, self.folder, self.moments = emit, model, folder, moments

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after every update."""
        self.emit("advance", (state.global_step, state.max_steps))
        steps = {round(fraction * state.max_steps) for fraction in self.moments}
        if state.global_step in steps and state.global_step < state.max_steps:
            moment = f"{self.folder.name}{MOMENT}{state.global_step}"
            self.model.save_adapter(self.folder / "curve" / moment)
