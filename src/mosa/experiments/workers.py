"""Jobs in worker processes of one thread each, with a row of the bar for every job.

On the testbed's small matrices two processes do about twice the work of two threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import SyncManager
from typing import Any

import torch

from mosa.terminal import LiveBar
from mosa.types import UserError
from mosa.worker import end_with_parent

SECONDS_BETWEEN_LOOKS = 0.5
"""How long the parent waits for news before it looks whether a worker has ended."""
ALL = "models done"
"""The row on all jobs."""

Emit = Callable[[str, Any], None]
"""What a job reports: ("stage", text) or ("advance", (done, total))."""
Job = Callable[[Emit], object]
"""Work that continues where an earlier call of it ended; a worker gets it pickled."""
Jobs = Mapping[str, Sequence[Job]]
"""Jobs by what the user sees of them. What stands behind the first waits for it, and begins when
the first ones of all have begun, so that no worker is idle while another has much left to do."""


def run_jobs(jobs: Jobs, num_workers: int, on_end: Callable[[], None] = lambda: None) -> None:
    """Run the jobs, in this process or in workers, and show what they emit.

    `on_end` is called in this process when the first job under a name has ended and others go on.
    Any failure or interruption ends the workers; what they have recorded stays. Raises UserError
    where the system ends a worker.
    """
    if num_workers < 1:
        raise UserError(f"--workers must be at least 1, not {num_workers}")
    with LiveBar() as bar:
        board = _Board(bar, len(jobs))
        if num_workers == 1:
            keep_freed_memory()
            for label, parts in jobs.items():
                for place, job in enumerate(parts):
                    job(functools.partial(board.show, label))
                    board.show(label, "end", place == len(parts) - 1)
                    if place == 0 and board.num_done < len(jobs):
                        on_end()
        else:
            _run_in_workers(jobs, num_workers, board.show, on_end)


def _run_in_workers(
    jobs: Jobs,
    num_workers: int,
    receive: Callable[[str, str, Any], None],
    on_end: Callable[[], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    with manager:
        news = manager.Queue()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(num_workers, context, end_with_parent)
        try:
            todo: dict[Future[None], tuple[str, int]] = {}

            def submit(label: str, place: int) -> None:
                is_last = place == len(jobs[label]) - 1
                future = pool.submit(_work, label, jobs[label][place], is_last, news)
                todo[future] = label, place

            for label in jobs:
                submit(label, 0)
            while todo:
                with contextlib.suppress(queue.Empty):
                    receive(*news.get(timeout=SECONDS_BETWEEN_LOOKS))
                is_first = False
                for future in [future for future in todo if future.done()]:
                    future.result()
                    label, place = todo.pop(future)
                    is_first |= place == 0
                    if place + 1 < len(jobs[label]):
                        submit(label, place + 1)
                if is_first and todo:
                    on_end()
            while not news.empty():
                receive(*news.get())
        except BrokenProcessPool as error:
            raise UserError(
                "The system ended a worker, most likely because memory ran out; --workers 1 needs "
                "less"
            ) from error
        finally:
            # A job takes minutes, so workers are not waited for. Nothing is lost: records are
            # written whole, and an unfinished adapter is trained again.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            pool.shutdown(cancel_futures=True)


def _work(label: str, job: Job, is_last: bool, news: Any) -> None:
    """A job in a worker, on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends us
    torch.set_num_threads(1)
    keep_freed_memory()
    job(lambda kind, content: news.put((label, kind, content)))
    news.put((label, "end", is_last))


KEPT = {-1: 1 << 30, -3: 32 << 20}
"""Settings of glibc's `mallopt` in bytes: M_TRIM_THRESHOLD, below which the top of the heap is not
given back to the system, and M_MMAP_THRESHOLD, at its most, below which no tensor has pages of its
own."""


def keep_freed_memory() -> None:
    """Has this process use its freed memory again, where its C library is glibc.

    A step on the testbed makes and frees tensors of a few megabytes by the hundred, and the system
    clears each page that it gives anew: a tenth of the time of a response.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for setting, value in KEPT.items():
            mallopt(setting, value)


class _Board:
    """Progress of all jobs and of each that is under way; where nothing is drawn, also a line for
    each stage."""

    def __init__(self, bar: LiveBar, num_jobs: int) -> None:
        self.bar, self.num_jobs, self.num_done = bar, num_jobs, 0
        self.stages: dict[str, str] = {}
        bar.update(ALL, 0, num_jobs)

    def show(self, label: str, kind: str, content: Any) -> None:
        """Show one message of a job."""
        if kind == "end":
            self.bar.end(label)
            self.num_done += content
            self.bar.update(ALL, self.num_done, self.num_jobs)
        elif kind == "stage":
            self.stages[label] = f"{label}: {content}"
            self.bar.update(self.stages[label], 0, None, row=label)
            if not self.bar.console.is_terminal:
                self.bar.say(self.stages[label])
        else:
            done, total = content
            self.bar.update(self.stages[label], done, total, row=label)
