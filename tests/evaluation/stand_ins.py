"""What tests of campaigns put in the place of a model and of chat models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mosa.evaluation.engine import Advance, Row

from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.families import DiffusionLM
from mosa.types import Response, as_plain, prompt_turns


class PowerCutError(RuntimeError):
    """What ends a run in the middle."""


class EchoResponder:
    """Answers each row with its prompt's last words in one step, and remembers every batch."""

    def __init__(self, model: DiffusionLM, *, gives_weights: bool = True) -> None:
        self.model = model
        self.weights = "echo"
        self.gives_weights = gives_weights
        self.batches: list[list[Row]] = []
        self.fail_at: int | None = None
        """Before which batch (from 0) the power goes."""

    def open(self, num_slots: int) -> EchoResponder:
        return self

    def advance(self, rows: Sequence[Row], is_wanted: Callable[[], bool]) -> Advance:
        assert threading.current_thread() is not threading.main_thread()
        if len(self.batches) == self.fail_at:
            raise PowerCutError
        self.batches.append(list(rows))
        responses = [
            Response(
                key=row.key,
                prompt=prompt_turns(row.prompt),
                text=prompt_turns(row.prompt)[-1]["content"],
                full_text=prompt_turns(row.prompt)[-1]["content"],
                token_ids=row.response_ids,
                tokens=[str(id) for id in row.response_ids],
                commit_step=[0] * len(row.response_ids),
                num_forward_passes=row.decoder.steps,
                decoder=as_plain(row.decoder),
            )
            for row in rows
        ]
        return Advance(responses, num_steps=1, num_row_steps=len(rows))


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
