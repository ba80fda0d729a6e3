"""How the time and memory of a report and the size of its page grow with the attempts.

    mosa bench report --out report.txt

The runs are made up: four models, attacks with an attempt at each of 100 cases, responses of
128 tokens out of 5,000 words in a random order of commitment. That is the worst case for the page's
size: text of a language packs better. Where not everything fits, the page leaves responses out.
Every number of attempts is one run in a process of its own.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mosa.bench.common import (
    Bench,
    BenchResult,
    BenchTable,
    Environment,
    forget_peak,
    growth,
    in_own_process,
    peak_resident,
)
from mosa.reporting.build import ReportConfig, build
from mosa.reporting.page import write_page
from mosa.runs.records import Outcome, SubjectRecord, Task
from mosa.runs.store import Run
from mosa.types import (
    Attempt,
    Behavior,
    Budget,
    CaseSet,
    Response,
    Tell,
    UserError,
    Verdict,
    tell_nobody,
)

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


COLUMNS = {
    "attempts": "d",
    "read s": ".2f",  # from the records to the report's content
    "draw s": ".2f",  # from there to the page
    "ms per 1,000": ".0f",
    "peak MiB": ".0f",  # of the process, beyond what it held before the report
    "page MB": ".2f",
}


def bench_report(
    config: ReportBenchConfig,
    *,
    command: str = "mosa bench report",
    tell: Tell = tell_nobody,
) -> BenchResult:
    """Builds a report of every size, and says how the cost of an attempt grows."""
    rows = []
    for size in sorted(config.sizes):
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder), size)
            rows.append(in_own_process(measure_report, Path(folder), size))
        told = f"{size} attempts: {rows[-1]['read s'] + rows[-1]['draw s']:.1f} s"
        tell(told, len(rows), len(config.sizes))
    title = f"Report of {len(SUBJECTS)} models with responses of {LENGTH} tokens"
    costs = [(row["attempts"], row["ms per 1,000"]) for row in rows]
    return BenchResult(
        Environment.of(command, torch.device("cpu")),
        (BenchTable(title, COLUMNS, rows),),
        (growth(costs[0], costs[-1]),),
    )


def measure_report(folder: Path, num_attempts: int) -> dict[str, int | float]:
    """The row of one report of the run in the folder, which is written there."""
    before = forget_peak()
    begin = time.perf_counter()
    content = build([folder], ReportConfig(redact=False))
    read = time.perf_counter()
    page = folder / "report.html"
    write_page(page, content)
    drawn = time.perf_counter()
    return {
        "attempts": num_attempts,
        "read s": read - begin,
        "draw s": drawn - read,
        "ms per 1,000": 1e6 * (drawn - begin) / num_attempts,
        "peak MiB": (peak_resident() - before) / 2**20,
        "page MB": page.stat().st_size / 1e6,
    }


def make_run(folder: Path, num_attempts: int) -> None:
    """Writes a run of `num_attempts`: the subjects in turn, then the cases, then the attacks."""
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
        block_starts=[0],
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


BENCH = Bench(ReportBenchConfig, bench_report)
