"""What approximate decoding does to the figures: the same requests, decoded exactly and not.

    mosa bench drift --adapter demo/adapters/mosa --out drift.txt

Tokens say little: a model may write another sentence and mean the same. So harm, refusals and
useful tasks are measured under both decoders on the testbed, where they are known exactly, and
compared case by case.

    harm      restricted objects in every way to wrap a request: share of the true steps
    utility   unrestricted objects (share of the steps) and the useful tasks (right or wrong)
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from mosa.bench.common import BenchResult, BenchTable, Column, Environment, bench_device, timed
from mosa.denoising import DecoderConfig, sample
from mosa.evaluation.statistics import (
    PairedDifference,
    paired_difference,
    paired_difference_over_groups,
)
from mosa.families import DiffusionLM, load_model
from mosa.testbed.measure import DECODER
from mosa.types import Prompt, UserError, as_plain
from mosa.world import TASKS, WRAPPINGS, Truth, World
from mosa.world.world import refuses

APPROXIMATIONS: tuple[dict[str, float | int | str], ...] = (
    {"threshold": 0.9},
    {"threshold": 0.7},
    {"factor": 1.0},
    {"cache": "prefix"},
    {"cache": "dual"},
    {"cache": "dual", "cache_refresh": 4},
    {"cache": "dual", "threshold": 0.9},
)
"""What is compared unless one is named."""
BASE_SETTINGS = ("max_new_tokens", "steps", "block_length", "temperature")


@dataclass(frozen=True)
class DriftConfig:
    """What `mosa bench drift` compares."""

    adapters: tuple[str, ...] = ("none",)
    """Adapters of the testbed's model, each compared by itself; none is the model as it is."""
    approximations: tuple[Mapping[str, float | int | str], ...] = APPROXIMATIONS
    """Settings of the decoder, each compared with the decoder without them."""
    num: int = 20
    """Objects for each way to wrap a request, and instances of each task."""
    batch_size: int = 32
    """Rows that run together."""
    device: str | None = None
    """cpu, cuda, ...; null takes a GPU if there is one."""

    def __post_init__(self):
        if self.num < 1 or self.batch_size < 1:
            raise UserError("--num and --batch_size must be at least 1")
        for settings in self.approximations:
            if not dataclasses.replace(DECODER, **settings).approximations:
                raise UserError(
                    "the settings change nothing that is approximate; give --threshold, --factor "
                    "or --cache"
                )


@dataclass(frozen=True)
class Answers:
    """What a model did under one decoder."""

    tokens: torch.Tensor
    """[N, R]"""
    texts: list[str]
    harm: dict[str, float]
    """By case, in [0, 1]."""
    refused: dict[str, float]
    utility: dict[str, dict[str, float]]
    """By task, then by case."""
    num_passes: float
    """Forward passes for a response, as it would need them alone."""
    seconds: float


@dataclass(frozen=True)
class Drift:
    """One approximate decoder beside the exact one, on one model."""

    times_as_fast: float
    tokens_equal: float
    """Share of all tokens of the canvases."""
    texts_equal: float
    """Share of the responses up to their end."""
    harm: PairedDifference
    refused: PairedDifference
    utility: PairedDifference


def bench_drift(
    config: DriftConfig,
    *,
    command: str = "mosa bench drift",
    on_row: Callable[[str], object] = lambda row: None,
) -> BenchResult:
    """Compares every approximation on every adapter; a table of rates and one of differences."""
    device = bench_device(config.device)
    rates, differences = [], []
    for adapter in config.adapters:
        model = load_model(
            "testbed",
            adapter=None if adapter == "none" else adapter,
            dtype="float32",
            device=str(device),
        )
        answer(model, DECODER, 1, config.batch_size)  # what the first use makes is not measured
        exact = answer(model, DECODER, config.num, config.batch_size)
        rates.append(_rates(adapter, "exact", exact))
        on_row(f"{adapter}, exact: {exact.seconds:.1f} s")
        for settings in config.approximations:
            decoder = dataclasses.replace(DECODER, **settings)
            approximate = answer(model, decoder, config.num, config.batch_size)
            name = ", ".join(f"{key} {value}" for key, value in settings.items())
            rates.append(_rates(adapter, name, approximate))
            differences.append(_differences(adapter, name, drift_of(exact, approximate)))
            on_row(f"{adapter}, {name}: {approximate.seconds:.1f} s")
    columns = ("harm", "refused", "utility")
    tables = (
        BenchTable(
            f"Rates on {len(WRAPPINGS) * config.num} harmful and "
            f"{(1 + len(TASKS)) * config.num} harmless requests",
            (
                Column("adapter"),
                Column("decoder"),
                *(Column(name, ".3f") for name in columns),
                Column("passes", ".1f"),
                Column("seconds", ".2f"),
            ),
            tuple(rates),
        ),
        BenchTable(
            "Approximate minus exact, with 95 % intervals over the same requests",
            (
                Column("adapter"),
                Column("decoder"),
                Column("times as fast", ".2f"),
                Column("tokens equal", ".1%"),
                Column("texts equal", ".1%"),
                *(Column(name) for name in columns),
            ),
            tuple(differences),
        ),
    )
    written = ", ".join(f"{k} {v}" for k, v in as_plain(DECODER).items() if k in BASE_SETTINGS)
    notes = (
        f"exact decoder: {written}; seconds are those of one run, intervals say nothing of it",
    )
    return BenchResult(Environment.of(command, device), tables, notes)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _rates(adapter: str, name: str, answers: Answers) -> tuple[object, ...]:
    utility = sum(map(_mean, answers.utility.values())) / len(answers.utility)
    shown = (_mean(answers.harm), _mean(answers.refused), utility)
    return adapter, name, *shown, answers.num_passes, answers.seconds


def _differences(adapter: str, name: str, drift: Drift) -> tuple[object, ...]:
    shown = (
        f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        for found in (drift.harm, drift.refused, drift.utility)
    )
    equal = (drift.times_as_fast, drift.tokens_equal, drift.texts_equal)
    return adapter, name, *equal, *shown


def drift_of(exact: Answers, approximate: Answers) -> Drift:
    """How far the second is from the first, case by case."""
    same = [a == b for a, b in zip(exact.texts, approximate.texts, strict=True)]
    return Drift(
        times_as_fast=exact.seconds / approximate.seconds,
        tokens_equal=float((exact.tokens == approximate.tokens).float().mean()),
        texts_equal=sum(same) / len(same),
        harm=paired_difference(exact.harm, approximate.harm),
        refused=paired_difference(exact.refused, approximate.refused),
        utility=paired_difference_over_groups(
            [(values, approximate.utility[name]) for name, values in exact.utility.items()]
        ),
    )


@dataclass(frozen=True)
class _Case:
    """A request, or the several into which one is split, and how its answer is scored."""

    kind: str
    """harm, or the name of a task."""
    name: str
    prompts: list[Prompt]
    score: Callable[[str], float]


def _cases(num: int) -> Iterator[_Case]:
    world = World()
    truth = Truth(world)
    restricted = world.objects(restricted=True, split="heldout")[:num]
    unrestricted = world.objects(restricted=False, split="heldout")[:num]

    def disclosed(obj):
        return lambda text: truth.harm(obj, text)

    for wrapping in WRAPPINGS:
        for i, obj in enumerate(restricted):
            prompts = world.requests(obj, wrapping, variant=i)
            yield _Case("harm", f"{wrapping} {i}", list(prompts), disclosed(obj))
    for i, obj in enumerate(unrestricted):
        yield _Case("recall", f"{i}", [world.request(obj, variant=i)], disclosed(obj))
    for name, task in TASKS.items():
        rng = random.Random(f"drift-{name}")
        for i in range(num):
            instance = task(rng, "heldout")
            yield _Case(
                name,
                f"{i}",
                [instance.prompt],
                lambda text, instance=instance: float(instance.solved_by(text)),
            )


def answer(model: DiffusionLM, decoder: DecoderConfig, num: int, batch_size: int) -> Answers:
    """The model's answers to all cases, scored."""
    cases = list(_cases(num))
    prompts = [prompt for case in cases for prompt in case.prompts]
    seconds, result = timed(
        lambda: sample(model, prompts, decoder, batch_size=batch_size), model.device
    )
    assert result.text is not None, "the testbed has a tokenizer"
    texts = iter(result.text)
    harm: dict[str, float] = {}
    refused: dict[str, float] = {}
    utility: dict[str, dict[str, float]] = {}
    for case in cases:
        text = " ".join(next(texts) for _ in case.prompts)
        if case.kind == "harm":
            harm[case.name] = case.score(text)
            refused[case.name] = float(refuses(text))
        else:
            utility.setdefault(case.kind, {})[case.name] = case.score(text)
    return Answers(
        tokens=result.tokens.cpu(),
        texts=result.text,
        harm=harm,
        refused=refused,
        utility=utility,
        num_passes=float(result.trace.row_forward_passes.float().mean()),
        seconds=seconds,
    )
