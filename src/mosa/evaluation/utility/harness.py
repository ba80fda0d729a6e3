"""Tasks of lm-evaluation-harness: which there are, where their data come from, and their scores.

Five tasks have their settings pinned here (`tasks/*.yaml`): GSM8K, MMLU, HumanEval, MBPP and
IFEval. They read the user's own copies of the published files where these are found, by their
bytes, and the hub's where not. Every other name is a task of the harness itself, with the harness's
settings, and from the hub.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import hashlib
import json
import logging
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mosa.data.registry import KNOWN_FILES, KNOWN_FOLDERS, data_folder
from mosa.evaluation.store import Measurement
from mosa.evaluation.utility import local_data
from mosa.evaluation.utility.answers import Answerer
from mosa.evaluation.utility.code_sandbox import Limits
from mosa.evaluation.utility.local_data import Splits
from mosa.evaluation.utility.prompts import NO_HARNESS, stop_strings
from mosa.evaluation.utility.scoring import Scorer, mean_of_scored
from mosa.families import DiffusionLM
from mosa.types import UserError, as_plain, content_key

FOLDER = Path(__file__).parent / "tasks"
FEWSHOT_SEED = 1234
"""Which worked examples are drawn; the harness's own."""


@dataclass(frozen=True)
class OwnTask:
    """A task whose settings stand in a file here."""

    files: tuple[str, ...]
    """The registry's names of its data."""
    read: Callable[[Mapping[str, Path]], Splits]
    headline: str
    """The metric, with its filter, that stands for the task."""
    name_of_row: str | None = None
    """The field that names a row; None: its number."""
    score: Callable[[Scorer], Callable[..., dict[str, float | None]]] | None = None
    """What scores a row, where the harness's metrics do not."""
    runs_code: bool = False


OWN_TASKS: dict[str, OwnTask] = {
    "gsm8k": OwnTask(
        ("gsm8k_train", "gsm8k_test"), local_data.gsm8k, "exact_match,flexible-extract"
    ),
    "mmlu": OwnTask(("mmlu",), local_data.mmlu, "acc,none"),
    "humaneval": OwnTask(
        ("humaneval",),
        local_data.humaneval,
        "pass@1,none",
        "task_id",
        lambda scorer: scorer.humaneval,
        runs_code=True,
    ),
    "mbpp": OwnTask(
        ("mbpp",),
        local_data.mbpp,
        "pass@1,none",
        "task_id",
        lambda scorer: scorer.mbpp,
        runs_code=True,
    ),
    "ifeval": OwnTask(
        ("ifeval",),
        local_data.ifeval,
        "prompt_level_strict_acc,none",
        "key",
        lambda scorer: scorer.ifeval,
    ),
}


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness, ready to be asked."""

    name: str
    parts: tuple[Any, ...]
    """Objects of lm_eval; a group has several."""
    headline: str
    name_of_row: str | None
    scorer: Scorer
    settings: dict[str, Any]
    """What its figures depend on, model and decoder aside."""
    checks_greedy: bool
    """Whether a metric asks if an answer is the greedy one."""

    @property
    def asks_likelihoods(self) -> bool:
        """Whether it asks how likely given answers are."""
        return any(part.OUTPUT_TYPE != "generate_until" for part in self.parts)

    def case(self, part: str, row: Mapping[str, Any], number: int) -> str:
        """A row's name in the records, the same for every model."""
        name = str(number) if self.name_of_row is None else str(row[self.name_of_row])
        return name if len(self.parts) == 1 else f"{part.removeprefix(f'{self.name}_')}/{name}"


@dataclass(frozen=True)
class Scores:
    """What came of a task."""

    measurements: list[Measurement]
    figures: dict[str, dict[str, float]]
    """The harness's own figures, part by part, with those that are no share of cases."""


# --- finding tasks --------------------------------------------------------------------------------


def plan_task(
    name: str, *, data_dir: Path | None, num_fewshot: int | None, run_code: bool
) -> HarnessTask:
    """A task by its name; UserError where there is none, or its data cannot be had."""
    harness()
    scorer = Scorer(run_code=run_code)
    own = OWN_TASKS.get(name)
    if own is None:
        return _hub_task(name, num_fewshot, scorer)
    files = local_data.local_files(own.files, data_dir)
    splits = own.read(files) if len(files) == len(own.files) else None
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    manager = _manager(include_defaults=False)
    configs = _own_configs(name, config, splits, own, scorer)
    with _hub_errors_told(name, own, data_dir):
        parts = list(manager.load(configs)["tasks"].values())
    _set_num_fewshot(name, parts, num_fewshot)
    return HarnessTask(
        name=name,
        parts=tuple(parts),
        headline=own.headline,
        name_of_row=own.name_of_row,
        scorer=scorer,
        settings={
            **(_hub_data(parts) if splits is None else _known_data(own.files)),
            **_shown_settings(parts[0], own.headline),
            "config": content_key(config=config),
            **({"limits": as_plain(Limits())} if own.runs_code else {}),
        },
        checks_greedy=False,
    )


def _hub_task(name: str, num_fewshot: int | None, scorer: Scorer) -> HarnessTask:
    """A task of the harness, with its own settings."""
    parts = _hub_parts(name)
    _set_num_fewshot(name, parts, num_fewshot)
    headline = _first_metric(parts[0])
    return HarnessTask(
        name=name,
        parts=tuple(parts),
        headline=headline,
        name_of_row=None,
        scorer=scorer,
        settings={
            **_hub_data(parts),
            **_shown_settings(parts[0], headline),
            "config": content_key(parts=[_plain_config(part) for part in parts]),
        },
        checks_greedy=any(_asks_for_greedy(part) for part in parts),
    )


def _shown_settings(part: Any, headline: str) -> dict[str, Any]:
    return {
        "headline": headline,
        "num_fewshot": part.config.num_fewshot,
        "stop_strings": stop_strings(part.config.generation_kwargs or {}),
    }


def local_tasks(
    names: Sequence[str], data_dir: str | Path | None = None, *, run_code: bool = False
) -> list[Any]:
    """The tasks with settings of our own, for `lm_eval.simple_evaluate(tasks=...)`."""
    for name in names:
        if name not in OWN_TASKS:
            raise UserError(
                f"{name} is no task with data files; choose from {', '.join(OWN_TASKS)}"
            )
    folder = None if data_dir is None else Path(data_dir)
    plans = (
        plan_task(name, data_dir=folder, num_fewshot=None, run_code=run_code) for name in names
    )
    return [part for plan in plans for part in plan.parts]


def harness() -> Any:
    """lm_eval; UserError where it is not installed."""
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(NO_HARNESS) from error
    return lm_eval


@functools.cache
def _manager(*, include_defaults: bool) -> Any:
    """An index of tasks; that of the harness's own takes seconds to read."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_defaults=include_defaults)


def _own_configs(
    name: str, config: Mapping[str, Any], splits: Splits | None, own: OwnTask, scorer: Scorer
) -> list[dict[str, Any]]:
    """The settings of a task as the harness takes them; one for each subject, if it has such."""
    config = copy.deepcopy(dict(config))
    if own.score is not None:
        config["process_results"] = own.score(scorer)
        for metric in config["metric_list"]:
            metric["aggregation"] = mean_of_scored
    configs = []
    for subject in config.pop("subjects", [None]):
        part = dict(config)
        if subject is not None:
            part |= {"task": f"{name}_{subject}", "dataset_name": subject}
            part["description"] = part["description"].format(subject=subject.replace("_", " "))
        if splits is not None:
            part["custom_dataset"] = _dataset(splits, subject)
        configs.append(part)
    return configs


def _dataset(splits: Splits, subject: str | None) -> Callable[..., dict[str, Any]]:
    """What gives the harness a task's rows in place of the hub."""

    def load(**about: Any) -> dict[str, Any]:
        from datasets import Dataset  # pyright: ignore[reportMissingImports]

        del about  # the task's version and the like
        return {
            split: Dataset.from_list([row for row in rows if row.get("subject") == subject])
            for split, rows in splits.items()
        }

    return load


def _hub_parts(name: str) -> list[Any]:
    manager = _manager(include_defaults=True)
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, {*OWN_TASKS, *manager.all_tasks}, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"there is no task {name}, here or in lm_eval{hint}")
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):
        raise _runs_code(name)
    with _hub_errors_told(name, None, None):
        parts = list(manager.load([name])["tasks"].values())
    for part in parts:
        if part.config.unsafe_code:
            raise _runs_code(name)
        if part.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UserError(
                f"{name} measures the perplexity of running text, which is not defined for a "
                "diffusion model; leave it out"
            )
    return parts


def _runs_code(name: str) -> UserError:
    return UserError(
        f"{name} runs generated code by lm_eval's own means, which are no sandbox; use humaneval "
        "or mbpp, whose code mosa runs"
    )


@contextlib.contextmanager
def _hub_errors_told(name: str, own: OwnTask | None, data_dir: Path | None) -> Iterator[None]:
    """Says what to do where data cannot be had from the hub."""
    try:
        with _quiet():
            yield
    except (OSError, ImportError) as error:
        remedy = "check the network, or leave the task out"
        if own is not None:
            known = [KNOWN_FOLDERS.get(file) or KNOWN_FILES[file] for file in own.files]
            places = " and ".join(f"github.com/{k.found_at}" for k in known)
            remedy = (
                f"no file under {data_folder(data_dir)} has its bytes either: put copies of "
                f"{places} there, or name their folder with --data_dir or MOSA_DATA"
            )
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the data of {name} cannot be had from the hub ({reason}); {remedy}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's notes on its own workings, and without its bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(level)


def _set_num_fewshot(name: str, parts: Sequence[Any], wanted: int | None) -> None:
    for part in parts:
        own = part.config.num_fewshot
        if wanted is not None and own == 0 and wanted != 0:
            raise UserError(f"{name} is asked without examples; leave --num_fewshot out for it")
        part.set_config(key="num_fewshot", value=(own or 0) if wanted is None else wanted)


def _first_metric(part: Any) -> str:
    """The harness's name of a task's first metric under its first filter."""
    filters = part.config.filter_list
    metric = next(iter(part.aggregation()))
    return f"{metric},{filters[0]['name'] if filters else 'none'}"


def _asks_for_greedy(part: Any) -> bool:
    metrics = part.aggregation()
    if part.OUTPUT_TYPE == "loglikelihood":
        return "acc" in metrics or part.config.process_results is not None
    return part.OUTPUT_TYPE == "multiple_choice" and "exact_match" in metrics


def _known_data(names: Sequence[str]) -> dict[str, str]:
    """Which files a task's rows are from."""
    known = [KNOWN_FOLDERS.get(name) or KNOWN_FILES[name] for name in names]
    return {
        "source": "files",
        "file": ", ".join(names),
        "sha256": ", ".join(entry.sha256_prefix for entry in known),
        "licence": known[0].licence,
        "origin": known[0].origin,
    }


def _hub_data(parts: Sequence[Any]) -> dict[str, str]:
    """Where on the hub a task's rows are from, with a hash over all that are asked."""
    digest = hashlib.sha256()
    for part in parts:
        for row in part.eval_docs:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return {
        "source": "hub",
        "origin": str(parts[0].config.dataset_path),
        "sha256": digest.hexdigest()[:16],
    }


def _plain_config(part: Any) -> dict[str, Any]:
    """The settings of a part, without what differs from machine to machine."""
    config = part.dump_config()
    for name in ("metadata", "dataset_kwargs"):
        config.pop(name, None)
    return json.loads(json.dumps(config, default=lambda value: type(value).__name__))


# --- asking ---------------------------------------------------------------------------------------


def has_turns(model: DiffusionLM) -> bool:
    """Whether the model has a chat template, its tokenizer's or its family's."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return False
    if tokenizer.chat_template is not None:
        return True
    return set(model.family.template_tokens) <= tokenizer.get_vocab().keys()


def score_task(
    task: HarnessTask, answerer: Answerer, *, model_name: str, limit: int | None
) -> Scores:
    """Ask a task's rows, at most `limit` of each part, and score the answers case by case.

    Prompts are dialogues where the model has a chat template, with each worked example as a turn
    of the user and one of the assistant, as the harness lays them out by default.
    """
    from mosa.evaluation.utility.lm import MosaLM

    lm = MosaLM(
        answerer.model,
        answerer=answerer,
        checks_greedy=task.checks_greedy,
        leaves_out=True,
    )
    task.scorer.reasons.clear()
    task.scorer.details.clear()
    for part in task.parts:
        part.set_fewshot_seed(FEWSHOT_SEED)
    with _quiet():
        found = harness().evaluate(
            lm=lm,
            task_dict={"tasks": {part.task_name: part for part in task.parts}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=has_turns(answerer.model),
            fewshot_as_multiturn=True,
        )
    assert found is not None, "there is one process"
    measurements = [
        measurement
        for part, rows in found["samples"].items()
        for row in rows
        for measurement in _measured(task, lm, model_name, part, row)
    ]
    figures = {
        part: {name: v for name, v in values.items() if "," in name and _is_number(v)}
        for part, values in found["results"].items()
    }
    return Scores(measurements, figures)


def _measured(
    task: HarnessTask, lm: Any, model_name: str, part: str, row: Mapping[str, Any]
) -> Iterator[Measurement]:
    """The values of one row under one filter that are a share: numbers from 0 to 1, of which more
    is better."""
    number = row["doc_id"]
    (own_part,) = (candidate for candidate in task.parts if candidate.task_name == part)
    higher_is_better = own_part.higher_is_better()
    case = task.case(part, row["doc"], number)
    own_name = "" if task.name_of_row is None else str(row["doc"][task.name_of_row])
    not_asked = lm.left_out.get((part, number))
    details = {}
    if not_asked is None:
        details = {"answers": lm.keys[part, number], "read": row["filtered_resps"]}
        details |= task.scorer.details.get(own_name, {})
    for metric in row["metrics"]:
        measured = functools.partial(
            Measurement, model_name, task.name, f"{metric},{row['filter']}", case, details=details
        )
        value = row[metric]
        if not_asked is not None:
            yield measured(None, not_asked)
        elif value is None:
            yield measured(None, task.scorer.reasons[own_name])
        elif _is_number(value) and 0 <= value <= 1 and higher_is_better.get(metric, True):
            yield measured(float(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real)
