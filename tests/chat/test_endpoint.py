"""EndpointChat against a server on loopback that answers well, late, wrongly or not at all."""

from __future__ import annotations

import asyncio
import time

import pytest
from chat.stub_endpoint import Answer, completion, stub_endpoint
from refusals import refuses

from mosa.chat import (
    ChatError,
    ChatOptions,
    ChatReply,
    ChatRequest,
    EndpointChat,
    chat_model,
    key_variables,
)
from mosa.types import Message

KEY = "sk-very-secret-0123456789"
AT_ONCE = {"retry-after": "0.01"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asked(text: str = "What is two and two?", **settings) -> ChatRequest:
    return ChatRequest((Message("user", text),), task="test", **settings)


def ask(chat: EndpointChat, request: ChatRequest | None = None) -> ChatReply:
    return asyncio.run(chat.complete(request or asked()))


def test_an_answer_and_what_was_sent():
    with stub_endpoint() as stub:
        reply = ask(EndpointChat(stub.url, "m"), asked(max_tokens=7))
    assert reply == ChatReply("four", num_tokens=9, is_cut=False)
    assert stub.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "m",
            "messages": [{"role": "user", "content": "What is two and two?"}],
            "max_tokens": 7,
            "temperature": 0.0,
        }
    ]
    assert stub.keys == [f"Bearer {KEY}"]


def test_a_seed_and_top_p_are_sent_where_they_matter():
    with stub_endpoint() as stub:
        ask(EndpointChat(stub.url, "m"), asked(temperature=0.7, seed=3, top_p=0.9))
    sent = stub.requests[0]
    assert (sent["temperature"], sent["seed"], sent["top_p"]) == (0.7, 3, 0.9)


def test_the_key_is_taken_from_the_environment_in_order(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    with stub_endpoint() as stub:
        ask(EndpointChat(stub.url, "m"))
        monkeypatch.setenv("MOSA_API_KEY", " ")
        ask(EndpointChat(stub.url, "m"))
        monkeypatch.delenv("OPENAI_API_KEY")
        ask(EndpointChat(stub.url, "m"))
    assert stub.keys == [f"Bearer {KEY}", "Bearer second", "Bearer none"]


def test_a_key_that_cannot_be_sent_is_not_quoted(monkeypatch):
    monkeypatch.setenv("MOSA_API_KEY", "geheim-ä")
    with stub_endpoint() as stub, refuses("MOSA_API_KEY") as caught:
        ask(EndpointChat(stub.url, "m"))
    assert "MOSA_API_KEY" in str(caught.value) and "geheim" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_retried(status):
    with stub_endpoint(Answer("{}", status, AT_ONCE), Answer()) as stub:
        assert ask(EndpointChat(stub.url, "m", ChatOptions(max_retries=2))).text == "four"
    assert len(stub.requests) == 2


def test_retry_after_is_obeyed():
    """The client's own first wait would be at most 0.5 seconds."""
    with stub_endpoint(Answer("{}", 429, {"retry-after": "0.6"}), Answer()) as stub:
        start = time.monotonic()
        ask(EndpointChat(stub.url, "m", ChatOptions(max_retries=1)))
    assert time.monotonic() - start >= 0.6
    assert len(stub.requests) == 2


def test_a_failure_without_retry_after_is_retried_later():
    """After 0.5 seconds less up to a quarter."""
    with stub_endpoint(Answer("{}", 500), Answer()) as stub:
        start = time.monotonic()
        ask(EndpointChat(stub.url, "m", ChatOptions(max_retries=1)))
    assert time.monotonic() - start >= 0.37
    assert len(stub.requests) == 2


def failing(chat: EndpointChat, *names: object) -> str:
    with refuses(chat.name, *names, error=ChatError) as caught:
        ask(chat)
    message = str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert KEY not in message and KEY not in repr(chat) and KEY not in chat.name
    return message


def test_always_500_is_a_chat_error():
    body = {"error": {"message": f"out of memory with {KEY}\nat line 3"}}
    with stub_endpoint(Answer(body, 500, AT_ONCE)) as stub:
        chat = EndpointChat(stub.url, "m", ChatOptions(max_retries=2))
        failing(chat, "500", "out of memory with [key] at line 3")
    assert len(stub.requests) == 3


def test_a_refused_key_is_not_repeated():
    """Some servers quote half of the key."""
    body = {"error": {"message": f"Incorrect API key provided: {KEY[:8]}***"}}
    with stub_endpoint(Answer(body, 401)) as stub:
        message = failing(EndpointChat(stub.url, "m"), "key")
    assert KEY[:8] not in message
    assert len(stub.requests) == 1


def test_a_wrong_request_is_not_retried():
    with stub_endpoint(Answer({"error": {"message": "no such model"}}, 404)) as stub:
        failing(EndpointChat(stub.url, "m"), "404", "no such model")
    assert len(stub.requests) == 1


def test_a_slow_server_times_out():
    with stub_endpoint(Answer(seconds=0.4)) as stub:
        options = ChatOptions(timeout_seconds=0.1, max_retries=0)
        failing(EndpointChat(stub.url, "m", options), "0.1 seconds")


def test_a_server_that_is_not_there():
    with stub_endpoint() as stub:
        gone = stub.url
    failing(EndpointChat(gone, "m", ChatOptions(max_retries=0)))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("<html>hello</html>", "JSON"),
        ("", "JSON"),
        ("[1, 2]", "completion"),
        ({"choices": []}, "choices"),
        (completion(None), "text"),
        ({"choices": [{"message": {"content": 4}}]}, "text"),
        ({"choices": "four"}, "completion"),
        ({"error": {"message": "model is loading"}}, "model is loading"),
    ],
)
def test_a_body_of_another_shape_is_a_chat_error(body, name):
    with stub_endpoint(Answer(body)) as stub:
        failing(EndpointChat(stub.url, "m"), name)


def test_a_page_instead_of_json_with_its_own_content_type():
    with stub_endpoint(Answer("<html></html>", headers={"content-type": "text/html"})) as stub:
        failing(EndpointChat(stub.url, "m"), "JSON")


def test_a_cut_answer_and_one_without_usage():
    cut = completion("and so o", finish="length")
    del cut["usage"]
    with stub_endpoint(Answer(cut)) as stub:
        assert ask(EndpointChat(stub.url, "m")) == ChatReply("and so o", 0, is_cut=True)


def test_no_more_requests_at_once_than_allowed():
    async def eight(chat: EndpointChat) -> None:
        await asyncio.gather(*(chat.complete(asked(str(i))) for i in range(8)))

    with stub_endpoint(Answer(seconds=0.03)) as stub:
        asyncio.run(eight(EndpointChat(stub.url, "m", ChatOptions(num_concurrent=3))))
    assert len(stub.requests) == 8
    assert stub.most_at_once == 3


def test_requests_per_minute_space_the_starts():
    """At 600 a minute the fourth request starts 0.3 s after the first."""

    async def four(chat: EndpointChat) -> None:
        await asyncio.gather(*(chat.complete(asked(str(i))) for i in range(4)))

    with stub_endpoint() as stub:
        start = time.monotonic()
        asyncio.run(four(EndpointChat(stub.url, "m", ChatOptions(requests_per_minute=600.0))))
    assert time.monotonic() - start >= 0.3


def test_one_chat_serves_several_event_loops():
    async def two(chat: EndpointChat) -> list[ChatReply]:
        return await asyncio.gather(*(chat.complete(asked(text)) for text in "ab"))

    with stub_endpoint(Answer(seconds=0.01)) as stub:
        chat = EndpointChat(stub.url, "m", ChatOptions(num_concurrent=1))
        for _ in range(3):
            assert [reply.text for reply in asyncio.run(two(chat))] == ["four", "four"]


def test_a_reply_cut_within_a_character_is_whole_text():
    with stub_endpoint(Answer(completion("step \ud83d", finish="length"))) as stub:
        request = ChatRequest((Message("user", "?"),), "test")
        reply = asyncio.run(EndpointChat(stub.url, "m").complete(request))
    assert reply.text == "step \ufffd" and reply.is_cut


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://api.example.com/v1", "api.example.com"),
        ("http://localhost:8000/v1", "localhost:8000"),
        ("http://[::1]:8000/v1", "[::1]:8000"),
    ],
)
def test_name_is_the_model_and_place_the_host(url, place):
    """Records outlive a change of the address."""
    chat = chat_model(f"{url}#m")
    assert (chat.name, chat.place) == ("m (endpoint)", place)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("gpt-4", "URL#MODEL"),
        ("http://localhost:8000/v1", "URL#MODEL"),
        ("http://localhost:8000/v1#", "URL#MODEL"),
        ("http://#m", "host"),
        ("http://localhost:99999/v1#m", "port"),
        ("http://[::1/v1#m", "brackets"),
        ("http://local host/v1#m", "address"),
        (f"http://me:{KEY}@localhost/v1#m", "MOSA_API_KEY"),
        (f"http://localhost/v1?key={KEY}#m", "MOSA_API_KEY"),
        (f"ftp://{KEY}#m", "URL#MODEL"),
        ("local:", "local:FOLDER_OR_HUB_ID"),
    ],
)
def test_what_is_no_chat_model_is_a_user_error(spec, name):
    with refuses(name) as caught:
        chat_model(spec)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_seconds": 0.0},
        {"num_concurrent": 0},
        {"max_retries": -1},
        {"requests_per_minute": 0.0},
    ],
)
def test_settings_out_of_range(settings):
    with refuses(*settings):
        EndpointChat("http://localhost/v1", "m", ChatOptions(**settings))


def test_a_key_of_a_role_is_for_that_role_alone(monkeypatch):
    monkeypatch.setenv("MOSA_API_KEY_ATTACKER", "attackers-key")
    assert key_variables("attacker") == ("MOSA_API_KEY_ATTACKER",)
    for role in ("loop_judge", "translator", "judge", None):
        assert "MOSA_API_KEY_ATTACKER" not in key_variables(role)


def test_options_that_change_replies_change_the_name_and_the_body():
    plain = EndpointChat("http://localhost/v1", "m")
    options = ChatOptions(
        enable_thinking=False, thought_tokens=100, chat_extra={"max_tokens": None, "top_k": 5}
    )
    chat = EndpointChat("http://localhost/v1", "m", options)
    assert plain.name == "m (endpoint)" != chat.name
    body = chat._body(ChatRequest((), task="t", max_tokens=7))
    assert "max_tokens" not in body
    assert body["extra_body"] == {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    only = EndpointChat("http://localhost/v1", "m", ChatOptions(thought_tokens=100))
    assert only._body(ChatRequest((), task="t", max_tokens=7))["max_tokens"] == 107
    with refuses("chat_extra", "model"):
        ChatOptions(chat_extra={"model": "x"})
