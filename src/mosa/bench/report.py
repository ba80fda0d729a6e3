"""How the time to build a report, its memory and the size of its page grow with the attempts.

    mosa bench report --out report.txt

The runs are made up: four models, attacks with an attempt at each of 100 cases, responses of
128 tokens out of 5,000 words in a random order of commitment, which is the worst case for the
page's size: text of a language packs better. Where not all fits, some responses are left out. Every
number of attempts is one run in a process of its own.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mosa.bench.common import (
    BenchResult,
    BenchTable,
    Column,
    Environment,
    forget_peak,
    in_own_process,
    mebibytes,
    peak_resident,
)
from mosa.report.build import ReportConfig, build
from mosa.report.page import write_page
from mosa.runs.records import Outcome, SubjectRecord, Task
from mosa.runs.store import Run
from mosa.types import Attempt, Behavior, Budget, CaseSet, Response, UserError, Verdict

SUBJECTS = ("a", "b", "c", "d")
SET = "made up"
NUM_CASES, LENGTH, NUM_WORDS = 100, 128, 5_000
JUDGE = "strongreject/1/made-up"
ROWS_TO_COMMIT = 2_000


@dataclass(frozen=True)
class ReportBenchConfig:
    """What `mosa bench report` measures."""

    sizes: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 20_000)
    """Numbers of attempts, each measured by itself; growth is from the smallest to the largest."""

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise UserError("--sizes must each be at least 1 attempt, as in 1000,10000")


@dataclass(frozen=True)
class ReportRow:
    """What one report took."""

    num_attempts: int
    read_seconds: float
    """From the records to the report's content."""
    draw_seconds: float
    """From there to the page."""
    peak_bytes: int
    """Of the process, beyond what it held before the report."""
    page_bytes: int

    @property
    def ms_per_1000(self) -> float:
        """Milliseconds for 1,000 attempts."""
        return 1e6 * (self.read_seconds + self.draw_seconds) / self.num_attempts


def bench_report(
    config: ReportBenchConfig,
    *,
    command: str = "mosa bench report",
    on_row: Callable[[ReportRow], object] = lambda row: None,
) -> BenchResult:
    """Builds a report of every size, and says how the cost of an attempt grows."""
    rows = []
    for size in sorted(config.sizes):
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder), size)
            rows.append(in_own_process(measure, Path(folder), size))
        on_row(rows[-1])
    columns = (
        Column("attempts", "d"),
        Column("read s", ".2f"),
        Column("draw s", ".2f"),
        Column("ms per 1,000", ".0f"),
        Column("peak MiB", ".0f"),
        Column("page MB", ".2f"),
    )
    table = BenchTable(
        f"Report of {len(SUBJECTS)} models with responses of {LENGTH} tokens",
        columns,
        tuple(
            (
                row.num_attempts,
                row.read_seconds,
                row.draw_seconds,
                row.ms_per_1000,
                mebibytes(row.peak_bytes),
                row.page_bytes / 1e6,
            )
            for row in rows
        ),
    )
    environment = Environment.of(command, torch.device("cpu"))
    return BenchResult(environment, (table,), (growth(rows),))


def growth(rows: Sequence[ReportRow]) -> str:
    """How the cost of an attempt grows from the smallest report to the largest, in a sentence."""
    small, large = rows[0], rows[-1]
    if small.num_attempts == large.num_attempts:
        return "one size only, so nothing is said about growth"
    return (
        f"an attempt among {large.num_attempts:,} takes "
        f"{large.ms_per_1000 / small.ms_per_1000:.2f} times as long as one among "
        f"{small.num_attempts:,}"
    )


def measure(folder: Path, num_attempts: int) -> ReportRow:
    """One report of the run in the folder, written there."""
    before = forget_peak()
    begin = time.perf_counter()
    content = build([folder], ReportConfig(redact=False))
    read = time.perf_counter()
    page = folder / "report.html"
    write_page(page, content)
    drawn = time.perf_counter()
    return ReportRow(
        num_attempts=num_attempts,
        read_seconds=read - begin,
        draw_seconds=drawn - read,
        peak_bytes=peak_resident() - before,
        page_bytes=page.stat().st_size,
    )


def make_run(folder: Path, num_attempts: int) -> None:
    """A run of so many attempts, the subjects in turn, then the cases, then the attacks."""
    rng = random.Random(0)
    cases = tuple(Behavior(f"b{i}", f"request {i}", category=f"c{i % 7}") for i in range(NUM_CASES))
    with Run(folder, create=True) as run:
        run.add_set(CaseSet(SET, "harmful", cases))
        for name in SUBJECTS:
            run.add_subject(
                SubjectRecord(
                    name=name,
                    source=name,
                    adapter=None,
                    weights=name,
                    system_prompt=None,
                    decoder={"steps": LENGTH, "max_new_tokens": LENGTH},
                    grants=["prompt"],
                    offers=[],
                    special_tokens=[],
                )
            )
        for number in range(num_attempts):
            _add_attempt(run, number, cases, rng)


def _add_attempt(run: Run, number: int, cases: Sequence[Behavior], rng: random.Random) -> None:
    rest, turn = divmod(number, len(SUBJECTS))
    round_, place = divmod(rest, NUM_CASES)
    subject, case, attack = SUBJECTS[turn], cases[place].id, f"attack{round_}"
    words = [f"w{rng.randrange(NUM_WORDS)}" for _ in range(LENGTH)]
    text = " ".join(words)
    response = Response(
        f"r{number}",
        [{"role": "user", "content": f"try {number}: " + " ".join(words[:40])}],
        text,
        text,
        list(range(LENGTH)),
        words,
        rng.sample(range(LENGTH), LENGTH),
        decoder={"steps": LENGTH},
    )
    key = str(number)
    spent = Budget(target_queries=1, forward_passes=LENGTH)
    run.add_tasks([Task(key, subject, SET, case, attack, "paper", 0, "prompt", {})])
    run.add_response(response)
    run.add_attempt(
        key,
        Attempt(
            key=key,
            subject=subject,
            case_set=SET,
            case=case,
            attack=attack,
            responses=[response],
            response=text,
            response_full=text,
            preset="paper",
            budget=spent,
        ),
    )
    run.end_task(key, Outcome("done", 1, spent))
    success = rng.random() < 0.3
    run.add_verdict(key, JUDGE, Verdict(float(success), success))
    if run.num_open_writes > ROWS_TO_COMMIT:
        run.commit()
