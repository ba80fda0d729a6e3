"""Logs for the viewer of Inspect, written with its own package (inspect-ai 0.3.285)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mosa.evidence.figures import outcome_of
from mosa.exports.common import (
    ExportCell,
    ExportSetting,
    Spool,
    Tasks,
    Words,
    attack_tasks,
    cell_facts,
    deciding_attempts,
    distinct,
    judge_of_export,
    rate_record,
    safe_name,
    times_of,
    words_of,
)
from mosa.files import replacing
from mosa.runs.store import Run
from mosa.stats.rates import once, rate_of
from mosa.types import Behavior, UserError, Verdict, as_plain, content_key


def write(run: Run, out: Path, setting: ExportSetting) -> list[Path]:
    """An Inspect log per subject, set, attack, preset and seed, with the scores of every judge.

    Inspect's writer takes whole logs, so memory holds one log at a time.
    """
    if find_spec("inspect_ai") is None:
        raise UserError(
            "the inspect export needs the package inspect-ai; install mosa-dllm[inspect]"
        )
    from inspect_ai import log  # pyright: ignore[reportMissingImports]

    cells = attack_tasks(run)
    decides = deciding_attempts(run)
    harmful = {cell.case_set for cell in cells}
    judges = [judge for judge in run.judges() if any(judge in run.judges(n) for n in harmful)]
    if setting.judge is not None:  # lists of logs show the first score of a log
        first = judge_of_export(run, setting, "inspect")
        judges = [first, *(judge for judge in judges if judge != first)]
    verdicts = {judge: run.verdicts(judge) for judge in judges}
    words = words_of(run, setting)
    paths = []
    with Spool(out) as spool:
        for attempt in run.attempts():
            cell = ExportCell.of(attempt)
            if cell in cells:
                spool.add((cell, attempt.case), words[cell.case_set].attempt(run, attempt))
        for cell, tasks in cells.items():
            folder = out / "inspect" / safe_name(cell.subject)
            path = folder / f"{safe_name(cell.attack)}-{cell.settings}.eval"
            written = _eval_log(run, words[cell.case_set], cell, tasks, verdicts, decides, spool)
            with replacing(path) as temporary:
                log.write_eval_log(written, temporary, format="eval")
            paths.append(path)
    return paths


def packages_of(sessions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The versions of the last session, without unknown ones, which Inspect has no field for."""
    versions = sessions[-1].get("versions", {}) if sessions else {}
    return {name: version for name, version in versions.items() if version is not None}


def _eval_log(
    run: Run,
    words: Words,
    cell: ExportCell,
    tasks: Tasks,
    verdicts: Mapping[str, Mapping[str, Verdict]],
    decides: Collection[str],
    spool: Spool,
) -> Any:
    from inspect_ai import log, model  # pyright: ignore[reportMissingImports]

    behaviors = run.cases(cell.case_set)
    samples = []
    tries: dict[str, list[str]] = {}
    for id in dict.fromkeys(task.case for task, _ in tasks):
        records = list(spool.read((cell, id)))
        tries[id] = [record["key"] for record in records]
        epochs: dict[str, int] = defaultdict(int)
        for record in records:
            name = f"{id} #{record['number']}"
            epochs[name] += 1
            record["decides"] = record["key"] in decides
            samples.append(_sample(name, epochs[name], record, behaviors[id], verdicts, words))
    for task, outcome in tasks:
        if outcome is not None and outcome.status == "failed":
            samples.append(
                log.EvalSample(
                    id=f"{task.case} (failed {task.key})",
                    epoch=1,
                    input=behaviors[task.case].request,
                    target="",
                    metadata={"behavior": task.case},
                    error=log.EvalError(
                        message=words.reason(outcome.reason), traceback="", traceback_ansi=""
                    ),
                )
            )
    facts = cell_facts(run, cell, tasks)
    started, ended = times_of(run)
    spent = [outcome.budget.target_tokens for _, outcome in tasks if outcome is not None]
    keys = [task.key for task, _ in tasks]
    key = content_key(folder=run.folder.name, tasks=keys, **cell._asdict())
    name = f"mosa/{cell.subject}"
    return log.EvalLog(
        status="cancelled" if facts["num_left"] else "success",
        eval=log.EvalSpec(
            eval_id=key,
            run_id=key,
            task_id=key,
            created=started,
            task=f"{cell.attack}-{cell.settings}",
            task_args=distinct(task.config for task, _ in tasks)[0],
            solver=cell.attack,
            dataset=log.EvalDataset(
                name=cell.case_set,
                samples=len(tries),
                sample_ids=list(dict.fromkeys(sample.id for sample in samples)),
            ),
            model=name,
            model_args=run.subjects()[cell.subject].decoder,
            config=log.EvalConfig(),
            packages=packages_of(run.sessions()),
            metadata={
                "preset": cell.preset,
                "seed": cell.seed,
                "redacted": words.redact,
                "subject": as_plain(run.subjects()[cell.subject]),
                **facts,
            },
        ),
        plan=log.EvalPlan(steps=[log.EvalPlanStep(solver=cell.attack)]),
        results=log.EvalResults(
            total_samples=len(samples) + facts["num_left"],
            completed_samples=len(samples) - facts["num_failed"],
            scores=[
                _eval_score(judge, tries, decides, by_attempt)
                for judge, by_attempt in verdicts.items()
            ],
        ),
        stats=log.EvalStats(
            started_at=started,
            completed_at=ended,
            model_usage={name: model.ModelUsage(output_tokens=sum(spent), total_tokens=sum(spent))},
        ),
        samples=samples,
    )


def _sample(
    id: str,
    epoch: int,
    record: dict[str, Any],
    behavior: Behavior,
    verdicts: Mapping[str, Mapping[str, Verdict]],
    words: Words,
) -> Any:
    """One attempt; its record is redacted already."""
    from inspect_ai import log, model, scorer  # pyright: ignore[reportMissingImports]

    kinds = {
        "system": model.ChatMessageSystem,
        "user": model.ChatMessageUser,
        "assistant": model.ChatMessageAssistant,
    }
    responses = record["responses"]
    prompt = responses[0]["prompt"] if responses else []
    turns = [kinds[turn["role"]](content=turn["content"]) for turn in prompt]
    output = model.ModelOutput.from_content(f"mosa/{record['subject']}", record["response"])
    scores = {}
    for judge, by_attempt in verdicts.items():
        verdict = by_attempt.get(record["key"])
        if verdict is None:
            continue
        if verdict.score is None:
            scores[judge] = scorer.Score.unscored(reason=words.reason(verdict.reason))
        else:
            about = {"success": verdict.success, **verdict.native}
            scores[judge] = scorer.Score(value=verdict.score, metadata=about)
    kept = ("key", "attack", "preset", "variant", "seed", "number", "decides", "budget", "details")
    return log.EvalSample(
        id=id,
        epoch=epoch,
        input=turns,
        target="",
        messages=[*turns, output.message],
        output=output,
        scores=scores,
        metadata={
            "behavior": behavior.id,
            "request": behavior.request,
            "category": behavior.category,
            "response_full": record["response_full"],
            **{name: record[name] for name in kept},
        },
    )


def _eval_score(
    judge: str,
    tries: Mapping[str, Sequence[str]],
    decides: Collection[str],
    by_attempt: Mapping[str, Verdict],
) -> Any:
    """A judge's rate over behaviors, counted as everywhere in mosa, by the tries that decide; and
    that of a success in any try."""
    from inspect_ai import log  # pyright: ignore[reportMissingImports]

    cases = [
        [by_attempt.get(key) for key in keys if key in decides] for keys in tries.values() if keys
    ]
    every = [[by_attempt.get(key) for key in keys] for keys in tries.values() if keys]
    by_any = [found for case in every if (found := outcome_of(case)) is not None]
    scored = [(case, found) for case in cases if (found := outcome_of(case)) is not None]
    values = {
        "attack_success_rate": [float(success) for _, success in scored],
        "best_score": [max(v.score or 0.0 for v in case if v is not None) for case, _ in scored],
        "any_try_success_rate": list(map(float, by_any)),
    }
    metrics = {}
    for name, of_cases in values.items():
        if of_cases:
            rate = rate_of(once(of_cases))
            metrics[name] = log.EvalMetric(name=name, value=rate.value, metadata=rate_record(rate))
    verdicts = [verdict for case in every for verdict in case]
    num_scored = sum(v is not None and v.score is not None for v in verdicts)
    return log.EvalScore(
        name=judge,
        scorer=judge,
        scored_samples=num_scored,
        unscored_samples=len(verdicts) - num_scored,
        metrics=metrics,
        metadata={"num_behaviors_unscored": len(cases) - len(scored)},
    )
