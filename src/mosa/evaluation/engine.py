"""Runs many attacks at once, and keeps the model's batch full with their queries.

Every task (one attack on one behavior) is a coroutine that runs until it waits for an answer. When
none can go on by itself, the engine does the first of these that it can:

    1. start more tasks, up to a bound
    2. take steps with a batch that is full, until a row of it is done
    3. one search with gradients
    4. take steps with a batch that is not full, until a row is done or a chat model has replied
    5. wait for a chat model that has been asked

A row that is done makes room for the next query at once, whatever decoder that one asks for. What
was answered is recorded in one commit before the tasks hear of it. The model works in a single
thread of its own, so that chat models are heard meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from mosa.attacks import Edit, Query, Target, edit_hook
from mosa.attacks.base import ChatRole
from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    UselessRepliesError,
    reply_key,
)
from mosa.chat.cache import CachedChat
from mosa.denoising import Canvas, DecoderConfig, Denoiser, Filling, evaluation_mode, result_of
from mosa.evaluation.records import responses_of
from mosa.evaluation.store import Store
from mosa.families import DiffusionLM
from mosa.types import (
    Prompt,
    Response,
    UserError,
    as_plain,
    content_key,
)

BATCHES_OPEN = 16
"""Tasks that are open at once, in batches: enough to keep the batch full while most of them wait
for chat models or searches, few enough to hold in memory."""
TURNS_TO_SETTLE = 32
"""Turns of the event loop without a new query after which no task can go on by itself. Waking a
task through `gather` takes about four."""
SECONDS_FOR_CHAT = 1.0
"""How long a run that ends early waits for replies on their way, which may be paid for."""
OPEN_WRITES = 1000
"""Rows that may wait for a commit where no batch brings one, as when all is recorded already."""


@dataclass(frozen=True)
class Row:
    """One query as the model gets it."""

    key: str
    prompt: Prompt
    prompt_ids: list[int]
    response_ids: list[int]
    """The response as it begins: masks, and what is pinned."""
    decoder: DecoderConfig
    edit: Edit | None = None


@dataclass(frozen=True)
class Advance:
    """What came of some steps of a batch."""

    responses: list[Response]
    """Those of the rows that are done."""
    num_steps: int
    num_row_steps: int
    """Steps times the rows that took part."""


@runtime_checkable
class Batch(Protocol):
    """Rows that are answered together, and that join and leave at any step."""

    def advance(self, rows: Sequence[Row], is_wanted: Callable[[], bool]) -> Advance:
        """Lets the rows join, then takes steps until one is done or somebody else `is_wanted`."""
        ...


@runtime_checkable
class Responder(Protocol):
    """What answers rows: a model, or a stand-in that benchmarks use."""

    @property
    def model(self) -> DiffusionLM: ...

    @property
    def weights(self) -> str:
        """A hash of what answers."""
        ...

    @property
    def gives_weights(self) -> bool: ...

    def open(self, num_slots: int) -> Batch:
        """A batch for at most so many rows, without any yet."""
        ...


@dataclass(frozen=True)
class LocalResponder:
    """A model in this process."""

    model: DiffusionLM
    weights: str
    gives_weights: bool = True

    def open(self, num_slots: int) -> LocalBatch:
        """An empty batch of the model."""
        return LocalBatch(self.model, num_slots)

    def respond(self, rows: Sequence[Row]) -> list[Response]:
        """The response to every row, in their order, all in one batch."""
        batch = self.open(len(rows))
        done: dict[str, Response] = {}
        left = rows
        while len(done) < len({row.key for row in rows}):
            responses = batch.advance(left, lambda: False).responses
            done |= {response.key: response for response in responses}
            left = ()
        return [done[row.key] for row in rows]


class LocalBatch:
    """A batch of the sampler, with the query behind each row."""

    def __init__(self, model: DiffusionLM, num_slots: int) -> None:
        self.model = model
        self.denoiser = Denoiser(model, num_slots)
        self._rows: list[tuple[Row, Filling]] = []

    def advance(self, rows: Sequence[Row], is_wanted: Callable[[], bool]) -> Advance:
        """As the protocol says; UserError where the batch does not fit into memory."""
        num_steps = num_row_steps = 0
        full: list[Filling] = []
        for row in rows:
            hook = None if row.edit is None else edit_hook([row.edit])
            filling = self.denoiser.add(_canvas_of(self.model, row), row.decoder, hook=hook)
            self._rows.append((row, filling))
        try:
            with evaluation_mode(self.model):
                while self.denoiser.has_work and not full:
                    full = self.denoiser.step()
                    num_steps += self.denoiser.has_work
                    num_row_steps += self.denoiser.num_busy
                    if is_wanted():
                        break
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a batch of {self.denoiser.num_busy} does not fit into memory; lower --batch_size "
                "and run the same command again, which goes on where it stopped"
            ) from error
        done = [(row, filling) for row, filling in self._rows if filling.is_full]
        self._rows = [(row, filling) for row, filling in self._rows if not filling.is_full]
        responses = []
        for row, filling in done:
            result = result_of(self.model, filling, row.decoder)
            responses += responses_of(self.model, result, prompts=[row.prompt], keys=[row.key])
        return Advance(responses, num_steps, num_row_steps)


def _canvas_of(model: DiffusionLM, row: Row) -> Canvas:
    canvas = Canvas.from_prompts(
        model, torch.tensor([row.prompt_ids]), max_new_tokens=len(row.response_ids)
    )
    return canvas.pin(0, row.response_ids)


@dataclass
class Tally:
    """What the engine has done, for progress and for the records."""

    num_steps: int = 0
    """Steps of the batch."""
    num_row_steps: int = 0
    """Steps times the rows that took part in each."""
    num_rows: int = 0
    """Answers that the model gave."""
    num_recorded: int = 0
    """Answers that were found in the records."""
    model_seconds: float = 0.0
    """Time in which the model worked."""
    seconds_by_attack: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A task that the engine is to run."""

    task: str
    attack: str
    target: Callable[[Any], Target]
    """Makes the target, given the backend."""
    run: Callable[[Target], Any]
    """Makes the attack's async generator."""
    on_end: Callable[[], object] = lambda: None
    """Called when the task is done, has failed, or was done by another process."""


@dataclass
class _Pending:
    row: Row
    attack: str
    future: asyncio.Future[Response]


@dataclass
class _Work:
    key: str
    attack: str
    work: Callable[[], dict[str, Any]]
    future: asyncio.Future[dict[str, Any]]


class Engine:
    """Runs jobs against one model."""

    def __init__(
        self,
        responder: Responder,
        store: Store,
        *,
        batch_size: int,
        chats: Mapping[str, ChatModel] | None = None,
        tally: Tally | None = None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.responder, self.store, self.batch_size = responder, store, batch_size
        self.chats = dict(chats or {})
        self.tally = tally or Tally()
        self.on_change = on_change
        self._batch: Batch | None = None  # opened by the first query
        self._pending: deque[_Pending] = deque()
        self._busy: dict[str, _Pending] = {}
        self._in_flight: dict[str, asyncio.Future[Any]] = {}
        self._work: deque[_Work] = deque()
        self._num_arrivals = 0
        self._asked: set[asyncio.Future[ChatReply]] = set()
        """The chat models' replies that are on their way."""
        self._news = asyncio.Event()
        self._has_reply = False
        self._is_over = False

    async def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs; an attempt is recorded as it comes, a task's end with it.

        A job that ends in a UserError or a ChatError is recorded as failed and the others go on.
        """
        waiting = deque(jobs)
        tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        try:
            while True:
                await self._settle()
                for task in [task for task in tasks if task.done()]:
                    tasks.discard(task)
                    task.result()  # a bug of an attack ends the run, with its traceback
                if self.store.num_open_writes > OPEN_WRITES:
                    self.store.commit()
                self.on_change()
                num_open = BATCHES_OPEN * self.batch_size - len(tasks)
                if waiting and num_open > 0:
                    for _ in range(min(num_open, len(waiting))):
                        tasks.add(loop.create_task(self._run_job(waiting.popleft())))
                    continue
                num_rows = len(self._busy) + len(self._pending)
                if num_rows < self.batch_size and self._work:
                    await self._do_work(loop, worker, self._work.popleft())
                elif num_rows:
                    await self._advance(loop, worker)
                elif self._asked:
                    self._news.clear()
                    await self._news.wait()
                elif not tasks:
                    return
        finally:
            self._is_over = True  # the batch ends its steps after the one in progress
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._asked:
                await asyncio.wait(set(self._asked), timeout=SECONDS_FOR_CHAT)
            worker.shutdown(wait=False, cancel_futures=True)
            self.store.commit()

    async def _settle(self) -> None:
        """Let every task run until it waits."""
        turns = 0
        while turns < TURNS_TO_SETTLE:
            before = self._num_arrivals
            await asyncio.sleep(0)
            turns = 0 if self._num_arrivals != before else turns + 1

    async def _run_job(self, job: Job) -> None:
        """One task from its start to its record."""
        if not self.store.is_done(job.task):  # by another process
            target = job.target(_JobBackend(self, job.attack))
            reason = None
            num_attempts = 0
            try:
                async for attempt in job.run(target):
                    self.store.add_attempt(job.task, attempt)
                    num_attempts += 1
                    self._num_arrivals += 1
                if 0 < target.num_ratings == target.num_unread_ratings:
                    raise UselessRepliesError("no rating of the in-loop judge can be read")
            except (UserError, ChatError) as error:
                reason = str(error) or type(error).__name__
                if isinstance(error, UselessRepliesError):
                    reason += self._forget(target.draws)
            self.store.end_task(job.task, target.budget, reason, num_attempts=num_attempts)
        job.on_end()

    # --------------------------------------------------------------------------- the model's work

    async def _advance(self, loop: asyncio.AbstractEventLoop, worker: ThreadPoolExecutor) -> None:
        """Fill the batch, take its next steps, and record what is done then."""
        joining = []
        while self._pending and len(self._busy) < self.batch_size:
            pending = self._pending.popleft()
            self._busy[pending.row.key] = pending
            joining.append(pending.row)
        if self._batch is None:
            self._batch = self.responder.open(self.batch_size)
        has_room = len(self._busy) < self.batch_size
        self._has_reply = False
        begin = time.perf_counter()
        advance = await loop.run_in_executor(
            worker,
            self._batch.advance,
            joining,
            lambda: self._is_over or (has_room and self._has_reply),
        )
        seconds = time.perf_counter() - begin
        for pending in self._busy.values():
            self._spend(pending.attack, seconds / len(self._busy))
        for response in advance.responses:
            self.store.add_response(response)
        if advance.responses:
            self.store.commit()
        for own in advance.responses:
            del self._busy[own.key]
            # What is on record counts: another process may have recorded its own answer before.
            response = self.store.response(own.key) or own
            self._in_flight.pop(response.key).set_result(response)
        tally = self.tally
        tally.num_steps += advance.num_steps
        tally.num_row_steps += advance.num_row_steps
        tally.num_rows += len(advance.responses)
        tally.model_seconds += seconds

    async def _do_work(
        self, loop: asyncio.AbstractEventLoop, worker: ThreadPoolExecutor, item: _Work
    ) -> None:
        begin = time.perf_counter()
        try:
            done = await loop.run_in_executor(worker, item.work)
        except UserError as error:
            self._in_flight.pop(item.key).set_exception(error)
            return
        except torch.OutOfMemoryError:
            error = UserError("the search does not fit into memory; use a larger device")
            self._in_flight.pop(item.key).set_exception(error)
            return
        seconds = time.perf_counter() - begin
        self.store.add_step(item.key, done)
        self.store.commit()
        self._in_flight.pop(item.key).set_result(self.store.step(item.key))
        self._spend(item.attack, seconds)
        self.tally.model_seconds += seconds

    def _spend(self, attack: str, seconds: float) -> None:
        spent = self.tally.seconds_by_attack
        spent[attack] = spent.get(attack, 0.0) + seconds

    # --------------------------------------------------------------------------- what tasks ask for

    async def respond(self, attack: str, query: Query, decoder: DecoderConfig) -> Response:
        """A recorded answer, or one from the next batch that the query fits into."""
        row = row_of(self.responder, query, decoder)
        recorded = self.store.response(row.key)
        if recorded is not None:
            self.tally.num_recorded += 1
            return recorded
        if row.key not in self._in_flight:
            future = asyncio.get_running_loop().create_future()
            self._in_flight[row.key] = future
            self._pending.append(_Pending(row, attack, future))
            self._arrived()
        return await asyncio.shield(self._in_flight[row.key])

    async def compute(
        self, attack: str, key: str, work: Callable[[], dict[str, Any]], *, has_begun: bool
    ) -> dict[str, Any]:
        """The recorded outcome, or that of the work, which the model's thread does.

        A task that has begun comes before others, so that one is finished after the other.
        """
        recorded = self.store.step(key)
        if recorded is not None:
            self.tally.num_recorded += 1
            return recorded
        if key not in self._in_flight:
            future = asyncio.get_running_loop().create_future()
            self._in_flight[key] = future
            item = _Work(key, attack, work, future)
            (self._work.appendleft if has_begun else self._work.append)(item)
            self._arrived()
        return await asyncio.shield(self._in_flight[key])

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        """The recorded reply, or that of the role's chat model."""
        assert role in self.chats, "checked when the campaign is planned"
        chat = self.chats[role]
        key = reply_key(chat, request)
        recorded = self.store.step(key)
        if recorded is not None:
            self.tally.num_recorded += 1
            return ChatReply(**recorded)
        if key not in self._in_flight:
            reply = asyncio.ensure_future(self._ask(chat, key, request))
            self._in_flight[key] = reply
            self._asked.add(reply)
            reply.add_done_callback(self._asked.discard)
        return await asyncio.shield(self._in_flight[key])

    def _forget(self, asked: Sequence[tuple[ChatRole, ChatRequest]]) -> str:
        """Drop replies of no use, so that they are asked for anew when the task is run again;
        returns what went wrong with it, for the records."""
        for role, request in asked:
            self.store.drop_step(reply_key(self.chats[role], request))
        self.store.commit()
        try:
            for role, request in asked:
                chat = self.chats[role]
                if isinstance(chat, CachedChat):
                    chat.forget(request)
        except UserError as error:
            return f" ({error})"
        return ""

    async def _ask(self, chat: ChatModel, key: str, request: ChatRequest) -> ChatReply:
        """One call, whoever waits for it; its reply is recorded."""
        try:
            reply = await chat.complete(request)
            self.store.add_step(key, as_plain(reply))
            self.store.commit()  # replies may be paid for, and a batch may take minutes
            recorded = self.store.step(key)  # another process may have been first
            return reply if recorded is None else ChatReply(**recorded)
        finally:
            del self._in_flight[key]
            self._has_reply = True
            self._arrived()

    def _arrived(self) -> None:
        self._num_arrivals += 1
        self._news.set()


@dataclass
class _JobBackend:
    """The engine as the target of one task sees it."""

    engine: Engine
    attack: str
    has_begun: bool = False

    @property
    def gives_weights(self) -> bool:
        return self.engine.responder.gives_weights

    @property
    def model(self) -> DiffusionLM:
        return self.engine.responder.model

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        return await self.engine.respond(self.attack, query, decoder)

    async def compute(self, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        done = await self.engine.compute(self.attack, key, work, has_begun=self.has_begun)
        self.has_begun = True
        return done

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        return await self.engine.chat(role, request)


def row_of(responder: Responder, query: Query, decoder: DecoderConfig) -> Row:
    """A query as ids, with the key of its answer; UserError where it is longer than the context."""
    model = responder.model
    prompt_ids = model.encode(query.prompt, allow_special_tokens=query.allow_special_tokens)
    length = decoder.max_new_tokens
    context = model.max_length
    if len(prompt_ids) + length > context:
        raise UserError(
            f"a prompt of {len(prompt_ids)} tokens and a response of {length} are longer than the "
            f"model's context of {context}; shorten the prompt or lower max_new_tokens"
        )
    response_ids = [model.mask_token_id] * length
    for position, ids in query.pinned:
        response_ids[position : position + len(ids)] = ids
    assert len(response_ids) == length, "Target.pin checks what fits"
    key = content_key(
        weights=responder.weights,
        prompt=prompt_ids,
        response=response_ids,
        edit=None if query.edit is None else as_plain(query.edit),
        decoder=as_plain(decoder),
    )
    return Row(key, query.prompt, prompt_ids, response_ids, decoder, query.edit)
