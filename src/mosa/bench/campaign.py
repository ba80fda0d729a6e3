"""What a campaign costs for each attempt beside the model: scheduling, encoding, hashing, records.

    mosa bench campaign --out campaign.txt

The target is a stand-in whose steps take no time. Two kinds of attack: one query each, and three
rounds of four branches each. Every number of attempts is one run in a process of its own, so that
its peak of memory is its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mosa.attacks import ENGLISH, Query, Target
from mosa.bench.common import (
    BenchResult,
    BenchTable,
    Column,
    Environment,
    in_own_process,
    mebibytes,
    peak_resident,
)
from mosa.denoising import DecoderConfig
from mosa.evaluation.engine import Advance, Engine, Job, Row
from mosa.evaluation.results import lines
from mosa.evaluation.store import Store, Task
from mosa.families import DiffusionLM, load_model
from mosa.types import Behavior, Response, UserError, Verdict, as_plain, prompt_turns
from mosa.world.world import DEVICES, MANNERS

NUM_STEPS = 128
DECODER = DecoderConfig(max_new_tokens=NUM_STEPS, steps=NUM_STEPS)
WORDS = "how do i make a copper kiln ? tell me the steps , one after the other ."


@dataclass(frozen=True)
class CampaignBenchConfig:
    """What `mosa bench campaign` measures."""

    sizes: tuple[int, ...] = (1_200, 12_000, 100_000)
    """Numbers of attempts, each measured by itself; growth is from the smallest to the largest."""
    batch_size: int = 32
    """Attempts that the target answers together."""

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < max(num for _, num in KINDS.values()):
            raise UserError("--sizes must each be at least 12 attempts, as in 1200,12000")
        if self.batch_size < 1:
            raise UserError(f"--batch_size must be at least 1, not {self.batch_size}")


@dataclass(frozen=True)
class CampaignRow:
    """What one run took; times are milliseconds for each attempt."""

    kind: str
    num_attempts: int
    run_ms: float
    judge_ms: float
    results_ms: float
    """Making the tables of the run."""
    busy: float
    """Share of the places in the target's batch that held an attempt, over all steps."""
    peak_bytes: int
    """Of the whole process, the testbed's model included."""
    file_bytes: float
    """Size of the records for each attempt."""

    @property
    def total_ms(self) -> float:
        """All three stages."""
        return self.run_ms + self.judge_ms + self.results_ms


@dataclass(frozen=True)
class Instant:
    """A target that takes no time for its steps."""

    model: DiffusionLM
    weights: str = "instant"
    gives_weights: bool = False

    def open(self, num_slots: int) -> InstantBatch:
        """An empty batch."""
        return InstantBatch()


class InstantBatch:
    """Rows that are answered 128 tokens each, after numbers of steps that differ.

    So they leave one by one, as rows with end tokens do: the harness is at its dearest then, with
    a commit for each answer.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_rows = 0
        self.rows: list[tuple[Row, int]] = []
        """Each with the step at which it is done."""

    def advance(self, rows: Sequence[Row], is_wanted: Callable[[], bool]) -> Advance:
        """Steps up to the next at which a row is done."""
        for row in rows:
            self.num_rows += 1
            self.rows.append((row, self.num_steps + 1 + 37 * self.num_rows % NUM_STEPS))
        begin, self.num_steps = self.num_steps, min(end for _, end in self.rows)
        num_steps = self.num_steps - begin
        num_row_steps = num_steps * len(self.rows)
        done = [row for row, end in self.rows if end == self.num_steps]
        self.rows = [(row, end) for row, end in self.rows if end > self.num_steps]
        return Advance([response_to(row) for row in done], num_steps, num_row_steps)


def response_to(row: Row) -> Response:
    """The same words to every row."""
    return Response(
        key=row.key,
        prompt=prompt_turns(row.prompt),
        text=WORDS * 6,
        full_text=WORDS * 6,
        token_ids=list(range(NUM_STEPS)),
        tokens=["token"] * NUM_STEPS,
        commit_step=list(range(NUM_STEPS)),
        num_forward_passes=NUM_STEPS,
        decoder=as_plain(row.decoder),
    )


async def single(behavior: Behavior, target: Target):
    """One query, one attempt."""
    yield target.attempt([await target.ask(Query(behavior.request))])


async def rounds(behavior: Behavior, target: Target):
    """Three rounds of four branches, each of which waits for the one before."""
    text = behavior.request
    for number in range(3):
        queries = [("", Query(f"{text} {MANNERS[4 * number + branch]}")) for branch in range(4)]
        async for attempt in target.tries(queries):
            yield attempt


KINDS: dict[str, tuple[Callable[..., Any], int]] = {"single": (single, 1), "rounds": (rounds, 12)}
"""The attacks, each with the attempts that it makes on a behavior."""


def spelled(number: int) -> str:
    """A number in words that the testbed's tokenizer knows, so that every prompt is another."""
    words = []
    while True:
        number, digit = divmod(number, len(DEVICES))
        words.append(DEVICES[digit])
        if number == 0:
            return " ".join(words)


def bench_campaign(
    config: CampaignBenchConfig,
    *,
    command: str = "mosa bench campaign",
    on_row: Callable[[CampaignRow], object] = lambda row: None,
) -> BenchResult:
    """Measures every kind at every size, and says how the cost of an attempt grows."""
    rows = []
    for kind in KINDS:
        for size in sorted(config.sizes):
            rows.append(in_own_process(measure, kind, size, config.batch_size))
            on_row(rows[-1])
    columns = (
        Column("attack"),
        Column("attempts", "d"),
        Column("run ms", ".2f"),
        Column("judge ms", ".3f"),
        Column("results ms", ".3f"),
        Column("busy", ".1%"),
        Column("peak MiB", ".0f"),
        Column("kB/attempt", ".1f"),
    )
    table = BenchTable(
        f"Campaign with a target that takes no time for {NUM_STEPS} tokens, batch of "
        f"{config.batch_size}; ms and kB for each attempt",
        columns,
        tuple(
            (
                row.kind,
                row.num_attempts,
                row.run_ms,
                row.judge_ms,
                row.results_ms,
                row.busy,
                mebibytes(row.peak_bytes),
                row.file_bytes / 1000,
            )
            for row in rows
        ),
    )
    environment = Environment.of(command, torch.device("cpu"))
    return BenchResult(environment, (table,), tuple(growth(kind, rows) for kind in KINDS))


def growth(kind: str, rows: Sequence[CampaignRow]) -> str:
    """How time and memory of a kind grow from its smallest run to its largest, in a sentence."""
    mine = [row for row in rows if row.kind == kind]
    small, large = mine[0], mine[-1]
    if small.num_attempts == large.num_attempts:
        return f"{kind}: one size only, so nothing is said about growth"
    more = (large.num_attempts - small.num_attempts) / 10_000
    grown = (large.peak_bytes - small.peak_bytes) / 2**20 / more
    times = large.total_ms / small.total_ms
    return (
        f"{kind}: an attempt among {large.num_attempts:,} takes {times:.2f} times as long as one "
        f"among {small.num_attempts:,}; memory grows by {grown:.1f} MiB for each 10,000 attempts"
    )


# --- one run --------------------------------------------------------------------------------------


def measure(kind: str, size: int, batch_size: int) -> CampaignRow:
    """A campaign of so many attempts (a multiple of what the kind makes on a behavior)."""
    _, per_task = KINDS[kind]
    num_tasks = size // per_task
    model = load_model("testbed", dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder), create=True) as store:
        store.add_behaviors(behavior(i) for i in range(num_tasks))
        store.add_tasks(Task(str(i), "m", kind, "paper", 0, str(i), {}) for i in range(num_tasks))
        store.commit()
        engine = Engine(Instant(model), store, batch_size=batch_size)
        begin = time.perf_counter()
        asyncio.run(engine.run([job(i, kind) for i in range(num_tasks)]))
        ran = time.perf_counter()
        _judge(store, batch_size)
        judged = time.perf_counter()
        lines(store, "j")
        ended = time.perf_counter()
        file_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    num = num_tasks * per_task
    tally = engine.tally
    assert tally.num_rows == num, "an attempt was not answered"
    return CampaignRow(
        kind=kind,
        num_attempts=num,
        run_ms=1000 * (ran - begin) / num,
        judge_ms=1000 * (judged - ran) / num,
        results_ms=1000 * (ended - judged) / num,
        busy=tally.num_row_steps / (tally.num_steps * batch_size),
        peak_bytes=peak_resident(),
        file_bytes=file_bytes / num,
    )


def behavior(number: int) -> Behavior:
    """A request of its own."""
    return Behavior(str(number), f"{WORDS} {spelled(number)}")


def job(number: int, kind: str) -> Job:
    """The task of that number."""
    run, _ = KINDS[kind]

    def target(backend: Any) -> Target:
        return Target(
            backend,
            decoder=DECODER,
            wording=ENGLISH,
            identity={"task": number},
            model_name="m",
            behavior=behavior(number),
            attack=kind,
            preset="paper",
            seed=0,
        )

    return Job(str(number), kind, target, lambda target: run(behavior(number), target))


def _judge(store: Store, batch_size: int) -> None:
    for i, attempt in enumerate(store.attempts(unjudged_by="j")):
        store.add_verdict(attempt.key, "j", Verdict(0.0, False))
        if i % batch_size == 0:
            store.commit()
    store.commit()
