"""Runs a program that a model wrote: outside this process, for a short time, in little memory,
with no network and no files to write to.

There are two isolations; the better one that the system allows is used, and always named:

    namespaces  the kernel isolates the program (Linux user namespaces): it has no network
                device, sees no other process, can read files and not change them, and all that it
                starts ends with it
    python      Python refuses sockets, other processes and changes to files (an audit hook); this
                stops mistakes, not a program that intends harm

Limits on time, memory, file sizes and open files hold in both. The program has only the standard
library, an empty environment and an empty folder. HumanEval's authors (arXiv:2107.03374, Section
2.3) used gVisor for this; for as much isolation, start mosa in a container or a virtual machine.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mosa.types import UserError

CHILD = Path(__file__).with_name("sandbox_child.py")
ANSWER_BYTES = 4096
"""How much of the sandbox's output is read."""

Isolation = Literal["namespaces", "python"]


@dataclass(frozen=True)
class Limits:
    """What a program may use up."""

    seconds: float = 10.0
    """Time by the clock, the start of Python included."""
    cpu_seconds: int = 10
    memory_bytes: int = 2**30
    """Address space."""
    file_bytes: int = 2**20
    """The largest file."""
    folder_bytes: int = 2**24
    """All its files together, where there are namespaces."""


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended."""

    passed: bool
    """It ran to its end."""
    detail: str
    """The error that ended it, or which limit did; empty where it passed."""
    isolation: Isolation


def run_program(
    source: str, limits: Limits | None = None, *, isolation: Isolation | None = None
) -> SandboxResult:
    """Run Python source in the sandbox; `isolation` unset is the best available."""
    isolation = isolation or best_isolation()
    answer, timed_out = _run(source, limits or Limits(), isolation)
    if "passed" in answer:
        return SandboxResult(answer["passed"], answer["detail"], isolation)
    if "not_isolated" in answer:
        raise UserError(
            f"the sandbox no longer starts ({answer['not_isolated']}); run the same command again, "
            "which resumes where it stopped"
        )
    ended = "out of time" if timed_out else "ended without coming to its end"
    return SandboxResult(False, ended, isolation)


@functools.cache
def best_isolation() -> Isolation:
    """The better isolation that this system allows; UserError where there is none."""
    if not sys.platform.startswith("linux"):
        raise UserError(
            "generated code runs only on Linux, whose limits on memory it needs; leave out "
            "--run_code, or use a container"
        )
    answer, _ = _run("", Limits(), "namespaces")
    return "namespaces" if answer.get("passed") else "python"


def _run(source: str, limits: Limits, isolation: Isolation) -> tuple[dict, bool]:
    """The output of the inner side (empty where it was ended), and whether time was up."""
    way = "enter" if isolation == "namespaces" else "run"
    is_late = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mosa-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", CHILD, way, folder, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )

        def end() -> None:
            with suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)

        def end_late() -> None:
            is_late.set()
            end()

        timer = threading.Timer(limits.seconds, end_late)
        timer.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin:  # it may have ended already
                process.stdin.write(source.encode("utf-8", "replace"))
            said = process.stdout.read(ANSWER_BYTES)
        finally:
            timer.cancel()
            end()
            process.stdout.close()
            process.wait()
    try:
        answer = json.loads(said) if said else {}
    except json.JSONDecodeError:  # cut off in the middle, or written by the program itself
        answer = {}
    return answer if isinstance(answer, dict) else {}, is_late.is_set()
