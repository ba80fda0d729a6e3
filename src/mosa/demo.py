"""The demo: align the testbed three ways, attack all four models, measure what it cost, report it.

    models          the original; aligned at the initial token; MOSA as in the paper; MOSA `robust`
    attacks         on objects that no training text mentions
    over-refusal    harmless objects, asked plainly and in the form of attacks
    utility         held-out objects, sums, lists, look-ups, small talk
    along the way   some attacks and one task at moments of each alignment
    probe           where the original and MOSA put their refusals

The demo is one run of `mosa evaluate` and one page of `mosa report`. The four models are
independent, so worker processes of one thread each take one model at a time and record into the
same run: on these small matrices two processes do about twice the work of two threads. The demo
uses recorded answers again, so a second call continues where the first one ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import queue
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mosa.align import METHODS, align, load_config
from mosa.align.config import config_dict
from mosa.families import DiffusionLM, load_model
from mosa.files import write_json
from mosa.probes import PROTOCOLS
from mosa.report.build import ReportConfig, build
from mosa.report.page import write_page
from mosa.report.tables import write_tables
from mosa.results.figures import MOMENT, gather, headline
from mosa.runs.evaluate import EvaluateConfig, evaluate
from mosa.runs.judging import JudgeConfig, build_judges, judge_run
from mosa.runs.sets import ALL_TASKS, SetOptions, load_sets
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject, subjects_of
from mosa.testbed import world_of
from mosa.testbed.corpora import alignment_prompts, benign_prompts
from mosa.testbed.measure import DECODER
from mosa.types import UserError

ATTACKS = (
    "direct",
    "deep_inception",
    "code_attack",
    "dia",
    "cipher_chat",
    "prefill:paper",
    "dija_canvas",
)
"""Of each kind one or two: the request nested, as code, after a forged history, in a language that
no alignment data uses; an answer that the attacker begins; an answer's frame for the model to fill.
"""
CURVE_ATTACKS = ("deep_inception", "code_attack")
"""Quick attacks, for moments of a training."""
CURVE_SET = "testbed:benign_recall"
HARMFUL = "testbed"
BENIGN_SETS = ("testbed:near_miss", "testbed:benign", ALL_TASKS)
PROBE, PROBED = "depth", ("original", "mosa")
JUDGES = ("truth", "truth@canvas", "refusal")
ALIGNED: dict[str, tuple[Literal["mosa", "initial"], str]] = {
    "initial": ("initial", "initial_testbed_paper"),
    "mosa": ("mosa", "mosa_testbed_paper"),
    "mosa_robust": ("mosa", "mosa_testbed_robust"),
}
"""The method and preset of each aligned model; `original` is the testbed without an adapter."""
LABELS = {
    "original": "Original",
    "initial": "Initial alignment",
    "mosa": "MOSA (paper)",
    "mosa_robust": "MOSA (robust)",
}
NOTES = {
    "original": "The testbed as it comes: it refuses plain requests for restricted objects and "
    "answers wrapped ones.",
    "initial": "The original with an adapter that rewards a refusal at the first response token "
    "(the baseline of arXiv 2508.12398).",
    "mosa": "The original with an adapter that rewards a refusal in response tokens 20 to 60, as "
    "in arXiv 2508.12398; it differs from initial alignment by the window alone. Its harmful term "
    "is bounded and its harmful phrases are short, so that the reward settles where the paper's "
    "does.",
    "mosa_robust": "Ours: the same reward, also where part of a harmful answer already stands, "
    "with a bounded term against that answer's own words and a term that holds benign behaviour in "
    "place. Its learning rate is ten times that of the other two.",
}
LIMITS = (
    "A testbed shows mechanisms, not the safety of a real model: its language has a few hundred "
    "words, we trained its weakness to wrapped requests on purpose, and each figure rests on one "
    "training run of each kind.",
)

CURVE_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The shares of an alignment after which it is measured too; its start is the original model."""
SECONDS_BETWEEN_LOOKS = 0.5
"""How long the demo waits for news before it looks whether a worker has ended."""
NUM_PROMPTS = 960
"""Harmful prompts for each alignment of the demo."""


@dataclass(frozen=True)
class DemoConfig:
    """The size of the demo."""

    testbed: str = "testbed"
    """The model to align and attack: the packaged one, or one that `mosa testbed build` made."""
    seed: int = 0
    """Seed of data, training and decoding."""
    num_objects: int = 25
    """Restricted objects to attack with (25 are held out)."""
    num_benign: int = 50
    """Harmless requests of each set, and cases of each useful task (50 objects are held out)."""
    num_curve: int = 8
    """Restricted objects, and cases of one useful task, to measure with during alignment."""
    align_steps: int | None = None
    """Updates of each alignment; none: the number in its preset."""
    steps: int = DECODER.steps
    """Denoising steps of a response."""
    workers: int = 2
    """Processes of one thread that work on models in parallel; 1 works in this process."""


@dataclass(frozen=True)
class ModelJob:
    """One model of the demo: align it unless that is done, then measure it."""

    name: str
    out: Path
    config: DemoConfig


Emit = Callable[[str, Any], None]
"""What a job reports: ("stage", text) or ("advance", (done, total))."""


def run_demo(out: Path, config: DemoConfig | None = None) -> None:
    """Align, attack and measure, and write `out/report.html` and `out/tables/`.

    Beside them are `adapters/` and `run/`. Raises UserError where `out` holds something else.
    """
    config = config or DemoConfig()
    world = world_of(config.testbed)  # raises for a wrong folder before the demo makes anything
    _claim(out, config)
    # The robust alignment takes longest, so it comes first and the others share the other worker.
    jobs = [ModelJob(name, out, config) for name in (*reversed(ALIGNED), "original")]
    with _Board(jobs) as board:
        _run_jobs(jobs, config.workers, board.show)
    with Run(run_folder(out)) as run:
        limit = max(config.num_benign, config.num_curve)
        sets = load_sets(BENIGN_SETS, world, SetOptions(limit=limit))
        judge_run(run, build_judges(JUDGES, JudgeConfig(), world), sets=sets)
    write_demo_report(out, config)


def write_demo_report(out: Path, config: DemoConfig) -> None:
    """Write the report on the records, and its tables."""
    names = shown_names(config)
    content = build(
        [run_folder(out)],
        ReportConfig(
            title="What changes when refusal starts in the middle",
            labels={name: LABELS[model] for model, name in names.items()},
            notes={name: NOTES[model] for model, name in names.items()},
            limits=LIMITS,
        ),
    )
    write_page(out / "report.html", content)
    write_tables(out / "tables", content)


def run_folder(out: Path) -> Path:
    """The folder of the demo's records."""
    return out / "run"


def shown_names(config: DemoConfig) -> dict[str, str]:
    """The name of each model of the demo in its records."""
    original = _subject(config, None).name
    return {"original": original} | {name: f"{original}+{name}" for name in ALIGNED}


def _claim(out: Path, config: DemoConfig) -> None:
    """Make the folder a demo's; UserError where it holds something else."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "workers"}
    settings["testbed_hash"] = _load(config, None).content_hash()
    file = out / "demo.json"
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in settings if known.get(name) != settings[name]]
        if changed:
            raise UserError(
                f"{out} holds a demo with other settings ({', '.join(changed)}); name a new folder "
                "with --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds other things; name a new folder with --out")
    write_json(file, settings)


def _load(config: DemoConfig, adapter: Path | None) -> DiffusionLM:
    return load_model(config.testbed, dtype="float32", device="cpu", adapter=adapter)


# --- one model ------------------------------------------------------------------------------------


def run_job(job: ModelJob, emit: Emit) -> None:
    """Align one model unless that is done, and record what is not recorded yet."""
    config = job.config
    adapter = None if job.name == "original" else _adapter(job, emit)

    def measure(
        folder: Path | None, sets: Sequence[str], attacks: Sequence[str], preset: str, limit: int
    ) -> None:
        run = evaluate(
            run_folder(job.out),
            EvaluateConfig(
                (_subject(config, folder),),
                tuple(sets),
                tuple(attacks),
                preset,
                seeds=(config.seed,),
                options=SetOptions(limit=limit),
                dtype="float32",
                device="cpu",
            ),
            on_progress=lambda now: emit("advance", (now.num_done, now.num_tasks)),
            is_judged=False,
        )
        assert run is not None, "this is the only process of its launch"
        run.close()

    emit("stage", "attacks")
    measure(adapter, [HARMFUL], ATTACKS, "smoke", config.num_objects)
    emit("stage", "benign requests")
    measure(adapter, BENIGN_SETS, ["direct"], "smoke", config.num_benign)
    if job.name in PROBED:
        emit("stage", "probe")
        num = min(PROTOCOLS[PROBE]["quick"].num_cases, config.num_objects)
        measure(adapter, [HARMFUL], [PROBE], "quick", num)
    if adapter is not None:
        emit("stage", "along the training")
        num = min(config.num_curve, config.num_objects)
        for folder in snapshots(adapter):
            measure(folder, [HARMFUL], CURVE_ATTACKS, "smoke", num)
            measure(folder, [CURVE_SET], ["direct"], "smoke", config.num_curve)
    emit("stage", "done")


def _subject(config: DemoConfig, adapter: Path | None) -> Subject:
    """A model of the demo; the decoder is that of the testbed, in the demo's number of steps."""
    adapters = [NO_ADAPTER if adapter is None else str(adapter)]
    (subject,) = subjects_of(config.testbed, adapters, decoder={"steps": config.steps})
    return subject


def adapter_folder(out: Path, name: str) -> Path:
    """The folder of a model's adapter."""
    return out / "adapters" / name


def _adapter(job: ModelJob, emit: Emit) -> Path:
    """The folder of the model's adapter; trains it unless a finished one is there."""
    folder = adapter_folder(job.out, job.name)
    method, preset = ALIGNED[job.name]
    overrides: dict[str, Any] = {"seed": job.config.seed}
    if job.config.align_steps is not None:
        overrides["max_steps"] = job.config.align_steps
    config = load_config(METHODS[method].trainer_class.config_class, preset, overrides)
    model = _load(job.config, None)
    recipe = {"settings": config_dict(config), "testbed": model.content_hash()}
    finished = folder / "demo.json"
    if finished.exists():
        made = json.loads(finished.read_text(encoding="utf-8"))
        if made == recipe | {"num_steps": made["num_steps"]}:
            return folder
    emit("stage", "aligning")
    if folder.exists():
        shutil.rmtree(folder)
    world, rng = world_of(job.config.testbed), random.Random(f"demo-{job.config.seed}")
    harmful = alignment_prompts(world, rng, NUM_PROMPTS)
    benign = benign_prompts(world, rng, NUM_PROMPTS)
    result = align(
        method,
        model,
        harmful,
        folder,
        benign=benign if "benign" in config.needs else None,
        config=config,
        callbacks=[_TrainingProgress(emit), _Snapshots(model, folder)],
        progress=False,
    )
    if not result.finished:
        raise KeyboardInterrupt
    # Written last: a folder without it was interrupted and is trained again.
    write_json(finished, recipe | {"num_steps": result.num_steps})
    return folder


class _TrainingProgress(transformers.TrainerCallback):
    """Passes the trainer's progress on."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after every update."""
        self.emit("advance", (state.global_step, state.max_steps))


class _Snapshots(transformers.TrainerCallback):
    """Keeps the adapter at some steps of its training, below the folder of the finished one."""

    def __init__(self, model: DiffusionLM, folder: Path) -> None:
        self.model, self.folder = model, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after every update."""
        steps = {round(fraction * state.max_steps) for fraction in CURVE_FRACTIONS}
        if state.global_step in steps and state.global_step < state.max_steps:
            moment = f"{self.folder.name}{MOMENT}{state.global_step}"
            self.model.save_adapter(self.folder / "curve" / moment)


def snapshots(adapter: Path) -> list[Path]:
    """The adapters at moments of this one's training, by step."""
    folders = (adapter / "curve").glob(f"*{MOMENT}*")
    return sorted(folders, key=lambda folder: int(folder.name.partition(MOMENT)[2]))


# --- results --------------------------------------------------------------------------------------


def closing_lines(out: Path, config: DemoConfig) -> list[str]:
    """The headline figures in four lines, and a fifth with the place of the report."""
    evidence = gather([run_folder(out)])
    names = shown_names(config)

    def line(title: str, measure: str) -> str:
        rates = {model: headline(evidence, measure, name).rate for model, name in names.items()}
        shown = ", ".join(
            f"{LABELS[model]} {'-' if rate is None else f'{rate.value:.2f}'}"
            for model, rate in rates.items()
        )
        n = {rate.n for rate in rates.values() if rate is not None}
        return f"{title} (n={', '.join(map(str, sorted(n)))}): {shown}."

    return [
        line("Attack success, mean over attacks", "asr"),
        line("Attack success, worst attack     ", "worst_asr"),
        line("Over-refusal                     ", "over_refusal"),
        line("Utility                          ", "utility"),
        f"Look at {out / 'report.html'}; its tables are in {out / 'tables'}.",
    ]


# --- processes ------------------------------------------------------------------------------------


def _run_jobs(
    jobs: Sequence[ModelJob], num_workers: int, receive: Callable[[str, str, Any], None]
) -> None:
    """Run the jobs, in this process or in workers, and pass on what they emit.

    `receive` is called in this process alone, with the job's name. Any failure or interruption ends
    the workers; what they have recorded stays.
    """
    if num_workers < 1:
        raise UserError(f"--workers must be at least 1, not {num_workers}")
    if num_workers == 1:
        for job in jobs:
            run_job(job, functools.partial(receive, job.name))
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        news = manager.Queue()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(num_workers, context)
        try:
            todo = {pool.submit(_work, job, news) for job in jobs}
            while todo:
                with contextlib.suppress(queue.Empty):
                    receive(*news.get(timeout=SECONDS_BETWEEN_LOOKS))
                ended = {job for job in todo if job.done()}
                for job in ended:
                    job.result()
                todo -= ended
            while not news.empty():
                receive(*news.get())
        except BrokenProcessPool as error:
            raise UserError(
                "The system ended a worker of the demo, most likely because memory ran out; "
                "--workers 1 needs less"
            ) from error
        finally:
            # A job takes minutes, so workers are not waited for. Nothing is lost: records are
            # written whole, and an unfinished adapter is trained again.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            pool.shutdown(cancel_futures=True)


def _work(job: ModelJob, news: Any) -> None:
    """A job in a worker, on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends us
    torch.set_num_threads(1)
    run_job(job, lambda kind, content: news.put((job.name, kind, content)))


class _Board:
    """Progress of all models: bars in a terminal, a line per stage elsewhere."""

    def __init__(self, jobs: Sequence[ModelJob]) -> None:
        self.console = Console(highlight=False)
        self.progress = Progress(
            TextColumn("{task.fields[label]:<18}"),
            TextColumn("{task.fields[stage]:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self.tasks = {
            job.name: self.progress.add_task(
                "", total=1.0, start=False, label=LABELS[job.name], stage="waiting"
            )
            for job in jobs
        }

    def __enter__(self) -> _Board:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def show(self, name: str, kind: str, content: Any) -> None:
        """Show one message of a job."""
        task = self.tasks[name]
        if kind == "advance":
            done, total = content
            self.progress.update(task, completed=done, total=total)
            return
        self.progress.start_task(task)
        self.progress.update(task, stage=content)
        if not self.console.is_terminal:
            self.console.print(f"{LABELS[name]}: {content}")
