"""Anything at all in place of an address, a reply, or a kept reply."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from chat.stub_endpoint import completion, raw_endpoint
from fuzz.surfaces import SLOW, many
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosa.chat import ChatError, ChatOptions, ChatReply, ChatRequest, EndpointChat
from mosa.chat.address import address_of
from mosa.chat.base import MOST_TOKENS
from mosa.chat.cache import _kept_reply
from mosa.chat.endpoint import _parsed, _refused_field
from mosa.chat.questions import Unreadable, read_numbers, without_thoughts
from mosa.terminal import printable
from mosa.types import Message, UserError

pytestmark = pytest.mark.slow

KEY = "sk-very-secret-0123456789"
MANY = settings(many, suppress_health_check=[HealthCheck.function_scoped_fixture, *SLOW])
REQUEST = ChatRequest((Message("user", "?"),), "test")

texts = st.text(max_size=20) | st.sampled_from(["stop", "length", "text", "score: 4", "\ud83d"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "usage", "total_tokens", "error"]
                + ["detail", "loc", "msg", "param", "type", "text", "num_tokens", "is_cut"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """A chat completion with something else at one of its places."""
    whole: dict[str, Any] = completion()
    places: list[tuple[Any, Any]] = [
        (whole, "choices"),
        (whole, "usage"),
        (whole["usage"], "total_tokens"),
        (whole["choices"], 0),
        *((whole["choices"][0], name) for name in ("message", "finish_reason", "index")),
        (whole["choices"][0]["message"], "content"),
    ]
    holder, name = draw(st.sampled_from(places))
    holder[name] = draw(values)
    return whole


def content_of(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    for variable in ("OPENAI_API_KEY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


@MANY
@given(st.binary(max_size=60) | (changed() | values).map(content_of))
def test_any_content_is_a_reply_or_a_chat_error(content):
    chat, answer = EndpointChat("http://localhost/v1", "m"), _parsed(content)
    with suppress(ChatError):
        reply = chat._reply(chat._completion(answer, {}))
        assert type(reply.num_tokens) is int and 0 <= reply.num_tokens <= MOST_TOKENS
        assert reply.text.encode() is not None and type(reply.is_cut) is bool
    message = chat._status_message(400, answer)
    assert printable(message) == message and len(message.splitlines()) == 1
    assert len(message) < 2200
    assert _refused_field(400, answer, {"max_tokens": 1}) in ("max_tokens", None)


@MANY
@given(values.map(json.dumps) | texts | values)
def test_any_entry_of_a_cache_is_a_reply_or_none(record):
    reply = _kept_reply(record)
    assert reply is None or (isinstance(reply, ChatReply) and reply.text.encode() is not None)


MARKS = ["<think>", "</think>", "[THINK]", "[/THINK]", "</reasoning>", "<|channel|>analysis"]
MARKS += ["<|channel|>final<|message|>", "analysis", "assistantfinal", "score: 4", "\n", "4.0"]


@MANY
@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=5), max_size=8).map("".join))
def test_no_mark_of_thoughts_is_left_in_any_reply(reply):
    said = without_thoughts(reply)
    assert without_thoughts(said) == said and "think>" not in said
    with suppress(Unreadable):
        assert 1 <= read_numbers(said, {"score": (1, 5)})["score"] <= 5


ADDRESS = ["http://", "https://", "api.openai.com", "localhost", "@", ":", "8000", "/v1", "\\", "."]
ADDRESS += ["#", "?", "[", "]", "::1", "%2e", "ａ", "user", KEY, "\t", "\x1b", ".example.org"]


@MANY
@given(st.lists(st.sampled_from(ADDRESS) | st.text(max_size=3), max_size=7).map("".join))
def test_any_address_is_one_or_a_user_error(url):
    try:
        address = address_of(url)
    except UserError as error:
        assert printable(str(error)) == str(error)
        assert KEY not in str(error) or KEY in url.partition("://")[2].partition("/")[0]
    else:
        assert address.url.startswith(("http://", "https://")) and address.place.isascii()
        with suppress(httpx2.InvalidURL):
            assert httpx2.URL(f"{address.url}/models").host == address.host, "as it is sent"
        assert KEY not in repr(address) or KEY in url


@MANY
@given(
    st.binary(max_size=80)
    | st.binary(max_size=40).map(b"HTTP/1.1 200 OK\r\n".__add__)
    | st.binary(max_size=40).map(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".__add__)
    | st.binary(max_size=40).map(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".__add__)
    | st.binary(max_size=40).map(b"HTTP/1.1 307 Go\r\nLocation: http://localhost:1/".__add__)
)
def test_any_answer_of_a_server_is_a_reply_or_a_chat_error(answer):
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with raw_endpoint(speak) as url, suppress(ChatError):
        options = ChatOptions(timeout_seconds=1.0, max_retries=0)
        asyncio.run(EndpointChat(url, "m", options).complete(REQUEST))
