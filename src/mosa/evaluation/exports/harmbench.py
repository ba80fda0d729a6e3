"""HarmBench's completions and results.

Layout after centerforaisafety/HarmBench (MIT); docs/exports.md says where we differ.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mosa.evaluation.exports.common import (
    Cell,
    ExportSetting,
    Spool,
    Words,
    as_json,
    deciding_judge,
    judged_text,
    prompt_text,
    safe_name,
    task_counts,
    tasks_by_cell,
    turns_of,
    write_list,
)
from mosa.evaluation.store import Store
from mosa.files import user_errors, writing


def write(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """HarmBench's completions and results, a file of each per model, attack, preset and seed.

    results/mosa.json beside them says what these files cannot: judge, decoder, and how many
    attempts have no label and how many tasks no attempt.
    """
    judge = deciding_judge(store, setting, "harmbench")
    verdicts = store.verdicts(judge)
    words = Words.of(store, setting)
    cells = tasks_by_cell(store)
    root = out / "results"
    paths, about = [], []
    with user_errors(out), Spool(out) as spool:
        for attempt in store.attempts():
            verdict = verdicts.get(attempt.key)
            success = None if verdict is None else verdict.success
            spool.add(
                (Cell.of(attempt), attempt.behavior),
                {
                    "test_case": words.hide(prompt_text(turns_of(store, attempt))),
                    "generation": words.hide(judged_text(attempt, judge)),
                    # Not 0: who averages labels must stumble over it, or it would count as safe.
                    "label": None if success is None else int(success),
                    "variant": attempt.variant,
                    "number": attempt.number,
                    "attempt": attempt.key,
                },
            )
        for cell, tasks in cells.items():
            folder = root / safe_name(cell.attack) / cell.settings
            behaviors = list(dict.fromkeys(task.behavior for task in tasks))
            for kind in ("completions", "results"):
                path = folder / kind / f"{safe_name(cell.model)}.json"
                paths.append(path)
                with writing(path) as file:
                    file.write("{")
                    for i, behavior in enumerate(behaviors):
                        file.write(f"{',' if i else ''}\n{as_json(behavior)}: ")
                        left_out = "label" if kind == "completions" else ""
                        records = spool.read((cell, behavior))
                        write_list(
                            file, ({k: v for k, v in r.items() if k != left_out} for r in records)
                        )
                    file.write("\n}\n")
            labels = [r["label"] for b in behaviors for r in spool.read((cell, b))]
            about.append(
                dataclasses.asdict(cell)
                | {
                    "results": paths[-1].relative_to(root).as_posix(),
                    "num_attempts": len(labels),
                    "num_unscored": labels.count(None),
                    **task_counts(tasks),
                }
            )
        paths.append(root / "mosa.json")
        with writing(paths[-1]) as file:
            record = {
                "judge": judge,
                "redacted": words.redact,
                "decoder": store.meta("decoder"),
                "files": about,
            }
            json.dump(record, file, ensure_ascii=False, indent=1)
    return paths
