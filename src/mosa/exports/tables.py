"""A run as two tables, and as one JSON document."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mosa.evidence.figures import trained_against
from mosa.exports.common import (
    ExportCell,
    ExportSetting,
    Words,
    as_json,
    deciding_attempts,
    status_of,
    words_of,
    write_list,
)
from mosa.files import plain_cell, writing
from mosa.runs.records import Outcome, Task
from mosa.runs.store import Run
from mosa.types import Budget, as_plain

NOT_JUDGED = "not judged"
"""Why an attempt has no verdict."""

COUNTS = ("num_scored", "num_unscored")
"""What tasks.csv counts for each judge that has read the task's set."""

BUDGET_FIELDS = tuple(field.name for field in dataclasses.fields(Budget))


# ------------------------------------------------------------------------------------- tables


def write_csv(run: Run, out: Path, setting: ExportSetting) -> list[Path]:
    """attempts.csv, a row per attempt, and tasks.csv, a row per task with any outcome."""
    words = words_of(run, setting)
    cases = {name: run.cases(name) for name in words}
    sets = run.sets()
    decides = deciding_attempts(run)
    verdicts = {judge: run.verdicts(judge) for judge in run.judges()}
    readers = {name: run.judges(name) for name in words}
    counts: dict[tuple[ExportCell, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def attempts() -> Iterator[dict[str, Any]]:
        for attempt in run.attempts():
            own = words[attempt.case_set]
            count = counts[ExportCell.of(attempt), attempt.case]
            count["num_attempts"] += 1
            responses = run.responses_of(attempt.key)
            row = {
                "attempt": attempt.key,
                "subject": attempt.subject,
                "set": attempt.case_set,
                "attack": attempt.attack,
                "preset": attempt.preset,
                "variant": attempt.variant,
                "seed": attempt.seed,
                "case": attempt.case,
                "category": cases[attempt.case_set][attempt.case].category,
                "in_alignment_data": trained_against(sets[attempt.case_set], attempt.attack),
                "number": attempt.number,
                "decides": attempt.key in decides,
                **vars(attempt.budget),
                "num_responses": len(responses),
                "num_read": sum(response.num_read for response in responses),
                "response": own.hide(attempt.response),
                "response_full": own.hide(attempt.response_full),
                "prompt": as_json(own.turns(responses[0].prompt) if responses else []),
                "max_new_tokens": responses[0].decoder.get("max_new_tokens") if responses else None,
                "decoder": as_json(responses[0].decoder if responses else {}),
            }
            for judge in readers[attempt.case_set]:  # the columns of others stay empty
                verdict = verdicts[judge].get(attempt.key)
                is_scored = verdict is not None and verdict.score is not None
                count[f"{judge}.num_scored"] += is_scored
                count[f"{judge}.num_unscored"] += not is_scored
                row[f"{judge}.score"] = None if verdict is None else verdict.score
                row[f"{judge}.success"] = None if verdict is None else verdict.success
                row[f"{judge}.reason"] = (
                    NOT_JUDGED if verdict is None else own.reason(verdict.reason)
                )
            yield row

    def tasks() -> Iterator[dict[str, Any]]:
        for task, outcome in run.tasks():
            spent = {} if outcome is None else vars(outcome.budget)
            row = {
                "task": task.key,
                "subject": task.subject,
                "set": task.case_set,
                "attack": task.attack,
                "preset": task.preset,
                "seed": task.seed,
                "case": task.case,
                "threat": task.threat,
                "in_alignment_data": trained_against(sets[task.case_set], task.attack),
                "status": status_of(outcome),
                "reason": "" if outcome is None else words[task.case_set].reason(outcome.reason),
                **{name: spent.get(name) for name in BUDGET_FIELDS},
                "config": as_json(task.config),
            }
            count = counts.get((ExportCell.of(task), task.case), {})
            own = (f"{j}.{name}" for j in readers[task.case_set] for name in COUNTS)
            yield row | {name: count.get(name, 0) for name in ("num_attempts", *own)}

    judged = [f"{j}.{name}" for j in verdicts for name in ("score", "success", "reason")]
    count_columns = ["num_attempts", *(f"{j}.{name}" for j in verdicts for name in COUNTS)]
    return [
        _write_table(
            out / "attempts.csv",
            ["attempt", "subject", "set", "attack", "preset", "variant", "seed", "case"]
            + ["category", "in_alignment_data"]
            + ["number", "decides", *BUDGET_FIELDS, "num_responses", "num_read"]
            + ["response", "response_full", "prompt", "max_new_tokens", "decoder", *judged],
            attempts(),
        ),
        _write_table(
            out / "tasks.csv",
            ["task", "subject", "set", "attack", "preset", "seed", "case", "threat"]
            + ["in_alignment_data", "status", "reason"]
            + [*BUDGET_FIELDS, "config", *count_columns],
            tasks(),
        ),
    ]


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Path:
    with writing(path) as file:
        table = csv.DictWriter(file, columns)
        table.writerow({column: plain_cell(column) for column in columns})
        table.writerows({column: plain_cell(cell) for column, cell in row.items()} for row in rows)
    return path


# ------------------------------------------------------------------------------ one JSON document


def write_run(run: Run, out: Path, setting: ExportSetting) -> list[Path]:
    """run.json: everything in the run except the steps of attacks."""
    words = words_of(run, setting)
    sets = run.sets()
    path = out / "run.json"
    facts = {
        "redacted": [name for name, own in words.items() if own.redact],
        "subjects": {name: as_plain(record) for name, record in run.subjects().items()},
        "sets": {name: as_plain(record) for name, record in sets.items()},
        "cases": {
            name: [
                as_plain(case) | {"answer": own.hide(case.answer)}
                for case in run.cases(name).values()
            ]
            for name, own in words.items()
        },
        "not_applicable": [as_plain(pair) for pair in run.not_applicable()],
        "sessions": run.sessions(),
    }
    said = {
        judge: Words(any(words[name].redact for name in words if judge in run.judges(name)))
        for judge in run.judges()
    }

    def told(task: Task, outcome: Outcome | None) -> dict[str, Any] | None:
        if outcome is None:
            return None
        return as_plain(outcome) | {"reason": words[task.case_set].reason(outcome.reason)}

    with writing(path) as file:
        file.write("{\n")
        for name, fact in facts.items():
            file.write(f"{as_json(name)}: {as_json(fact)},\n")
        file.write('"tasks": ')
        write_list(
            file,
            (
                as_plain(task)
                | {"in_alignment_data": trained_against(sets[task.case_set], task.attack)}
                | {"status": status_of(outcome), "outcome": told(task, outcome)}
                for task, outcome in run.tasks()
            ),
        )
        file.write(',\n"attempts": ')
        write_list(file, (words[a.case_set].attempt(run, a) for a in run.attempts()))
        file.write(',\n"verdicts": ')
        write_list(
            file,
            (
                {"judge": judge, "attempt": attempt}
                | as_plain(verdict)
                | {
                    "raw": said[judge].hide(verdict.raw),
                    "reason": said[judge].reason(verdict.reason),
                }
                for judge in run.judges()
                for attempt, verdict in run.verdicts(judge).items()
            ),
        )
        file.write("\n}\n")
    return [path]
