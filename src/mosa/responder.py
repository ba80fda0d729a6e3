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
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, final, runtime_checkable

import torch

from mosa.attacks import Edit, Query
from mosa.attacks.base import Tokens
from mosa.denoising import (
    Canvas,
    DecoderConfig,
    Filling,
    OnStep,
    SampleResult,
    denoiser_of,
    evaluation_mode,
    result_of,
)
from mosa.denoising.canvas import check_fits
from mosa.denoising.sampler import check_usable
from mosa.families import DiffusionLM
from mosa.types import Prompt, Response, UserError, as_plain, content_key, prompt_turns
from mosa.worker import Computer, Waiting, Worker, readable, run_coroutine

T = TypeVar("T")


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


class ResponderGone(UserError):
    """A responder can no longer answer: this ends the run, and not one task."""


@runtime_checkable
class Responder(Computer, Protocol):
    """Answers queries; a model in this process, several processes, or a substitute."""

    @property
    def model(self) -> Tokens | None:
        """For its tokenizer, ids and length; None where it is served elsewhere and only its words
        are known."""
        ...

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        """A query as ids; UserError where it is longer than the model's context."""
        ...

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        """The answer. `on_step` receives every step that changed the row, in the event loop."""
        ...


def prepare(model: DiffusionLM, weights: str, query: Query, decoder: DecoderConfig) -> Prepared:
    """A query as ids, with the key of its answer; UserError where it is longer than the context."""
    prompt_ids = query.prompt_ids
    if prompt_ids is None:
        prompt_ids = model.encode(query.prompt, allow_special_tokens=query.allow_special_tokens)
    length = decoder.max_new_tokens
    check_fits(model, len(prompt_ids), length)
    response_ids = query.begun_response(model.mask_token_id, length)
    key = content_key(
        weights=weights,
        prompt=list(prompt_ids),
        response=response_ids,
        edit=None if query.edit is None else as_plain(query.edit),
        decoder=decoder_record(decoder),
    )
    return Prepared(key, query.prompt, tuple(prompt_ids), tuple(response_ids), decoder, query.edit)


@functools.lru_cache(maxsize=1024)
def decoder_record(decoder: DecoderConfig) -> dict[str, Any]:
    """A decoder as JSON; made once, as thousands of queries share it, and not to be changed."""
    return as_plain(decoder)


@dataclass(eq=False)
class _Asked(Waiting):
    """A query that somebody waits for."""

    prepared: Prepared | None = None
    on_step: OnStep | None = None
    filling: Filling | None = None


@final
class LocalResponder(Worker[DiffusionLM]):
    """A model in this process, with its own thread. `close` ends the thread."""

    def __init__(self, model: DiffusionLM, weights: str, *, batch_size: int = 32) -> None:
        """`weights` is the content hash of the model; UserError for a batch without a row."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if model.tokenizer is None:
            raise UserError(f"{model.source} has no tokenizer.json, so it cannot read a request")
        self.model: Final = model
        self.weights = weights
        self._queries: deque[_Asked] = deque()
        self._busy: dict[Filling, _Asked] = {}
        self._denoiser = denoiser_of(model, batch_size)
        super().__init__(lambda: model, capacity=batch_size)

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        return prepare(self.model, self.weights, query, decoder)

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        future = asyncio.get_running_loop().create_future()
        return await self._ask(_Asked(future, prepared=prepared, on_step=on_step))

    # ------------------------------------------------------------------------- the model's thread

    def _is_idle(self) -> bool:
        return not (self._works or self._queries or self._busy)

    def _take(self, item: Waiting) -> None:
        if not isinstance(item, _Asked):
            super()._take(item)
        elif not item.is_cancelled:
            self._queries.append(item)
        elif item.filling in self._busy:
            del self._busy[item.filling]
            self._denoiser.remove(item.filling)

    def _advance(self) -> None:
        while self._queries and len(self._busy) < self.capacity:
            item = self._queries.popleft()
            if not item.is_cancelled:
                self._join(item)
        if self._works and len(self._busy) < self.capacity:
            self._work()
        elif self._busy:
            try:
                self._step()
            except BaseException as error:
                for item in self._busy.values():
                    item.settle(error=readable(error, len(self._busy)))
                self._busy.clear()
                self._denoiser = denoiser_of(self.model, self.capacity)

    def _join(self, item: _Asked) -> None:
        """Give a query a place in the batch; only it fails where its decoder does not fit."""
        prepared = item.prepared
        assert prepared is not None
        hook = None if prepared.edit is None else prepared.edit.hook
        on_step = None
        if item.on_step is not None:  # called in this thread, it passes steps to the event loop
            on_step = functools.partial(item.future.get_loop().call_soon_threadsafe, item.on_step)
        try:
            canvas = Canvas.from_prompts(
                self.model,
                torch.tensor([prepared.prompt_ids]),
                max_new_tokens=len(prepared.response_ids),
            ).pin(0, list(prepared.response_ids))
            item.filling = self._denoiser.add(canvas, prepared.decoder, hook=hook, on_step=on_step)
        except Exception as error:
            item.settle(error=error)
            return
        self._busy[item.filling] = item

    def _step(self) -> None:
        with evaluation_mode(self.model):
            full = self._denoiser.step()
        self.tally.num_steps += 1
        self.tally.num_row_steps += len(self._busy)
        for filling in full:
            item = self._busy.pop(filling)
            assert item.prepared is not None
            try:
                check_usable(self.model, filling)
            except UserError as error:
                item.settle(error=error)
                continue
            result = result_of(self.model, filling, item.prepared.decoder)
            (response,) = responses_of(
                self.model, result, prompts=[item.prepared.prompt], keys=[item.prepared.key]
            )
            self.tally.num_responses += 1
            item.settle(response)


def responses_of(
    model: DiffusionLM,
    result: SampleResult,
    *,
    prompts: Sequence[Prompt],
    keys: Sequence[str],
) -> list[Response]:
    """One record for each row of a generation; UserError for a model without a tokenizer."""
    if result.words is None or result.text is None or result.full_text is None:
        raise UserError("a record keeps words: load the model from a folder with a tokenizer.json")
    decoder = decoder_record(result.config)
    trace = result.trace
    start = trace.response_start
    commit_step = trace.commit_step[:, start:].tolist()
    filled_in_prompt = trace.free[:, :start].any(dim=1).tolist()
    tokens = result.tokens.tolist()
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
                tokens=result.words[row],
                commit_step=commit_step[row],
                block_starts=result.block_starts[row],
                replaced=result.replaced[row],
                end_positions=result.end_positions[row],
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


def with_responder(
    model: DiffusionLM,
    weights: str,
    ask: Callable[[LocalResponder], Coroutine[Any, Any, T]],
    *,
    batch_size: int = 32,
) -> T:
    """What `ask` returns for a responder that only this call uses."""
    with closing(LocalResponder(model, weights, batch_size=batch_size)) as responder:
        return run_coroutine(ask(responder))


def answer_all(
    model: DiffusionLM,
    weights: str,
    queries: Sequence[tuple[Query, DecoderConfig]],
    *,
    batch_size: int = 32,
) -> list[Response]:
    """The answers to some queries, in their order."""

    async def ask(responder: LocalResponder) -> list[Response]:
        prepared = [responder.prepare(*query) for query in queries]
        return list(await asyncio.gather(*map(responder.submit, prepared)))

    return with_responder(model, weights, ask, batch_size=batch_size)
