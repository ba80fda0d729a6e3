"""What tests of runs put in the place of a model and of chat models."""

from __future__ import annotations

import asyncio
from typing import Any

from mosa.attacks import Query
from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.denoising import DecoderConfig, OnStep
from mosa.families import DiffusionLM
from mosa.responder import Prepared, prepare
from mosa.types import Response, as_plain, prompt_turns
from mosa.worker import Tally, Work


class PowerCutError(RuntimeError):
    """What ends a run in the middle."""


class EchoResponder:
    """Answers each query with its prompt's last words, and remembers what it was asked."""

    def __init__(self, model: DiffusionLM, *, capacity: int = 8) -> None:
        self.model, self.capacity = model, capacity
        self.tally = Tally()
        self.asked: list[Prepared] = []
        self.works: list[Work] = []
        self.fail_at: int | None = None
        """Before which query (from 0) the power goes."""
        self.num_open = self.most_open = 0

    def prepare(self, query: Query, decoder: DecoderConfig) -> Prepared:
        return prepare(self.model, "echo", query, decoder)

    async def submit(self, prepared: Prepared, *, on_step: OnStep | None = None) -> Response:
        del on_step
        if len(self.asked) == self.fail_at:
            raise PowerCutError
        self.asked.append(prepared)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(0)
        self.num_open -= 1
        self.tally.num_responses += 1
        text = prompt_turns(prepared.prompt)[-1]["content"]
        return Response(
            key=prepared.key,
            prompt=prompt_turns(prepared.prompt),
            text=text,
            full_text=text,
            token_ids=list(prepared.response_ids),
            tokens=[str(id) for id in prepared.response_ids],
            commit_step=[0] * len(prepared.response_ids),
            block_starts=[0],
            num_forward_passes=prepared.decoder.steps,
            decoder=as_plain(prepared.decoder),
        )

    async def compute(self, work: Work, *, goes_first: bool = False) -> dict[str, Any]:
        del goes_first
        self.works.append(work)
        (found,) = work.run(self.model, [work.state])
        return found

    def close(self) -> None:
        pass


class ScriptedChat:
    """Gives one reply after the other, errors among them, and remembers what it was asked."""

    def __init__(self, *replies: str | Exception, name: str = "scripted") -> None:
        self.replies = list(replies)
        self.name = name
        self.place = "here"
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        reply = self.replies[(len(self.asked) - 1) % len(self.replies)]
        if isinstance(reply, Exception):
            raise reply
        return ChatReply(reply, num_tokens=7)


DOWN = ChatError("the endpoint does not answer")
