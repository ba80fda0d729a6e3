"""What the exports share: their types, redaction and names of files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mosa.chat.base import without_quotations
from mosa.evidence.figures import Try, deciding, trained_against
from mosa.files import claim_folder, filling, user_errors
from mosa.runs.judging import CANVAS, judge_meant
from mosa.runs.records import Outcome, Task, TaskStatus
from mosa.runs.store import Run
from mosa.stats.rates import INTERVAL_STATEMENT, Rate
from mosa.types import Attempt, Budget, RecordedTurn, UserError, as_plain, content_key

REDACTED = "[redacted]"
"""The mark in place of model output and attack prompts."""


@dataclass(frozen=True)
class ExportSetting:
    """The settings of an export."""

    judge: str | None = None
    """Id of the judge whose verdicts decide where a format has one yes or no; unset: the only one.
    """
    redact: bool = True
    """Whether to leave out model output and attack prompts; those of the testbed always stay."""


@dataclass(frozen=True)
class Export:
    """A line of the table of exports."""

    summary: str
    written: Callable[[Run, Path, ExportSetting], list[Path]]
    """Writes into an empty folder; returns the files, in the order of writing."""

    def write(self, run: Run, out: Path, setting: ExportSetting) -> list[Path]:
        """Write into a folder, all files or none; returns them, in the order of writing.

        Raises UserError for a folder that holds other things than exports.
        """
        with claim_folder(out, "mosa results --export"), user_errors(out), filling(out) as part:
            paths = self.written(run, part, setting)
        return [out / path.relative_to(part) for path in paths]


class ExportCell(NamedTuple):
    """The unit for which other projects' formats have a file."""

    subject: str
    case_set: str
    attack: str
    preset: str
    seed: int

    @classmethod
    def of(cls, record: Attempt | Task) -> ExportCell:
        return cls(record.subject, record.case_set, record.attack, record.preset, record.seed)

    @property
    def settings(self) -> str:
        """Set, preset and seed as a name of a file or folder."""
        return f"{safe_name(self.case_set)}-{safe_name(self.preset)}-seed{self.seed}"


@dataclass(frozen=True)
class Words:
    """Removes what a model said, and the prompts that made it say so."""

    redact: bool

    def hide(self, what: Any) -> Any:
        """Text or ids, or the mark; empty stays empty, so that empty responses are recognizable."""
        return REDACTED if self.redact and what else what

    def reason(self, text: str) -> str:
        """Why something failed or is unscored: our words and not what a server or model said, which
        may quote what they were sent."""
        return without_quotations(text, REDACTED) if self.redact else text

    def turns(self, turns: Sequence[RecordedTurn]) -> list[dict[str, Any]]:
        """The turns of a prompt, their roles kept."""
        return [{**turn, "content": self.hide(turn["content"])} for turn in turns]

    def attempt(self, run: Run, attempt: Attempt) -> dict[str, Any]:
        """An attempt with its responses; ids are words too, and so is what an attack found."""
        record = as_plain(attempt)
        record["responses"] = [as_plain(r) for r in run.responses_of(attempt.key)]
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


def words_of(run: Run, setting: ExportSetting) -> dict[str, Words]:
    """What each set of a run shows of its words."""
    # The testbed's answers are about copper kilns; a set without that mark is another's.
    sets = run.sets().items()
    return {name: Words(setting.redact and of.world_seed is None) for name, of in sets}


class Spool:
    """Keeps records on disk by group: attempts come mixed, and a run may not fit in memory."""

    def __init__(self, folder: Path) -> None:
        # Without a name: it disappears with the process, for any end of it.
        self._file = tempfile.TemporaryFile("w+b", dir=folder)  # noqa: SIM115
        self._places: dict[Any, list[int]] = defaultdict(list)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, group: Any, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        self._places[group].append(self._file.seek(0, os.SEEK_END))
        self._file.write(as_json(record).encode() + b"\n")

    def read(self, group: Any) -> Iterator[dict[str, Any]]:
        """The group's records, in the order in which they came."""
        for place in self._places.get(group, ()):
            self._file.seek(place)
            yield json.loads(self._file.readline())


def safe_name(name: str) -> str:
    """The name as a file's or folder's; a changed one gets a hash, to stay unique.

    >>> safe_name("LLaDA-8B+mosa")
    'LLaDA-8B+mosa'
    >>> safe_name("org/model")
    'org_model-351f0f90'
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,99}", name):
        return name
    cleaned = re.sub(r"[^A-Za-z0-9_.+=@-]", "_", name)[:80].lstrip(".")
    return f"{cleaned or 'unnamed'}-{content_key(name=name)[:8]}"


def judge_of_export(run: Run, setting: ExportSetting, name: str) -> str:
    harmful = [record.name for record in run.sets().values() if record.kind == "harmful"]
    if not harmful:
        raise UserError(
            f"the {name} export is about attacks, and {run.folder} has no harmful set; use csv or "
            "json"
        )
    judges = list(dict.fromkeys(judge for case_set in harmful for judge in run.judges(case_set)))
    if setting.judge is not None:
        return judge_meant(setting.judge, judges, run.folder)
    if len(judges) != 1:
        known = ", ".join(judges) or "none yet (`mosa judge RUN` adds one)"
        raise UserError(
            f"the {name} export needs one judge to decide; name one with --judge, of: {known}"
        )
    return judges[0]


def judged_text(attempt: Attempt, judge: str) -> str:
    """The text that the judge read, so that it stands beside its label."""
    return attempt.response_full if judge.endswith(CANVAS) else attempt.response


def deciding_attempts(run: Run) -> set[str]:
    """The keys of the attempts that decide the outcome of their case."""
    cases: dict[tuple[ExportCell, str], list[Try]] = defaultdict(list)
    for attempt in run.attempts():
        cases[ExportCell.of(attempt), attempt.case].append(Try.of(attempt))
    return {each.key for tries in cases.values() for each in deciding(tries)}


def prompt_text(run: Run, attempt: Attempt) -> str:
    """An attempt's prompt as one string: the user's turn, or the JSON of a dialogue."""
    responses = run.responses_of(attempt.key)
    turns = responses[0].prompt if responses else []
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return as_json(turns)


Tasks = Sequence[tuple[Task, Outcome | None]]
"""Tasks with how they ended; None: not run yet."""


def status_of(outcome: Outcome | None) -> TaskStatus:
    return "todo" if outcome is None else outcome.status


def attack_tasks(run: Run) -> dict[ExportCell, Tasks]:
    """The tasks on harmful sets, the subject of other projects' formats."""
    harmful = {record.name for record in run.sets().values() if record.kind == "harmful"}
    cells: dict[ExportCell, list[tuple[Task, Outcome | None]]] = defaultdict(list)
    for task, outcome in run.tasks():
        if task.case_set in harmful:
            cells[ExportCell.of(task)].append((task, outcome))
    return dict(cells)


def cell_facts(run: Run, cell: ExportCell, tasks: Tasks) -> dict[str, Any]:
    """What a cell's rates must be read with."""
    status = [status_of(outcome) for _, outcome in tasks]
    spent = sum((outcome.budget for _, outcome in tasks if outcome is not None), Budget())
    return {
        "in_alignment_data": trained_against(run.sets()[cell.case_set], cell.attack),
        "tokens_per_response": spent.target_tokens / spent.target_queries
        if spent.target_queries
        else None,
        "num_tasks": len(tasks),
        "num_failed": status.count("failed"),
        "num_left": status.count("todo"),
    }


def times_of(run: Run) -> tuple[str, str]:
    """When the first session began, and when the last one ended or, cut off, began."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sessions = run.sessions()
    if not sessions:
        return now, now
    last = sessions[-1]
    return sessions[0].get("started", now), last.get("ended", last.get("started", now))


def rate_record(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {**rate.record(), "interval": INTERVAL_STATEMENT}


def distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in dict.fromkeys(map(as_json, records))]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_list(file: TextIO, records: Iterable[Any]) -> None:
    file.write("[")
    for i, record in enumerate(records):
        file.write(f"{',' if i else ''}\n{as_json(record)}")
    file.write("]")
