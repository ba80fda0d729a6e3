"""A chat model at any OpenAI-compatible endpoint: a hosted one, vLLM, Ollama, llama.cpp, ...

address.py says where a request goes and with which key; no key enters a name, an error or a record.
Refused connections, time-outs, 408, 409, 429 and 5xx are retried, with waits that grow or that
Retry-After asks for. Whatever a server does, `ask` ends in time, reads no more than `MOST_BYTES`,
follows no redirect, and returns an answer or raises ChatError.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from mosa.chat.address import LEAST_SECRET, address_of, without_keys
from mosa.chat.base import (
    MOST_QUOTED,
    MOST_TOKENS,
    ChatError,
    ChatReply,
    ChatRequest,
    NoAnswerError,
    ServerDownError,
    quoted,
)
from mosa.terminal import printable
from mosa.types import (
    Prompt,
    UserError,
    is_json_list,
    is_json_object,
    prompt_turns,
    short_hash,
)

OWN_FIELDS = ("model", "messages", "stream", "n")
"""Fields of a request that `chat_extra` may not change."""
INSTEAD = {"max_tokens": "max_completion_tokens", "top_p": None, "seed": None, "temperature": None}
"""What is sent in place of a field that a model refuses, if anything; one after the other."""
MOST_BYTES = 4 * 2**20
"""Of a server's answer, unpacked."""
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 8.0, 60.0
"""Seconds before a retry: the first, the longest, and the longest that a server may ask for."""
MOST_IN_VAIN = 8
"""Requests in a row that got no answer, retries included, after which each is sent once."""
FAILURES = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError, ValueError)
"""What sending a request may end in."""
WHOLE = ("", "stop", "stop_sequence", "eos", "eos_token", "end_turn")
"""What servers call the end of a reply that its model has ended."""
FULL = ("length", "max_tokens", "model_length")
"""What they call one that has all the tokens it may have."""
TEXT_PARTS = ("text", "output_text")
"""The types of a message's parts that are the reply; others are thoughts, refusals, pictures."""
FILTERED = ("content_filter", "content_policy_violation")
"""What servers call the end of an answer that a filter of theirs took away, or the error in its
place."""
BUSY = (408, 409, 429)
"""The statuses of a server that may answer later."""
OF_QUESTION = (400, 413, 422)
"""The statuses of one that does not take this question, and may take others."""
PROBE_SECONDS = 10.0
"""How long an endpoint has to show that it is there, and then that it answers."""
TOLD_OF_MODEL = ("owned_by", "root", "parent", "max_model_len", "context_length", "quantization")
"""What is kept of a server's list of models."""
TOLD_OF_SERVER = {
    "version": ("version",),  # vLLM
    "get_server_info": ("version", "dllm_algorithm", "dllm_algorithm_config", "quantization"),
    "server_info": ("version", "dllm_algorithm", "dllm_algorithm_config", "quantization"),
    "props": ("build_info", "model_path"),  # llama.cpp
    "api/version": ("version",),  # Ollama
}
"""Where servers tell of themselves, beside /v1, and what is kept of it; the second and third are
SGLang's."""


@dataclass(frozen=True)
class Completion:
    """What a server has answered to one request."""

    text: str | None
    """None where the message has none, as where all went into thoughts."""
    refusal: str | None
    """What OpenAI's interface gives in place of a text."""
    end: str
    """What ended it, in the server's word and small letters."""
    sent: dict[str, Any]
    """The fields of the request, without those that the server has refused."""
    prompt_tokens: int | None
    """As the server counts, None where it does not."""
    completion_tokens: int | None
    """Thoughts included."""
    total_tokens: int
    """0 where the server does not count."""
    told: dict[str, str]
    """What the server says of who answered: model, system_fingerprint."""

    @property
    def is_cut(self) -> bool:
        """Whether something else than the model ended it."""
        return self.end not in WHOLE


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
    UserError for an invalid address, and for a key that may not be sent there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
        *,
        role: str | None = None,
        key_variable: str | None = None,
    ) -> None:
        """`key_variable` holds the key that is sent; without one, `role`, of `KEY_ROLES`, says
        whose it is."""
        self.address = address_of(base_url, role, key_variable)
        if not model:
            raise UserError("The endpoint's model has no name; write URL#MODEL.")
        self._model, self._options = model, options
        per_minute = options.requests_per_minute
        self._seconds_between = 60 / per_minute if per_minute else 0.0
        self._next_start = 0.0
        self._refused: frozenset[str] = frozenset()
        self._num_in_vain = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._limit = asyncio.Semaphore(options.num_concurrent)

    @property
    def name(self) -> str:
        """The model's name, with a hash of the options that change its replies, if any; without
        its address, so that records outlive a change of it."""
        label = self._options.label
        model = printable(self._model).replace("\n", "\\n")
        return f"{model} (endpoint{f', options {label}' if label else ''})"

    @property
    def place(self) -> str:
        """The host that runs it, for example "localhost:8000"."""
        return self.address.place

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The endpoint's answer; raises ChatError where none comes, retries included."""
        return self._reply(await self.ask(request.messages, self._fields(request)))

    async def ask(self, prompt: Prompt, fields: Mapping[str, Any]) -> Completion:
        """The endpoint's answer to a prompt, under the `fields` of a request; `chat_extra` wins,
        and what is None is not sent. Raises ChatError where none comes, retries included."""
        client, limit = self._of_this_loop()
        body = self._body(prompt, fields)
        async with limit:
            await self._wait_for_turn()
            refused = self._refused
            while True:
                sent = _without(body, refused)
                status, answer = await self._ask(client, sent)
                field = _refused_field(status, answer, sent)
                if field is None:
                    break
                refused |= {field}
        sent = {name: value for name, value in sent.items() if name not in ("model", "messages")}
        if status != 200:
            if _beside_message(answer, "code") in FILTERED:
                return Completion("", None, FILTERED[0], sent, None, None, 0, {})
            kind = ChatError if status in OF_QUESTION else ServerDownError
            raise kind(self._status_message(status, answer))
        found = self._completion(answer, sent)
        if refused > self._refused:
            self._refused = refused
            told = [f"{f} ({INSTEAD[f] or 'its own'} holds instead)" for f in sorted(refused)]
            warnings.warn(f"{self.name} refuses {', '.join(told)}", stacklevel=3)
        return found

    async def describe(self) -> dict[str, str]:
        """What the server tells of itself and of the model, by the server's own names; what it does
        not tell is not there."""
        root = re.sub(r"/v\d+$", "", self.address.url)
        listed, *told = await asyncio.gather(
            self._get(f"{self.address.url}/models"),
            *(self._get(f"{root}/{place}") for place in TOLD_OF_SERVER),
        )
        models = listed.get("data") if is_json_object(listed) else None
        found: dict[str, str] = {}
        for entry in models if is_json_list(models) else ():
            if is_json_object(entry) and entry.get("id") == self._model:
                found = _plain_facts(entry, TOLD_OF_MODEL)
        for names, content in zip(TOLD_OF_SERVER.values(), told, strict=True):
            if is_json_object(content):
                found = _plain_facts(content, names) | found
        return found

    async def _get(self, url: str) -> Any:
        """The JSON at an address; `_NOTHING` where none comes soon."""
        client, _ = self._of_this_loop()
        try:
            async with asyncio.timeout(min(PROBE_SECONDS, self._options.timeout_seconds)):
                status, _, content = await self._send(client, "GET", url, None)
        except (TimeoutError, ChatError, *FAILURES):
            return _NOTHING
        return _parsed(content) if status == 200 else _NOTHING

    async def probe(self, *, is_greeted: bool = False) -> None:
        """Raise UserError where nobody listens, or where key, model or address are wrong, and
        NoAnswerError where nothing comes of a question of one token for another reason.

        The list of models costs nothing. Not every server has one, and not every key may read it,
        so what it answers is no error; where the model `is_greeted` later, that the list can be
        read is enough. A server that is busy or slow, or does not take this question (some refuse
        a single token), may answer others.
        """
        client, _ = self._of_this_loop()
        seconds = min(PROBE_SECONDS, self._options.timeout_seconds)
        to_connect = httpx2.Timeout(None, connect=seconds / 2)
        url = f"{self.address.url}/models"
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream("GET", url, timeout=to_connect) as response,
            ):
                may_list = response.status_code not in (401, 403)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise UserError(
                f"{self.name} at {self.place} cannot be reached ({self._trouble(error)}); start it "
                "or correct its address."
            ) from None
        except (TimeoutError, *FAILURES):
            may_list = True  # whoever listens there is asked
        if not (is_greeted and may_list):
            await self._ask_for_a_token()

    async def _ask_for_a_token(self) -> None:
        client, limit = self._of_this_loop()
        body = self._body("Hello", {"max_tokens": 1})
        try:
            async with asyncio.timeout(PROBE_SECONDS), limit:
                await self._wait_for_turn()
                status, answer = await self._ask(client, body)
            if status in (*BUSY, *OF_QUESTION):
                return
            if 300 <= status < 500:
                raise UserError(self._status_message(status, answer))
            if status != 200:
                raise ServerDownError(self._status_message(status, answer))
            self._completion(answer, {})
        except (TimeoutError, _SilentError):
            return
        except ChatError as error:
            raise NoAnswerError(f"{str(error).rstrip('.')}; nothing was begun") from None

    def _of_this_loop(self) -> tuple[Any, asyncio.Semaphore]:
        """Client and limit of the running loop: neither outlives the loop that first used it."""
        loop = asyncio.get_running_loop()
        if self._client is None or loop is not self._loop:
            self._loop = loop
            self._limit = asyncio.Semaphore(self._options.num_concurrent)
            proxy = self.address.proxy
            self._client = httpx2.AsyncClient(
                headers={**self.address.headers, "Accept-Encoding": "gzip"},
                verify=self.address.certificates or True,
                proxy=None if proxy is None else proxy[1],
                trust_env=False,  # address.py has read it
                follow_redirects=False,
                timeout=None,  # of each read; `_ask` bounds the whole
            )
        return self._client, self._limit

    async def _wait_for_turn(self) -> None:
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + self._seconds_between
        await asyncio.sleep(start - time.monotonic())

    async def _ask(self, client: Any, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer to a request (`_NOTHING` where it is none), which is sent
        again where that may help: not where the last ones were all sent in vain, until one is
        answered."""
        retries = self._options.max_retries if self._num_in_vain < MOST_IN_VAIN else 0
        try:
            status, content = await self._tried(client, body, retries)
        except ServerDownError:
            self._num_in_vain += 1
            raise
        self._num_in_vain = self._num_in_vain + 1 if status >= 500 else 0
        return status, _parsed(content)

    async def _tried(self, client: Any, body: Mapping[str, Any], retries: int) -> tuple[int, bytes]:
        tries = f"(tried {retries + 1} times)"
        for number in range(retries + 1):
            is_last = number == retries
            wait = min(FIRST_WAIT * 2**number, LONGEST_WAIT)
            try:
                async with asyncio.timeout(self._options.timeout_seconds):
                    url = f"{self.address.url}/chat/completions"
                    status, headers, content = await self._send(client, "POST", url, body)
            # From None throughout: the causes hold headers and addresses that no log should show.
            except TimeoutError:
                if is_last:
                    seconds = self._options.timeout_seconds
                    raise _SilentError(
                        f"{self.name} did not answer within {seconds:g} seconds {tries}."
                    ) from None
            except FAILURES as error:
                if is_last:
                    raise ServerDownError(
                        f"{self.name} cannot be reached ({self._trouble(error)}) {tries}."
                    ) from None
            else:
                if is_last or not (status in BUSY or status >= 500):
                    return status, content
                wait = _retry_after(headers) or wait
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def _send(
        self, client: Any, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request once."""
        async with client.stream(method, url, json=body) as response:
            packing = response.headers.get("content-encoding", "identity").strip().lower()
            if packing not in ("identity", "", "gzip", "x-gzip", "deflate"):
                raise ChatError(f"{self.name} answered in a packing that was not asked for.")
            unpack = None if packing in ("identity", "") else zlib.decompressobj(wbits=47)
            content = bytearray()
            async for part in response.aiter_raw():
                room = MOST_BYTES + 1 - len(content)
                try:
                    content += part[:room] if unpack is None else unpack.decompress(part, room)
                except zlib.error:
                    raise ChatError(f"{self.name} answered with damaged gzip.") from None
                if len(content) > MOST_BYTES:
                    raise ChatError(
                        f"{self.name} answered with more than {MOST_BYTES // 2**20} MB."
                    )
            return response.status_code, response.headers, bytes(content)

    def _trouble(self, error: BaseException) -> str:
        """Why no answer came, in words without an address."""
        causes = list(_causes(error))

        def is_a(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if is_a(ssl.SSLCertVerificationError):
            return "its certificate is not trusted; see SSL_CERT_FILE"
        if is_a(ssl.SSLError):
            return "it speaks no TLS; an address with http:// may be meant"
        if self.address.proxy is not None:
            return f"through the proxy of {self.address.proxy[0]}"
        if is_a(ConnectionRefusedError):
            return "connection refused"
        if is_a(socket.gaierror):
            return "its host is not known"
        if is_a(httpx2.ProtocolError, httpx2.ReadError):
            return "it does not speak HTTP, or broke off; https:// may be meant"
        return type(error).__name__

    def _body(self, prompt: Prompt, fields: Mapping[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, "messages": prompt_turns(prompt), **fields}
        extra = dict(self._options.chat_extra or {})
        thinking = self._options.enable_thinking
        if thinking is not None:
            extra["chat_template_kwargs"] = {
                **extra.get("chat_template_kwargs", {}),
                "enable_thinking": thinking,
            }
        for name, value in extra.items():
            own = body.get(name)
            if is_json_object(value) and is_json_object(own):
                extra[name] = {**own, **value}
        return {name: value for name, value in {**body, **extra}.items() if value is not None}

    def _fields(self, request: ChatRequest) -> dict[str, Any]:
        return {
            "max_tokens": request.max_tokens + self._options.thought_tokens,
            "temperature": request.temperature,
            # Only where they matter: not every server knows these two.
            "seed": request.seed if request.temperature > 0 else None,
            "top_p": request.top_p if request.top_p < 1 else None,
        }

    def _status_message(self, status: int, answer: Any) -> str:
        if status in (401, 403):
            # Without the server's message: some repeat half of the key.
            variable = self.address.key_variable
            return f"{self.name} refused the key (status {status}); set {variable}."
        hint = ""
        if 300 <= status < 400:
            hint = "; it redirects to another address, name that one"
        if status == 404:
            hint = "; check the model's name and the address, which most often ends in /v1"
        said = _said(answer)
        return f"{self.name} answered with status {status}{f': {said}' if said else ''}{hint}."

    def _reply(self, found: Completion) -> ChatReply:
        if found.text is None and found.end not in FULL:
            why = "" if found.end in WHOLE else f" ({quoted(found.end)})"
            raise ChatError(f"{self.name} answered without a text{why}.")
        # Without a text, all went into thoughts.
        return ChatReply(found.text or "", found.total_tokens, found.is_cut)

    def _completion(self, answer: Any, sent: dict[str, Any]) -> Completion:
        if answer is _NOTHING:
            raise ChatError(
                f"{self.name} answered with something that is not JSON; check that the address is "
                "that of an OpenAI-compatible interface (most end in /v1)."
            )
        match answer:
            case {} if _error(answer):
                said = _said(answer) or "without a message"
                raise ChatError(f"{self.name} answered with an error: {said}.")
            case {"choices": [{"message": {} as message, **choice}, *_], **rest}:
                usage = rest.get("usage")
                end = _plain_facts(choice, ("finish_reason",)).get("finish_reason", "")
                return Completion(
                    _text(message.get("content")),
                    _text(message.get("refusal")),
                    end.lower(),
                    sent,
                    _num_tokens(usage, "prompt_tokens"),
                    _num_tokens(usage, "completion_tokens"),
                    _num_tokens(usage, "total_tokens") or 0,
                    _plain_facts(rest, ("model", "system_fingerprint")),
                )
            case {"choices": []}:
                raise ChatError(f"{self.name} answered with no choices.")
            case _:
                raise ChatError(f"{self.name} answered with JSON that is no chat completion.")


class _SilentError(ServerDownError):
    """A server that takes longer than it may."""


_NOTHING = object()
"""What is read from something that is no JSON."""


def _without(body: Mapping[str, Any], refused: Iterable[str]) -> dict[str, Any]:
    """A request without the fields that the model refuses, or with others instead."""
    names = {name: INSTEAD[name] if name in refused else name for name in body}
    return {new: body[name] for name, new in names.items() if new is not None}


def _refused_field(status: int, answer: Any, body: Mapping[str, Any]) -> str | None:
    """The field of a request that the server's error names, if we can do without it."""
    if status not in (400, 422):
        return None
    said = f"{_said(answer)} {_beside_message(answer, 'param')}"
    return next((f for f in INSTEAD if f in body and re.search(rf"\b{f}\b", said)), None)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, where they are reasonable."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds <= LONGEST_RETRY_AFTER else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error is not None:
        yield error
        # Where a host has several addresses.
        inside: Sequence[BaseException] = getattr(error, "exceptions", ())
        for inner in inside:
            yield from _causes(inner)
        error = error.__cause__ or error.__context__


def _parsed(content: bytes) -> Any:
    """The JSON of an answer, which is UTF-8 whatever its headers say."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _NOTHING


def _text(content: object) -> str | None:
    """The text of a message, or of its parts that are text, without our key."""
    if is_json_list(content):
        parts = [part for part in content if is_json_object(part)]
        texts = [part.get("text") for part in parts if part.get("type") in TEXT_PARTS]
        found = [text for text in texts if isinstance(text, str)]
        content = "".join(found) if found else None
    if not isinstance(content, str):
        return None
    # Half a character, as in a reply cut inside an emoji, is replaced by a mark.
    whole = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return without_keys(whole, least=LEAST_SECRET)


def _num_tokens(usage: object, name: str) -> int | None:
    """What a server counted; None where it is no number of tokens."""
    count = usage.get(name) if is_json_object(usage) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else None


def _plain_facts(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Those of the named values that are words, numbers or tables, each as one short line."""
    found: dict[str, str] = {}
    for name in names:
        value = content.get(name)
        if value is not None and value != "":
            told = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            line = " ".join(printable(without_keys(told, least=LEAST_SECRET)).split())
            found[name] = line[:MOST_QUOTED]
    return found


def _error(answer: object) -> Any:
    """The error that an answer holds, beside or in its first choice; false where there is none."""
    choices = answer.get("choices") if is_json_object(answer) else None
    first = choices[0] if is_json_list(choices) and choices else None
    for place in (answer, first):
        if is_json_object(place) and place.get("error"):
            return place["error"]
    has_failed = is_json_object(first) and first.get("finish_reason") == "error"
    return "its finish_reason is error" if has_failed else None


def _said(answer: Any) -> str:
    """A server's message about an error: one short line in quotes, without our key."""
    match {"error": error} if (error := _error(answer)) else answer:
        case {"error": {"message": str(message)}} | {"error": str(message)}:
            said = message
        case {"message": str(message)} | {"detail": str(message)}:
            said = message
        case {"detail": [*details]}:
            said = "; ".join(map(_detail, details))
        case _:
            said = ""
    return quoted(without_keys(said)) if said.strip() else ""


def _detail(detail: object) -> str:
    """One of FastAPI's complaints: a place in the request, and what is wrong with it."""
    if not is_json_object(detail):
        return str(detail)
    place = detail.get("loc")
    before = f"{'.'.join(map(str, place))}: " if is_json_list(place) else ""
    return f"{before}{detail.get('msg', '')}"


def _beside_message(answer: Any, name: str) -> str:
    """What OpenAI's errors say beside the message: a `code`, or in `param` the wrong field."""
    error = answer.get("error") if is_json_object(answer) else None
    said = error.get(name) if is_json_object(error) else None
    return said if isinstance(said, str) else ""
