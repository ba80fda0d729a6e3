"""A run as tables, as one JSON document, and in the formats of HarmBench and others.

An export is derived: it can be made again at any time, and one that is there is replaced. Nothing
is left out in silence: failed tasks and unscored attempts are in every format, never as "safe".

    csv             attempts.csv, tasks.csv
    json            run.json
    harmbench       results/ATTACK/PRESET-seedSEED/{completions,results}/MODEL.json
    jailbreakbench  attack-artifacts/ATTACK-PRESET-seedSEED/ACCESS/MODEL.json
    inspect         inspect/MODEL/ATTACK-PRESET-seedSEED.eval

Layouts after centerforaisafety/HarmBench (MIT), JailbreakBench/artifacts (MIT) and inspect-ai
0.3.285; docs/exports.md says where we differ.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from mosa.attacks import ATTACKS
from mosa.evaluation.judging import CANVAS
from mosa.evaluation.metrics import INTERVAL_STATEMENT, Rate, rate_of
from mosa.evaluation.results import outcome_of
from mosa.evaluation.store import Store, Task
from mosa.types import Attempt, Behavior, Budget, UserError, Verdict, as_plain, content_key

REDACTED = "[redacted]"
"""What stands in the place of model output and attack prompts."""

NOT_JUDGED = "not judged"
"""Why an attempt has no verdict at all."""

META = ("behavior_set", "behaviors", "decoder", "world_seed")
"""The facts about a run that a campaign keeps."""

BUDGET_FIELDS = tuple(field.name for field in dataclasses.fields(Budget))


@dataclass(frozen=True)
class ExportSetting:
    """What an export is made with."""

    judge: str | None = None
    """Id of the judge whose verdicts decide where a format has one yes or no; unset: the only one.
    """
    redact: bool = True
    """Whether model output and attack prompts are left out; the testbed's never are."""


@dataclass(frozen=True)
class Export:
    """A line of the table of exports."""

    summary: str
    write: Callable[[Store, Path, ExportSetting], list[Path]]
    """Writes into a folder; returns the files, in the order of writing."""


@dataclass(frozen=True)
class _Cell:
    """What the formats of others have a file for."""

    model: str
    attack: str
    preset: str
    seed: int

    @classmethod
    def of(cls, record: Attempt | Task) -> _Cell:
        return cls(record.model, record.attack, record.preset, record.seed)

    @property
    def settings(self) -> str:
        """Preset and seed as a name of a file or folder."""
        return f"{safe_name(self.preset)}-seed{self.seed}"


# ------------------------------------------------------------------------------------- tables


def write_csv(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """attempts.csv, a row per attempt, and tasks.csv, a row per task whatever became of it."""
    words = _Words.of(store, setting)
    behaviors = store.behaviors()
    verdicts = {judge: store.verdicts(judge) for judge in store.judges()}
    counts: dict[tuple[_Cell, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def attempts() -> Iterator[dict[str, Any]]:
        for attempt in store.attempts():
            count = counts[_Cell.of(attempt), attempt.behavior]
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
                "prompt": _json(prompt),
                "decoder": _json(responses[0].decoder if responses else {}),
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
                "config": _json(task.config),
            }
            count = counts.get((_Cell.of(task), task.behavior), {})
            yield row | {name: count.get(name, 0) for name in count_columns}

    judged = [f"{j}.{name}" for j in verdicts for name in ("score", "success", "reason")]
    count_columns = ["num_attempts"]
    count_columns += [f"{j}.{name}" for j in verdicts for name in ("num_scored", "num_unscored")]
    with _told(out):
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
    with _text_file(path) as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return path


# ------------------------------------------------------------------------------ one JSON document


def write_json(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """run.json: everything that the run holds but for the steps of attacks."""
    words = _Words.of(store, setting)
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
    with _told(out), _text_file(path) as file:
        file.write("{\n")
        for name, fact in facts.items():
            file.write(f"{_json(name)}: {_json(fact)},\n")
        file.write('"tasks": ')
        _write_list(file, map(as_plain, store.tasks()))
        file.write(',\n"attempts": ')
        _write_list(file, (words.attempt(store, attempt) for attempt in store.attempts()))
        file.write(',\n"verdicts": ')
        _write_list(
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


# -------------------------------------------------------------------------------------- HarmBench


def write_harmbench(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """HarmBench's completions and results, a file of each per model, attack, preset and seed.

    results/mosa.json beside them says what these files cannot: judge, decoder, and how many
    attempts have no label and how many tasks no attempt.
    """
    judge = _deciding_judge(store, setting, "harmbench")
    verdicts = store.verdicts(judge)
    words = _Words.of(store, setting)
    cells = _tasks_by_cell(store)
    root = out / "results"
    paths, about = [], []
    with _told(out), _Spool(out) as spool:
        for attempt in store.attempts():
            verdict = verdicts.get(attempt.key)
            success = None if verdict is None else verdict.success
            spool.add(
                (_Cell.of(attempt), attempt.behavior),
                {
                    "test_case": words.hide(_prompt_text(_turns(store, attempt))),
                    "generation": words.hide(_judged_text(attempt, judge)),
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
                with _text_file(path) as file:
                    file.write("{")
                    for i, behavior in enumerate(behaviors):
                        file.write(f"{',' if i else ''}\n{_json(behavior)}: ")
                        left_out = "label" if kind == "completions" else ""
                        records = spool.read((cell, behavior))
                        _write_list(
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
                    **_task_counts(tasks),
                }
            )
        paths.append(root / "mosa.json")
        with _text_file(paths[-1]) as file:
            record = {
                "judge": judge,
                "redacted": words.redact,
                "decoder": store.meta("decoder"),
                "files": about,
            }
            json.dump(record, file, ensure_ascii=False, indent=1)
    return paths


# --------------------------------------------------------------------------------- JailbreakBench


def write_jailbreakbench(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """JailbreakBench artifacts, one per model, attack, preset and seed: each behavior's best try.

    That is the jailbreak with the fewest queries, else the try with the highest score.
    """
    judge = _deciding_judge(store, setting, "jailbreakbench")
    verdicts = store.verdicts(judge)
    words = _Words.of(store, setting)
    tries: dict[tuple[_Cell, str], list[Verdict | None]] = defaultdict(list)
    best: dict[tuple[_Cell, str], tuple[tuple[float, ...], Attempt]] = {}
    for attempt in store.attempts():
        case = (_Cell.of(attempt), attempt.behavior)
        verdict = verdicts.get(attempt.key)
        tries[case].append(verdict)
        if verdict is None or verdict.score is None:
            continue
        queries = attempt.budget.target_queries
        rank = (1.0, -queries) if verdict.success else (0.0, verdict.score)
        if case not in best or rank > best[case][0]:
            best[case] = (rank, attempt)
    places = {id: place for place, id in enumerate(store.behaviors())}
    behaviors = store.behaviors()
    models = store.models()
    paths = []
    with _told(out):
        for cell, tasks in _tasks_by_cell(store).items():
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
            configs = _distinct(task.config for task in tasks)
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
                    "evaluation_date": _times(store)[1][:10],
                    "evaluation_llm_provider": "mosa",
                    # Their reader takes words and numbers only.
                    "method_parameters": {
                        k: v if isinstance(v, str | int | float) else _json(v)
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
                    "attack_success_rate": _rate_record(rate),
                    "num_unscored": sum(
                        j["jailbroken"] is None and j["mosa"]["status"] == "done"
                        for j in jailbreaks
                    ),
                    **_task_counts(tasks),
                },
            }
            folder = f"{safe_name(cell.attack)}-{cell.settings}"
            path = out / "attack-artifacts" / folder / access / f"{safe_name(cell.model)}.json"
            with _text_file(path) as file:
                json.dump(artifact, file, ensure_ascii=False, indent=1)
            paths.append(path)
    return paths


def _jailbreak(
    store: Store,
    words: _Words,
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
        entry["prompt"] = words.hide(_prompt_text(_turns(store, best)))
        entry["response"] = words.hide(_judged_text(best, judge))
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


# ---------------------------------------------------------------------------------------- Inspect


def write_inspect(store: Store, out: Path, setting: ExportSetting) -> list[Path]:
    """An Inspect log per model, attack, preset and seed, with the scores of every judge.

    Their writer takes a log whole, so one log at a time is held in memory.
    """
    try:
        from inspect_ai import log  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "inspect_ai":
            raise
        raise UserError(
            "the inspect export needs the package inspect-ai; install mosa-dllm[inspect]"
        ) from error
    # The first score of a log is the one that lists of logs show.
    judges = store.judges()
    if setting.judge is not None:
        decides = _deciding_judge(store, setting, "inspect")
        judges = [decides, *(judge for judge in judges if judge != decides)]
    verdicts = {judge: store.verdicts(judge) for judge in judges}
    words = _Words.of(store, setting)
    paths = []
    with _told(out), _Spool(out) as spool:
        for attempt in store.attempts():
            record = words.attempt(store, attempt)
            spool.add((_Cell.of(attempt), attempt.behavior), record)
        for cell, tasks in _tasks_by_cell(store).items():
            folder = out / "inspect" / safe_name(cell.model)
            path = folder / f"{safe_name(cell.attack)}-{cell.settings}.eval"
            run = _eval_log(store, words, cell, tasks, verdicts, spool)
            with _replacing(path) as temporary:
                log.write_eval_log(run, temporary, format="eval")
            paths.append(path)
    return paths


def _eval_log(
    store: Store,
    words: _Words,
    cell: _Cell,
    tasks: Sequence[Task],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    spool: _Spool,
) -> Any:
    from inspect_ai import log, model  # pyright: ignore[reportMissingImports]

    behaviors = store.behaviors()
    samples = []
    tries: dict[str, list[str]] = {}
    for id in dict.fromkeys(task.behavior for task in tasks):
        records = list(spool.read((cell, id)))
        tries[id] = [record["key"] for record in records]
        epochs: dict[str, int] = defaultdict(int)
        for record in records:
            name = f"{id} #{record['number']}"
            epochs[name] += 1
            samples.append(_sample(name, epochs[name], record, behaviors[id], verdicts))
    for task in tasks:
        if task.status == "failed":
            samples.append(
                log.EvalSample(
                    id=f"{task.behavior} (failed {task.key})",
                    epoch=1,
                    input=behaviors[task.behavior].request,
                    target="",
                    metadata={"behavior": task.behavior},
                    error=log.EvalError(message=task.reason, traceback="", traceback_ansi=""),
                )
            )
    counts = _task_counts(tasks)
    started, ended = _times(store)
    spent = [task.budget.target_tokens for task in tasks if task.budget is not None]
    key = content_key(
        folder=store.folder.name, tasks=[task.key for task in tasks], **dataclasses.asdict(cell)
    )
    name = f"mosa/{cell.model}"
    return log.EvalLog(
        status="cancelled" if counts["num_left"] else "success",
        eval=log.EvalSpec(
            eval_id=key,
            run_id=key,
            task_id=key,
            created=started,
            task=f"{cell.attack}-{cell.settings}",
            task_args=_distinct(task.config for task in tasks)[0],
            solver=cell.attack,
            dataset=log.EvalDataset(
                name=store.meta("behavior_set"),
                samples=len(tries),
                sample_ids=list(dict.fromkeys(sample.id for sample in samples)),
            ),
            model=name,
            model_args=store.meta("decoder") or {},
            config=log.EvalConfig(),
            packages=(store.sessions() or [{}])[-1].get("versions", {}),
            metadata={
                "preset": cell.preset,
                "seed": cell.seed,
                "redacted": words.redact,
                "model": store.models().get(cell.model),
                **counts,
            },
        ),
        plan=log.EvalPlan(steps=[log.EvalPlanStep(solver=cell.attack)]),
        results=log.EvalResults(
            total_samples=len(samples) + counts["num_left"],
            completed_samples=len(samples) - counts["num_failed"],
            scores=[
                _eval_score(judge, tries, by_attempt) for judge, by_attempt in verdicts.items()
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
    output = model.ModelOutput.from_content(f"mosa/{record['model']}", record["response"])
    scores = {}
    for judge, by_attempt in verdicts.items():
        verdict = by_attempt.get(record["key"])
        if verdict is None:
            continue
        if verdict.score is None:
            scores[judge] = scorer.Score.unscored(reason=verdict.reason)
        else:
            about = {"success": verdict.success, **verdict.native}
            scores[judge] = scorer.Score(value=verdict.score, metadata=about)
    kept = ("key", "attack", "preset", "variant", "seed", "number", "budget", "details")
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
    judge: str, tries: Mapping[str, Sequence[str]], by_attempt: Mapping[str, Verdict]
) -> Any:
    """A judge's rate over behaviors, counted as everywhere in mosa: one success in all tries."""
    from inspect_ai import log  # pyright: ignore[reportMissingImports]

    outcomes = [outcome_of([by_attempt.get(k) for k in keys]) for keys in tries.values() if keys]
    known = [outcome for outcome in outcomes if outcome is not None]
    keys = [key for several in tries.values() for key in several]
    num_scored = sum(key in by_attempt and by_attempt[key].score is not None for key in keys)
    metrics = {}
    if known:
        for name, values in (
            ("attack_success_rate", [float(success) for success, _ in known]),
            ("best_score", [score for _, score in known]),
        ):
            rate = rate_of(values)
            about = _rate_record(rate)
            metrics[name] = log.EvalMetric(name=name, value=rate.rate, metadata=about)
    return log.EvalScore(
        name=judge,
        scorer=judge,
        scored_samples=num_scored,
        unscored_samples=len(keys) - num_scored,
        metrics=metrics,
        metadata={"num_behaviors_unscored": len(outcomes) - len(known)},
    )


# ------------------------------------------------------------------------------ what they share


@dataclass(frozen=True)
class _Words:
    """Takes out what a model said, and what it was made to say it with."""

    redact: bool

    @classmethod
    def of(cls, store: Store, setting: ExportSetting) -> _Words:
        # The testbed's answers are about copper kilns; a run without that mark is not its.
        return cls(setting.redact and store.meta("world_seed") is None)

    def hide(self, what: Any) -> Any:
        """Text or ids, or the mark; nothing stays nothing, so that empty responses can be told."""
        return REDACTED if self.redact and what else what

    def turns(self, turns: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """The turns of a prompt, their roles kept."""
        return [{**turn, "content": self.hide(turn["content"])} for turn in turns]

    def attempt(self, store: Store, attempt: Attempt) -> dict[str, Any]:
        """An attempt with its responses; ids are words too, and so is what an attack found."""
        record = as_plain(attempt)
        record["responses"] = [as_plain(r) for r in store.responses_of(attempt.key)]
        if not self.redact:
            return record
        for part in ("response", "response_full"):
            record[part] = self.hide(record[part])
        record["details"] = {
            name: value if isinstance(value, int | float | None) else REDACTED
            for name, value in record["details"].items()
        }
        for response in record["responses"]:
            response["prompt"] = self.turns(response["prompt"])
            for part in ("text", "full_text", "token_ids", "tokens", "filled_prompt_ids"):
                response[part] = self.hide(response[part])
        return record


class _Spool:
    """Records set aside on disk by group: attempts come mixed, and a run may not fit in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name: it is gone when the process is, however that ends.
        self._file = tempfile.TemporaryFile("w+b", dir=folder)  # noqa: SIM115
        self._places: dict[Any, list[int]] = defaultdict(list)

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, group: Any, record: Mapping[str, Any]) -> None:
        """Set a record aside."""
        self._places[group].append(self._file.seek(0, os.SEEK_END))
        self._file.write(_json(record).encode() + b"\n")

    def read(self, group: Any) -> Iterator[dict[str, Any]]:
        """The group's records, in the order in which they came."""
        for place in self._places.get(group, ()):
            self._file.seek(place)
            yield json.loads(self._file.readline())


def safe_name(name: str) -> str:
    """The name as a file's or folder's; one that had to be changed gets a hash, to stay apart.

    >>> safe_name("LLaDA-8B+mosa")
    'LLaDA-8B+mosa'
    >>> safe_name("org/model")
    'org_model-351f0f90'
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,99}", name):
        return name
    cleaned = re.sub(r"[^A-Za-z0-9_.+=@-]", "_", name)[:80].lstrip(".")
    return f"{cleaned or 'unnamed'}-{content_key(name=name)[:8]}"


def _deciding_judge(store: Store, setting: ExportSetting, name: str) -> str:
    judges = store.judges()
    known = ", ".join(judges) or "none, so `mosa judge` the run first"
    if setting.judge is not None:
        if setting.judge not in judges:
            raise UserError(
                f"no judge {setting.judge} has judged {store.folder}; choose from: {known}"
            )
        return setting.judge
    if len(judges) != 1:
        raise UserError(
            f"the {name} export needs one judge that says yes or no; name it, of: {known}"
        )
    return judges[0]


def _judged_text(attempt: Attempt, judge: str) -> str:
    """What the judge read, so that a label stands beside the text that it is about."""
    return attempt.response_full if judge.endswith(CANVAS) else attempt.response


def _turns(store: Store, attempt: Attempt) -> list[dict[str, str]]:
    responses = store.responses_of(attempt.key)
    return responses[0].prompt if responses else []


def _prompt_text(turns: Sequence[Mapping[str, str]]) -> str:
    """A prompt as one string: the user's turn, or the JSON of a dialogue."""
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return _json(turns)


def _tasks_by_cell(store: Store) -> dict[_Cell, list[Task]]:
    cells: dict[_Cell, list[Task]] = defaultdict(list)
    for task in store.tasks():
        cells[_Cell.of(task)].append(task)
    return cells


def _task_counts(tasks: Sequence[Task]) -> dict[str, int]:
    status = [task.status for task in tasks]
    return {
        "num_tasks": len(tasks),
        "num_failed": status.count("failed"),
        "num_left": status.count("todo"),
    }


def _times(store: Store) -> tuple[str, str]:
    """When the first session began, and when the last one ended or, cut off, began."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sessions = store.sessions()
    if not sessions:
        return now, now
    last = sessions[-1]
    return sessions[0].get("started", now), last.get("ended", last.get("started", now))


def _rate_record(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {**vars(rate), "interval": INTERVAL_STATEMENT}


def _distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in dict.fromkeys(map(_json, records))]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_list(file: TextIO, records: Iterable[Any]) -> None:
    file.write("[")
    for i, record in enumerate(records):
        file.write(f"{',' if i else ''}\n{_json(record)}")
    file.write("]")


@contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    with (
        _replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        yield file


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes the file's once all is written: there is no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turns what the disk refuses into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {out} is full; free some space and export again"
            ) from error
        where = error.filename or out
        raise UserError(
            f"{where} cannot be written ({error.strerror or error}); name another folder"
        ) from error


EXPORTS: dict[str, Export] = {
    "csv": Export("tables of attempts and tasks", write_csv),
    "json": Export("one document with everything, tokens and commit steps included", write_json),
    "harmbench": Export("HarmBench's completions and results", write_harmbench),
    "jailbreakbench": Export("JailbreakBench artifacts", write_jailbreakbench),
    "inspect": Export("logs for Inspect's viewer (needs inspect-ai)", write_inspect),
}
"""Every export by name."""
