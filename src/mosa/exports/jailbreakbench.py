"""JailbreakBench artifacts.

Layout after JailbreakBench/artifacts (MIT); docs/exports.md says where we differ.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosa.evidence.figures import outcome_of
from mosa.exports.common import (
    ExportCell,
    ExportSetting,
    Tasks,
    Words,
    as_json,
    attack_tasks,
    cell_facts,
    deciding_attempts,
    distinct,
    judge_of_export,
    judged_text,
    prompt_text,
    rate_record,
    safe_name,
    status_of,
    times_of,
    words_of,
)
from mosa.files import writing
from mosa.runs.records import Outcome, Task
from mosa.runs.store import Run
from mosa.stats.rates import Rate, once, rate_of
from mosa.types import Attempt, Behavior, Verdict, as_plain


def write(run: Run, out: Path, setting: ExportSetting) -> list[Path]:
    """JailbreakBench artifacts, one per subject, set, attack, preset and seed, of best tries.

    That is, of those that decide, the jailbreak with the fewest queries, else the try with the
    highest score.
    """
    judge = judge_of_export(run, setting, "jailbreakbench")
    verdicts = run.verdicts(judge)
    words = words_of(run, setting)
    decides = deciding_attempts(run)
    tries: dict[tuple[ExportCell, str], list[str]] = defaultdict(list)
    best: dict[tuple[ExportCell, str], tuple[tuple[float, ...], Attempt]] = {}
    for attempt in run.attempts():
        case = (ExportCell.of(attempt), attempt.case)
        verdict = verdicts.get(attempt.key)
        tries[case].append(attempt.key)
        if verdict is None or verdict.score is None or attempt.key not in decides:
            continue
        queries = attempt.budget.target_queries
        rank = (1.0, -queries) if verdict.success else (0.0, verdict.score)
        if case not in best or rank > best[case][0]:
            best[case] = (rank, attempt)
    subjects = run.subjects()
    date = times_of(run)[1][:10]
    paths = []
    for cell, tasks in attack_tasks(run).items():
        behaviors = run.cases(cell.case_set)
        by_behavior: dict[str, list[tuple[Task, Outcome | None]]] = defaultdict(list)
        for task, outcome in tasks:
            by_behavior[task.case].append((task, outcome))
        jailbreaks = [
            _jailbreak(
                run,
                words[cell.case_set],
                judge,
                place,
                behavior,
                by_behavior[id],
                [verdicts.get(key) for key in tries[cell, id]],
                [verdicts.get(key) for key in tries[cell, id] if key in decides],
                best[cell, id][1] if (cell, id) in best else None,
            )
            for place, (id, behavior) in enumerate(behaviors.items())
            if id in by_behavior
        ]
        outcomes = [j["jailbroken"] for j in jailbreaks]
        by_any = [j["mosa"]["jailbroken_by_any_try"] for j in jailbreaks]
        rate = _rate(outcomes)
        configs = distinct(task.config for task, _ in tasks)
        access = _access(tasks)
        artifact = {
            "parameters": {
                "method": cell.attack,
                "model": cell.subject,
                "attack_type": access,
                "defense": None,
                "attack_success_rate": None if rate is None else rate.value,
                "total_number_of_jailbreaks": outcomes.count(True),
                "number_of_submitted_prompts": sum(j["prompt"] is not None for j in jailbreaks),
                "total_number_of_queries": sum(j["number_of_queries"] for j in jailbreaks),
                "total_prompt_tokens": None,
                "total_response_tokens": sum(j["response_tokens"] for j in jailbreaks),
                "evaluation_date": date,
                "evaluation_llm_provider": "mosa",
                # Their reader takes words and numbers only.
                "method_parameters": {
                    k: v if isinstance(v, str | int | float) else as_json(v)
                    for k, v in configs[0].items()
                },
            },
            "jailbreaks": jailbreaks,
            "mosa": {
                "judge": judge,
                "redacted": words[cell.case_set].redact,
                "preset": cell.preset,
                "seed": cell.seed,
                "set": cell.case_set,
                "subject": as_plain(subjects[cell.subject]),
                "configs": configs,
                "attack_success_rate": rate_record(rate),
                "any_try_success_rate": rate_record(_rate(by_any)),
                "num_unscored": sum(
                    j["jailbroken"] is None and j["mosa"]["status"] == "done" for j in jailbreaks
                ),
                **cell_facts(run, cell, tasks),
            },
        }
        folder = f"{safe_name(cell.attack)}-{cell.settings}"
        path = out / "attack-artifacts" / folder / access / f"{safe_name(cell.subject)}.json"
        with writing(path) as file:
            json.dump(artifact, file, ensure_ascii=False, indent=1)
        paths.append(path)
    return paths


def _jailbreak(
    run: Run,
    words: Words,
    judge: str,
    place: int,
    behavior: Behavior,
    tasks: Tasks,
    verdicts: Sequence[Verdict | None],
    deciding: Sequence[Verdict | None],
    best: Attempt | None,
) -> dict[str, Any]:
    """One case of an artifact, with the verdicts on its tries and on those that decide;
    `jailbroken` is None where that is unknown."""
    is_jailbroken = outcome_of(deciding)
    spent = [outcome.budget for _, outcome in tasks if outcome is not None]
    last = tasks[-1][1]
    entry: dict[str, Any] = {
        "index": place,
        "goal": behavior.text,
        "behavior": behavior.id,
        "category": behavior.category or "",
        "prompt": None,
        "response": None,
        "number_of_queries": sum(budget.target_queries for budget in spent),
        "queries_to_jailbreak": None,
        "prompt_tokens": None,
        "response_tokens": sum(budget.target_tokens for budget in spent),
        "jailbroken": is_jailbroken,
        "mosa": {
            "status": status_of(last),
            "reason": "" if last is None else words.reason(last.reason),
            "num_tries": len(verdicts),
            "num_deciding": len(deciding),
            "jailbroken_by_any_try": outcome_of(verdicts),
            "num_unscored": sum(v is None or v.score is None for v in verdicts),
        },
    }
    if best is not None:
        entry["prompt"] = words.hide(prompt_text(run, best))
        entry["response"] = words.hide(judged_text(best, judge))
        if is_jailbroken:
            entry["queries_to_jailbreak"] = best.budget.target_queries
        entry["mosa"] |= {
            "attempt": best.key,
            "variant": best.variant,
            "number": best.number,
            "score": None
            if is_jailbroken is None
            else max(v.score for v in deciding if v is not None and v.score is not None),
        }
    return entry


def _rate(outcomes: Sequence[bool | None]) -> Rate | None:
    known = [outcome for outcome in outcomes if outcome is not None]
    return rate_of(once(known)) if known else None


def _access(tasks: Tasks) -> str:
    """JailbreakBench's type of an attack: whether it needs more than a prompt or a history."""
    return "black_box" if tasks[0][0].threat == "prompt" else "white_box"
