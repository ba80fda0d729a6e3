"""A run as two tables, and as one JSON document."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mosa.evaluation.exports.common import (
    Cell,
    ExportSetting,
    Words,
    as_json,
    write_list,
)
from mosa.evaluation.store import Store
from mosa.files import user_errors, writing
from mosa.types import Budget, as_plain

NOT_JUDGED = "not judged"
"""Why an attempt has no verdict at all."""

META = ("behavior_set", "behaviors", "decoder", "world_seed")
"""The facts about a run that a campaign keeps."""

BUDGET_FIELDS = tuple(field.name for field in dataclasses.fields(Budget))


# ------------------------------------------------------------------------------------- tables


def write_csv(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """attempts.csv, a row per attempt, and tasks.csv, a row per task whatever became of it."""
    words = Words.of(store, setting)
    behaviors = store.behaviors()
    verdicts = {judge: store.verdicts(judge) for judge in store.judges()}
    counts: dict[tuple[Cell, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def attempts() -> Iterator[dict[str, Any]]:
        for attempt in store.attempts():
            count = counts[Cell.of(attempt), attempt.behavior]
            count["num_attempts"] += 1
            responses = store.responses_of(attempt.key)
            prompt = words.turns(responses[0].prompt) if responses else []
            row = {
                "attempt": attempt.key,
                "model": attempt.model,
                "attack": attempt.attack,
                "preset": attempt.preset,
                "variant": attempt.variant,
                "seed": attempt.seed,
                "behavior": attempt.behavior,
                "category": behaviors[attempt.behavior].category,
                "number": attempt.number,
                **vars(attempt.budget),
                "num_responses": len(responses),
                "num_read": sum(response.num_read for response in responses),
                "response": words.hide(attempt.response),
                "response_full": words.hide(attempt.response_full),
                "prompt": as_json(prompt),
                "decoder": as_json(responses[0].decoder if responses else {}),
            }
            for judge, by_attempt in verdicts.items():
                verdict = by_attempt.get(attempt.key)
                is_scored = verdict is not None and verdict.score is not None
                count[f"{judge}.num_scored"] += is_scored
                count[f"{judge}.num_unscored"] += not is_scored
                row[f"{judge}.score"] = None if verdict is None else verdict.score
                row[f"{judge}.success"] = None if verdict is None else verdict.success
                row[f"{judge}.reason"] = NOT_JUDGED if verdict is None else verdict.reason
            yield row

    def tasks() -> Iterator[dict[str, Any]]:
        for task in store.tasks():
            spent = {} if task.budget is None else vars(task.budget)
            row = {
                "task": task.key,
                "model": task.model,
                "attack": task.attack,
                "preset": task.preset,
                "seed": task.seed,
                "behavior": task.behavior,
                "status": task.status,
                "reason": task.reason,
                **{name: spent.get(name) for name in BUDGET_FIELDS},
                "config": as_json(task.config),
            }
            count = counts.get((Cell.of(task), task.behavior), {})
            yield row | {name: count.get(name, 0) for name in count_columns}

    judged = [f"{j}.{name}" for j in verdicts for name in ("score", "success", "reason")]
    count_columns = ["num_attempts"]
    count_columns += [f"{j}.{name}" for j in verdicts for name in ("num_scored", "num_unscored")]
    with user_errors(out):
        return [
            _write_table(
                out / "attempts.csv",
                ["attempt", "model", "attack", "preset", "variant", "seed", "behavior", "category"]
                + ["number", *BUDGET_FIELDS, "num_responses", "num_read"]
                + ["response", "response_full", "prompt", "decoder", *judged],
                attempts(),
            ),
            _write_table(
                out / "tasks.csv",
                ["task", "model", "attack", "preset", "seed", "behavior", "status", "reason"]
                + [*BUDGET_FIELDS, "config", *count_columns],
                tasks(),
            ),
        ]


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Path:
    with writing(path) as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return path


# ------------------------------------------------------------------------------ one JSON document


def write_json(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """run.json: everything that the run holds but for the steps of attacks."""
    words = Words.of(store, setting)
    path = out / "run.json"
    facts = {
        "redacted": words.redact,
        "meta": {name: store.meta(name) for name in META},
        "models": store.models(),
        "behaviors": [
            as_plain(behavior) | {"answer": words.hide(behavior.answer)}
            for behavior in store.behaviors().values()
        ],
        "sessions": store.sessions(),
    }
    with user_errors(out), writing(path) as file:
        file.write("{\n")
        for name, fact in facts.items():
            file.write(f"{as_json(name)}: {as_json(fact)},\n")
        file.write('"tasks": ')
        write_list(file, map(as_plain, store.tasks()))
        file.write(',\n"attempts": ')
        write_list(file, (words.attempt(store, attempt) for attempt in store.attempts()))
        file.write(',\n"verdicts": ')
        write_list(
            file,
            (
                {"judge": judge, "attempt": attempt}
                | as_plain(verdict)
                | {"raw": words.hide(verdict.raw)}
                for judge in store.judges()
                for attempt, verdict in store.verdicts(judge).items()
            ),
        )
        file.write("\n}\n")
    return [path]
