"""A chat model at any OpenAI-compatible endpoint: a hosted one, vLLM, Ollama, llama.cpp, ...

The key comes from the environment (MOSA_API_KEY, else OPENAI_API_KEY, else the word "none", which
local servers accept) and never enters a name, an error or a record. The `openai` package sends the
requests; of its options we set the time-out and the number of retries, which cover refused
connections, time-outs, 408, 409, 429 and 5xx, wait longer each time and obey Retry-After.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.types import UserError

KEY_VARIABLES = ("MOSA_API_KEY", "OPENAI_API_KEY")


class EndpointChat:
    """One model of one endpoint.

    `base_url` is what comes before /chat/completions, as a rule ending in /v1. `num_concurrent`
    bounds the requests under way in one event loop, `requests_per_minute` how often a new one may
    start (retries are not counted). Raises UserError for an invalid address.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        timeout_seconds: float = 120.0,
        max_retries: int = 4,
        num_concurrent: int = 8,
        requests_per_minute: float | None = None,
    ) -> None:
        self._place = _host(base_url)
        if not model:
            raise UserError("The endpoint's model has no name; write URL#MODEL.")
        if timeout_seconds <= 0:
            raise UserError(f"timeout_seconds must be above 0, not {timeout_seconds}.")
        if max_retries < 0:
            raise UserError(f"max_retries must be at least 0, not {max_retries}.")
        if num_concurrent < 1:
            raise UserError(f"num_concurrent must be at least 1, not {num_concurrent}.")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise UserError(
                f"requests_per_minute must be above 0, not {requests_per_minute}; leave it out for "
                "no limit."
            )
        self._base_url = base_url
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._num_concurrent = num_concurrent
        self._seconds_between = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._limit = asyncio.Semaphore(num_concurrent)

    @property
    def name(self) -> str:
        """Only the model's name, so that records outlive a change of its address."""
        return f"{self._model} (endpoint)"

    @property
    def place(self) -> str:
        """The host that runs it, for example "localhost:8000"."""
        return self._place

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The endpoint's answer; raises ChatError where none comes, retries included."""
        try:
            import openai
        except ModuleNotFoundError:
            raise UserError(
                "Chat endpoints are asked through the openai package; install it with `pip install "
                "openai`, or use a local model."
            ) from None

        client, limit = self._of_this_loop()
        async with limit:
            await self._wait_for_turn()
            try:
                raw = await client.chat.completions.with_raw_response.create(**self._body(request))
            # From None throughout: the causes hold headers and addresses that no log should show.
            except openai.APITimeoutError:
                raise ChatError(
                    f"{self.name} did not answer within {self._timeout_seconds:g} seconds "
                    f"(tried {self._max_retries + 1} times)."
                ) from None
            except openai.APIConnectionError:
                raise ChatError(
                    f"{self.name} cannot be reached (tried {self._max_retries + 1} times)."
                ) from None
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
            self._limit = asyncio.Semaphore(self._num_concurrent)
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                api_key=_key(),
                timeout=self._timeout_seconds,
                max_retries=self._max_retries,
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
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        # Only where set: not every server knows these two.
        if request.temperature > 0:
            body["seed"] = request.seed
        if request.top_p < 1:
            body["top_p"] = request.top_p
        return body

    def _status_message(self, status: int, body: object) -> str:
        if status in (401, 403):
            # Without the server's message: some repeat half of the key.
            return f"{self.name} refused the key (status {status}); set MOSA_API_KEY."
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
                return ChatReply(
                    _whole(content),
                    _num_tokens(rest.get("usage")),
                    choice.get("finish_reason") == "length",
                )
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


def _key() -> str:
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key:
            # Such a key could not be sent, and the error that says so would quote it.
            if not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(f"{variable} holds characters that no key has; set it again.")
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
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        line = line.replace(key, "[key]") if key else line
    return line[:200].rstrip(".")


def _num_tokens(usage: object) -> int:
    match usage:
        case {"total_tokens": int() as total}:
            return total
        case _:
            return 0


def _whole(text: str) -> str:
    """The text with each half character, as in a reply cut inside an emoji, replaced by a mark."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
