"""Read training prompts from the file formats in which public prompt sets come.

A row becomes a `TrainingExample`: what is asked, and, where the file has one, an answer.
One example of each format (all harmless):

    .txt    How do I bake bread?
    .csv    goal,target / "Bake bread","Sure, here is how"   (AdvBench; the target is not an answer)
    .json   {"Food": {"Bread": ["How do I bake bread?"]}}    (HarmfulQA), or a list of strings,
            or a list of records such as {"instruction": "How do I bake bread?"}  (Alpaca)
    .jsonl  {"prompt": "How do I bake bread?", "answer": "Mix flour and water."}
            {"messages": [{"role": "user", "content": "How do I bake bread?"}]}
            {"turns": ["How do I bake bread?"], "prompt_style": "slang"}     (SORRY-Bench)
            {"prompt": "How do I bake bread?", "chosen": "Mix and bake.", "rejected": "Buy it."}
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mosa.data.rows import (
    CONTEXT_COLUMNS,
    FORMATS,
    REQUEST_COLUMNS,
    lowered,
    read_rows,
    text_of,
)
from mosa.inputs import is_blank, is_file, refusing, shortened
from mosa.types import Message, Prompt, UserError, is_json_list, is_json_object

ANSWER_COLUMNS = ("answer", "response", "completion", "output", "chosen")
"""Names of the column that holds an answer. `target` is none: AdvBench's is a beginning only."""

STYLE_COLUMNS = ("prompt_style",)
"""Names of the column that says how a request is worded."""

REJECTED_COLUMNS = ("rejected",)
"""Names of the column that holds the rejected answer of a pair."""


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
    style: str | None = None
    """How the request is worded, in the set's own words (SORRY-Bench: base, slang, caesar, ...)."""


def load_prompts(path: str | Path) -> list[TrainingExample]:
    """All examples of a .txt, .csv, .json or .jsonl file, in the order of the file.

    Raises UserError, naming file and row, for a missing or empty file, an unknown format, or a row
    without a prompt.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"There is no prompt file {shortened(path)}; check the path.")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{path} ends in {suffix or 'nothing'}; prompts come from {', '.join(FORMATS)}."
        )
    rows = read_rows(path, suffix, is_nested=True)
    examples = [example for item, where in rows for example in _walk(item, where)]
    if not examples:
        raise UserError(f"{path} holds no prompt; give a file with at least one.")
    return examples


def draw_prompts(
    examples: Sequence[TrainingExample], number: int, *, seed: int
) -> list[TrainingExample]:
    """So many of the examples, drawn at random without putting back, in their order.

    Raises UserError where there are fewer.
    """
    if number > len(examples):
        raise UserError(
            f"num_prompts is {number}, but the data has {len(examples)} prompts; lower it, or "
            "leave it out to take all."
        )
    drawn = random.Random(seed).sample(range(len(examples)), number)
    return [examples[place] for place in sorted(drawn)]


def _walk(item: Any, where: str) -> Iterator[TrainingExample]:
    """Every prompt of nested dicts and lists; a dict with a prompt or a text is one record."""
    if isinstance(item, str):
        if is_blank(item):
            raise UserError(f"{where} is an empty string; every prompt needs text.")
        yield TrainingExample(item.strip())
    elif is_json_list(item):
        for number, part in enumerate(item, start=1):
            place = f"{where}, row {number}"
            yield from _walk(lowered(part, place), place)
    elif not is_json_object(item):
        raise UserError(f"{where} is {json.dumps(item)}; a prompt must be text.")
    elif "messages" in item or "turns" in item or _holds_no_parts(item):
        yield _from_record(item, where)
    else:
        for key, part in item.items():
            place = f"{where}, {key}"
            yield from _walk(lowered(part, place), place)


def _holds_no_parts(item: dict[str, Any]) -> bool:
    return not all(isinstance(value, list | dict) for value in item.values())


def _from_record(record: dict[str, Any], where: str) -> TrainingExample:
    answer = text_of(record, ANSWER_COLUMNS, where)
    rejected = text_of(record, REJECTED_COLUMNS, where)
    style = text_of(record, STYLE_COLUMNS, where)
    if "messages" in record:
        return TrainingExample(_messages(record["messages"], where), answer, rejected, style)
    if "turns" in record:
        return TrainingExample(only_turn(record["turns"], where), answer, rejected, style)
    column = next((name for name in REQUEST_COLUMNS if name in record), None)
    prompt = None if column is None else text_of(record, (column,), where)
    if prompt is None:
        raise UserError(
            f"{where} has no prompt among its columns {', '.join(record)}; give it text under one "
            f"of {', '.join(REQUEST_COLUMNS)}."
        )
    # HarmBench's contextual behaviors, and some Alpaca rows, speak about a text given beside them.
    context = text_of(record, CONTEXT_COLUMNS, where)
    if context is not None:
        prompt = f"{context}\n\n---\n\n{prompt}"
    beside = text_of(record, ("input",), where) if column == "instruction" else None
    if beside is not None:
        prompt = f"{prompt}\n\n{beside}"
    return TrainingExample(prompt, answer, rejected, style)


def only_turn(turns: Any, where: str) -> str:
    """The request of a row that holds the user's turns; UserError unless it is one text."""
    if not is_json_list(turns) or len(turns) != 1 or not isinstance(turns[0], str):
        raise UserError(
            f"{where} has {json.dumps(turns)} as its turns; it must be a list of one text (write a "
            "dialogue as `messages`)."
        )
    if not turns[0].strip():
        raise UserError(f"{where} has an empty text among its turns; every prompt needs text.")
    return turns[0].strip()


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    what = f"{where}: `messages` are no list of turns"
    remedy = "give each a role (system, user or assistant) and a text as content."
    with refusing(msgspec.ValidationError, what, remedy):
        turns = msgspec.convert(messages, tuple[Message, ...])
    if turns and is_blank(turns[-1].content):
        raise UserError(f"{where}: the last turn is empty; every prompt needs text.")
    if not turns or turns[-1].role != "user":
        raise UserError(f"{where}: the last turn must be the user's; put the reply under `answer`.")
    return turns
