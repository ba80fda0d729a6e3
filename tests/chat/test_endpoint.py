"""EndpointChat against a server on loopback that answers well, late, wrongly or not at all."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import socket
import ssl
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from chat.stub_endpoint import Answer, completion, raw_endpoint, stub_endpoint
from refusals import refuses

from mosa.chat import (
    ChatError,
    ChatOptions,
    ChatReply,
    ChatRequest,
    EndpointChat,
    NoAnswerError,
    chat_model,
    check_endpoints,
    key_variables,
)
from mosa.chat import endpoint as endpoint_module
from mosa.chat.address import address_of
from mosa.chat.base import without_quotations
from mosa.chat.endpoint import MOST_IN_VAIN
from mosa.types import Message, UserError

KEY = "sk-very-secret-0123456789"
AT_ONCE = {"retry-after": "0.01"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    for variable in ("OPENAI_API_KEY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


def asked(text: str = "What is two and two?", **settings) -> ChatRequest:
    return ChatRequest((Message("user", text),), task="test", **settings)


def ask(chat: EndpointChat, request: ChatRequest | None = None) -> ChatReply:
    return asyncio.run(chat.complete(request or asked()))


def test_a_name_with_control_characters_is_sent_as_it_is_and_shown_in_letters():
    with stub_endpoint() as stub:
        chat = EndpointChat(stub.url, "m\x1b[31m\u202e\nn")
        ask(chat)
    assert stub.requests[0]["model"] == "m\x1b[31m\u202e\nn"
    assert chat.name == "m\\x1b[31m\\u202e\\nn (endpoint)"


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


def test_without_a_key_a_word_is_sent_that_local_servers_accept(monkeypatch):
    with stub_endpoint() as stub:
        ask(EndpointChat(stub.url, "m"))
        monkeypatch.setenv("MOSA_API_KEY", " ")
        ask(EndpointChat(stub.url, "m"))
    assert stub.keys == [f"Bearer {KEY}", "Bearer none"]


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
        (completion([]), "text"),
        (completion([{"type": "image_url"}]), "text"),
        ({"choices": [{"message": {"content": 4}}]}, "text"),
        ({"choices": "four"}, "completion"),
        ({"error": {"message": "model is loading"}}, "model is loading"),
        ({"error": {"message": "overloaded"}, **completion("score: 5")}, "overloaded"),
        ({"error": "overloaded", **completion("score: 5")}, "overloaded"),
        ({"choices": [{"error": "cut", **completion("4")["choices"][0]}]}, "cut"),
        ({"error": None, "choices": [{"error": {"message": "timed out"}}]}, "timed out"),
        (completion("how was a", finish="error"), "finish_reason"),
        (completion(None, finish="content_filter"), "content_filter"),
    ],
)
def test_a_body_of_another_shape_is_a_chat_error(body, name):
    with stub_endpoint(Answer(body)) as stub:
        failing(EndpointChat(stub.url, "m"), name)


def test_a_page_instead_of_json_with_its_own_content_type():
    with stub_endpoint(Answer("<html></html>", headers={"content-type": "text/html"})) as stub:
        failing(EndpointChat(stub.url, "m"), "JSON")


@pytest.mark.parametrize(
    "charset", ["utf-16", "hex", "zlib", "rot13", "undefined", "idna", "latin-1"]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_reply_is_utf_8_whatever_its_headers_say(charset, mark):
    body = mark + json.dumps(completion("vier: größer"), ensure_ascii=False).encode()
    headers = {"content-type": f"application/json; charset={charset}"}
    with stub_endpoint(Answer(body, headers=headers)) as stub:
        assert ask(EndpointChat(stub.url, "m")).text == "vier: größer"


@pytest.mark.parametrize(
    "body", [b"\xff\xfe{}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\0", b"null", b"7"]
)
def test_what_is_no_readable_json_is_a_chat_error(body):
    with stub_endpoint(Answer(body)) as stub:
        failing(EndpointChat(stub.url, "m"), "JSON")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    """Another host would be told the prompt, and its answer would count."""
    with stub_endpoint() as other:
        headers = {"location": f"{other.url}/chat/completions"}
        with stub_endpoint(Answer("", status, headers)) as stub:
            message = failing(EndpointChat(stub.url, "m"), status)
    assert other.requests == [] and other.num_probes == 0 and other.url not in message
    assert len(stub.requests) == 1


def drip(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    with suppress(OSError):
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_a_reply_that_drips_has_no_more_time_than_any(head):
    """Two tries of 0.3 s and the wait of 0.5 s between them."""
    with raw_endpoint(lambda connection: drip(connection, head)) as url:
        start = time.monotonic()
        options = ChatOptions(timeout_seconds=0.3, max_retries=1)
        failing(EndpointChat(url, "m", options), "0.3 seconds")
        assert time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 20000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\n\r\n[]",
        b"\x15\x03\x01\x00\x02\x02\x50",
    ],
)
def test_what_is_no_http_is_a_chat_error(said):
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(OSError):
            connection.sendall(said)

    with raw_endpoint(speak) as url:
        failing(EndpointChat(url, "m", ChatOptions(max_retries=0)))


@pytest.mark.parametrize("wbits", [15, 31])
def test_an_answer_that_unpacks_without_end_is_not_read(wbits):
    """200 MB of one letter are 200 kB on the wire."""
    pack = zlib.compressobj(1, wbits=wbits)
    body = pack.compress(b'{"choices": [{"message": {"content": "')
    body += b"".join(pack.compress(b"x" * 1_000_000) for _ in range(200)) + pack.flush()
    headers = {"content-encoding": {15: "deflate", 31: "gzip"}[wbits]}
    with stub_endpoint(Answer(body, headers=headers)) as stub:
        tracemalloc.start()
        failing(EndpointChat(stub.url, "m", ChatOptions(max_retries=0)), "4 MB")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 50_000_000


def test_an_answer_without_end_is_not_read():
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
            while True:
                connection.sendall(b"0," * 50_000)

    with raw_endpoint(speak) as url:
        failing(EndpointChat(url, "m", ChatOptions(max_retries=0)), "4 MB")


def test_packed_answers_are_read():
    body = gzip.compress(json.dumps(completion("four")).encode())
    with stub_endpoint(Answer(body, headers={"content-encoding": "gzip"})) as stub:
        assert ask(EndpointChat(stub.url, "m")).text == "four"
    for packing in ("br", "gzip, gzip", "hex"):
        with stub_endpoint(Answer(body, headers={"content-encoding": packing})) as stub:
            failing(EndpointChat(stub.url, "m"))
    with stub_endpoint(Answer(b"not packed", headers={"content-encoding": "gzip"})) as stub:
        failing(EndpointChat(stub.url, "m"), "gzip")


@pytest.mark.parametrize(
    "count", [-1, -100_000, True, 10**12, 10**32, 1.5, "9", None, [9], math.inf, math.nan]
)
def test_a_count_that_is_none_is_not_told(count):
    with stub_endpoint(Answer(completion("four", total_tokens=count))) as stub:
        reply = ask(EndpointChat(stub.url, "m"))
    assert reply.num_tokens == 0 and type(reply.num_tokens) is int


def test_the_texts_of_a_message_in_parts_are_joined():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "score: "},
        {"type": "text", "text": "4"},
    ]
    with stub_endpoint(Answer(completion(parts))) as stub:
        assert ask(EndpointChat(stub.url, "m")).text == "score: 4"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": "extra field seed is not permitted"}, "extra field seed is not permitted"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too large"}]}, "body.n: too large"),
        ({"error": "model is loading"}, "model is loading"),
        ({"object": "error", "message": "no room"}, "no room"),
        ({"error": {"message": "held ”b“ \x1b[31m c"}}, "held"),
    ],
)
def test_what_a_server_says_of_its_error_is_shown_in_quotes(body, said):
    with stub_endpoint(Answer(body, 418)) as stub:
        message = failing(EndpointChat(stub.url, "m"), 418, said)
    assert message.isprintable() and message.count("“") == message.count("”") == 1
    assert said not in without_quotations(message, "[redacted]")


def test_a_wrong_path_is_hinted_at():
    with stub_endpoint(Answer({"detail": "Not Found"}, 404)) as stub:
        failing(EndpointChat(f"{stub.url}/chat/completions", "m"), 404, "/v1")


REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
}


@pytest.mark.parametrize("refused", [("max_tokens",), ("temperature",), tuple(REFUSALS)])
def test_fields_that_a_model_refuses_are_left_out_from_then_on(refused):
    def rule(body: dict) -> Answer:
        wrong = next((name for name in refused if name in body), None)
        if wrong is None:
            return Answer()
        return Answer({"error": {"message": REFUSALS[wrong], "param": wrong}}, 400)

    with stub_endpoint(rule=rule) as stub:
        chat = EndpointChat(stub.url, "m")
        with pytest.warns(UserWarning, match=refused[0]):
            ask(chat, asked(max_tokens=7))
        assert len(stub.requests) == len(refused) + 1
        ask(chat, asked(max_tokens=7))
    assert len(stub.requests) == len(refused) + 2
    last = stub.requests[-1]
    assert not set(refused) & set(last)
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 7


def test_a_field_that_cannot_be_done_without_is_no_reason_to_ask_for_ever():
    body = {"error": {"message": "max_tokens and temperature are too large, seed and top_p too"}}
    with stub_endpoint(Answer(body, 400)) as stub:
        failing(EndpointChat(stub.url, "m"), 400, "max_tokens")
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    "said", ["1e9", "-5", "nan", "inf", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "1e400"]
)
def test_an_unreasonable_retry_after_is_not_obeyed(said):
    with stub_endpoint(Answer("{}", 429, {"retry-after": said}), Answer()) as stub:
        start = time.monotonic()
        ask(EndpointChat(stub.url, "m", ChatOptions(max_retries=1)))
    assert time.monotonic() - start < 3.0 and len(stub.requests) == 2


# ------------------------------------------------------------------- keys, ways, certificates


OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        (OPENAI, "OPENAI_API_KEY"),
        ("HTTPS://API.OpenAI.com:443/v1/", "OPENAI_API_KEY"),
        ("https://api.openai.com:8443/v1", "MOSA_API_KEY"),
        ("https://api.openai.com.example.org/v1", "MOSA_API_KEY"),
        ("https://notapi.openai.com/v1", "MOSA_API_KEY"),
        ("https://example.org/api.openai.com", "MOSA_API_KEY"),
        ("http://localhost:8000/v1", "MOSA_API_KEY"),
    ],
)
def test_openais_key_and_headers_go_to_openai_alone(monkeypatch, url, variable):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-demo")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-demo")
    address = address_of(url)
    key = {"OPENAI_API_KEY": "sk-openai", "MOSA_API_KEY": KEY}[variable]
    assert address.key_variable == variable
    assert address.headers["Authorization"] == f"Bearer {key}"
    assert ("OpenAI-Organization" in address.headers) == (variable == "OPENAI_API_KEY")
    assert KEY not in repr(address) and "sk-openai" not in repr(address)
    monkeypatch.delenv("MOSA_API_KEY")
    if variable == "MOSA_API_KEY":
        assert address_of(url).headers == {"Authorization": "Bearer none"}


def test_no_header_of_openai_reaches_another_host(monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(variable, "of-openai")
    monkeypatch.delenv("MOSA_API_KEY")
    with stub_endpoint() as stub:
        ask(EndpointChat(stub.url, "m"))
    assert "of-openai" not in str(stub.headers) and stub.keys == ["Bearer none"]


@pytest.mark.parametrize("host", ["example.org", "10.0.0.7:8000", "127.0.0.1.example.org", "127.1"])
@pytest.mark.parametrize("role", [None, "judge"])
def test_no_key_goes_to_another_machine_in_the_open(monkeypatch, host, role):
    variable = "MOSA_API_KEY_JUDGE" if role else "MOSA_API_KEY"
    monkeypatch.setenv(variable, KEY)
    with refuses(variable, "https://") as caught:
        chat_model(f"HTTP://{host}/v1#m", role=role)
    assert KEY not in str(caught.value)
    monkeypatch.delenv("MOSA_API_KEY", raising=False)
    monkeypatch.delenv(variable, raising=False)
    chat_model(f"http://{host}/v1#m", role=role)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0"])
def test_this_machine_may_have_a_key_over_http(host):
    assert address_of(f"http://{host}:8000/v1").has_key


def test_one_key_goes_to_one_host(monkeypatch):
    """An attacker on a rented server would get the key of the judge."""
    asked = []

    async def probe(chat: EndpointChat, *, is_greeted: bool = False) -> None:
        asked.append(chat.place)

    monkeypatch.setattr(EndpointChat, "probe", probe)

    def check(*specs: tuple[str, str]) -> None:
        asked.clear()
        asyncio.run(check_endpoints([chat_model(f"{u}#m", role=role) for role, u in specs]))

    here, there = "http://127.0.0.1:8000/v1", "https://example.org/v1"
    for other in (here, "https://rented.example.com/v1"):
        with refuses("MOSA_API_KEY", "example.org"):
            check(("attacker", other), ("judge", there))
    assert asked == []
    check(("attacker", here), ("judge", "http://localhost:8001/v1"), ("loop_judge", here))
    assert asked == ["127.0.0.1:8000", "localhost:8001"], "each is asked once"
    monkeypatch.setenv("MOSA_API_KEY_JUDGE", "none")
    check(("attacker", here), ("judge", there))
    monkeypatch.setenv("MOSA_API_KEY_JUDGE", "of-the-judge")
    check(("attacker", here), ("judge", there))
    assert asked == ["127.0.0.1:8000", "example.org"]


def test_a_socks_proxy_needs_its_package(monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with refuses("ALL_PROXY", "socksio"):
        chat_model("http://127.0.0.1:8000/v1#m")
    for wrong in ("gopher://h:1", "http://h:99999", "://"):
        monkeypatch.setenv("ALL_PROXY", wrong)
        with refuses("ALL_PROXY"):
            chat_model("http://127.0.0.1:8000/v1#m")


def test_a_proxy_that_answers_nothing_is_named(monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    chat = chat_model("http://127.0.0.1:8000/v1#m", ChatOptions(max_retries=0))
    assert isinstance(chat, EndpointChat)
    failing(chat, "HTTP_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://10.0.0.7:3128")
    with refuses("MOSA_API_KEY", "HTTP_PROXY", "NO_PROXY"):
        chat_model("http://127.0.0.1:8000/v1#m")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there(monkeypatch, tmp_path, variable):
    missing = tmp_path / "missing.pem"
    monkeypatch.setenv(variable, str(missing))
    with refuses(variable, "missing.pem"):
        chat_model("http://127.0.0.1:8000/v1#m")


def test_certificates_that_are_none(monkeypatch, tmp_path):
    (tmp_path / "letter.pem").write_text("Dear certificate,")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "letter.pem"))
    with refuses("SSL_CERT_FILE", "letter.pem"):
        chat_model("http://127.0.0.1:8000/v1#m")


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        (ssl.SSLCertVerificationError(), "SSL_CERT_FILE"),
        (socket.gaierror(), "host"),
        (ExceptionGroup("two addresses", [OSError(), ConnectionRefusedError()]), "refused"),
        (httpx2.RemoteProtocolError("no HTTP"), "https://"),
    ],
)
def test_a_cause_is_told_however_deep_it_is(monkeypatch, cause, word):
    async def send(*args: object) -> None:
        try:
            try:
                raise cause
            except Exception as inner:
                raise OSError("10.0.0.7 said no") from inner
        except OSError as error:
            raise httpx2.ConnectError("10.0.0.7 said no") from error

    chat = EndpointChat("http://localhost/v1", "m", ChatOptions(max_retries=0))
    monkeypatch.setattr(chat, "_send", send)
    assert "10.0.0.7" not in failing(chat, word)


def test_causes_are_told_in_words():
    options = ChatOptions(max_retries=0)
    with stub_endpoint() as stub:
        over_tls = EndpointChat(stub.url.replace("http://", "https://"), "m", options)
        failing(over_tls, "TLS")
        gone = stub.url
    failing(EndpointChat(gone, "m", options), "connection refused")


# ------------------------------------------------------------------------------------- the probe


def probed(url: str, **options) -> None:
    asyncio.run(check_endpoints([chat_model(f"{url}#m", ChatOptions(**options))]))


@pytest.mark.parametrize("status", [200, 307, 400, 404, 405, 429, 500, 501])
def test_an_endpoint_that_is_there_is_enough(status):
    with stub_endpoint() as stub:
        stub.probe_status = status
        probed(stub.url)
    (question,) = stub.requests
    assert stub.num_probes == 1 and question["max_tokens"] == 1


def test_each_model_is_asked_once_and_one_that_is_greeted_later_is_not():
    with stub_endpoint() as stub:
        chats = [chat_model(f"{stub.url}#{name}") for name in ("a", "b", "a")]
        asyncio.run(check_endpoints(chats, [EndpointChat(stub.url, "served")]))
        assert sorted(request["model"] for request in stub.requests) == ["a", "b"]
        stub.probe_status = 403  # the key may be of no use
        asyncio.run(check_endpoints([], [EndpointChat(stub.url, "served")]))
        assert stub.requests[-1]["model"] == "served"


def test_an_endpoint_that_is_not_there_ends_the_command():
    with stub_endpoint() as stub:
        gone = stub.url
    with refuses("m", "connection refused", gone.removeprefix("http://").removesuffix("/v1")):
        probed(gone)


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (401, ["MOSA_API_KEY", 401]),
        (403, ["MOSA_API_KEY", 403]),
        (404, ["404", "name", "no such model"]),
        (307, ["307", "redirects"]),
    ],
)
def test_a_wrong_key_name_or_address_ends_the_command(status, names):
    """Although the models are listed."""
    error = {"error": {"message": "no such model"}}
    with stub_endpoint(Answer(error, status)) as stub:
        stub.probe_status = 200
        with refuses("m", *names) as caught:
            probed(stub.url)
    assert type(caught.value) is UserError and len(stub.requests) == 1


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (Answer({"error": {"message": "out of memory"}}, 500, AT_ONCE), ["500", "out of memory"]),
        (Answer("<html>"), ["JSON"]),
        (Answer({"error": {"message": "no route"}}), ["no route"]),
        (Answer(speak=lambda connection: connection.close()), ["m"]),
    ],
)
def test_an_endpoint_that_answers_no_question_ends_the_command(answer, names):
    with stub_endpoint(answer) as stub:
        stub.probe_status = 200
        with refuses(*names, error=NoAnswerError):
            probed(stub.url, max_retries=1)
    assert NoAnswerError.exit_status == 3 and len(stub.requests) <= 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer({}, 429, AT_ONCE),
        Answer({"error": {"message": "max_tokens must be at least 16"}}, 400),
        Answer({}, 500, {"retry-after": "30"}),
        Answer(seconds=2.0),
        Answer({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
    ],
)
def test_who_is_busy_or_slow_or_takes_no_single_token_may_answer_others(monkeypatch, answer):
    monkeypatch.setattr(endpoint_module, "PROBE_SECONDS", 1.0)
    with stub_endpoint(answer) as stub:
        probed(stub.url, max_retries=1)
        if answer.seconds:  # where an answer has less time than that
            probed(stub.url, max_retries=0, timeout_seconds=0.5)
    assert stub.requests


def test_kept_replies_need_no_endpoint(tmp_path):
    with stub_endpoint() as stub:
        chat = chat_model(f"{stub.url}#m", ChatOptions(reply_cache=tmp_path))
        asyncio.run(chat.complete(asked()))
        gone = stub.url
    probed(gone, reply_cache=tmp_path)
    with refuses("m"):
        probed(gone, reply_cache=tmp_path / "empty")
    with refuses("other"):  # whose replies are not kept
        other = chat_model(f"{gone}#other", ChatOptions(reply_cache=tmp_path))
        asyncio.run(check_endpoints([other]))


def test_kept_replies_send_no_key_to_a_second_host(tmp_path):
    options = ChatOptions(reply_cache=tmp_path)
    with stub_endpoint() as stub:
        chat = chat_model(f"{stub.url}#m", options)
        asyncio.run(chat.complete(asked()))
    specs = ("https://a.invalid/v1#m", "https://b.invalid/v1#m")
    with refuses("MOSA_API_KEY", "a.invalid", "b.invalid"):
        asyncio.run(check_endpoints([chat_model(spec, options) for spec in specs]))


def test_a_cut_answer_and_one_without_usage():
    cut = completion("and so o", finish="length")
    del cut["usage"]
    with stub_endpoint(Answer(cut)) as stub:
        assert ask(EndpointChat(stub.url, "m")) == ChatReply("and so o", 0, is_cut=True)


def reply_in(body: dict) -> ChatReply:
    chat = EndpointChat("http://localhost/v1", "m")
    return chat._reply(chat._completion(body, {}))


@pytest.mark.parametrize("end", ["stop", "STOP", "eos", "eos_token", "", None])
def test_a_reply_that_its_model_ended_is_whole(end):
    body = {"error": None, **completion("score: 5", finish=end)}
    assert reply_in(body).is_cut is False


def test_a_reply_without_a_reason_is_whole():
    body = completion("score: 5")
    del body["choices"][0]["finish_reason"]
    assert reply_in(body).is_cut is False


@pytest.mark.parametrize(
    "end",
    ["length", "model_length", "max_tokens", "content_filter", "abort", "tool_calls", 3, {"a": 1}],
)
def test_a_reply_that_something_else_ended_is_cut(end):
    assert reply_in(completion("score: 5", finish=end)).is_cut


@pytest.mark.parametrize("kind", ["reasoning", "thinking", "refusal", "input_text", None, ["text"]])
def test_parts_that_are_no_text_are_not_read(kind):
    other = {"type": kind, "text": "score: 5"}
    said = [other, {"type": "output_text", "text": "score: 2"}]
    assert reply_in(completion(said)).text == "score: 2"
    with refuses("text", error=ChatError):
        reply_in(completion([other]))


def test_a_key_that_is_said_back_is_not_kept():
    with stub_endpoint(Answer(completion(f"Your key is {KEY}."))) as stub:
        assert ask(EndpointChat(stub.url, "m")).text == "Your key is [key]."


def test_a_key_that_is_said_back_as_the_end_is_not_kept():
    with stub_endpoint(Answer(completion("4", finish=f"stop\x1b[31m {KEY}"))) as stub:
        chat = EndpointChat(stub.url, "m")
        found = asyncio.run(chat.ask((Message("user", "?"),), {}))
    assert found.end == "stop\\x1b[31m [key]" and found.is_cut


@pytest.mark.parametrize("key", ["e", "m", "server", "none", "EMPTY"])
def test_a_short_key_hides_no_part_of_a_word(monkeypatch, key):
    monkeypatch.setenv("MOSA_API_KEY", key)
    said = {"error": {"message": "these servers have none, empty them"}}
    with stub_endpoint(Answer(said, 418), Answer(completion("server e"))) as stub:
        failing(EndpointChat(stub.url, "m"), "these servers have none, empty them")
        assert ask(EndpointChat(stub.url, "m")).text == "server e"


def test_a_short_key_is_hidden_as_a_word(monkeypatch):
    monkeypatch.setenv("MOSA_API_KEY", "sk1")
    with stub_endpoint(Answer({"error": "no key 'sk1'"}, 418)) as stub:
        failing(EndpointChat(stub.url, "m"), "no key '[key]'")


@pytest.mark.parametrize("word", ["none", "NONE", "EMPTY", "empty"])
def test_a_word_for_no_key_may_go_in_the_open(monkeypatch, word):
    monkeypatch.setenv("MOSA_API_KEY_JUDGE", word)
    assert not address_of("http://node12:8000/v1", "judge").has_key


def test_a_server_in_the_open_is_told_how_to_be_asked_without_a_key():
    with refuses("MOSA_API_KEY", "node12:8000", "MOSA_API_KEY_JUDGE=none", "https://"):
        address_of("http://node12:8000/v1", "judge")


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
        (f"ftp://{KEY}#m", "http://"),
        ("file:///x#m", "https://"),
        ("ftp://user:pw@h/v1#m", "http://"),
        ("http://api.openai.com\\@h/v1#m", "MOSA_API_KEY"),
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
    body = chat._body((), chat._fields(ChatRequest((), task="t", max_tokens=7)))
    assert "max_tokens" not in body and body["top_k"] == 5
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    only = EndpointChat("http://localhost/v1", "m", ChatOptions(thought_tokens=100))
    assert only._fields(ChatRequest((), task="t", max_tokens=7))["max_tokens"] == 107
    with refuses("chat_extra", "model"):
        ChatOptions(chat_extra={"model": "x"})


def test_a_server_that_stays_down_is_not_asked_again_and_again(monkeypatch):
    """After some requests in vain each is sent once, until one is answered."""
    monkeypatch.setattr("mosa.chat.endpoint.FIRST_WAIT", 0.001)
    is_down = [True]

    def rule(body: dict[str, Any]) -> Answer:
        return Answer({"error": "down"}, status=503) if is_down[0] else Answer()

    with stub_endpoint(rule=rule) as stub:
        chat = EndpointChat(stub.url, "tea", ChatOptions(max_retries=2))

        async def count_of(count: int) -> int:
            """How often the server is asked for so many requests, one after the other."""
            before = len(stub.requests)
            for _ in range(count):
                with suppress(ChatError):
                    await chat.complete(asked())
            return len(stub.requests) - before

        async def outage() -> list[int]:
            counts = [await count_of(MOST_IN_VAIN), await count_of(5)]
            is_down[0] = False
            counts.append(await count_of(1))
            is_down[0] = True
            return [*counts, await count_of(1)]

        assert asyncio.run(outage()) == [3 * MOST_IN_VAIN, 5, 1, 3]
