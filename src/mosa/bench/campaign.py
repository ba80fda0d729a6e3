"""What an attempt costs beside the model: planning, scheduling, encoding, hashing, records.

    mosa bench campaign --out campaign.txt

The target is a stand-in whose steps take no time. Two kinds of attack: one query each, and three
rounds of four branches each. Every number of attempts is one run in a process of its own, so that
its peak of memory is its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from mosa.attacks import ATTACKS, Attack, Query, Target, Work
from mosa.attacks.base import NoConfig
from mosa.bench.common import (
    BenchResult,
    BenchTable,
    Column,
    Environment,
    in_own_process,
    mebibytes,
    peak_resident,
)
from mosa.denoising import DecoderConfig, OnStep
from mosa.families import DiffusionLM, load_model
from mosa.judges import Item
from mosa.results.figures import figures_of
from mosa.runs.judging import NamedJudge, judge_run
from mosa.runs.plan import ChosenAttack, courses_of, plan
from mosa.runs.recorder import PlannedTask, Recorder
from mosa.runs.responder import Prepared, Tally, plain, prepare
from mosa.runs.store import Run
from mosa.runs.subject import Subject
from mosa.types import (
    Attempt,
    Behavior,
    CaseSet,
    Response,
    UserError,
    Verdict,
    prompt_turns,
)
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
    plan_ms: float
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
        """All stages."""
        return self.plan_ms + self.run_ms + self.judge_ms + self.results_ms


@final
class Instant:
    """A responder that takes no time for its steps.

    Its rows are of 128 tokens and need numbers of steps that differ, so that they leave one by one,
    as rows with end tokens do.
    """

    def __init__(self, model: DiffusionLM, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.tally = Tally()
        self._waiting: deque[tuple[Prepared, asyncio.Future[Response]]] = deque()
        self._busy: list[tuple[int, Prepared, asyncio.Future[Response]]] = []
        """Each with the step at which it is done."""
        self._num_rows = 0

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        """As any responder."""
        return prepare(self.model, "instant", query, decoder)

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        """The same words to every query."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        if not self._waiting and not self._busy:
            loop.call_soon(self._advance)
        self._waiting.append((prepared, future))
        return await future

    def _advance(self) -> None:
        """Let queries join, then take steps up to the next at which a row is done."""
        while self._waiting and len(self._busy) < self.capacity:
            self._num_rows += 1
            end = self.tally.num_steps + 1 + 37 * self._num_rows % NUM_STEPS
            self._busy.append((end, *self._waiting.popleft()))
        begin, self.tally.num_steps = self.tally.num_steps, min(end for end, *_ in self._busy)
        self.tally.num_row_steps += (self.tally.num_steps - begin) * len(self._busy)
        for end, prepared, future in self._busy:
            if end == self.tally.num_steps:
                self.tally.num_responses += 1
                future.set_result(response_to(prepared))
        self._busy = [row for row in self._busy if row[0] > self.tally.num_steps]
        if self._waiting or self._busy:
            asyncio.get_running_loop().call_soon(self._advance)

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        """No attack of this benchmark asks for work."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is left open."""


def response_to(prepared: Prepared) -> Response:
    """The same words to every query."""
    return Response(
        key=prepared.key,
        prompt=prompt_turns(prepared.prompt),
        text=WORDS * 6,
        full_text=WORDS * 6,
        token_ids=list(range(NUM_STEPS)),
        tokens=["token"] * NUM_STEPS,
        commit_step=list(range(NUM_STEPS)),
        num_forward_passes=NUM_STEPS,
        decoder=plain(prepared.decoder),
    )


class Harmless:
    """A judge that takes no time."""

    id = "none"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """No response is harmful."""
        return [Verdict(0.0, False) for _ in items]


async def rounds(behavior: Behavior, target: Target, config: Any) -> AsyncIterator[Attempt]:
    """Three rounds of four branches, each of which waits for the one before."""
    text = behavior.request
    for number in range(3):
        queries = [("", Query(f"{text} {MANNERS[4 * number + branch]}")) for branch in range(4)]
        async for attempt in target.tries(queries):
            yield attempt


ROUNDS = Attack(
    name="rounds",
    summary="three rounds of four branches",
    source="this benchmark",
    access=("prompt",),
    config_class=NoConfig,
    presets={"paper": {}},
    run=rounds,
    decides="any",
)
KINDS = {"single": (ATTACKS["direct"], 1), "rounds": (ROUNDS, 12)}
"""The attacks, each with the attempts that it makes on a case."""


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
        Column("plan ms", ".3f"),
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
                row.plan_ms,
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
    """A run of so many attempts (a multiple of what the kind makes on a case)."""
    attack, per_case = KINDS[kind]
    num_cases = size // per_case
    model = load_model("testbed", dtype="float32", device="cpu")
    responder = Instant(model, batch_size)
    subject = Subject("m", "testbed", decoder=DECODER)
    behaviors = tuple(Behavior(str(i), f"{WORDS} {spelled(i)}") for i in range(num_cases))
    cases = CaseSet("made up", "harmful", behaviors)
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder), create=True) as run:
        run.add_set(cases)
        run.commit()
        begin = time.perf_counter()
        chosen = ChosenAttack(attack, "paper", NoConfig())
        courses = courses_of([cases], [chosen], None, {})
        planned, _ = plan(subject, "instant", courses, [0])
        run.add_tasks(each.task for each in planned)
        run.commit()
        ran_from = time.perf_counter()
        tasks = [PlannedTask(each.task.key, each.target, each.attempts) for each in planned]
        asyncio.run(Recorder(run, responder).run_all(tasks))
        ran = time.perf_counter()
        judge_run(run, [NamedJudge("refusal", Harmless(), reads_canvas=False)])
        judged = time.perf_counter()
        figures_of(run)
        ended = time.perf_counter()
        run.checkpoint()
        file_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    num = num_cases * per_case
    tally = responder.tally
    assert tally.num_responses == num, "an attempt was not answered"
    return CampaignRow(
        kind=kind,
        num_attempts=num,
        plan_ms=1000 * (ran_from - begin) / num,
        run_ms=1000 * (ran - ran_from) / num,
        judge_ms=1000 * (judged - ran) / num,
        results_ms=1000 * (ended - judged) / num,
        busy=tally.num_row_steps / (tally.num_steps * batch_size),
        peak_bytes=peak_resident(),
        file_bytes=file_bytes / num,
    )
