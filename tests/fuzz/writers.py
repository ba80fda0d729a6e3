"""Every command that writes, and how to compare what it has written."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from made_runs import attacked

from mosa import cli
from mosa.families import load_model
from mosa.runs.store import Run

QUICK = ("--max_new_tokens", "24", "--steps", "8", "--block_length", "24")
SMALL = ("--width", "32", "--num_layers", "1", "--num_heads", "2", "--mlp_width", "32")
SMALL += ("--primer_steps", "4", "--helpful_steps", "4", "--shallow_steps", "2")
SMALL += ("--num_measured", "1")


def in_child(argv: list[str], *, seconds: float | None = None, number: int = 0) -> int | None:
    """The status of a command in a child of this process; None where it was killed after so many
    seconds."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.dup2(os.open("errors.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - until the end
        status = 70
        try:
            status = cli.main(argv)
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, number)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


@dataclass(frozen=True)
class Writer:
    """A command that writes, and what to compare."""

    name: str
    argv: Callable[[Path, Path], list[str]]
    """Of the folder with what it reads, and of its output."""
    result: Callable[[Path], object]
    """What is in the output, times left out."""
    again: tuple[str, ...] = ()
    """What is added to the command to go on, where something stands there already."""


def records(folder: Path) -> object:
    """What a run holds, sessions left out."""
    with Run(folder) as run:
        attempts = {attempt.key: attempt for attempt in run.attempts()}
        verdicts = {judge: run.verdicts(judge) for judge in run.judges()}
        answers = {key: [r.token_ids for r in run.responses_of(key)] for key in attempts}
        return run.tasks(), attempts, verdicts, answers


def content(path: Path) -> object:
    """The bytes of a file, or of all files in a folder but for marks and logs with times."""
    if path.is_file():
        return path.read_bytes()
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }


def weights(path: Path) -> object:
    return (path / "adapter_model.safetensors").read_bytes()


WRITERS = [
    Writer(
        "evaluate",
        lambda given, out: [
            *("evaluate", "--model", "testbed", "--sets", "testbed,testbed:benign"),
            *("--attacks", "direct,prefill", "--preset", "smoke", "--limit", "3", *QUICK),
            *("--batch_size", "2", "--out", str(out)),
        ],
        records,
    ),
    Writer(
        "judge",
        lambda given, out: ["judge", str(out), "--judges", "refusal"],
        records,
    ),
    Writer(
        "analyze",
        lambda given, out: [
            *("analyze", "order", "--model", "testbed", "--sets", "testbed", "--limit", "3"),
            *("--max_new_tokens", "24", "--batch_size", "2", "--out", str(out)),
        ],
        lambda out: (out / "order-quick" / "finding.md").read_text(),
    ),
    Writer(
        "generate",
        lambda given, out: [
            *("generate", "--model", "testbed", "--data", str(given / "prompts.txt"), *QUICK),
            *("--batch_size", "1", "--out", str(out / "answers.jsonl")),
        ],
        lambda out: (out / "answers.jsonl").read_bytes(),
    ),
    Writer(
        "align",
        lambda given, out: [
            *("align", "mosa", "--config", "mosa_testbed_paper", "--model", "testbed"),
            *("--data", str(given / "harm.jsonl"), "--max_steps", "6", "--save_strategy", "steps"),
            *("--save_steps", "2", "--per_device_train_batch_size", "2", "--out", str(out)),
        ],
        weights,
        again=("--resume",),
    ),
    Writer(
        "merge",
        lambda given, out: [
            *("merge", "--model", "testbed", "--adapter", str(given / "adapter")),
            *("--out", str(out / "merged")),
        ],
        lambda out: load_model(str(out / "merged")).content_hash(),
    ),
    Writer(
        "report",
        lambda given, out: ["report", str(given / "run"), "--out", str(out / "page.html")],
        lambda out: (out / "page.html").exists(),
    ),
    Writer(
        "export",
        lambda given, out: [
            *("results", str(given / "run"), "--export", "csv", "--out", str(out / "tables")),
        ],
        lambda out: content(out / "tables"),
    ),
    Writer(
        "testbed build",
        lambda given, out: ["testbed", "build", *SMALL, "--out", str(out / "models")],
        lambda out: content(out / "models"),
    ),
]

REPORT = ("--out", "page.html")
MORE = [
    Writer(
        "report tables",
        lambda given, out: ["report", str(given / "run"), *REPORT, "--tables", str(out / "tables")],
        lambda out: content(out / "tables"),
    ),
    Writer(
        "judge check",
        lambda given, out: [
            *("judge", "check", "--judges", "refusal", "--data", "refusal"),
            *("--out", str(out / "errors.json")),
        ],
        lambda out: content(out / "errors.json"),
    ),
    Writer(
        "evaluate report",
        lambda given, out: [
            *("evaluate", "--model", "testbed", "--sets", "testbed", "--preset", "smoke"),
            *("--limit", "1", "--steps", "4", "--max_new_tokens", "24"),
            *("--out", str(out / "run"), "--report", str(out / "page.html")),
        ],
        lambda out: (out / "page.html").exists(),
    ),
]
"""Other commands that write, and other results of those above."""


def make_given(folder: Path) -> Path:
    """What the commands read."""
    (folder / "prompts.txt").write_text("how do i make a copper lantern ?\n" * 6)
    rows = [f"how do i make a {metal} pump ?" for metal in ("copper", "tin", "iron", "brass")]
    lines = [json.dumps({"prompt": row, "answer": "sure , here is how ."}) for row in rows]
    (folder / "harm.jsonl").write_text("\n".join(lines))
    attacked(folder / "run", {"a": {"direct": {"x": True, "y": False}}})
    argv = ["align", "mosa", "--config", "mosa_testbed_paper", "--model", "testbed"]
    argv += ["--data", str(folder / "harm.jsonl"), "--max_steps", "2"]
    assert cli.main([*argv, "--out", str(folder / "adapter")]) == 0
    return folder
