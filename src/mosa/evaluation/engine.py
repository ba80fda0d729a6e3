"""Runs many attacks at once, and answers their queries in full batches.

Every task (one attack on one behavior) is a coroutine that runs until it waits for an answer. When
none can go on by itself, the engine does the first of these that it can:

    1. start more tasks, up to a bound
    2. a full batch of queries that are decoded alike
    3. one search with gradients
    4. wait for a chat model that has been asked, for a bounded time
    5. the largest batch that there is

What was answered is recorded in one commit before the tasks hear of it. The model works in a single
thread of its own, so that chat models are heard meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.utils.rnn import pad_sequence

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
from mosa.denoising import Canvas, DecoderConfig, sample
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
"""Tasks that are open at once, in batches: enough to fill batches of several kinds, few enough to
hold in memory."""
TURNS_TO_SETTLE = 32
"""Turns of the event loop without a new query after which no task can go on by itself. Waking a
task through `gather` takes about four."""
OPEN_WRITES = 1000
"""Rows that may wait for a commit where no batch brings one, as when all is recorded already."""
SECONDS_FOR_CHAT = 1.0
"""How long a batch that is not full waits for chat models, whose replies may fill it."""


@dataclass(frozen=True)
class Row:
    """One query as the model gets it."""

    key: str
    prompt: Prompt
    prompt_ids: list[int]
    response_ids: list[int]
    """The response as it begins: masks, and what is pinned."""
    edit: Edit | None
    seed: int


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

    def respond(self, rows: Sequence[Row], decoder: DecoderConfig) -> list[Response]: ...


@dataclass(frozen=True)
class LocalResponder:
    """A model in this process."""

    model: DiffusionLM
    weights: str
    gives_weights: bool = True

    def respond(self, rows: Sequence[Row], decoder: DecoderConfig) -> list[Response]:
        """One generation for all rows; `decoder` says all but their seeds."""
        canvas = _canvas_of(self.model, rows)
        edits = [row.edit for row in rows]
        hook = edit_hook(edits) if any(edits) else None
        try:
            result = sample(
                self.model, canvas, decoder, hook=hook, row_seeds=[row.seed for row in rows]
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a batch of {len(rows)} does not fit into memory; lower --batch_size and run the "
                "same command again, which goes on where it stopped"
            ) from error
        return responses_of(
            self.model,
            result,
            prompts=[row.prompt for row in rows],
            keys=[row.key for row in rows],
            seeds=[row.seed for row in rows],
        )


def _canvas_of(model: DiffusionLM, rows: Sequence[Row]) -> Canvas:
    """The rows side by side; the canvas pads them on the left."""
    prompts = [torch.tensor(row.prompt_ids) for row in rows]
    canvas = Canvas.from_prompts(
        model,
        pad_sequence(prompts, batch_first=True, padding_value=model.pad_token_id),
        max_new_tokens=len(rows[0].response_ids),
        attention_mask=pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True),
    )
    return canvas.pin(0, torch.tensor([row.response_ids for row in rows]))


@dataclass
class Tally:
    """What the engine has done, for progress and for the records."""

    num_batches: int = 0
    num_rows: int = 0
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
        self._pending: dict[tuple[str, bool], deque[_Pending]] = {}
        self._decoders: dict[str, DecoderConfig] = {}
        self._in_flight: dict[str, asyncio.Future[Any]] = {}
        self._work: deque[_Work] = deque()
        self._num_arrivals = 0
        self._num_chats = 0
        self._news = asyncio.Event()

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
                batch = self._take(full=True)
                if batch is None and self._work:
                    await self._do_work(loop, worker, self._work.popleft())
                    continue
                if batch is None and self._num_chats:
                    self._news.clear()
                    timeout = SECONDS_FOR_CHAT if self._pending else None
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), timeout)
                        continue
                batch = batch or self._take(full=False)
                if batch is not None:
                    await self._do_batch(loop, worker, *batch)
                elif not tasks:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
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

    def _take(self, *, full: bool) -> tuple[DecoderConfig, list[_Pending]] | None:
        """The next batch, with its decoder: of the kind with the most queries, if these fill one
        (or, where it need not be `full`, in any case)."""
        if not self._pending:
            return None
        kind = max(self._pending, key=lambda k: len(self._pending[k]))
        queue = self._pending[kind]
        if full and len(queue) < self.batch_size:
            return None
        batch = [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]
        if not queue:
            del self._pending[kind]
        return self._decoders[kind[0]], batch

    async def _do_batch(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: ThreadPoolExecutor,
        decoder: DecoderConfig,
        batch: list[_Pending],
    ) -> None:
        begin = time.perf_counter()
        rows = [pending.row for pending in batch]
        responses = await loop.run_in_executor(worker, self.responder.respond, rows, decoder)
        seconds = time.perf_counter() - begin
        for response in responses:
            self.store.add_response(response)
        self.store.commit()
        for pending, own in zip(batch, responses, strict=True):
            # What is on record counts: another process may have recorded its own answer before.
            response = self.store.response(own.key) or own
            self._in_flight.pop(response.key).set_result(response)
            self._spend(pending.attack, seconds / len(batch))
        tally = self.tally
        tally.num_batches += 1
        tally.num_rows += len(batch)
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
            # Seeds may differ within a batch: each row draws its noise by itself.
            alike = replace(decoder, seed=0)
            settings = content_key(decoder=as_plain(alike))
            self._decoders[settings] = alike
            future = asyncio.get_running_loop().create_future()
            self._in_flight[row.key] = future
            # With edits every row runs in every step, so the others stay by themselves.
            queue = self._pending.setdefault((settings, row.edit is not None), deque())
            queue.append(_Pending(row, attack, future))
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
            self._in_flight[key] = asyncio.ensure_future(self._ask(chat, key, request))
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
        self._num_chats += 1
        try:
            reply = await chat.complete(request)
            self.store.add_step(key, as_plain(reply))
            self.store.commit()  # replies may be paid for, and a batch may take minutes
            recorded = self.store.step(key)  # another process may have been first
            return reply if recorded is None else ChatReply(**recorded)
        finally:
            del self._in_flight[key]
            self._num_chats -= 1
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
    return Row(key, query.prompt, prompt_ids, response_ids, query.edit, decoder.seed)
