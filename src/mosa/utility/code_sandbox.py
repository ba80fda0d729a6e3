"""Runs a program that a model wrote: outside this process, for a short time, in little memory,
with no network and no files to write to.

There are two isolations; the better one that the system allows is used, and always named:

    namespaces  the kernel isolates the program (Linux user namespaces): it has no network
                device, sees no other process and no files but Python's own, which it cannot
                change, and all that it starts ends with it
    python      Python refuses sockets, other processes, what the system tells of them and changes
                to files (an audit hook); this stops mistakes, not a program that intends harm

Limits on time, memory, file sizes and open files hold in both, and memory limits the number of
threads. The program has only the standard library, an empty environment and an empty folder.
HumanEval's authors (arXiv:2107.03374, Section 2.3) used gVisor for this; for as much isolation,
start mosa in a container or a virtual machine.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mosa.terminal import printable
from mosa.types import UserError

CHILD = Path(__file__).with_name("sandbox_child.py")
ANSWER_BYTES = 4096
"""How much of the sandbox's output is read."""
READY = b"ready\n"
"""What the inner side says before it takes the program."""

SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
"""In the names of variables that hold keys."""

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
    try:
        return _run(source, limits or Limits(), isolation or best_isolation())
    except _NotIsolatedError as error:
        raise UserError(
            f"the sandbox no longer starts ({error}); run the same command again, which resumes "
            "where it stopped"
        ) from error


def _shown(detail: str) -> str:
    """An error in characters that a terminal can show, without the value of any key of ours."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            detail = detail.replace(value, "[key]")
    return printable(" ".join(detail.splitlines()))


@functools.cache
def best_isolation() -> Isolation:
    """The better isolation that this system allows; UserError where there is none."""
    if not sys.platform.startswith("linux"):
        raise UserError(
            "generated code runs only on Linux, whose limits on memory it needs; leave out "
            "--run_code, or use a container"
        )
    try:
        return "namespaces" if _run("", Limits(), "namespaces").passed else "python"
    except _NotIsolatedError:
        return "python"


class _NotIsolatedError(Exception):
    """Why the inner side could not shut itself in; it had no program by then."""


def _run(source: str, limits: Limits, isolation: Isolation) -> SandboxResult:
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
        said, is_shut_in = b"", False
        try:
            first = process.stdout.readline(ANSWER_BYTES)
            is_shut_in = first == READY
            with suppress(BrokenPipeError), process.stdin:  # it may have ended already
                if is_shut_in:
                    process.stdin.write(source.encode("utf-8", "surrogatepass"))
            said = process.stdout.read(ANSWER_BYTES) if is_shut_in else first
        finally:
            timer.cancel()
            end()
            process.stdout.close()
            process.wait()
    if not is_shut_in and not is_late.is_set():
        raise _NotIsolatedError(said.decode("utf-8", "replace").strip() or "it ended at once")
    ended = "out of time" if is_late.is_set() else "ended without coming to its end"
    passed, detail = _yes_or_no(said) or (False, ended)
    return SandboxResult(passed, _shown(detail), isolation)


def _yes_or_no(said: bytes) -> tuple[bool, str] | None:
    """Whether the program passed, and its error. None for anything but these two in the form that
    the inner side writes, as for output that was cut off. A program that writes this form to every
    open descriptor cannot be told from the inner side."""
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError):
        return None
    match answer:
        case {"passed": bool(passed), "detail": str(detail), **rest} if not rest:
            return passed, detail.encode("utf-8", "replace").decode()
        case _:
            return None
