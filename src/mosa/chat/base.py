"""The interface of chat models for attacks and judges: they answer a `ChatRequest`.

Attackers, translators, judges inside an attack and prompted judges are all chat models. A request
has its question twice: in words (`messages`), which language models read, and as data (`task`
and `fields`), which scripted models read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mosa.terminal import printable
from mosa.types import Message, UserError, as_plain, content_key


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model."""

    messages: tuple[Message, ...]
    task: str
    """What is asked for, for example "dija/template"."""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the words were made of, for example {"request": "..."}."""
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Distinguishes several draws of the same question."""


MOST_TOKENS = 10**9
"""Of a reply; whoever counts more has not counted."""


@dataclass(frozen=True)
class ChatReply:
    """The answer, and what it took."""

    text: str
    num_tokens: int = 0
    """Tokens asked and answered; 0 where the model does not report them."""
    is_cut: bool = False
    """Whether something else than the model ended the answer: `max_tokens`, a filter, a fault."""


def reply_key(chat: ChatModel, request: ChatRequest) -> str:
    """The key of a kept reply: the chat model's name and the whole request."""
    return content_key(chat=chat.name, request=as_plain(request))


class ChatError(RuntimeError):
    """A chat model that gave no answer, retries included; the message says why and never holds a
    key. The run records it for the one case and continues."""


class ServerDownError(ChatError):
    """A server that cannot be asked at all: not there, silent, overloaded, or without the model or
    the right for this key. Other questions would fare no better."""


MOST_QUOTED = 200
"""Characters of what others said, in an error."""


class NoAnswerError(UserError):
    """An endpoint that is there and answers no question: nothing is begun."""

    exit_status = 3  # as where nothing came of what was asked for


def quoted(text: str) -> str:
    """What others said, for an error or a reason: the beginning, in one line, between marks that it
    cannot close (`without_quotations`)."""
    line = " ".join(text.translate(_PLAIN_MARKS).split())
    return f"“{printable(line[:MOST_QUOTED]).rstrip('. ')}”"


def without_quotations(reason: str, instead: str) -> str:
    """A reason with `instead` for what others said in it."""
    return re.sub("“[^”]*”", lambda _: instead, reason)


_PLAIN_MARKS = str.maketrans("“”", '""')


class UselessRepliesError(ChatError):
    """Replies came and none could be used. The run records it as it does a ChatError, and
    deletes the replies, so that a fixed model is asked again."""


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers chat requests."""

    @property
    def name(self) -> str:
        """Which model it is; replies and verdicts of one name count as those of one model."""
        ...

    @property
    def place(self) -> str:
        """Where it runs, for the records; never with a key."""
        ...

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request; raises ChatError where no answer comes."""
        ...
