"""How building a report grows with the number of tries: seconds, and size of the page.

    python benchmarks/report.py --out benchmarks/results/report.txt

The runs are made up: four models, attacks with a try for each of 100 behaviors, responses of 128
tokens out of 5,000 words in a random order of commitment, which is the worst case for the page's
size: text of a language packs better. Where not all fits, some responses are left out. Every size
is a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from mosa.evaluation.store import Store, Task
from mosa.report.build import ReportConfig, build
from mosa.report.page import write_page
from mosa.types import Attempt, Behavior, Budget, Response, Verdict

NUMS = (1_000, 2_000, 5_000, 10_000)
MODELS = ("a", "b", "c", "d")
NUM_BEHAVIORS, LENGTH, NUM_WORDS = 100, 128, 5_000
JUDGE = "strongreject/1/made-up"


def make_run(folder: Path, num: int) -> None:
    """A run of so many tries."""
    rng = random.Random(0)
    behaviors = [Behavior(f"b{i}", f"request {i}", category=f"c{i % 7}") for i in range(100)]
    with Store(folder, create=True) as store:
        store.set_meta("behavior_set", "made up")
        store.set_meta("decoder", {"steps": LENGTH, "max_new_tokens": LENGTH})
        store.add_behaviors(behaviors)
        for model in MODELS:
            store.add_model(model, {"source": model, "weights": model, "special_tokens": []})
        for number in range(num):
            model = MODELS[number % len(MODELS)]
            rest = number // len(MODELS)
            behavior = behaviors[rest % NUM_BEHAVIORS].id
            attack = f"attack{rest // NUM_BEHAVIORS}"
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
            key = f"{number}"
            store.add_tasks([Task(key, model, attack, "paper", 0, behavior, {})])
            store.add_response(response)
            spent = Budget(target_queries=1, forward_passes=LENGTH)
            store.add_attempt(
                key,
                Attempt(
                    key, model, behavior, attack, [response], text, text, "paper", budget=spent
                ),
            )
            store.end_task(key, spent)
            success = rng.random() < 0.3
            store.add_verdict(key, JUDGE, Verdict(float(success), success))


def measure(num: int, results: Any) -> None:
    """Seconds of reading and of drawing, size of the page in MB."""
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder), num)
        start = time.perf_counter()
        content = build([Path(folder)], ReportConfig(redact=False))
        middle = time.perf_counter()
        page = Path(folder) / "report.html"
        write_page(page, content)
        end = time.perf_counter()
        size = page.stat().st_size
    results.put((middle - start, end - middle, size / 1e6))


def main() -> None:
    """Measure every size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    lines = [
        f"{platform.machine()}, Python {platform.python_version()}; python benchmarks/report.py",
        "tries   read s   draw s   s per 1,000   page MB",
    ]
    for num in NUMS:
        results = context.Queue()
        process = context.Process(target=measure, args=(num, results))
        process.start()
        read, draw, size = results.get()
        process.join()
        each = 1000 * (read + draw) / num
        lines.append(f"{num:6d} {read:8.1f} {draw:8.1f} {each:13.2f} {size:9.2f}")
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
