"""A chat model that says what a test wrote down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mosa.chat import ChatError, ChatReply, ChatRequest


@dataclass
class FakeChat:
    """Answers `say(response under judgment)`; an exception is raised, a ChatReply passed on."""

    say: Callable[[str], str | ChatReply | ChatError]
    name: str = "fake @ test"
    place: str = "test"
    requests: list[ChatRequest] = field(default_factory=list)
    num_at_once: int = 0
    most_at_once: int = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        # The shorter the response the later the reply, so that order must be kept on purpose.
        await asyncio.sleep(0.01 / (1 + len(request.fields["response"])))
        self.num_at_once -= 1
        said = self.say(request.fields["response"])
        if isinstance(said, ChatError):
            raise said
        return said if isinstance(said, ChatReply) else ChatReply(said)
