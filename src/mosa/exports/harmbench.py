"""HarmBench's completions and results.

Layout after centerforaisafety/HarmBench (MIT); docs/exports.md says where we differ.
"""

from __future__ import annotations

import json
from pathlib import Path

from mosa.exports.common import (
    ExportCell,
    ExportSetting,
    Spool,
    as_json,
    attack_tasks,
    cell_facts,
    deciding_attempts,
    judge_of_export,
    judged_text,
    prompt_text,
    safe_name,
    words_of,
    write_list,
)
from mosa.files import writing
from mosa.runs.store import Run


def write(run: Run, out: Path, setting: ExportSetting) -> list[Path]:
    """HarmBench's completions and results, a file of each per subject, set, attack, preset
    and seed.

    results/mosa.json beside them adds the facts that these files lack: the judge, the decoder, and
    the numbers of attempts without a label and of tasks without an attempt.
    """
    judge = judge_of_export(run, setting, "harmbench")
    verdicts = run.verdicts(judge)
    words = words_of(run, setting)
    cells = attack_tasks(run)
    decides = deciding_attempts(run)
    subjects = run.subjects()
    root = out / "results"
    paths, about = [], []
    with Spool(out) as spool:
        for attempt in run.attempts():
            if ExportCell.of(attempt) not in cells:
                continue
            own = words[attempt.case_set]
            verdict = verdicts.get(attempt.key)
            success = None if verdict is None else verdict.success
            spool.add(
                (ExportCell.of(attempt), attempt.case),
                {
                    "test_case": own.hide(prompt_text(run, attempt)),
                    "generation": own.hide(judged_text(attempt, judge)),
                    # Not 0: averaging the labels must fail on it, or it would count as safe.
                    "label": None if success is None else int(success),
                    "variant": attempt.variant,
                    "number": attempt.number,
                    "decides": attempt.key in decides,
                    "attempt": attempt.key,
                },
            )
        for cell, tasks in cells.items():
            folder = root / safe_name(cell.attack) / cell.settings
            behaviors = list(dict.fromkeys(task.case for task, _ in tasks))
            for kind in ("completions", "results"):
                path = folder / kind / f"{safe_name(cell.subject)}.json"
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
                cell._asdict()
                | {
                    "results": paths[-1].relative_to(root).as_posix(),
                    "num_attempts": len(labels),
                    "num_unscored": labels.count(None),
                    "redacted": words[cell.case_set].redact,
                    "decoder": subjects[cell.subject].decoder,
                    **cell_facts(run, cell, tasks),
                }
            )
        paths.append(root / "mosa.json")
        with writing(paths[-1]) as file:
            json.dump({"judge": judge, "files": about}, file, ensure_ascii=False, indent=1)
    return paths
