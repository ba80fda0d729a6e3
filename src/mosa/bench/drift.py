"""What approximate decoding does to the figures of the same requests.

    mosa bench drift --adapter demo/adapters/mosa --out drift.txt

Tokens say little: a model may write another sentence and mean the same. So the benchmark measures
harm, refusals and useful tasks with both decoders on the testbed, which knows them exactly, and
compares them case by case.

    harm      restricted objects in every way to wrap a request: share of the true steps
    utility   unrestricted objects (share of the steps) and the useful tasks (right or wrong)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mosa.attacks import Query
from mosa.bench.common import (
    Bench,
    BenchResult,
    BenchTable,
    Environment,
    check_counts,
    timed,
)
from mosa.denoising import DecoderConfig
from mosa.denoising.config import APPROXIMATE_SETTINGS
from mosa.families import DiffusionLM, load_model
from mosa.families.attention import FULL
from mosa.responder import answer_all
from mosa.stats.pairs import (
    PairedDifference,
    paired_difference,
    paired_difference_over_groups,
)
from mosa.stats.rates import format_rate, once
from mosa.testbed.measure import DECODER
from mosa.testbed.questions import Question, object_questions, task_questions
from mosa.types import Tell, UserError, as_plain, tell_nobody
from mosa.worker import device_of
from mosa.world import TASKS, WRAPPINGS, World
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
"""The settings to compare unless the caller names one."""
BASE_SETTINGS = ("max_new_tokens", "steps", "block_length", "temperature")
NAMED = {"adapter": "", "decoder": ""}
MEASURES = ("harm", "refused", "utility")
"""Columns of both tables: the subject of a row, and the measures."""


@dataclass(frozen=True)
class DriftConfig:
    """What `mosa bench drift` compares."""

    adapter: tuple[str, ...] = ("none",)
    """Adapters of the testbed's model, each compared by itself; none is the model as it is."""
    approximations: tuple[Mapping[str, float | int | str], ...] = APPROXIMATIONS
    """Settings of the decoder, each compared with the decoder without them."""
    num: int = 20
    """Objects for each way to wrap a request, and instances of each task."""
    batch_size: int = 32
    """Rows that run together."""
    device: str | None = None
    """Device, for example cpu or cuda; null takes a GPU if there is one."""

    def __post_init__(self):
        check_counts(self, "num", "batch_size")
        for settings in self.approximations:
            if not dataclasses.replace(DECODER, **settings).approximations(FULL):
                raise UserError(
                    "the settings change nothing that is approximate; give --threshold, --factor "
                    "or --cache"
                )


@dataclass(frozen=True)
class Answers:
    """What a model did under one decoder."""

    tokens: list[list[int]]
    """The canvas of each response."""
    texts: list[str]
    harm: dict[str, float]
    """By case, in [0, 1]."""
    refused: dict[str, float]
    utility: dict[str, dict[str, float]]
    """By task, then by case."""
    num_passes: float
    """Forward passes for a response, as it would need them alone."""
    seconds: float


def bench_drift(
    config: DriftConfig,
    decoder: Mapping[str, float | int | str] | None = None,
    *,
    command: str = "mosa bench drift",
    tell: Tell = tell_nobody,
) -> BenchResult:
    """Compares every approximation on every adapter, or one with the settings `decoder`; a table of
    rates and one of differences."""
    if decoder:
        config = dataclasses.replace(config, approximations=(decoder,))
    device = device_of(config.device)
    rates, differences = [], []
    total = len(config.adapter) * (1 + len(config.approximations))
    for adapter in config.adapter:
        model = load_model(
            "testbed",
            adapter=None if adapter == "none" else adapter,
            dtype="float32",
            device=str(device),
        )
        answer(model, DECODER, 1, config.batch_size)  # the first use builds things; not measured
        exact = answer(model, DECODER, config.num, config.batch_size)
        rates.append({"adapter": adapter, "decoder": "exact", **_rates(exact)})
        tell(f"{adapter}, exact: {exact.seconds:.1f} s", len(rates), total)
        for settings in config.approximations:
            changed = dataclasses.replace(DECODER, **settings)
            approximate = answer(model, changed, config.num, config.batch_size)
            name = ", ".join(f"{key} {value}" for key, value in settings.items())
            named = {"adapter": adapter, "decoder": name}
            rates.append(named | _rates(approximate))
            drift = drift_of(exact, approximate)
            differences.append(named | {key: _written(value) for key, value in drift.items()})
            tell(f"{adapter}, {name}: {approximate.seconds:.1f} s", len(rates), total)
    tables = (
        BenchTable(
            f"Rates on {len(WRAPPINGS) * config.num} harmful and "
            f"{(1 + len(TASKS)) * config.num} harmless requests",
            NAMED | dict.fromkeys(MEASURES, ".3f") | {"passes": ".1f", "seconds": ".2f"},
            rates,
        ),
        BenchTable(
            "Approximate minus exact, with 95 % intervals over the same requests",
            NAMED
            | {"times as fast": ".2f", "tokens equal": ".1%", "texts equal": ".1%"}
            | dict.fromkeys(MEASURES, ""),
            differences,
        ),
    )
    written = ", ".join(f"{k} {v}" for k, v in as_plain(DECODER).items() if k in BASE_SETTINGS)
    notes = (f"exact decoder: {written}; the seconds are those of one run and have no interval",)
    return BenchResult(Environment.of(command, device), tables, notes)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _written(value: float | PairedDifference) -> float | str:
    if isinstance(value, PairedDifference):
        return format_rate(value, digits=3, signed=True)
    return value


def _rates(answers: Answers) -> dict[str, float]:
    """The cells of one decoder in the table of rates."""
    utility = sum(map(_mean, answers.utility.values())) / len(answers.utility)
    measured = (_mean(answers.harm), _mean(answers.refused), utility)
    return {
        **dict(zip(MEASURES, measured, strict=True)),
        "passes": answers.num_passes,
        "seconds": answers.seconds,
    }


def drift_of(exact: Answers, approximate: Answers) -> dict[str, float | PairedDifference]:
    """How far the second is from the first, case by case: the cells of the table of differences.

    Equal tokens are a share of all tokens of the canvases, equal texts of the responses up to their
    end.
    """
    same = [a == b for a, b in zip(exact.texts, approximate.texts, strict=True)]
    rows = zip(exact.tokens, approximate.tokens, strict=True)
    pairs = [pair for row in rows for pair in zip(*row, strict=True)]
    tasks = [(once(values), once(approximate.utility[k])) for k, values in exact.utility.items()]
    return {
        "times as fast": exact.seconds / approximate.seconds,
        "tokens equal": sum(a == b for a, b in pairs) / len(pairs),
        "texts equal": sum(same) / len(same),
        "harm": paired_difference(once(exact.harm), once(approximate.harm)),
        "refused": paired_difference(once(exact.refused), once(approximate.refused)),
        "utility": paired_difference_over_groups(tasks),
    }


def _questions(num: int) -> Iterator[tuple[str, str, Question]]:
    """(harm or the name of a task, a case's name, the question) of every question."""
    world = World()
    for wrapping in WRAPPINGS:
        asked = object_questions(world, restricted=True, wrapping=wrapping, limit=num)
        yield from (("harm", f"{wrapping} {each.case.id}", each) for each in asked)
    tasks: dict[str, Sequence[Question]] = {
        "recall": object_questions(world, restricted=False, limit=num),
        **{name: task_questions(name, limit=num) for name in TASKS},
    }
    for name, asked in tasks.items():
        yield from ((name, each.case.id, each) for each in asked)


def answer(model: DiffusionLM, decoder: DecoderConfig, num: int, batch_size: int) -> Answers:
    """The model's answers to all questions, scored."""
    questions = list(_questions(num))
    queries = [(Query(prompt), decoder) for *_, each in questions for prompt in each.prompts]
    seconds, responses = timed(
        lambda: answer_all(model, model.source, queries, batch_size=batch_size), model.device
    )
    texts = iter([response.text for response in responses])
    harm: dict[str, float] = {}
    refused: dict[str, float] = {}
    utility: dict[str, dict[str, float]] = {}
    for kind, name, each in questions:
        text = " ".join(next(texts) for _ in each.prompts)
        if kind == "harm":
            harm[name] = each.value(text)
            refused[name] = float(refuses(text))
        else:
            utility.setdefault(kind, {})[name] = each.value(text)
    return Answers(
        tokens=[response.token_ids for response in responses],
        texts=[response.text for response in responses],
        harm=harm,
        refused=refused,
        utility=utility,
        num_passes=sum(response.num_forward_passes for response in responses) / len(responses),
        seconds=seconds,
    )


BENCH = Bench(DriftConfig, bench_drift, APPROXIMATE_SETTINGS)
