"""Rows of the file formats in which public prompt sets come, each with its place in the file.

.txt    a text on each line
.csv    a header and records
.json   a list of texts or records (a dictionary of such lists, where nesting is read)
.jsonl  a text or a record on each line
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosa.inputs import MOST_BYTES, is_blank, parse_json, plain_texts, read_text
from mosa.types import UserError, is_json_list, is_json_object

FORMATS = (".txt", ".csv", ".json", ".jsonl")

REQUEST_COLUMNS = (
    "goal",  # before behavior: JailbreakBench has both, and its `Behavior` is a short name
    "behavior",
    "prompt",
    "request",
    "question",
    "instruction",
    "forbidden_prompt",
    "text",
)
"""Names of the column that holds the request, in order of preference; case does not matter."""

CONTEXT_COLUMNS = ("context", "contextstring")
"""Names of the column with a text that the request speaks about."""

Row = tuple[Any, str]
"""A text, or a record with its columns in lower case, and its place ("bread.csv, row 3")."""


def read_rows(path: Path, suffix: str, *, is_nested: bool = False) -> list[Row]:
    """The rows of a file in the format that a suffix of `FORMATS` names.

    Blank lines are left out. Where it `is_nested`, a JSON file may hold anything, as one row unless
    it is a list. Raises UserError, naming the place, for what the format does not allow.
    """
    text = read_text(path)
    if suffix == ".csv":
        rows = list(_csv(text, path))
    elif suffix == ".json":
        content = parse_json(text if text.strip() else "[]", str(path))
        if is_json_list(content):
            rows = [(item, f"{path}, row {number}") for number, item in enumerate(content, start=1)]
        elif is_nested:
            rows = [(content, str(path))]
        else:
            raise UserError(f"{path} is no list; write [..., ...] with a string or an object each.")
    else:
        # Not splitlines: it cuts at U+2028 too, which may occur inside a JSON string.
        lines = enumerate(text.split("\n"), start=1)
        rows = [
            (line.strip(), f"{path}, line {number}") for number, line in lines if not is_blank(line)
        ]
        if suffix == ".jsonl":
            rows = [(parse_json(line, where), where) for line, where in rows]
    for item, where in rows:
        plain_texts(item, where)
    return [(lowered(item, where), where) for item, where in rows]


def lowered(item: Any, where: str) -> Any:
    """A record with its columns in lower case, without surrounding blanks; all else unchanged.

    Raises UserError where two columns then have one name.
    """
    if not is_json_object(item):
        return item
    record = {column.strip().lower(): value for column, value in item.items()}
    if len(record) < len(item):
        _refuse_twins([column.strip().lower() for column in item], where)
    return record


def _refuse_twins(columns: list[str], where: str) -> None:
    """UserError where two columns have one name; the nameless ones of an index hold nothing."""
    twins = [column for column in columns if column and columns.count(column) > 1]
    if twins:
        raise UserError(f"{where}: two columns are called {twins[0]}; rename or delete one")


def text_of(record: dict[str, Any], columns: tuple[str, ...], where: str) -> str | None:
    """The text of the first of the columns that is there; None where it is empty."""
    column = next((name for name in columns if name in record), None)
    value = record[column] if column is not None else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where} has {json.dumps(value)} as its {column}; write it as text.")
    return None if is_blank(value) else value.strip()


def _csv(text: str, path: Path) -> Iterator[Row]:
    # Strict: a quote that is never closed would otherwise swallow every later row.
    csv.field_size_limit(MOST_BYTES)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        _refuse_twins([name.strip().lower() for name in rows.fieldnames or ()], str(path))
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            if None in row:
                raise UserError(
                    f"{where} has more fields than the header; put quotes around texts with commas."
                )
            yield row, where
    except csv.Error as error:
        raise UserError(
            f"{path}, row {number + 1} is not valid CSV ({error}); correct it."
        ) from error
