"""Benchmark files as users have them, read into the rows that tasks of lm-evaluation-harness take.

A file is known by its bytes (`mosa.data.registry`), under any name. One row of each:

    gsm8k      {"question": "Tom has 2 apples ...", "answer": "2 + 3 = 5 ... #### 5"}
    mmlu       question,choice0,choice1,choice2,choice3,answer / What is 1 + 1?,1,2,3,4,1
    humaneval  {"task_id": "HumanEval/0", "prompt": "def f(x):", "test": "def check(f): ..."}
    mbpp       {"task_id": 11, "text": "Write a function ...", "test_list": ["assert f(1) == 2"]}
    ifeval     {"key": 1000, "prompt": "Write ...", "instruction_id_list": [...], "kwargs": [...]}
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mosa.data.registry import KNOWN_FILES, data_folder, find
from mosa.inputs import is_folder, shortened
from mosa.types import UserError

RawRow = dict[str, Any]
Splits = dict[str, list[RawRow]]
"""Rows by the names that splits have on the hub."""

MBPP_TEST = range(11, 511)
"""The task ids of MBPP's test split (arXiv:2108.07732, Section 2.1)."""


def local_files(names: Iterable[str], data_dir: Path | None) -> dict[str, Path]:
    """The paths of the known files (or folders) of these names, where they exist."""
    if data_dir is not None and not is_folder(data_dir):
        raise UserError(
            f"there is no folder {shortened(data_dir)}; give the one that holds the data files"
        )
    found = {name: find(KNOWN_FILES[name], data_folder(data_dir)) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def read_rows_of(task: str, split: str, path: Path) -> list[RawRow]:
    """The rows of a task's split in a file, or in the folder of MMLU."""
    if task == "mmlu":
        return [
            {
                "question": row["question"],
                "subject": part.stem.removesuffix(f"_{split}"),
                "choices": [row[f"choice{number}"] for number in range(4)],
                "answer": int(row["answer"]),
            }
            for part in sorted((path / split).glob("*.csv"))
            for row in _csv(part)
        ]
    rows = _jsonl(path)
    return [row for row in rows if row["task_id"] in MBPP_TEST] if task == "mbpp" else rows


def _jsonl(path: Path) -> list[RawRow]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    # Not splitlines: it cuts at U+2028 too, which a JSON string may hold.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _csv(path: Path) -> list[RawRow]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))
