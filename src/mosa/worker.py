"""A model with its own thread, and the work that it is given.

    worker = Worker(lambda: load_causal_lm("judge"), capacity=8)
    found = await worker.compute(Work(weigh, question, together=8))

Everything that needs a model on this machine runs in such a thread: the responder of a run
(responder.py), whose thread also denoises, chat models and judges.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, runtime_checkable

import torch

from mosa.types import UserError

SECONDS_TO_CLOSE = 5.0
"""How long to wait for the work in progress; longer work continues and its result is dropped."""

M = TypeVar("M")


@dataclass(frozen=True)
class Work:
    """Something computed with a model: a search with gradients, a likelihood, a verdict.

    Another process may do it, so `run` is a function of a module and `state` can be pickled.
    """

    run: Callable[[Any, Sequence[Any]], list[dict[str, Any]]]
    """Receives the model and several states, and returns a JSON object for each state."""
    state: Any
    together: int = 1
    """The most states that one call of `run` takes; the worker's capacity bounds them, too."""


@dataclass
class Tally:
    """What a worker has done."""

    num_steps: int = 0
    """Steps of the batch."""
    num_row_steps: int = 0
    """Steps times the rows that took part in each."""
    num_responses: int = 0
    num_works: int = 0
    """Pieces of work."""
    model_seconds: float = 0.0
    """Time in which the model worked."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{k: v + getattr(other, k) for k, v in vars(self).items()})


@runtime_checkable
class Computer(Protocol):
    """What does work: a worker of this process, or several processes."""

    @property
    def capacity(self) -> int:
        """How many queries or states are taken at once."""
        ...

    @property
    def tally(self) -> Tally: ...

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        """The outcome of a piece of work; it may go before all that waits."""
        ...

    def close(self) -> None:
        """End at once; nothing that is unanswered will be."""
        ...


@dataclass(eq=False)
class Waiting:
    """Something that is asked of a worker, and the future that somebody awaits."""

    future: asyncio.Future[Any]
    work: Work | None = None
    goes_first: bool = False
    is_cancelled: bool = False

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give the result or an error to those who wait, from any thread."""

        def give() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        loop = self.future.get_loop()
        try:
            loop.call_soon_threadsafe(give)
        except RuntimeError:  # the loop has ended, and with it all who waited
            assert loop.is_closed()


class Worker(Generic[M]):
    """A model in this process, with its own thread. `close` ends the thread.

    Work that is asked for in one turn of the event loop is grouped in the order of asking, so that
    groups do not depend on the speed of the thread.
    """

    def __init__(self, load: Callable[[], M], *, capacity: int) -> None:
        """`load` gives the model; the thread calls it before its first work."""
        self._load = functools.cache(load)
        self.capacity: Final = capacity
        self.tally: Final = Tally()
        self._asked: deque[Waiting] = deque()
        self._inbox: queue.SimpleQueue[list[Waiting] | None] = queue.SimpleQueue()
        self._works: deque[Waiting] = deque()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        """The outcome of a piece of work; it may go before all that waits."""
        future = asyncio.get_running_loop().create_future()
        return await self._ask(Waiting(future, work, goes_first))

    async def _ask(self, item: Waiting) -> Any:
        if self._is_closed:
            raise RuntimeError("the worker is closed")
        self._asked.append(item)
        item.future.get_loop().call_soon(self._pass_on)
        try:
            return await item.future
        except asyncio.CancelledError:
            item.is_cancelled = True
            self._inbox.put([item])
            raise

    def _pass_on(self) -> None:
        """Give the thread what was asked in this turn of the event loop."""
        items: list[Waiting] = []
        while self._asked:
            items.append(self._asked.popleft())
        if items:
            self._inbox.put(items)

    def close(self) -> None:
        self._is_closed = True
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(SECONDS_TO_CLOSE)

    # ------------------------------------------------------------------------- the model's thread

    def _run(self) -> None:
        while True:
            for items in self._arrived():
                if items is None:
                    return
                for item in items:
                    self._take(item)
            begin = time.perf_counter()
            self._advance()
            self.tally.model_seconds += time.perf_counter() - begin

    def _arrived(self) -> list[list[Waiting] | None]:
        """What has arrived; waits for something where the thread is idle."""
        found = [self._inbox.get()] if self._is_idle() else []
        while True:
            try:
                found.append(self._inbox.get_nowait())
            except queue.Empty:
                return found

    def _is_idle(self) -> bool:
        return not self._works

    def _take(self, item: Waiting) -> None:
        """Put what has arrived, or is cancelled now, in its place."""
        if not item.is_cancelled:
            (self._works.appendleft if item.goes_first else self._works.append)(item)

    def _advance(self) -> None:
        """Do the next thing that can be done."""
        if self._works:
            self._work()

    def _work(self) -> None:
        """The next piece of work, with later ones that may be done with it."""
        first = self._works.popleft()
        assert first.work is not None
        if first.is_cancelled:
            return
        most = min(first.work.together, self.capacity)
        group = [first]
        for item in list(self._works):
            assert item.work is not None
            if len(group) == most:
                break
            if item.work.run == first.work.run and not item.is_cancelled:
                group.append(item)
                self._works.remove(item)
        try:
            found = first.work.run(self._load(), [item.work.state for item in group if item.work])
            assert len(found) == len(group), "work gives one outcome for each state"
        except BaseException as error:
            for item in group:
                item.settle(error=readable(error, len(group)))
            return
        self.tally.num_works += len(group)
        for item, outcome in zip(group, found, strict=True):
            item.settle(outcome)


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of that name; None: a GPU if there is one, each process of a launch its own.

    Raises UserError where there is none of that name.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"there is no device {name!r}; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"PyTorch finds no CUDA device for {name!r} on this machine; leave the device out to "
            "use the CPU"
        )
    return device


def run_coroutine(work: Coroutine[Any, Any, M]) -> M:
    """What the coroutine returns; inside a running event loop (a notebook) it gets a thread with
    its own loop, in which an interruption cancels it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def noted() -> M:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await work

    with ThreadPoolExecutor(max_workers=1) as thread:
        outcome = thread.submit(asyncio.run, noted())
        try:
            return outcome.result()
        except KeyboardInterrupt:
            if not outcome.done():
                loop, task = begun.result()
                loop.call_soon_threadsafe(task.cancel)
            raise


def readable(error: BaseException, num_rows: int) -> BaseException:
    """An error as a user can act on it, where one can."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"{num_rows} rows do not fit into the device's memory; lower --batch_size and run the "
            "same command again, which goes on where it stopped"
        )
    return error


def end_with_parent() -> None:
    """Ends this process, which another one has started with `multiprocessing`, as soon as that one
    is gone, however it was killed: it would wait for more work forever, and hold its files."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
