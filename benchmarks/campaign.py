"""What the harness of a campaign costs for each attempt, beside the model: scheduling, encoding,
hashing, recording. The model is a stand-in that answers at once.

    python benchmarks/campaign.py --out benchmarks/results/campaign.txt

Two kinds of attack: one query each, and three rounds of four branches each. Every number of
attempts is one run in a process of its own, so that its peak of memory is its own; the smallest
run is the baseline for memory.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa.attacks import ENGLISH, Query, Target
from mosa.denoising import DecoderConfig
from mosa.evaluation.engine import Engine, Job, Row
from mosa.evaluation.results import lines
from mosa.evaluation.store import Store, Task
from mosa.families import DiffusionLM, load_model
from mosa.testbed.world import DEVICES, MANNERS
from mosa.types import Behavior, Response, Verdict, as_plain, prompt_turns

BATCH_SIZE = 32
DECODER = DecoderConfig(max_new_tokens=128, steps=128)
WORDS = "how do i make a copper kiln ? tell me the steps , one after the other ."


def spelled(number: int) -> str:
    """A number in words that the testbed's tokenizer knows, so that every prompt is another."""
    words = []
    while True:
        number, digit = divmod(number, len(DEVICES))
        words.append(DEVICES[digit])
        if number == 0:
            return " ".join(words)


@dataclass(frozen=True)
class Instant:
    """A target that answers 128 tokens at once."""

    model: DiffusionLM
    weights: str = "instant"
    gives_weights: bool = False

    def respond(self, rows: Sequence[Row], decoder: DecoderConfig) -> list[Response]:
        settings = as_plain(decoder)
        return [
            Response(
                key=row.key,
                prompt=prompt_turns(row.prompt),
                text=WORDS * 6,
                full_text=WORDS * 6,
                token_ids=list(range(128)),
                tokens=["token"] * 128,
                commit_step=list(range(128)),
                num_forward_passes=128,
                decoder=settings,
            )
            for row in rows
        ]


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


KINDS = {"single": (single, 1), "rounds": (rounds, 12)}


def measure(kind: str, num_attempts: int) -> dict[str, float]:
    """Seconds of each stage, and the peak of memory in MB."""
    run, per_task = KINDS[kind]
    model = load_model("testbed", dtype="float32", device="cpu")

    def job(i: int) -> Job:
        behavior = Behavior(str(i), f"{WORDS} {spelled(i)}")

        def target(backend):
            return Target(
                backend,
                decoder=DECODER,
                wording=ENGLISH,
                identity={"task": i},
                model_name="m",
                behavior=behavior,
                attack=kind,
                preset="paper",
                seed=0,
            )

        return Job(str(i), kind, target, lambda target: run(behavior, target))

    num_tasks = num_attempts // per_task
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder), create=True) as store:
        store.add_behaviors(Behavior(str(i), f"{WORDS} {spelled(i)}") for i in range(num_tasks))
        store.add_tasks(Task(str(i), "m", kind, "paper", 0, str(i), {}) for i in range(num_tasks))
        store.commit()
        engine = Engine(Instant(model), store, batch_size=BATCH_SIZE)
        begin = time.perf_counter()
        asyncio.run(engine.run([job(i) for i in range(num_tasks)]))
        run_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        for i, attempt in enumerate(store.attempts(unjudged_by="j")):
            store.add_verdict(attempt.key, "j", Verdict(0.0, False))
            if i % BATCH_SIZE == 0:
                store.commit()
        store.commit()
        judge_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        lines(store, "j")
        result_seconds = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "attempts": engine.tally.num_rows,
        "run_ms": 1000 * run_seconds / num_attempts,
        "judge_ms": 1000 * judge_seconds / num_attempts,
        "results_ms": 1000 * result_seconds / num_attempts,
        "full": engine.tally.num_rows / (engine.tally.num_batches * BATCH_SIZE),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "file_kb": size / 1024 / num_attempts,
    }


def _in_process(queue, kind: str, num_attempts: int) -> None:
    queue.put(measure(kind, num_attempts))


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_200, 12_000, 96_000])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    table = [
        "kind    attempts  run ms  judge ms  results ms  batches full  peak MB  file kB/attempt"
    ]
    print(table[0])
    for kind in KINDS:
        for size in args.sizes:
            queue = context.Queue()
            process = context.Process(target=_in_process, args=(queue, kind, size))
            process.start()
            found = queue.get()
            process.join()
            table.append(
                f"{kind:<8}{found['attempts']:>8}{found['run_ms']:>8.2f}{found['judge_ms']:>10.2f}"
                f"{found['results_ms']:>12.3f}{found['full']:>14.1%}{found['peak_mb']:>9.0f}"
                f"{found['file_kb']:>17.1f}"
            )
            print(table[-1], flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        note = (
            "Milliseconds for each attempt that the harness takes beside the model; two CPU cores, "
            f"batches of {BATCH_SIZE},\nresponses of 128 tokens. python benchmarks/campaign.py\n\n"
        )
        args.out.write_text(note + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
