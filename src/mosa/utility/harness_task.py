"""Tasks of lm-evaluation-harness: their names, data sources and settings.

Five tasks have their settings pinned here (`tasks/*.yaml`): GSM8K, MMLU, HumanEval, MBPP and
IFEval. They read the user's own copies of the published files where these are found, by their
bytes, and the hub's where not. Every other name is a task of the harness itself, with the harness's
settings, and from the hub.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mosa.data import hash_of_cases
from mosa.data.registry import KNOWN_FILES, data_folder
from mosa.inputs import refusing, sha256
from mosa.types import UserError, Verdict, as_plain, content_key
from mosa.utility.authors_decoders import task_and_decoder
from mosa.utility.code_sandbox import Limits
from mosa.utility.local_data import Splits, local_files, read_rows_of
from mosa.utility.prompts import stop_strings
from mosa.utility.scoring import (
    humaneval_program,
    ifeval,
    mbpp_program,
    mean_of_scored,
    run_tests,
)

RowScorer = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Verdict]]
"""Gives each metric's verdict for a row and the responses to it."""

NO_HARNESS = "tasks of lm-evaluation-harness need the package lm_eval; install mosa-dllm[eval]"
FOLDER = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class OwnTask:
    """A task whose settings are pinned in a file here."""

    title: str
    """What it is in plain words, as reports call it."""
    splits: dict[str, str]
    """The registry's names of its data, by the names that its splits have on the hub."""
    headline: str
    """The metric, with its filter, that represents the task."""
    name_of_row: str | None = None
    """The field that names a row; None: its number."""
    program: Callable[[Mapping[str, Any], str], str] | None = None
    """Makes the program of a response, with its tests, where code is asked for."""
    check: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Verdict]] | None = None
    """Scores a row, where neither the harness's metrics nor a program do."""

    @property
    def files(self) -> tuple[str, ...]:
        """The registry's names of its data, each once."""
        return tuple(dict.fromkeys(self.splits.values()))

    def scorer(self, *, run_code: bool) -> RowScorer | None:
        """The scorer that replaces the harness's metrics on a row, if any."""
        if self.program is not None:
            return functools.partial(run_tests, self.program, run_code=run_code)
        return self.check


OWN_TASKS: dict[str, OwnTask] = {
    "gsm8k": OwnTask(
        "school mathematics (GSM8K)",
        {"train": "gsm8k_train", "test": "gsm8k_test"},
        "exact_match,flexible-extract",
    ),
    "mmlu": OwnTask("exam questions (MMLU)", {"dev": "mmlu", "test": "mmlu"}, "acc,none"),
    "humaneval": OwnTask(
        "Python functions (HumanEval)",
        {"test": "humaneval"},
        "pass@1,none",
        name_of_row="task_id",
        program=humaneval_program,
    ),
    "mbpp": OwnTask(
        "small programs (MBPP)",
        {"test": "mbpp"},
        "pass@1,none",
        name_of_row="task_id",
        program=mbpp_program,
    ),
    "ifeval": OwnTask(
        "instructions with checks (IFEval)",
        {"train": "ifeval"},
        "prompt_level_strict_acc,none",
        name_of_row="key",
        check=ifeval,
    ),
}


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness, ready to be asked."""

    name: str
    parts: tuple[Any, ...]
    """Objects of lm_eval; a group has several."""
    headline: str
    source: dict[str, Any]
    """The source of its rows: fields of a `CaseSet`."""
    settings: dict[str, Any]
    """What else its figures depend on, except model and decoder."""
    name_of_row: str | None = None
    scorer: RowScorer | None = None
    """The scorer that replaces the harness's metrics on a row."""
    checks_greedy: bool = False
    """Whether a metric asks if an answer is the greedy one."""

    @property
    def asks_likelihoods(self) -> bool:
        """Whether it asks how likely given answers are."""
        return any(part.OUTPUT_TYPE != "generate_until" for part in self.parts)

    def content_hash(self) -> str:
        """The hash of its rows, targets and tests included, and of the worked examples' rows."""
        shown = [part for part in self.parts if part.config.num_fewshot]
        with quiet():
            return hash_of_cases(
                _plain_rows(row for part in self.parts for row in part.eval_docs),
                examples=_plain_rows(row for part in shown for row in part.fewshot_docs() or ()),
            )

    def case_id(self, part: Any, row: Mapping[str, Any], number: int) -> str:
        """A row's name in the records, the same for every model."""
        name = str(number) if self.name_of_row is None else str(row[self.name_of_row])
        if len(self.parts) == 1:
            return name
        return f"{part.task_name.removeprefix(f'{self.name}_')}/{name}"


# --- finding tasks --------------------------------------------------------------------------------


def is_task(name: str) -> bool:
    """Whether a task of this name exists, here or in the harness, where that is installed."""
    if task_and_decoder(name)[0] in OWN_TASKS:
        return True
    return find_spec("lm_eval") is not None and name in _manager(include_defaults=True).task_index


def find_task(
    name: str, *, data_dir: Path | None, num_fewshot: int | None, run_code: bool
) -> HarnessTask:
    """A task by its name; UserError where it does not exist, or its data cannot be loaded."""
    if find_spec("lm_eval") is None:
        raise UserError(NO_HARNESS)
    own = OWN_TASKS.get(name)
    if own is None:
        return _hub_task(name, num_fewshot)
    files = local_files(own.files, data_dir)
    splits = None
    if len(files) == len(own.files):
        splits = {s: read_rows_of(name, s, files[file]) for s, file in own.splits.items()}
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    scorer = own.scorer(run_code=run_code)
    manager = _manager(include_defaults=False)
    with _hub_errors_named(name, own, data_dir):
        parts = tuple(manager.load(_own_configs(name, config, splits, scorer))["tasks"].values())
    _set_num_fewshot(name, parts, num_fewshot)
    return HarnessTask(
        name=name,
        parts=parts,
        headline=own.headline,
        source={"origin": _hub_place(parts)} if splits is None else _known_source(own.files, files),
        settings={
            **_shown_settings(parts[0]),
            "config": content_key(config=config),
            **({} if own.program is None else {"limits": as_plain(Limits())}),
        },
        name_of_row=own.name_of_row,
        scorer=scorer,
    )


def _hub_task(name: str, num_fewshot: int | None) -> HarnessTask:
    """A task of the harness, with its own settings."""
    parts = _hub_parts(name)
    _set_num_fewshot(name, parts, num_fewshot)
    return HarnessTask(
        name=name,
        parts=tuple(parts),
        headline=_first_metric(parts[0]),
        source={"origin": _hub_place(parts)},
        settings={
            **_shown_settings(parts[0]),
            "config": content_key(parts=[_plain_config(part) for part in parts]),
        },
        checks_greedy=any(_asks_for_greedy(part) for part in parts),
    )


def _shown_settings(part: Any) -> dict[str, Any]:
    return {
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
    tasks = (
        find_task(name, data_dir=folder, num_fewshot=None, run_code=run_code) for name in names
    )
    return [part for task in tasks for part in task.parts]


@functools.cache
def _manager(*, include_defaults: bool) -> Any:
    """An index of tasks; that of the harness's own takes seconds to read."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_defaults=include_defaults)


def _own_configs(
    name: str, config: Mapping[str, Any], splits: Splits | None, scorer: RowScorer | None
) -> list[dict[str, Any]]:
    """The settings of a task as the harness takes them; one for each subject, if it has several."""
    config = copy.deepcopy(dict(config))
    if scorer is not None:
        config["process_results"] = lambda row, responses: {
            metric: verdict.score for metric, verdict in scorer(row, responses).items()
        }
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
    """Gives the harness a task's rows in place of the hub."""

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
        raise UserError(f"there is no task {name}, here or in lm_eval; check the name")
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):
        raise _runs_code(name)
    with _hub_errors_named(name, None, None):
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
def _hub_errors_named(name: str, own: OwnTask | None, data_dir: Path | None) -> Iterator[None]:
    """Raises UserError with the remedy where the hub cannot provide data."""
    remedy = "check the network, or leave the task out"
    if own is not None:
        known = [KNOWN_FILES[file] for file in own.files]
        places = " and ".join(f"github.com/{file.found_at}" for file in known)
        fetches = f"`mosa data get {' '.join(own.files)}` fetches it"
        remedy = (
            f"no file under {data_folder(data_dir)} has its bytes either: "
            f"{f'put a copy of {places} there' if known[0].is_folder else fetches}, or name its "
            "folder with --data_dir or MOSA_DATA"
        )
    what = f"the hub does not provide the data of {name}"
    with refusing((OSError, ImportError), what, remedy), quiet():
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's log messages and progress bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _set_num_fewshot(name: str, parts: Sequence[Any], wanted: int | None) -> None:
    for part in parts:
        own = part.config.num_fewshot
        if wanted is not None and own == 0 and wanted != 0:
            raise UserError(f"{name} takes no worked examples; leave --num_fewshot out")
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


def _known_source(names: Sequence[str], files: Mapping[str, Path]) -> dict[str, str]:
    """Which files a task's rows are from, with one hash over the bytes of all."""
    known = KNOWN_FILES[names[0]]
    return {
        "file": ", ".join(files[name].name for name in names),
        "sha256": sha256(*(f for name in names for f in KNOWN_FILES[name].files_at(files[name]))),
        "known_as": ", ".join(names),
        "licence": known.licence,
        "origin": known.origin,
    }


def _hub_place(parts: Sequence[Any]) -> str:
    return f"hub: {parts[0].config.dataset_path}"


def _plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [json.loads(json.dumps(row, default=str)) for row in rows]


def _plain_config(part: Any) -> dict[str, Any]:
    """The settings of a part, without what differs from machine to machine."""
    config = part.dump_config()
    for name in ("metadata", "dataset_kwargs"):
        config.pop(name, None)
    return json.loads(json.dumps(config, default=lambda value: type(value).__name__))
