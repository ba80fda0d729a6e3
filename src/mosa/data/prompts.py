"""Read training prompts from the file formats in which public prompt sets come.

A row becomes a `TrainingExample`: what is asked, and, where the file has one, an answer.
One example of each format (all harmless):

    .txt    How do I bake bread?
    .csv    goal,target / "Bake bread","Sure, here is how"   (AdvBench; the target is not an answer)
    .json   {"Food": {"Bread": ["How do I bake bread?"]}}    (HarmfulQA), or a list of strings,
            or a list of records such as {"instruction": "How do I bake bread?"}  (Alpaca)
    .jsonl  {"prompt": "How do I bake bread?", "answer": "Mix flour and water."}
            {"messages": [{"role": "user", "content": "How do I bake bread?"}]}
            {"prompt": "How do I bake bread?", "chosen": "Mix and bake.", "rejected": "Buy it."}
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosa.types import Message, Prompt, UserError, is_json_list, is_json_object

PROMPT_COLUMNS = (
    "prompt",
    "goal",
    "behavior",
    "instruction",
    "forbidden_prompt",
    "question",
    "text",
)
"""Names of the column that holds the request, in order of preference; case does not matter."""

ANSWER_COLUMNS = ("answer", "response", "completion", "output", "chosen")
"""Names of the column that holds an answer. `target` is none: AdvBench's is a beginning only."""

REJECTED_COLUMNS = ("rejected",)
"""Names of the column that holds the rejected answer of a pair."""

FORMATS = (".txt", ".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class TrainingExample:
    """One request to train on, with an answer where the data has one."""

    prompt: Prompt
    """A single user turn, or a dialogue that ends in the turn to answer."""
    answer: str | None = None
    """Harmful data: the answer that must *not* be given. Benign data: the answer to keep. A pair:
    the preferred answer."""
    rejected: str | None = None
    """A pair: the answer to which `answer` is preferred."""


def load_prompts(path: str | Path) -> list[TrainingExample]:
    """All examples of a .txt, .csv, .json or .jsonl file, in the order of the file.

    Raises UserError, naming file and row, for a missing or empty file, an unknown format, or a row
    without a prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no prompt file {path}; check the path.")
    if path.suffix not in FORMATS:
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'}; prompts come from {', '.join(FORMATS)}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from error
    readers = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
    examples = list(readers[path.suffix](text, path))
    if not examples:
        raise UserError(f"{path} holds no prompt; give a file with at least one.")
    return examples


def _read_txt(text: str, path: Path) -> Iterator[TrainingExample]:
    yield from (TrainingExample(line.strip()) for line in text.splitlines() if line.strip())


def _read_csv(text: str, path: Path) -> Iterator[TrainingExample]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if rows.fieldnames is None:
        return
    prompt_column = _column(rows.fieldnames, PROMPT_COLUMNS)
    if prompt_column is None:
        raise UserError(
            f"{path} has the columns {', '.join(rows.fieldnames)}; one must be called "
            f"{', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}."
        )
    for number, row in enumerate(rows, start=1):
        yield _from_record(row, f"{path}, row {number}")


def _read_json(text: str, path: Path) -> Iterator[TrainingExample]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    yield from _walk(content, str(path))


def _walk(content: Any, where: str) -> Iterator[TrainingExample]:
    """Every prompt of nested dicts and lists; a dict with a prompt column is one record."""
    if isinstance(content, str):
        if not content.strip():
            raise UserError(f"{where} is an empty string; every prompt needs text.")
        yield TrainingExample(content.strip())
    elif is_json_list(content):
        for number, item in enumerate(content, start=1):
            yield from _walk(item, f"{where}, item {number}")
    elif is_json_object(content):
        if "messages" in content or _column(content, PROMPT_COLUMNS, text_in=content) is not None:
            yield _from_record(content, where)
            return
        if any(
            value is not None and not isinstance(value, list | dict) for value in content.values()
        ):
            raise UserError(
                f"{where} is a record without a prompt (it has {', '.join(map(str, content))}); "
                f"name its column one of {', '.join(PROMPT_COLUMNS)}."
            )
        for key, value in content.items():
            yield from _walk(value, f"{where}, {key}")
    else:
        raise UserError(f"{where} is {json.dumps(content)}; a prompt must be text.")


def _read_jsonl(text: str, path: Path) -> Iterator[TrainingExample]:
    # Not splitlines: JSON strings may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON: {error}.") from error
        if isinstance(record, str) and record.strip():
            yield TrainingExample(record.strip())
        elif is_json_object(record):
            yield _from_record(record, where)
        else:
            raise UserError(f"{where} must be an object with a prompt, or a string.")


def _from_record(record: dict[str, Any], where: str) -> TrainingExample:
    answer = _text(record, ANSWER_COLUMNS, where)
    rejected = _text(record, REJECTED_COLUMNS, where)
    if "messages" in record:
        return TrainingExample(_messages(record["messages"], where), answer, rejected)
    prompt_column = _column(record, PROMPT_COLUMNS, text_in=record)
    if prompt_column is None:
        raise UserError(
            f"{where} has no prompt; give it text under one of {', '.join(PROMPT_COLUMNS)}."
        )
    prompt = record[prompt_column].strip()
    # HarmBench's contextual behaviors, and some Alpaca rows, speak about a text given beside them.
    if record.get("ContextString"):
        prompt = f"{record['ContextString'].strip()}\n\n---\n\n{prompt}"
    if prompt_column.lower() == "instruction" and record.get("input"):
        prompt = f"{prompt}\n\n{record['input'].strip()}"
    return TrainingExample(prompt, answer, rejected)


def _text(record: dict[str, Any], columns: tuple[str, ...], where: str) -> str | None:
    """The text of the first of the columns that is there; None where it is empty."""
    column = _column(record, columns)
    value = record[column] if column is not None else None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where} has the {column} {json.dumps(value)}; an answer must be text.")
    return (value or "").strip() or None


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    if not is_json_list(messages) or not messages:
        raise UserError(f"{where}: `messages` must be a list of turns with role and content.")
    turns: list[Message] = []
    for turn in messages:
        role = turn.get("role") if is_json_object(turn) else None
        content = turn.get("content") if is_json_object(turn) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError(
                f"{where}: a turn needs a role (system, user or assistant) and text content, "
                f"not {json.dumps(turn)}."
            )
        turns.append(Message(role, content))
    if turns[-1].role != "user":
        raise UserError(f"{where}: the last turn must be the user's; put the reply under `answer`.")
    return tuple(turns)


def _column(
    columns: Any, wanted: tuple[str, ...], *, text_in: dict[str, Any] | None = None
) -> str | None:
    """The first wanted column that is there (and, with `text_in`, holds text in that record)."""
    by_name = {str(column).lower(): column for column in columns}
    for name in wanted:
        column = by_name.get(name)
        if column is None:
            continue
        if text_in is None or (isinstance(text_in[column], str) and text_in[column].strip()):
            return column
    return None
