"""What an attempt costs beside the model: planning, scheduling, encoding, hashing, records.

    mosa bench campaign --out campaign.txt

The target is a stand-in whose steps take no time. There are two kinds of attack: one query each,
and three rounds of four branches each. Every number of attempts is one run in a process of its own,
so that each has its own peak of memory.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from mosa.attacks import ATTACKS, Attack, Query, Target
from mosa.attacks.base import Attempts, NoConfig
from mosa.bench.common import (
    Bench,
    BenchResult,
    BenchTable,
    Environment,
    check_counts,
    growth,
    in_own_process,
    peak_resident,
)
from mosa.denoising import DecoderConfig, OnStep
from mosa.evidence.figures import figures_of
from mosa.families import DiffusionLM, load_model
from mosa.judges import Item
from mosa.responder import Prepared, decoder_record, prepare
from mosa.runs.judging import NamedJudge, judge_run
from mosa.runs.plan import ChosenAttack, courses_of, plan
from mosa.runs.recorder import PlannedTask, Recorder
from mosa.runs.store import Run
from mosa.runs.subject import Subject
from mosa.types import (
    Behavior,
    CaseSet,
    Response,
    Tell,
    UserError,
    Verdict,
    prompt_turns,
    tell_nobody,
)
from mosa.worker import Tally, Work
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
        check_counts(self, "batch_size")


STAGES = ("plan ms", "run ms", "judge ms", "results ms")
COLUMNS = {
    "attack": "",
    "attempts": "d",
    **dict(zip(STAGES, (".3f", ".2f", ".3f", ".3f"), strict=True)),  # for each attempt
    "busy": ".1%",  # share of the places in the target's batch that held an attempt
    "peak MiB": ".0f",  # of the whole process, the testbed's model included
    "kB/attempt": ".1f",  # of records
}


@final
class Instant:
    """A responder that takes no time for its steps.

    Its rows have 128 tokens and need different numbers of steps, so they leave one by one, as rows
    with end tokens do.
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
        block_starts=[0],
        num_forward_passes=NUM_STEPS,
        decoder=decoder_record(prepared.decoder),
    )


class Harmless:
    """A judge that takes no time."""

    id = "none"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """No response is harmful."""
        return [Verdict(0.0, False) for _ in items]


async def rounds(target: Target, config: NoConfig) -> Attempts:
    """Three rounds of four branches, each of which waits for the one before."""
    text = target.request
    for number in range(3):
        queries = [("", Query(f"{text} {MANNERS[4 * number + branch]}")) for branch in range(4)]
        async for attempt in target.tries(queries):
            yield attempt


ROUNDS = Attack(
    name="rounds",
    title="three rounds of four",
    summary="three rounds of four branches",
    source="this benchmark",
    access=("prompt",),
    presets={"paper": {}},
    run=rounds,
    decides="any",
)
KINDS = {"single": (ATTACKS["direct"], 1), "rounds": (ROUNDS, 12)}
"""The attacks, each with the attempts that it makes on a case."""


def spelled(number: int) -> str:
    """A number in words that the testbed's tokenizer knows, so that no two prompts are equal."""
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
    tell: Tell = tell_nobody,
) -> BenchResult:
    """Measures every kind at every size, and says how the cost of an attempt grows."""
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind, of_kind in rows.items():
        for size in sorted(config.sizes):
            row = in_own_process(measure_campaign, kind, size, config.batch_size)
            of_kind.append(row)
            told = f"{kind}, {row['attempts']} attempts: {total_ms(row):.2f} ms each"
            tell(told, sum(map(len, rows.values())), len(rows) * len(config.sizes))
    title = (
        f"Campaign with a target that takes no time for {NUM_STEPS} tokens, batch of "
        f"{config.batch_size}; ms and kB for each attempt"
    )
    return BenchResult(
        Environment.of(command, torch.device("cpu")),
        (BenchTable(title, COLUMNS, [row for of_kind in rows.values() for row in of_kind]),),
        tuple(f"{kind}: {growth_of(of_kind)}" for kind, of_kind in rows.items()),
    )


def total_ms(row: Mapping[str, Any]) -> float:
    """Milliseconds for an attempt, all stages together."""
    return sum(row[stage] for stage in STAGES)


def growth_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """How time and memory grow from the smallest run of a kind to its largest, in a sentence."""
    small, large = rows[0], rows[-1]
    time_grows = growth((small["attempts"], total_ms(small)), (large["attempts"], total_ms(large)))
    more = (large["attempts"] - small["attempts"]) / 10_000
    if not more:
        return time_grows
    grown = (large["peak MiB"] - small["peak MiB"]) / more
    return f"{time_grows}; memory grows by {grown:.1f} MiB for each 10,000 attempts"


# --- one run --------------------------------------------------------------------------------------


def measure_campaign(kind: str, size: int, batch_size: int) -> dict[str, Any]:
    """The row of a run of `size` attempts, or as many as whole cases of the kind make."""
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
    moments = [begin, ran_from, ran, judged, ended]
    took = [1000 * (after - before) / num for before, after in itertools.pairwise(moments)]
    return {
        "attack": kind,
        "attempts": num,
        **dict(zip(STAGES, took, strict=True)),
        "busy": tally.num_row_steps / (tally.num_steps * batch_size),
        "peak MiB": peak_resident() / 2**20,
        "kB/attempt": file_bytes / num / 1000,
    }


BENCH = Bench(CampaignBenchConfig, bench_campaign)
