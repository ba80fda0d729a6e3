"""Several processes that answer queries together, as one responder.

    with serving(local, processes) as responder:        # the main process
        await responder.submit(prepared)

The main process listens at the address that the launcher gave all of them, and shows a secret that
is made for this launch and passed over the launch's own group. Queries, work and answers go over
these connections; the other processes hold a model each and nothing else, so only one process
runs the attacks and writes the run.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Final, Generic, TypeVar, final

from mosa.denoising import OnStep
from mosa.inputs import refusing
from mosa.responder import LocalResponder, Prepared, Responder, ResponderGone
from mosa.runs.processes import Processes
from mosa.types import Response, UserError
from mosa.worker import Computer, Tally, Waiting, Work, Worker

GONE = (
    "another process of this launch has ended before its work was done, and its own message says "
    "why; what was recorded is kept, and the same command goes on"
)


@contextmanager
def serving(local: Worker[Any], processes: Processes) -> Iterator[Computer | None]:
    """What works with all processes, for the main one; the others do what it asks, and get None
    when it has no more. Where `local` answers queries, so does the whole.

    UserError where a process cannot reach the main one.
    """
    if processes.count == 1:
        yield local
        return
    if processes.is_main:
        with _listening(processes) as others:
            yield (
                Pool(local, others)
                if isinstance(local, LocalResponder)
                else WorkPool([local, *others])
            )
        return
    address, secret = processes.gather((("", 0), b""))[0]  # the main one's are the first
    what = f"process {processes.index} cannot reach the main one at {address}"
    with refusing(OSError, what, "check MASTER_ADDR and the firewall"):
        connection = Client(address, authkey=secret)
    with connection:
        asyncio.run(_answer(connection, local))
    yield None


@contextmanager
def _listening(processes: Processes) -> Iterator[list[RemoteResponder]]:
    """The other processes, once all of them have connected."""
    secret = secrets.token_bytes(32)
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with Listener((host, 0), authkey=secret) as listener:
        processes.gather((listener.address, secret))
        others = [RemoteResponder(listener.accept()) for _ in range(processes.count - 1)]
        try:
            yield others
        finally:
            for other in others:
                other.close()


C = TypeVar("C", bound=Computer)


class WorkPool(Generic[C]):
    """Several workers of one model as one; what is asked goes to the one with the most room."""

    def __init__(self, members: Sequence[C]) -> None:
        """The first is in this process."""
        self._members = list(members)
        self._num_open = [0] * len(self._members)

    @property
    def capacity(self) -> int:
        return sum(member.capacity for member in self._members)

    @property
    def tally(self) -> Tally:
        return sum((member.tally for member in self._members), Tally())

    @property
    def tallies(self) -> list[Tally]:
        """What each process has done, by its index."""
        return [member.tally for member in self._members]

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        with self._least_busy() as member:
            return await member.compute(work, goes_first=goes_first)

    @contextmanager
    def _least_busy(self) -> Iterator[C]:
        shares = [
            count / member.capacity
            for count, member in zip(self._num_open, self._members, strict=True)
        ]
        index = shares.index(min(shares))
        self._num_open[index] += 1
        try:
            yield self._members[index]
        finally:
            self._num_open[index] -= 1

    def close(self) -> None:
        for member in self._members:
            member.close()


@final
class Pool(WorkPool["Responder | RemoteResponder"]):
    """Several responders of one model as one."""

    def __init__(self, local: Responder, others: Sequence[Responder | RemoteResponder]) -> None:
        super().__init__([local, *others])
        self.model: Final = local.model
        self.prepare: Final = local.prepare

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        with self._least_busy() as member:
            return await member.submit(prepared, on_step=on_step)


@final
class RemoteResponder:
    """A process of this launch that answers over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.capacity: Final[int] = connection.recv()
        self.tally = Tally()
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Waiting, Any]] = {}
        self._lock = threading.Lock()
        self._is_gone = False
        self._thread = threading.Thread(target=self._listen, name="remote model", daemon=True)
        self._thread.start()

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        return await self._ask("submit", (prepared, on_step is not None), on_step)

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        return await self._ask("compute", (work, goes_first), None)

    async def _ask(self, kind: str, what: Any, on_step: OnStep | None) -> Any:
        waiting = Waiting(asyncio.get_running_loop().create_future())
        number = next(self._numbers)
        self._open[number] = waiting, on_step
        try:
            self._send(number, kind, what)
            return await waiting.future
        except asyncio.CancelledError:
            with suppress(ResponderGone):
                self._send(number, "cancel", None)
            raise
        finally:
            self._open.pop(number, None)

    def _send(self, *message: Any) -> None:
        with self._lock:
            if self._is_gone:
                raise ResponderGone(GONE)
            try:
                self._connection.send(message)
            except OSError as error:
                raise ResponderGone(GONE) from error

    def _listen(self) -> None:
        """Pass on incoming messages, in a thread."""
        while True:
            try:
                number, kind, what = self._connection.recv()
            except (EOFError, OSError):
                self._is_gone = True
                for number in list(self._open):
                    self._settle(number, None, ResponderGone(GONE))
                return
            if kind == "tally":
                self.tally = what
            elif kind == "step":
                entry = self._open.get(number)
                if entry is not None:
                    waiting, on_step = entry
                    waiting.future.get_loop().call_soon_threadsafe(on_step, what)
            else:
                self._settle(number, what, what if kind == "failed" else None)

    def _settle(self, number: int, result: Any, error: BaseException | None) -> None:
        entry = self._open.pop(number, None)
        if entry is not None:  # else cancelled meanwhile
            entry[0].settle(result, error)

    def close(self) -> None:
        """Tell the process that there are no more queries, and receive what it has done."""
        with suppress(ResponderGone):
            self._send(0, "end", None)
        self._thread.join()
        self._connection.close()


async def _answer(connection: Connection, local: Worker[Any]) -> None:
    """Answer queries over a connection until its other end has no more."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[int, str, Any]] = asyncio.Queue()
    tasks: dict[int, asyncio.Task[None]] = {}

    def send(*message: Any) -> None:
        with suppress(OSError):  # the main process has ended, which `listen` also notices
            connection.send(message)

    def listen() -> None:
        message = (0, "end", None)
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = (0, "end", None)
            loop.call_soon_threadsafe(inbox.put_nowait, message)
            if message[1] == "end":
                return

    async def answer(number: int, kind: str, what: Any) -> None:
        try:
            if kind == "compute":
                work, goes_first = what
                result = await local.compute(work, goes_first=goes_first)
            else:
                assert isinstance(local, LocalResponder)
                prepared, hears_steps = what
                on_step = functools.partial(send, number, "step") if hears_steps else None
                result = await local.submit(prepared, on_step=on_step)
        except Exception as error:
            send(number, "failed", _portable(error))
            return
        finally:
            tasks.pop(number, None)
        send(number, "done", result)

    connection.send(local.capacity)
    listener = threading.Thread(target=listen, name="main process", daemon=True)
    listener.start()
    while True:
        number, kind, what = await inbox.get()
        if kind == "end":
            break
        if kind == "cancel":
            if number in tasks:
                tasks[number].cancel()
            continue
        tasks[number] = loop.create_task(answer(number, kind, what))
    for task in list(tasks.values()):
        task.cancel()
    send(0, "tally", local.tally)


def _portable(error: Exception) -> Exception:
    """The error in a form for another process: a UserError unchanged, others as text."""
    if isinstance(error, UserError):
        return UserError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
