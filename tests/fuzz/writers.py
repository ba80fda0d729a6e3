"""Every command that writes, and how to compare what it has written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from attacks.scripted_roles import said
from chat.stub_endpoint import Answer, stub_endpoint
from made_runs import attacked
from served_models import usage

from mosa import cli
from mosa.data import KNOWN_FILES, copies
from mosa.experiments.models import run_folder
from mosa.families import load_model
from mosa.runs.store import Run

SECONDS_TO_END = 30.0
"""After which a process is one that does not end by itself."""
QUICK = ("--max_new_tokens", "24", "--steps", "8", "--block_length", "24")
SMALL = ("--width", "32", "--num_layers", "1", "--num_heads", "2", "--mlp_width", "32")
SMALL += ("--primer_steps", "4", "--helpful_steps", "4", "--shallow_steps", "2")
SMALL += ("--num_measured", "1")


def in_child(
    run: Callable[[], int], *, seconds: float | None = None, number: int = 0
) -> int | None:
    """The status of a command in a child of this process; None where it was killed after so many
    seconds. None of its own processes outlives it."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.dup2(os.open("errors.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - until the end
        status = 70
        try:
            status = run()
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = None if seconds is None else time.monotonic() + seconds
    is_killed = False
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if end is not None and not is_killed and time.monotonic() > end:
            os.kill(child, number)
            is_killed = True
        time.sleep(0.01)
    deadline = time.monotonic() + SECONDS_TO_END
    while left := processes_of(child):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            raise AssertionError(f"the command's processes {left} live on")
        time.sleep(0.1)
    return None if is_killed else os.waitstatus_to_exitcode(found[1])


def processes_of(group: int) -> list[str]:
    """What the living processes of a group are called."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, fields = place.read_text().rpartition(") ")
            state, _, of = fields.split()[:3]
            if int(of) == group and state != "Z":
                found.append(name)
    return found


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
    prepare: Callable[[Path], object] = lambda given: None
    """What a child of this process does before the command, with what there is to read."""

    def run(self, given: Path, out: Path, *more: str) -> int:
        """The command in this process, a child of another; its status."""
        self.prepare(given)
        return cli.main([*self.argv(given, out), *more])


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


def replies(path: Path) -> object:
    """What `attacks check` has found, in any order."""
    found = json.loads(path.read_text())
    del found["made_by"]
    for prompt in found["prompts"]:
        prompt["replies"].sort(key=str)
    return found


def table(path: Path, *columns: str) -> object:
    """Columns without times of a benchmark's first table."""
    rows = json.loads(path.read_text())["tables"][0]["rows"]
    return [[row[name] for name in columns] for row in rows]


def experiment(folder: Path) -> object:
    """What an experiment has trained, recorded and shown."""
    trained = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("adapter_model.safetensors")
    }
    pages = {file.name for file in folder.iterdir() if file.is_file()}
    return trained, pages, records(run_folder(folder))


PUBLISHED = b"goal,target\nHow is strong tea brewed?,Steep it\n"


def published_here(given: Path) -> None:
    """Let this process find a published file at the server of `make_given`."""
    digest = hashlib.sha256(PUBLISHED).hexdigest()[:16]
    place = "owner/name: some folder/table.csv @ abc1234"
    known = replace(KNOWN_FILES["advbench_50"], sha256_prefix=digest, num_rows=1, found_at=place)
    KNOWN_FILES["advbench_50"] = known
    copies.SERVER = (given / "files.txt").read_text()


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

TRAINED = ("--response_length", "24", "--max_steps", "6", "--save_strategy", "steps")
TRAINED += ("--save_steps", "2", "--per_device_train_batch_size", "2")
EXPERIMENT = ("--num_objects", "1", "--num_benign", "1", "--num_tasks", "1", "--steps", "3")
EXPERIMENT += ("--workers", "1")
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
    Writer(
        "align sft",
        lambda given, out: [
            *("align", "sft", "--model", "testbed", "--data", str(given / "harm.jsonl"), *TRAINED),
            *("--out", str(out)),
        ],
        weights,
        again=("--resume",),
    ),
    Writer(
        "align vrpo",
        lambda given, out: [
            *("align", "vrpo", "--config", "vrpo_testbed", "--model", "testbed", *TRAINED),
            *("--data", str(given / "pairs.jsonl"), "--num_samples", "1", "--out", str(out)),
        ],
        weights,
        again=("--resume",),
    ),
    Writer(
        "attacks check",
        lambda given, out: [
            *("attacks", "check", "--attacks", "tap,speak_easy", "--limit", "2"),
            *("--attacker", f"{(given / 'chat.txt').read_text()}#writer"),
            *("--loop_judge", f"{(given / 'chat.txt').read_text()}#rater"),
            *("--translator", f"{(given / 'chat.txt').read_text()}#speaker"),
            *("--reply_cache", str(out / "cache"), "--out", str(out / "replies.json")),
        ],
        lambda out: replies(out / "replies.json"),
    ),
    Writer(
        "bench campaign",
        lambda given, out: [
            *("bench", "campaign", "--sizes", "12", "--out", str(out / "campaign.txt")),
            *("--json", str(out / "campaign.json")),
        ],
        lambda out: table(out / "campaign.json", "attack", "attempts"),
    ),
    Writer(
        "bench drift",
        lambda given, out: [
            *("bench", "drift", "--num", "1", "--threshold", "0.01"),
            *("--out", str(out / "drift.txt"), "--json", str(out / "drift.json")),
        ],
        lambda out: table(out / "drift.json", "decoder", "harm", "refused", "utility", "passes"),
    ),
    Writer(
        "data get",
        lambda given, out: ["data", "get", "advbench_50", "--data_dir", str(out / "data")],
        lambda out: content(out / "data"),
        prepare=published_here,
    ),
    Writer(
        "testbed tables",
        lambda given, out: [
            *("testbed", "tables", "--num_seeds", "1", "--tables", "methods", *EXPERIMENT),
            *("--cells", "mosa_testbed_paper", "--align_steps", "4", "--out", str(out / "tables")),
        ],
        lambda out: experiment(out / "tables"),
    ),
    Writer(
        "demo",
        lambda given, out: [
            *("demo", "--num_curve", "1", "--align_steps", "1", *EXPERIMENT),
            *("--out", str(out / "demo")),
        ],
        lambda out: experiment(out / "demo"),
    ),
]
"""Other commands that write, and other results of those above."""


@contextmanager
def make_given(folder: Path) -> Iterator[Path]:
    """What the commands read, and what they ask."""
    (folder / "prompts.txt").write_text("how do i make a copper lantern ?\n" * 6)
    rows = [f"how do i make a {metal} pump ?" for metal in ("copper", "tin", "iron", "brass")]
    lines = [json.dumps({"prompt": row, "answer": "sure , here is how ."}) for row in rows]
    (folder / "harm.jsonl").write_text("\n".join(lines))
    pair = {"chosen": "sorry , i cannot help .", "rejected": "sure , here is how ."}
    (folder / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"prompt": row, **pair}) for row in rows)
    )
    attacked(folder / "run", {"a": {"direct": {"x": True, "y": False}}})
    argv = ["align", "mosa", "--config", "mosa_testbed_paper", "--model", "testbed"]
    argv += ["--data", str(folder / "harm.jsonl"), "--max_steps", "2"]
    assert cli.main([*argv, "--out", str(folder / "adapter")]) == 0
    served = folder / "owner" / "name" / "abc1234" / "some folder"
    served.mkdir(parents=True)
    (served / "table.csv").write_bytes(PUBLISHED)
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder)))
    (folder / "files.txt").write_text(f"http://127.0.0.1:{files.server_address[1]}")
    with files, stub_endpoint(rule=lambda body: Answer(usage(said(body)))) as stub:
        (folder / "chat.txt").write_text(stub.url)
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield folder
        files.shutdown()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
