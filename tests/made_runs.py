"""Run folders with made-up outcomes, for tests of what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosa.evaluation.store import Measurement, Store, Task

from mosa.types import Attempt, Behavior, Budget, Response, Verdict

JUDGE = "truth/1/made-up"
DECODER = {"max_new_tokens": 4, "steps": 4, "block_length": None, "seed": 0}
WORDS = ("sure", "here", "you", "are")

Outcomes = Mapping[str, Mapping[str, Mapping[str, bool | None]]]
"""By model, attack and behavior: whether the attack succeeds; None: unscored."""


def _begin(
    folder: Path, models: Mapping[str, Any] | list[str], decoder: Mapping[str, Any]
) -> Store:
    store = Store(folder, create=True)
    for model in models:
        record = {"source": "base", "adapter": None, "weights": f"hash of {model}"}
        store.add_model(model, record | {"special_tokens": []})
    store.set_meta("decoder", dict(decoder))
    store.begin_session(
        {
            "started": "2026-01-01T00:00:00+00:00",
            "settings": {"seeds": [0], "adapters": ["none"]},
            "versions": {"mosa-dllm": "0.1.0", "torch": "2.13.0"},
            "device": "cpu",
            "seconds": 12.0,
        }
    )
    return store


def response(key: str, words: tuple[str, ...] = WORDS, prompt: str = "how?") -> Response:
    """A response whose tokens were committed from left to right."""
    text = " ".join(words)
    return Response(
        key,
        [{"role": "user", "content": prompt}],
        text,
        text,
        list(range(len(words))),
        list(words),
        list(range(len(words))),
        decoder=DECODER,
        num_forward_passes=len(words),
    )


def attacked(
    folder: Path,
    outcomes: Outcomes,
    *,
    judge: str = JUDGE,
    behavior_set: str = "made up",
    is_benign: bool = False,
    native: Mapping[str, Any] | None = None,
    seed: int = 0,
    decoder: Mapping[str, Any] = DECODER,
    words: tuple[str, ...] = WORDS,
    prompt: str = "how?",
) -> Path:
    """A campaign with one try for each model, attack and behavior; the folder."""
    with _begin(folder, list(outcomes), decoder) as store:
        store.set_meta("behavior_set", behavior_set)
        store.set_meta("behaviors", {"name": behavior_set, "is_benign": is_benign, "origin": "us"})
        for model, attacks in outcomes.items():
            for attack, by_behavior in attacks.items():
                for behavior, success in by_behavior.items():
                    key = f"{model}-{attack}-{behavior}-{seed}"
                    store.add_behaviors([Behavior(behavior, "how?", category=behavior[:1])])
                    store.add_tasks([Task(key, model, attack, "smoke", seed, behavior, {})])
                    answer = response(key, words, prompt)
                    store.add_response(answer)
                    attempt = Attempt(
                        key, model, behavior, attack, [answer], answer.text, answer.full_text,
                        "smoke", seed, budget=Budget(target_queries=1, forward_passes=4),
                    )  # fmt: skip
                    store.add_attempt(key, attempt)
                    store.end_task(key, attempt.budget)
                    verdict = (
                        Verdict.unscored("?")
                        if success is None
                        else Verdict(float(success), success, dict(native or {}))
                    )
                    store.add_verdict(key, judge, verdict)
    return folder


def solved(
    folder: Path,
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    *,
    decoder: Mapping[str, Any] = DECODER,
) -> Path:
    """A run of useful tasks: by model, task and case; the folder."""
    with _begin(folder, list(values), decoder) as store:
        store.set_meta("kind", "utility")
        tasks = {task for of_model in values.values() for task in of_model}
        store.set_meta("tasks", {task: {"headline": "accuracy"} for task in sorted(tasks)})
        for model, tasks in values.items():
            for task, cases in tasks.items():
                for case, value in cases.items():
                    reason = "?" if value is None else ""
                    store.add_measurement(Measurement(model, task, "accuracy", case, value, reason))
    return folder
