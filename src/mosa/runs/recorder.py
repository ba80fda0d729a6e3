"""Runs tasks against a responder and records their outcomes; the one writer of a run.

Every task (one attack on one case) is a coroutine that runs until it waits for an answer. An answer
on record is given at once; any other is asked for once, for all that wait for it, and recorded.
Writes are committed together, at the latest SECONDS_TO_COMMIT after the first of them: a run that
is killed loses what came in that time, and the batch in flight.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

from mosa.attacks import Query, Target
from mosa.attacks.base import Backend, ChatRole, Tokens
from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    UselessRepliesError,
    reply_key,
)
from mosa.chat.cache import CachedChat
from mosa.denoising import DecoderConfig
from mosa.responder import Responder, ResponderGone
from mosa.runs.records import Outcome
from mosa.runs.store import Run
from mosa.types import Attempt, Response, UserError
from mosa.worker import Work

T = TypeVar("T")

BATCHES_OPEN = 16
"""Tasks that are open at once, in batches: enough to keep the batch full while most of them wait
for chat models or searches, few enough to hold in memory."""
SECONDS_FOR_CHAT = 1.0
"""How long a run that ends early waits for replies on their way, which may be paid for."""
SECONDS_TO_COMMIT = 0.2
"""The longest that an answer waits for its commit."""
WRITES_TO_COMMIT = 2000
"""Rows after which a commit is made at once."""


class TokensSpent(ResponderGone):
    """The tokens that a run may take are spent: it ends where it is, and can go on."""


@dataclass
class TokenMeter:
    """Counts the tokens of served subjects and of the chat models of attacks, asked and answered,
    and allows no question once `most` are reached; answers that are on their way still come."""

    most: int | None = None
    num_tokens: int = 0

    def check(self) -> None:
        """Raise TokensSpent where no more may be taken."""
        if self.most is not None and self.num_tokens >= self.most:
            raise TokensSpent(
                f"stopped at {self.num_tokens} of {self.most} tokens; what was recorded is kept, "
                "and the same command with a larger --max-tokens-total goes on"
            )

    def add(self, response: Response | ChatReply) -> None:
        """Count an answer."""
        if isinstance(response, ChatReply):
            self.num_tokens += response.num_tokens
        elif response.served is not None:
            self.num_tokens += response.num_tokens + (response.served.prompt_tokens or 0)


@dataclass(frozen=True)
class PlannedTask:
    """A task for the recorder to run."""

    key: str
    target: Callable[[Backend], Target]
    """Makes the target, given the backend."""
    attack: Callable[[Target], AsyncIterator[Attempt]]
    """Makes the attack's async generator."""
    chats: Mapping[ChatRole, ChatModel] = field(default_factory=dict)
    """The chat models that it may ask, by role."""
    on_end: Callable[[Outcome | None], object] = lambda outcome: None
    """Called when the task is done or has failed; None: by another process."""


@final
class Recorder:
    """Runs a subject's tasks: answers from the records, else from a responder."""

    def __init__(
        self,
        run: Run,
        responder: Responder,
        *,
        meter: TokenMeter | None = None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_change` is called after every commit."""
        self.run, self.responder = run, responder
        self.meter = meter or TokenMeter()
        self.on_change = on_change
        self.num_recorded = 0
        """Answers that were found in the records."""
        self._has_ended = False
        self._under_way = asyncio.Semaphore(responder.capacity)
        self._in_flight: dict[str, asyncio.Future[Any]] = {}
        self._replies: set[asyncio.Future[Any]] = set()
        self._commit_timer: asyncio.TimerHandle | None = None
        self._commit_error: BaseException | None = None

    async def run_all(self, tasks: Sequence[PlannedTask]) -> None:
        """Run all tasks; an attempt is recorded as it comes, a task's end with it.

        A task that ends in a UserError or a ChatError is recorded as failed and the others
        continue; where the responder is gone, all end.
        """
        waiting = deque(tasks)
        num_workers = min(len(tasks), BATCHES_OPEN * self.responder.capacity)

        async def work() -> None:
            while waiting:
                await self._run_task(waiting.popleft())
                if self._commit_error is not None:
                    raise self._commit_error

        workers = [asyncio.ensure_future(work()) for _ in range(num_workers)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._has_ended = True
            if self._replies:
                # Where the tokens are spent, those on their way are paid for, and end in time.
                waits = isinstance(sys.exception(), TokensSpent)
                timeout = None if waits else SECONDS_FOR_CHAT
                await asyncio.wait(set(self._replies), timeout=timeout)
            for future in list(self._in_flight.values()):
                future.cancel()
            if self._commit_timer is not None:
                self._commit_timer.cancel()
            self.run.commit()

    async def _run_task(self, task: PlannedTask) -> None:
        """One task from its start to its record."""
        if self.run.is_done(task.key):  # by another process
            task.on_end(None)
            return
        target = task.target(_TaskBackend(self, task.chats))
        reason = ""
        num_attempts = 0
        try:
            async for attempt in task.attack(target):
                self.run.add_attempt(task.key, attempt)
                num_attempts += 1
            if 0 < target.num_ratings == target.num_unread_ratings:
                raise UselessRepliesError("no rating of the in-loop judge can be read")
        except ResponderGone:
            raise
        except (UserError, ChatError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, UselessRepliesError):
                reason += target.said_in_vain()
                self._forget(task.chats, target.draws)
        outcome = Outcome("failed" if reason else "done", num_attempts, target.budget, reason)
        self.run.end_task(task.key, outcome)
        self._wrote()
        task.on_end(outcome)

    @asynccontextmanager
    async def metered(self, is_served: bool) -> AsyncIterator[None]:
        """Around a question that may cost tokens. Those to a served subject, and all where tokens
        are limited, are few at once, so that few are under way when the run ends; none begins
        then."""
        if not is_served and self.meter.most is None:
            yield
            return
        async with self._under_way:
            if self._has_ended:
                raise asyncio.CancelledError
            self.meter.check()
            yield

    # --------------------------------------------------------------------------- commits

    def _wrote(self) -> None:
        """Schedule a commit of what was written."""
        if self.run.num_open_writes >= WRITES_TO_COMMIT:
            self._commit()
        elif self._commit_timer is None:
            loop = asyncio.get_running_loop()
            self._commit_timer = loop.call_later(SECONDS_TO_COMMIT, self._commit)

    def _commit(self) -> None:
        if self._commit_timer is not None:
            self._commit_timer.cancel()
            self._commit_timer = None
        try:
            self.run.commit()
        except UserError as error:  # raised by the next task that ends
            self._commit_error = error
        self.on_change()

    # --------------------------------------------------------------------------- what tasks ask for

    async def once(
        self,
        key: str,
        find: Callable[[str], T | None],
        ask: Callable[[], Awaitable[T]],
        *,
        is_reply: bool = False,
    ) -> T:
        """The record under the key, or the result of asking, once for all who wait for it.

        A query is cancelled when nobody waits for it; a reply of a server, which may be paid for,
        is not.
        """
        recorded = find(key)
        if recorded is not None:
            self.num_recorded += 1
            return recorded
        future = self._in_flight.get(key)
        if future is None:

            async def answer() -> T:
                try:
                    return await ask()
                finally:
                    del self._in_flight[key]
                    if self.run.num_open_writes:
                        self._wrote()

            future = asyncio.ensure_future(answer())
            future.add_done_callback(_heard)
            self._in_flight[key] = future
            if is_reply:
                self._replies.add(future)
                future.add_done_callback(self._replies.discard)
        return await asyncio.shield(future)

    def _forget(
        self, chats: Mapping[ChatRole, ChatModel], asked: Sequence[tuple[ChatRole, ChatRequest]]
    ) -> None:
        """Delete unusable replies, so that they are requested again when the task is retried."""
        for role, request in asked:
            chat = chats[role]
            self.run.drop_step(reply_key(chat, request))
            if isinstance(chat, CachedChat):
                chat.forget(request)


def _heard(future: asyncio.Future[Any]) -> None:
    """Whoever waited for it may be gone, and asyncio would then show the error as one of ours."""
    if not future.cancelled():
        future.exception()


@dataclass
class _TaskBackend:
    """The recorder as the target of one task sees it."""

    recorder: Recorder
    chats: Mapping[ChatRole, ChatModel]
    has_begun: bool = False

    @property
    def model(self) -> Tokens | None:
        return self.recorder.responder.model

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        """A recorded answer, or the responder's."""
        run, responder, meter = self.recorder.run, self.recorder.responder, self.recorder.meter
        prepared = responder.prepare(query, decoder)

        is_served = self.model is None or self.model.is_served

        async def ask() -> Response:
            async with self.recorder.metered(is_served):
                response = await responder.submit(prepared)
                meter.add(response)
            # Another process may have recorded its own answer meanwhile, and that one counts.
            recorded = run.response(prepared.key)
            if recorded is None:
                run.add_response(response)
            return recorded or response

        return await self.recorder.once(prepared.key, run.response, ask, is_reply=is_served)

    async def compute(self, key: str, work: Work) -> dict[str, Any]:
        """The recorded outcome, or that of the work."""
        run, responder = self.recorder.run, self.recorder.responder
        # A task that has begun comes before others, so that one is finished after the other.
        goes_first = self.has_begun

        async def ask() -> dict[str, Any]:
            return run.add_step(key, await responder.compute(work, goes_first=goes_first))

        done = await self.recorder.once(key, run.step, ask)
        self.has_begun = True
        return done

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        """The recorded reply, or that of the chat model."""
        assert role in self.chats, "checked when the run is planned"
        chat, run = self.chats[role], self.recorder.run
        key = reply_key(chat, request)

        async def ask() -> ChatReply:
            async with self.recorder.metered(False):
                reply = await chat.complete(request)
                self.recorder.meter.add(reply)
            run.add_step(key, vars(reply))
            return reply

        return await self.recorder.once(key, run.reply, ask, is_reply=True)
