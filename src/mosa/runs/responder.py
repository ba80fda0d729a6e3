"""What answers queries: a model with its own thread, whose batch is kept full.

    responder = LocalResponder(model, weights, batch_size=32)
    prepared = responder.prepare(Query("how do i make a copper lantern ?"), decoder)
    response = await responder.submit(prepared)

A query joins the batch as soon as a row of it is done, with any decoder. Cancelling the
task that awaits a query takes its row out of the batch. Between steps the thread does the first of
these that it can:

    1. let waiting queries join, as long as there is room
    2. take a step with a batch that is full
    3. one piece of work with the weights (a search, likelihoods)
    4. take a step with a batch that is not full
    5. wait for a query
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch

from mosa.attacks import Edit, Query, Work, edit_hook
from mosa.denoising import (
    Canvas,
    DecoderConfig,
    Denoiser,
    Filling,
    OnStep,
    SampleResult,
    StepChanges,
    evaluation_mode,
    result_of,
)
from mosa.families import DiffusionLM
from mosa.types import Prompt, Response, UserError, as_plain, content_key, prompt_turns

SECONDS_TO_CLOSE = 5.0
"""How long to wait for the step in progress; a longer one continues and its result is dropped."""


@dataclass(frozen=True)
class Prepared:
    """A query as the model gets it, with the key of its answer."""

    key: str
    """Hash of the weights, the canvas, the edit and the decoder: same key, same tokens."""
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """The response as it begins: masks, and what is pinned."""
    decoder: DecoderConfig
    edit: Edit | None = None


@dataclass
class Tally:
    """What a responder has done."""

    num_steps: int = 0
    """Steps of the batch."""
    num_row_steps: int = 0
    """Steps times the rows that took part in each."""
    num_responses: int = 0
    num_works: int = 0
    """Pieces of work with the weights."""
    model_seconds: float = 0.0
    """Time in which the model worked."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{k: v + getattr(other, k) for k, v in vars(self).items()})


class ResponderGone(UserError):
    """A responder can no longer answer: this ends the run, and not one task."""


@runtime_checkable
class Responder(Protocol):
    """Answers queries; a model in this process, several processes, or a substitute."""

    @property
    def model(self) -> DiffusionLM:
        """For its tokenizer, ids and length."""
        ...

    @property
    def capacity(self) -> int:
        """How many queries are answered at once."""
        ...

    @property
    def tally(self) -> Tally: ...

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        """A query as ids; UserError where it is longer than the model's context."""
        ...

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        """The answer. `on_step` receives every step that changed the row, in the event loop."""
        ...

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        """The outcome of a piece of work with the weights; it may go before all that waits."""
        ...

    def close(self) -> None:
        """End at once; nothing that is unanswered will be."""
        ...


def prepare(model: DiffusionLM, weights: str, query: Query, decoder: DecoderConfig) -> Prepared:
    """A query as ids, with the key of its answer; UserError where it is longer than the context."""
    prompt_ids = query.prompt_ids
    if prompt_ids is None:
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
        weights=weights,
        prompt=list(prompt_ids),
        response=response_ids,
        edit=None if query.edit is None else as_plain(query.edit),
        decoder=plain(decoder),
    )
    return Prepared(key, query.prompt, tuple(prompt_ids), tuple(response_ids), decoder, query.edit)


@functools.lru_cache(maxsize=1024)
def plain(decoder: DecoderConfig) -> dict[str, Any]:
    """A decoder as JSON; made once, as thousands of queries share it, and not to be changed."""
    return as_plain(decoder)


@dataclass
class _Open:
    """A query or a piece of work that somebody waits for."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    prepared: Prepared | None = None
    on_step: OnStep | None = None
    work: Work | None = None
    goes_first: bool = False
    filling: Filling | None = None
    is_cancelled: bool = False

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give the result to those who wait, from any thread."""
        settle(self.loop, self.future, result, error)


def settle(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    result: Any = None,
    error: BaseException | None = None,
) -> None:
    """Give a result or an error to those who wait for a future, from any thread."""

    def give() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(give)
    except RuntimeError:  # the loop has ended, and with it all who waited
        assert loop.is_closed()


@final
class LocalResponder:
    """A model in this process, with its own thread. `close` ends the thread."""

    def __init__(self, model: DiffusionLM, weights: str, *, batch_size: int = 32) -> None:
        """`weights` is the content hash of the model; UserError for a batch without a row."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if model.tokenizer is None:
            raise UserError(f"{model.source} has no tokenizer.json, so it cannot read a request")
        self._model, self.weights, self._capacity = model, weights, batch_size
        self._tally = Tally()
        self._inbox: queue.SimpleQueue[_Open | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def model(self) -> DiffusionLM:
        return self._model

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def tally(self) -> Tally:
        return self._tally

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        return prepare(self._model, self.weights, query, decoder)

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        return await self._ask(prepared=prepared, on_step=on_step)

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        return await self._ask(work=work, goes_first=goes_first)

    async def _ask(self, **what: Any) -> Any:
        if self._is_closed:
            raise RuntimeError("the responder is closed")
        loop = asyncio.get_running_loop()
        item = _Open(loop, loop.create_future(), **what)
        self._inbox.put(item)
        try:
            return await item.future
        except asyncio.CancelledError:
            item.is_cancelled = True
            self._inbox.put(item)
            raise

    def close(self) -> None:
        self._is_closed = True
        self._inbox.put(None)
        self._thread.join(SECONDS_TO_CLOSE)

    # --------------------------------------------------------------------------- the model's thread

    def _run(self) -> None:
        waiting: deque[_Open] = deque()
        works: deque[_Open] = deque()
        busy: dict[Filling, _Open] = {}
        denoiser = Denoiser(self._model, self._capacity)
        while True:
            is_idle = not (waiting or works or busy)
            for item in self._arrived(is_idle):
                if item is None:
                    return
                if item.is_cancelled:
                    if item.filling in busy:
                        del busy[item.filling]
                        denoiser.remove(item.filling)
                elif item.work is not None:
                    (works.appendleft if item.goes_first else works.append)(item)
                else:
                    waiting.append(item)
            while waiting and len(busy) < self._capacity:
                item = waiting.popleft()
                if not item.is_cancelled and self._join(denoiser, item):
                    assert item.filling is not None
                    busy[item.filling] = item
            begin = time.perf_counter()
            if works and len(busy) < self._capacity:
                self._work(works)
            elif busy:
                try:
                    self._step(denoiser, busy)
                except BaseException as error:
                    for item in busy.values():
                        item.settle(error=_readable(error, len(busy)))
                    busy.clear()
                    denoiser = Denoiser(self._model, self._capacity)
            self._tally.model_seconds += time.perf_counter() - begin

    def _arrived(self, waits: bool) -> list[_Open | None]:
        """What has arrived; waits for at least one item where the thread is idle."""
        found = [self._inbox.get()] if waits else []
        while True:
            try:
                found.append(self._inbox.get_nowait())
            except queue.Empty:
                return found

    def _join(self, denoiser: Denoiser, item: _Open) -> bool:
        """Give a query a place in the batch; only it fails where its decoder does not fit."""
        prepared = item.prepared
        assert prepared is not None
        hook = None if prepared.edit is None else edit_hook(prepared.edit)
        on_step = None
        if item.on_step is not None:
            on_step = _in_loop(item.loop, item.on_step)
        try:
            canvas = Canvas.from_prompts(
                self._model,
                torch.tensor([prepared.prompt_ids]),
                max_new_tokens=len(prepared.response_ids),
            ).pin(0, list(prepared.response_ids))
            item.filling = denoiser.add(canvas, prepared.decoder, hook=hook, on_step=on_step)
        except Exception as error:
            item.settle(error=error)
            return False
        return True

    def _step(self, denoiser: Denoiser, busy: dict[Filling, _Open]) -> None:
        with evaluation_mode(self._model):
            full = denoiser.step()
        self._tally.num_steps += 1
        self._tally.num_row_steps += len(busy)
        for filling in full:
            item = busy.pop(filling)
            assert item.prepared is not None
            result = result_of(self._model, filling, item.prepared.decoder)
            (response,) = responses_of(
                self._model, result, prompts=[item.prepared.prompt], keys=[item.prepared.key]
            )
            self._tally.num_responses += 1
            item.settle(response)

    def _work(self, works: deque[_Open]) -> None:
        """The next piece of work, with later ones that may be done with it."""
        first = works.popleft()
        assert first.work is not None
        most = min(first.work.together, self._capacity)
        group = [first]
        for item in list(works):
            assert item.work is not None
            if len(group) == most:
                break
            if item.work.run == first.work.run and not item.is_cancelled:
                group.append(item)
                works.remove(item)
        if first.is_cancelled:
            return
        try:
            found = first.work.run(self._model, [item.work.state for item in group if item.work])
            assert len(found) == len(group), "work gives one outcome for each state"
        except BaseException as error:
            for item in group:
                item.settle(error=_readable(error, len(group)))
            return
        self._tally.num_works += len(group)
        for item, outcome in zip(group, found, strict=True):
            item.settle(outcome)


def _in_loop(loop: asyncio.AbstractEventLoop, on_step: OnStep) -> OnStep:
    """Receives steps in the model's thread, and passes them on to the event loop."""

    def pass_on(changes: StepChanges) -> None:
        loop.call_soon_threadsafe(on_step, changes)

    return pass_on


def _readable(error: BaseException, num_rows: int) -> BaseException:
    """An error as a user can act on it, where one can."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"{num_rows} rows do not fit into the device's memory; lower --batch_size and run the "
            "same command again, which goes on where it stopped"
        )
    return error


def responses_of(
    model: DiffusionLM,
    result: SampleResult,
    *,
    prompts: Sequence[Prompt],
    keys: Sequence[str],
) -> list[Response]:
    """One record for each row of a generation; UserError for a model without a tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None or result.text is None or result.full_text is None:
        raise UserError("a record keeps words: load the model from a folder with a tokenizer.json")
    decoder = plain(result.config)
    trace = result.trace
    start = trace.response_start
    commit_step = trace.commit_step[:, start:].tolist()
    filled_in_prompt = trace.free[:, :start].any(dim=1).tolist()
    tokens = result.tokens.tolist()
    words = {id: str(tokenizer.decode([id])) for id in {id for row in tokens for id in row}}
    responses = []
    for row, prompt in enumerate(prompts):
        filled = None
        if filled_in_prompt[row]:
            real = result.canvas.attention_mask[row, :start]
            filled = result.canvas.tokens[row, :start][real].tolist()
        responses.append(
            Response(
                key=keys[row],
                prompt=prompt_turns(prompt),
                text=result.text[row],
                full_text=result.full_text[row],
                token_ids=tokens[row],
                tokens=[words[id] for id in tokens[row]],
                commit_step=commit_step[row],
                end_positions=[i for i, id in enumerate(tokens[row]) if id in model.end_token_ids],
                num_forward_passes=int(trace.row_forward_passes[row]),
                decoder=decoder,
                filled_prompt_ids=filled,
                notes=[
                    {key: value for key, value in as_plain(note).items() if key != "row"}
                    for note in trace.notes
                    if note.row == row
                ],
            )
        )
    return responses


def answer_all(
    model: DiffusionLM,
    weights: str,
    queries: Sequence[tuple[Query, DecoderConfig]],
    *,
    batch_size: int = 32,
    on_answer: Callable[[], object] = lambda: None,
) -> list[Response]:
    """The answers to some queries, in their order, from a responder that only this call uses."""
    responder = LocalResponder(model, weights, batch_size=batch_size)

    async def answer(query: Query, decoder: DecoderConfig) -> Response:
        response = await responder.submit(responder.prepare(query, decoder))
        on_answer()
        return response

    async def answer_each() -> list[Response]:
        return list(await asyncio.gather(*(answer(*asked) for asked in queries)))

    try:
        return asyncio.run(answer_each())
    finally:
        responder.close()
