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

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.text import Text

from mosa.attacks import Query
from mosa.evidence.figures import gather, headline
from mosa.experiments.models import (
    ExperimentConfig,
    Recipe,
    judge_recorded,
    keep_settings,
    load_testbed,
    measure_into,
    moments_of,
    run_folder,
    testbed_subject,
    train,
)
from mosa.experiments.workers import Emit, run_jobs
from mosa.families import DiffusionLM
from mosa.files import claim_folder
from mosa.probes import PROTOCOLS
from mosa.reporting.build import ReportConfig, build
from mosa.reporting.page import write_page
from mosa.reporting.tables import write_tables
from mosa.reporting.terminal import picture
from mosa.responder import answer_all
from mosa.runs.sets import ALL_TASKS
from mosa.stats.rates import NOTHING, format_value
from mosa.terminal import LiveBar, new_console, show
from mosa.testbed import world_of
from mosa.testbed.behaviors import ATTACK_WRAPPINGS
from mosa.world import World

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
FIRST_ATTACKS = ("direct", "deep_inception")
"""What the original is put through before anything is trained."""
CURVE_ATTACKS = ("deep_inception", "code_attack")
"""Quick attacks, for moments of a training."""
CURVE_SET = "testbed:benign_recall"
HARMFUL = "testbed"
HARMLESS_SETS = ("testbed:near_miss", "testbed:benign")
PROBE, PROBED = "depth", ("original", "mosa")
JUDGES = ("truth", "truth@canvas", "refusal")
ALIGNED: dict[str, tuple[str, str]] = {
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
    "original": "The testbed as it comes: it refuses plain requests and answers disguised ones.",
    "initial": "Trained to refuse at the first word, as usual. It is the baseline of arXiv "
    "2508.12398: an adapter is rewarded for a refusal at the first response token.",
    "mosa": "Trained to refuse in the middle: the paper's method. An adapter is rewarded for a "
    "refusal in response tokens 20 to 60, as in arXiv 2508.12398; it differs from initial "
    "alignment by the window alone. Its harmful term is bounded and its harmful phrases are short, "
    "so that the reward settles where the paper's does.",
    "mosa_robust": "Ours: the same, also behind a harmful beginning. A bounded term acts against "
    "that beginning's own words, and another holds benign behaviour in place. Its learning rate is "
    "ten times that of the other two.",
}
LIMITS = (
    "A testbed shows mechanisms, not the safety of a real model: its language has a few hundred "
    "words, we trained its weakness to wrapped requests on purpose, and each figure rests on one "
    "training run of each kind.",
)

CURVE_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The shares of an alignment after which it is measured too; its start is the original model."""


@dataclass(frozen=True)
class DemoConfig(ExperimentConfig):
    """The size of the demo."""

    seed: int = 0
    """Seed of data, training and decoding."""
    num_curve: int = 8
    """Restricted objects, and cases of one useful task, to measure with during alignment."""


def run_demo(out: Path, config: DemoConfig) -> None:
    """Align, attack and measure, and write `out/report.html` and `out/tables/`.

    Beside them are `adapters/` and `run/`. Raises UserError where `out` holds something else.
    """
    with claim_folder(out, "mosa demo"):
        world, model = world_of(config.testbed), load_testbed(config.testbed)
        keep_settings(out, "demo", config, model)
        _first_answers(model, world, config)
        with LiveBar(vanishes=True) as bar:
            measure_into(
                out,
                config,
                lambda _, progress: bar.update("original: first attack", *progress),
                [None],
                [HARMFUL],
                FIRST_ATTACKS,
                limit=config.num_objects,
                seed=config.seed,
            )
        write_demo_report(out, config)
        show(
            f"The first page is {out / 'report.html'}: the original under {FIRST_ATTACKS[-1]}. It "
            "is written anew when a model is done; alignments and attacks follow."
        )
        # The robust alignment takes longest: it comes first, and the others share the other worker.
        names = (*reversed(ALIGNED), "original")
        jobs = {LABELS[name]: [partial(run_model, name, out, config)] for name in names}
        for name in ALIGNED:
            jobs[LABELS[name]].append(partial(run_moments, name, out, config))
        run_jobs(jobs, config.workers, lambda: write_demo_report(out, config))
        write_demo_report(out, config)


def _first_answers(model: DiffusionLM, world: World, config: DemoConfig) -> None:
    """Show what the original answers to one request, asked plainly and in a wrapping."""
    obj = world.objects(restricted=True, split="heldout")[0]
    (wrapping,) = ATTACK_WRAPPINGS[FIRST_ATTACKS[-1]]
    prompts = [world.request(obj), world.request(obj, wrapping)]
    decoder = testbed_subject(config.testbed, None, steps=config.steps).full_decoder
    queries = [(Query(prompt), decoder) for prompt in prompts]
    responses = answer_all(model, model.content_hash(), queries)
    console = new_console()
    console.print("The original, asked plainly and in a wrapping (color: when a word was written):")
    for prompt, response in zip(prompts, responses, strict=True):
        console.print(Text(f"  > {prompt}", "bold"))
        console.print(Text("  ") + picture(model, response))


def write_demo_report(out: Path, config: DemoConfig) -> None:
    """Judge what is recorded so far, and write the report on it, and its tables."""
    limit = max(config.num_benign, config.num_tasks, config.num_curve)
    sets = (*HARMLESS_SETS, ALL_TASKS)
    measured = judge_recorded(out, world_of(config.testbed), JUDGES, sets, limit=limit)
    names = {model: name for model, name in shown_names(config).items() if name in measured}
    content = build(
        [run_folder(out)],
        ReportConfig(
            title="All words are written at once: what changes when refusal starts in the middle",
            labels={name: LABELS[model] for model, name in names.items()},
            notes={name: NOTES[model] for model, name in names.items()},
            limits=LIMITS,
        ),
    )
    write_page(out / "report.html", content)
    write_tables(out / "tables", content)


def shown_names(config: DemoConfig) -> dict[str, str]:
    """The name of each model of the demo in its records."""
    original = testbed_subject(config.testbed, None, steps=config.steps).name
    return {"original": original} | {name: f"{original}+{name}" for name in ALIGNED}


# --- one model ------------------------------------------------------------------------------------


def run_model(name: str, out: Path, config: DemoConfig, emit: Emit) -> None:
    """Align one model of the demo, and record what is not recorded yet."""
    adapter = None
    if name in ALIGNED:
        method, preset = ALIGNED[name]
        recipe = Recipe(
            method,
            preset,
            seed=config.seed,
            max_steps=config.align_steps,
            moments=CURVE_FRACTIONS,
        )
        adapter = train(recipe, config.testbed, adapter_folder(name, out), emit)

    record = partial(measure_into, out, config, emit, seed=config.seed)
    emit("stage", "attacks")
    record([adapter], [HARMFUL], ATTACKS, limit=config.num_objects)
    emit("stage", "harmless requests")
    record([adapter], HARMLESS_SETS, ["direct"], limit=config.num_benign)
    emit("stage", "useful tasks")
    record([adapter], [ALL_TASKS], ["direct"], limit=config.num_tasks)
    if name in PROBED:
        emit("stage", "probe")
        num = min(PROTOCOLS[PROBE]["quick"].num_cases, config.num_objects)
        record([adapter], [HARMFUL], [PROBE], limit=num, preset="quick")


def adapter_folder(name: str, out: Path) -> Path:
    """The folder of an aligned model's adapter."""
    return out / "adapters" / name


def run_moments(name: str, out: Path, config: DemoConfig, emit: Emit) -> None:
    """Record what is not recorded yet of the moments of an alignment that is done."""
    emit("stage", "along the training")
    record = partial(measure_into, out, config, emit, seed=config.seed)
    num = min(config.num_curve, config.num_objects)
    moments = moments_of(adapter_folder(name, out))
    record(moments, [HARMFUL], CURVE_ATTACKS, limit=num)
    record(moments, [CURVE_SET], ["direct"], limit=config.num_curve)


# --- results --------------------------------------------------------------------------------------


def closing_lines(out: Path, config: DemoConfig) -> list[str]:
    """The headline figures in four lines, and a fifth with the place of the report."""
    evidence = gather([run_folder(out)])
    names = shown_names(config)

    def line(title: str, measure: str) -> str:
        rates = {model: headline(evidence, measure, name).rate for model, name in names.items()}
        shown = ", ".join(
            f"{LABELS[model]} {NOTHING if rate is None else format_value(rate.value)}"
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
