"""A chat model at any OpenAI-compatible endpoint: a hosted one, vLLM, Ollama, llama.cpp, ...

The key comes from the environment and never enters a name, an error or a record: that of the role
(MOSA_API_KEY_ATTACKER, _LOOP_JUDGE, _TRANSLATOR or _JUDGE), which is sent for no other role; where
it has none MOSA_API_KEY, else OPENAI_API_KEY, else the word "none", which local servers accept.
The `openai` package sends the requests; of its options we set the time-out and the number of
retries, which cover refused connections, time-outs, 408, 409, 429 and 5xx, wait longer each time
and obey Retry-After.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.types import UserError, is_json_object, short_hash

KEY_VARIABLES = ("MOSA_API_KEY", "OPENAI_API_KEY")
KEY_ROLES = ("attacker", "loop_judge", "translator", "judge")
"""Roles that may have a key of their own, in MOSA_API_KEY_ROLE."""
OWN_FIELDS = ("model", "messages", "stream", "n")
"""Fields of a request that `chat_extra` may not change."""


@dataclass(frozen=True)
class ChatOptions:
    """How endpoints are asked."""

    timeout_seconds: float = 120.0
    """Seconds that a chat endpoint has for one reply."""
    max_retries: int = 4
    """Retries of a chat endpoint that fails, is busy or does not answer."""
    num_concurrent: int = 8
    """Requests to a chat endpoint that are under way at once."""
    requests_per_minute: float | None = None
    """Requests to a chat endpoint that may start in a minute; null for no limit."""
    enable_thinking: bool | None = None
    """Whether a model that can reason first does so, sent as chat_template_kwargs (vLLM, SGLang,
    llama.cpp); null leaves it to the endpoint."""
    thought_tokens: int = 0
    """Tokens that a chat endpoint's model may think, beside those of its answer."""
    chat_extra: dict[str, Any] | None = None
    """Further fields of requests to chat endpoints, as JSON; a field that is null is not sent."""
    reply_cache: Path | None = None
    """Folder that keeps the replies of chat endpoints, so that other runs and judges need not ask
    again; null keeps none but those in a run's own records."""

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0 or self.num_concurrent < 1 or self.max_retries < 0:
            raise UserError(
                "A chat endpoint needs a timeout_seconds above 0, a num_concurrent of at least 1 "
                "and a max_retries of at least 0; change the one that is too small."
            )
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise UserError("requests_per_minute must be above 0; leave it out for no limit.")
        if self.thought_tokens < 0:
            raise UserError(f"thought_tokens must be at least 0, not {self.thought_tokens}.")
        for name in OWN_FIELDS:
            if name in (self.chat_extra or {}):
                raise UserError(f"chat_extra may not set {name}, which mosa sets; leave it out.")

    @property
    def label(self) -> str:
        """What tells replies under these options from others; empty where nothing changes them."""
        changes = {
            "enable_thinking": self.enable_thinking,
            "thought_tokens": self.thought_tokens or None,
            "chat_extra": self.chat_extra or None,
        }
        set_ones = {name: value for name, value in changes.items() if value is not None}
        return short_hash(json.dumps(set_ones, sort_keys=True)) if set_ones else ""


class EndpointChat:
    """One model of one endpoint.

    `base_url` is what comes before /chat/completions, as a rule ending in /v1. The limits of
    `options` hold for requests of one event loop; retries do not count as requests. Raises
    UserError for an invalid address.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
        *,
        role: str | None = None,
    ) -> None:
        """`role`, of `KEY_ROLES`, says whose key is sent."""
        self._key_variables = key_variables(role)
        self._place = _host(base_url)
        if not model:
            raise UserError("The endpoint's model has no name; write URL#MODEL.")
        self._base_url, self._model, self._options = base_url, model, options
        per_minute = options.requests_per_minute
        self._seconds_between = 60 / per_minute if per_minute else 0.0
        self._next_start = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._limit = asyncio.Semaphore(options.num_concurrent)

    @property
    def name(self) -> str:
        """The model's name, with a hash of the options that change its replies, if any; without
        its address, so that records outlive a change of it."""
        label = self._options.label
        return f"{self._model} (endpoint{f', options {label}' if label else ''})"

    @property
    def place(self) -> str:
        """The host that runs it, for example "localhost:8000"."""
        return self._place

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The endpoint's answer; raises ChatError where none comes, retries included."""
        import openai  # a second or more, which most commands need not wait for

        client, limit = self._of_this_loop()
        tries = f"(tried {self._options.max_retries + 1} times)"
        async with limit:
            await self._wait_for_turn()
            try:
                raw = await client.chat.completions.with_raw_response.create(**self._body(request))
            # From None throughout: the causes hold headers and addresses that no log should show.
            except openai.APITimeoutError:
                raise ChatError(
                    f"{self.name} did not answer within {self._options.timeout_seconds:g} seconds "
                    f"{tries}."
                ) from None
            except openai.APIConnectionError:
                raise ChatError(f"{self.name} cannot be reached {tries}.") from None
            except openai.APIStatusError as error:
                raise ChatError(self._status_message(error.status_code, error.body)) from None
            except openai.OpenAIError as error:
                raise ChatError(f"{self.name} failed ({type(error).__name__}).") from None
        return self._reply(raw.text)

    def _of_this_loop(self) -> tuple[Any, asyncio.Semaphore]:
        """Client and limit of the running loop: neither outlives the loop that first used it."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if self._client is None or loop is not self._loop:
            self._loop = loop
            self._limit = asyncio.Semaphore(self._options.num_concurrent)
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                api_key=_key(self._key_variables),
                timeout=self._options.timeout_seconds,
                max_retries=self._options.max_retries,
            )
        return self._client, self._limit

    async def _wait_for_turn(self) -> None:
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + self._seconds_between
        await asyncio.sleep(start - time.monotonic())

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_tokens": request.max_tokens + self._options.thought_tokens,
            "temperature": request.temperature,
        }
        # Only where set: not every server knows these two.
        if request.temperature > 0:
            body["seed"] = request.seed
        if request.top_p < 1:
            body["top_p"] = request.top_p
        extra = dict(self._options.chat_extra or {})
        thinking = self._options.enable_thinking
        if thinking is not None:
            extra["chat_template_kwargs"] = {
                **extra.get("chat_template_kwargs", {}),
                "enable_thinking": thinking,
            }
        body = {name: value for name, value in body.items() if name not in extra}
        sent = {name: value for name, value in extra.items() if value is not None}
        return {**body, "extra_body": sent} if sent else body

    def _status_message(self, status: int, body: object) -> str:
        if status in (401, 403):
            # Without the server's message: some repeat half of the key.
            return f"{self.name} refused the key (status {status}); set {self._key_variables[0]}."
        said = f": {_said(body)}" if _said(body) else ""
        return f"{self.name} answered with status {status}{said}."

    def _reply(self, text: str) -> ChatReply:
        try:
            body = json.loads(text)
        except json.JSONDecodeError:
            raise ChatError(
                f"{self.name} answered with something that is not JSON; check that the address is "
                "that of an OpenAI-compatible interface (most end in /v1)."
            ) from None
        match body:
            case {"choices": [{"message": {"content": str() as content}, **choice}, *_], **rest}:
                usage = rest.get("usage")
                total = usage.get("total_tokens") if is_json_object(usage) else None
                return ChatReply(
                    _whole(content),
                    total if isinstance(total, int) else 0,
                    choice.get("finish_reason") == "length",
                )
            case {"choices": [{"message": {}, "finish_reason": "length"}, *_]}:
                return ChatReply("", is_cut=True)  # all went into thoughts
            case {"choices": [{"message": {}}, *_]}:
                raise ChatError(f"{self.name} answered without a text.")
            case {"choices": []}:
                raise ChatError(f"{self.name} answered with no choices.")
            case {"error": error}:
                raise ChatError(f"{self.name} answered with an error: {_said(error)}.")
            case _:
                raise ChatError(f"{self.name} answered with JSON that is no chat completion.")


def _host(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise UserError(
            "The address of a chat endpoint is malformed (its port must be a number from 0 to "
            "65535, an IPv6 host stand in brackets); correct it."
        ) from None
    has_space = any(map(str.isspace, base_url))
    if parts.scheme not in ("http", "https") or not parts.hostname or has_space:
        raise UserError(
            "The address of a chat endpoint must begin with http:// or https:// and a host, for "
            "example http://localhost:8000/v1."
        )
    # Addresses are written into records, so none may contain a secret.
    if parts.username is not None or parts.password is not None or parts.query:
        raise UserError(
            f"The address at {parts.hostname} holds a user name, a password or a query; leave "
            "them out and put the key into MOSA_API_KEY."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if port is None else f"{host}:{port}"


def key_variables(role: str | None) -> tuple[str, ...]:
    """Where the key of a role is looked for, in order; a role with a key of its own has no other.

    Raises AssertionError for a role that is none.
    """
    assert role is None or role in KEY_ROLES, role
    own = f"MOSA_API_KEY_{role.upper()}" if role else ""
    return (own,) if os.environ.get(own, "").strip() else KEY_VARIABLES


def _key(variables: Sequence[str]) -> str:
    for variable in variables:
        key = os.environ.get(variable, "").strip()
        if key:
            # Such a key could not be sent, and the error that says so would quote it.
            if not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(f"{variable} holds characters that no key has; correct it.")
            return key
    return "none"


def _said(body: object) -> str:
    """A server's message about an error: one short line, without our key."""
    match body:
        case {"message": str() as message}:
            line = " ".join(message.split())
        case str():
            line = " ".join(body.split())
        case _:
            return ""
    for variable in (*KEY_VARIABLES, *(f"MOSA_API_KEY_{role.upper()}" for role in KEY_ROLES)):
        key = os.environ.get(variable, "").strip()
        line = line.replace(key, "[key]") if key else line
    return line[:200].rstrip(".")


def _whole(text: str) -> str:
    """The text with each half character, as in a reply cut inside an emoji, replaced by a mark."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
