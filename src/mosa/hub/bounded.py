"""What others wrote and a library runs, templates and tokenizers, in bounded time and memory.

A template may loop for hours, a regular expression backtrack for ever, and either can end the
process. So they run in a process of their own (bounded_child.py), which has a few seconds and some
memory for each request. It starts with the first request and serves all that follow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from mosa.inputs import refusing, shortened
from mosa.types import UserError


class _Child:
    """The process, started when it is needed; a fork of this process starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._parent = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # half an answer may be left, which belongs to no other request
                self._end(process)
                raise
            if not line.endswith("\n"):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)  # to see how it ended: by a limit, which is a signal
                status = self._end(process)
                if status > 0:
                    return {"error": f"the process that tries it ended with status {status}"}
                return {"error": "it takes too much time or memory"}
            return json.loads(line)

    def _started(self) -> subprocess.Popen[str]:
        process = self._process
        if process is None or self._parent != os.getpid() or process.poll() is not None:
            child = Path(__file__).with_name("bounded_child.py")
            what = (
                f"Python cannot be started as {shortened(repr(sys.executable))}, by "
                "sys.executable, to try a template or tokenizer in"
            )
            with refusing(OSError, what, "run mosa by that path, and allow another process."):
                process = subprocess.Popen(
                    [sys.executable, "-P", str(child)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # where a library in Rust writes before it gives up
                    encoding="ascii",
                    env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
                    start_new_session=True,  # signals of the terminal are for this process
                )
            self._process, self._parent = process, os.getpid()
        return process

    def _end(self, process: subprocess.Popen[str]) -> int:
        process.kill()
        process.communicate()
        self._process = None
        return process.returncode


_CHILD = _Child()


def ask(task: str, **fields: Any) -> dict[str, Any]:
    """The outcome of a task of bounded_child.py: `value`, `refused` or `error`."""
    return _CHILD.ask({"task": task, **fields})


def said(error: BaseException) -> str:
    """What an error of a library says, as a part of a sentence."""
    return f"{type(error).__name__}: {shortened(str(error))}"


@contextmanager
def faults_of(what: str, remedy: str) -> Iterator[None]:
    """Inside, a library reads what others wrote: whatever it raises is a fault of theirs.

    UserError "WHAT cannot be read (...); REMEDY". The libraries in Rust raise a BaseException
    where they panic.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        raise UserError(f"{what} cannot be read ({said(error)}); {remedy}") from error
