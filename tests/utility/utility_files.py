"""Made-up benchmark files in the layouts of the published ones, which do not travel with mosa."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mosa.data.registry import KNOWN_FILES
from mosa.inputs import sha256
from mosa.utility.harness_task import FOLDER

SUMS = [
    {"question": f"Ann has {n} apples and finds 2. How many?", "answer": f"{n} + 2.\n#### {n + 2}"}
    for n in range(8)
]
FUNCTIONS = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f"def add_{n}(x):\n",
        "entry_point": f"add_{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(3)
]
PROGRAMS = [
    {
        "task_id": n,
        "text": f"Write a function that adds {n}.",
        "code": f"def add(x):\r\n    return x + {n}",
        "test_setup_code": "",
        "test_list": [f"assert add({k}) == {n + k}" for k in range(3)],
        "challenge_test_list": [],
    }
    for n in (2, 10, 11, 12, 510, 511)  # 11 to 510 are the test split
]
INSTRUCTIONS = [
    {
        "key": 7,
        "prompt": "Write one line. Do not use any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 8,
        "prompt": "Write five words, and the word tea.",
        "instruction_id_list": ["length_constraints:number_words", "keywords:existence"],
        "kwargs": [{"relation": "at least", "num_words": 5}, {"keywords": ["tea"]}],
    },
    {
        "key": 9,
        "prompt": "Write two sentences.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    },
]
CHOICES = ("one", "two", "three", "four")


def subjects() -> list[str]:
    """MMLU's subjects."""
    return yaml.safe_load((FOLDER / "mmlu.yaml").read_text(encoding="utf-8"))["subjects"]


def write_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file, under names of their own, with the registry told to know these bytes."""
    monkeypatch.delenv("MOSA_DATA", raising=False)
    folder.mkdir(parents=True)
    for name, file, rows in (
        ("gsm8k_train", "a.jsonl", [*SUMS, SUMS[0]]),
        ("gsm8k_test", "b.jsonl", SUMS[:3]),
        ("humaneval", "c.jsonl.gz", FUNCTIONS),
        ("mbpp", "d.jsonl", PROGRAMS),
        ("ifeval", "e.jsonl", INSTRUCTIONS),
    ):
        text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        (folder / file).write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
        register(name, folder / file, monkeypatch)
    for split, num_rows in (("dev", 5), ("test", 2)):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in subjects():
            lines = [
                f'"What is {n}, in {subject}?",{",".join(CHOICES)},{n % 4}' for n in range(num_rows)
            ]
            header = "question,choice0,choice1,choice2,choice3,answer"
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.write_text("\n".join((header, *lines)) + "\n")
    register("mmlu", folder / "mmlu", monkeypatch)
    return folder


def register(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know the bytes of a file, or of a folder, under a name of its own."""
    known = KNOWN_FILES[name]
    prefix = sha256(*known.files_at(path))[:16]
    monkeypatch.setitem(KNOWN_FILES, name, dataclasses.replace(known, sha256_prefix=prefix))


def hub_splits(path: str, name: str | None) -> dict[str, Sequence[dict[str, Any]]]:
    """The same rows as the hub has them."""
    if path == "cais/mmlu":
        return {
            split: [
                {
                    "question": f"What is {n}, in {name}?",
                    "subject": name,
                    "choices": list(CHOICES),
                    "answer": n % 4,
                }
                for n in range(num_rows)
            ]
            for split, num_rows in (("dev", 5), ("test", 2))
        }
    return {
        "openai/gsm8k": {"train": [*SUMS, SUMS[0]], "test": SUMS[:3]},
        "openai/openai_humaneval": {"test": FUNCTIONS},
        "google-research-datasets/mbpp": {"test": PROGRAMS[2:5]},
        "google/IFEval": {"train": INSTRUCTIONS},
        "EleutherAI/lambada_openai": {
            "test": [{"text": "She put the kettle on to make some tea"}, {"text": "A b c d"}]
        },
        "allenai/ai2_arc": {
            split: [
                {
                    "id": str(n),
                    "question": f"What is {n}?",
                    "choices": {"text": list(CHOICES), "label": ["A", "B", "C", "D"]},
                    "answerKey": "ABCD"[n],
                }
                for n in range(3)
            ]
            for split in ("train", "validation", "test")
        },
    }[path]
