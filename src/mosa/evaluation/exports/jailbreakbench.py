"""JailbreakBench artifacts.

Layout after JailbreakBench/artifacts (MIT); docs/exports.md says where we differ.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosa.attacks import ATTACKS
from mosa.evaluation.exports.common import (
    Cell,
    ExportSetting,
    Words,
    as_json,
    deciding_judge,
    distinct,
    judged_text,
    prompt_text,
    rate_record,
    safe_name,
    task_counts,
    tasks_by_cell,
    times_of,
    turns_of,
)
from mosa.evaluation.metrics import rate_of
from mosa.evaluation.results import outcome_of
from mosa.evaluation.store import Store, Task
from mosa.files import user_errors, writing
from mosa.types import Attempt, Behavior, Verdict


def write(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """JailbreakBench artifacts, one per model, attack, preset and seed: each behavior's best try.

    That is the jailbreak with the fewest queries, else the try with the highest score.
    """
    judge = deciding_judge(store, setting, "jailbreakbench")
    verdicts = store.verdicts(judge)
    words = Words.of(store, setting)
    tries: dict[tuple[Cell, str], list[Verdict | None]] = defaultdict(list)
    best: dict[tuple[Cell, str], tuple[tuple[float, ...], Attempt]] = {}
    for attempt in store.attempts():
        case = (Cell.of(attempt), attempt.behavior)
        verdict = verdicts.get(attempt.key)
        tries[case].append(verdict)
        if verdict is None or verdict.score is None:
            continue
        queries = attempt.budget.target_queries
        rank = (1.0, -queries) if verdict.success else (0.0, verdict.score)
        if case not in best or rank > best[case][0]:
            best[case] = (rank, attempt)
    behaviors = store.behaviors()
    places = {id: place for place, id in enumerate(behaviors)}
    models = store.models()
    date = times_of(store)[1][:10]
    paths = []
    with user_errors(out):
        for cell, tasks in tasks_by_cell(store).items():
            by_behavior: dict[str, list[Task]] = defaultdict(list)
            for task in tasks:
                by_behavior[task.behavior].append(task)
            jailbreaks = [
                _jailbreak(
                    store,
                    words,
                    judge,
                    places[id],
                    behaviors[id],
                    by_behavior[id],
                    tries[cell, id],
                    best[cell, id][1] if (cell, id) in best else None,
                )
                for id in sorted(by_behavior, key=places.__getitem__)
            ]
            outcomes = [j["jailbroken"] for j in jailbreaks if j["jailbroken"] is not None]
            rate = rate_of(outcomes) if outcomes else None
            configs = distinct(task.config for task in tasks)
            access = _access(cell.attack)
            artifact = {
                "parameters": {
                    "method": cell.attack,
                    "model": cell.model,
                    "attack_type": access,
                    "defense": None,
                    "attack_success_rate": None if rate is None else rate.rate,
                    "total_number_of_jailbreaks": sum(outcomes),
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
                    "redacted": words.redact,
                    "preset": cell.preset,
                    "seed": cell.seed,
                    "model": models.get(cell.model),
                    "decoder": store.meta("decoder"),
                    "configs": configs,
                    "attack_success_rate": rate_record(rate),
                    "num_unscored": sum(
                        j["jailbroken"] is None and j["mosa"]["status"] == "done"
                        for j in jailbreaks
                    ),
                    **task_counts(tasks),
                },
            }
            folder = f"{safe_name(cell.attack)}-{cell.settings}"
            path = out / "attack-artifacts" / folder / access / f"{safe_name(cell.model)}.json"
            with writing(path) as file:
                json.dump(artifact, file, ensure_ascii=False, indent=1)
            paths.append(path)
    return paths


def _jailbreak(
    store: Store,
    words: Words,
    judge: str,
    place: int,
    behavior: Behavior,
    tasks: Sequence[Task],
    tries: Sequence[Verdict | None],
    best: Attempt | None,
) -> dict[str, Any]:
    """One behavior of an artifact; `jailbroken` is None where that cannot be said."""
    outcome = outcome_of(tries)
    is_jailbroken = None if outcome is None else outcome[0]
    spent = [task.budget for task in tasks if task.budget is not None]
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
            "status": tasks[-1].status,
            "reason": tasks[-1].reason,
            "num_tries": len(tries),
            "num_unscored": sum(v is None or v.score is None for v in tries),
        },
    }
    if best is not None:
        entry["prompt"] = words.hide(prompt_text(turns_of(store, best)))
        entry["response"] = words.hide(judged_text(best, judge))
        if is_jailbroken:
            entry["queries_to_jailbreak"] = best.budget.target_queries
        entry["mosa"] |= {
            "attempt": best.key,
            "variant": best.variant,
            "number": best.number,
            "score": None if outcome is None else outcome[1],
        }
    return entry


def _access(attack: str) -> str:
    """JailbreakBench's type of an attack: whether it needs more than the prompt."""
    if attack not in ATTACKS:  # a run of another version of mosa
        return "unknown"
    return "black_box" if set(ATTACKS[attack].access) == {"prompt"} else "white_box"
