"""What answers queries of a model that is served elsewhere: a responder without weights or tokens.

    responder = ServedResponder("http://localhost:8000/v1#NAME")
    response = await responder.submit(responder.prepare(Query("how is bread made?"), decoder))

A chat server takes turns and a few settings (`SENT`), and gives a text: no ids, no steps, no
likelihoods. Everything else about its decoder is its own, and unknown unless it tells. So a served
model grants prompt and history, and attacks that need more are not applicable. One that takes
canvases grants them too, where its tokenizer is named (served_canvas.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, final

from mosa.attacks import Query
from mosa.chat import (
    ChatError,
    ChatOptions,
    Completion,
    EndpointChat,
    ServerDownError,
    endpoint_model,
    split_name,
)
from mosa.chat.questions import without_thoughts
from mosa.denoising import DecoderConfig, OnStep
from mosa.responder import Prepared, ResponderGone
from mosa.served_canvas import FIELD, SEED, ServedTokens
from mosa.types import Access, Response, ServedFacts, UserError, content_key, prompt_turns
from mosa.worker import Tally, Work

GRANTED: tuple[Access, ...] = ("prompt", "history")
"""What every chat server lets its users control."""
SENT = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
"""The settings of a decoder that are sent; all others are the server's."""
_NAME_OF = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    **{name: name for name in SENT[1:]},
}
"""The fields of a request that are settings of a decoder, by our names."""
GREETING_TOKENS = 16
"""The most that a first question takes, which shows whether a server answers at all."""
MOST_FAILURES = 3
"""Questions in a row for which the server may be down; then it is gone."""


class ServerGone(ResponderGone):
    """A served model that answers nothing, retries included: this ends the run."""

    exit_status = 3  # as where nothing came of what was asked for


def sent_settings(decoder: DecoderConfig) -> dict[str, Any]:
    """The settings of a decoder that a server gets, those that are not set left out."""
    settings = {name: getattr(decoder, name) for name in SENT}
    return {name: value for name, value in settings.items() if value is not None}


@final
class ServedResponder:
    """A model at an address. Raises UserError for an address that is none, and for its key."""

    def __init__(
        self,
        name: str,
        options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
        *,
        tokenizer: str | None = None,
    ) -> None:
        """`name` is URL#MODEL or URL#MODEL@VARIABLE; of the options that change replies,
        `chat_extra` alone is meant for a served model. `tokenizer` is the folder or hub id of its
        tokenizer, for a server that takes canvases."""
        self.endpoint: EndpointChat = endpoint_model(name, options, role="model")
        self._identity = {
            "url": self.endpoint.address.url,
            "model": split_name(name)[1],
            "request": options.chat_extra,
        }
        self.model: Final = None if tokenizer is None else ServedTokens(tokenizer)
        """The model is elsewhere; its tokens, where they are known."""
        if self.model is not None:
            self._identity["tokenizer"] = self.model.hash
        self.capacity: Final = options.num_concurrent
        self.tally: Final = Tally()
        self.told: dict[str, str] = {}
        """What it tells of itself, once it is greeted."""
        self.counts_tokens = True
        """Whether it says how many tokens it takes, as far as is known."""
        self._num_failed = 0
        self._gone = ""
        """Why it is asked no more."""

    @property
    def identity(self) -> str:
        """A hash of all that is known to determine what it answers, but for prompt and settings:
        the address, the model's name and the fields of every request."""
        return content_key(**self._identity)

    async def greet(self, decoder: DecoderConfig) -> None:
        """Ask it a question of a few tokens under its settings, and for itself. Raises ServerGone
        where the question is not answered."""
        short = replace(decoder, max_new_tokens=min(decoder.max_new_tokens, GREETING_TOKENS))
        try:
            found = await self.endpoint.ask("Hello", _fields(short))
        except ChatError as error:
            raise ServerGone(f"{str(error).rstrip('.')}; nothing was begun") from None
        if self.model is not None:
            await self._check_canvas(self.model, decoder)
        self.told = await self.endpoint.describe() | found.told
        self.counts_tokens = None not in (found.prompt_tokens, found.completion_tokens)

    async def _check_canvas(self, tokens: ServedTokens, decoder: DecoderConfig) -> None:
        """UserError unless the server takes a canvas, and refuses one of another length than it
        says: a server that does not know the fields would leave them out without a word."""
        length = decoder.max_new_tokens
        gaps = [tokens.mask_token_id] * length
        fields = _fields(decoder) | tokens.canvas_fields([tokens.eos_token_id, *gaps[1:]], 0)
        if refusal := await self._refusal(fields):
            raise UserError(
                f"{refusal}: it takes no canvas of {length} tokens; set max_new_tokens to the "
                "length of its canvas, or leave its tokenizer out"
            )
        fields[FIELD] = {**fields[FIELD], SEED: fields[FIELD][SEED][:-1]}
        if not await self._refusal(fields):
            raise UserError(
                f"{self.endpoint.name} answers to a canvas that lacks a token as if it were whole, "
                f"so that it does not read {SEED}; leave its tokenizer out"
            )

    async def _refusal(self, fields: dict[str, Any]) -> str:
        """What the server has against a question with these fields; ServerGone where it is down."""
        try:
            await self.endpoint.ask("Hello", fields)
        except ServerDownError as error:
            raise ServerGone(f"{str(error).rstrip('.')}; nothing was begun") from None
        except ChatError as error:
            return str(error).rstrip(".")
        return ""

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        """A query as it is sent, with the key of its answer."""
        assert query.edit is None and query.prompt_ids is None, "no access"
        canvas: list[int] = []
        if query.pinned:
            assert self.model is not None, "no access"
            canvas = query.begun_response(self.model.mask_token_id, decoder.max_new_tokens)
        asked = {
            "server": self._identity,
            "prompt": prompt_turns(query.prompt),
            "decoder": sent_settings(decoder),
        }
        key = content_key(**asked, **({"canvas": canvas} if canvas else {}))
        return Prepared(key, query.prompt, (), tuple(canvas), decoder)

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        """The answer; raises ChatError where none comes, and ServerGone where `MOST_FAILURES` in a
        row did not."""
        del on_step  # servers show no steps
        if self._gone:
            raise ServerGone(self._gone)
        try:
            response = await self.answer(prepared)
        except ServerDownError as error:
            self._num_failed += 1
            if self._num_failed < MOST_FAILURES:
                raise
            self._gone = (
                f"{str(error).rstrip('.')}, {self._num_failed} times in a row; what was recorded "
                "is kept, and the same command goes on"
            )
            raise ServerGone(self._gone) from None
        self._num_failed = 0
        self.tally.num_responses += 1
        return response

    async def answer(self, prepared: Prepared) -> Response:
        """The answer, by itself; raises ChatError where none comes."""
        fields = _fields(prepared.decoder)
        if prepared.response_ids:
            assert self.model is not None, "the canvas is of its tokens"
            fields |= self.model.canvas_fields(prepared.response_ids, prepared.decoder.seed)
        return _response(prepared, await self.endpoint.ask(prepared.prompt, fields))

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        raise AssertionError("what needs weights is not applicable to a served model")

    def close(self) -> None:
        """Nothing is open between requests."""


def _fields(decoder: DecoderConfig) -> dict[str, Any]:
    """The fields of a request."""
    settings = sent_settings(decoder)
    return {"max_tokens": settings.pop("max_new_tokens"), **settings}


def _response(prepared: Prepared, found: Completion) -> Response:
    full_text = found.refusal or "" if found.text is None else found.text
    decoder = {name: found.sent[field] for field, name in _NAME_OF.items() if field in found.sent}
    return Response(
        key=prepared.key,
        prompt=prompt_turns(prepared.prompt),
        text=without_thoughts(full_text),
        full_text=full_text,
        decoder=decoder,
        served=ServedFacts(found.end, found.prompt_tokens, found.completion_tokens, found.told),
    )
