"""A small OpenAI-compatible server on loopback whose answers a test writes down beforehand."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any = "four", *, finish: Any = "stop", total_tokens: int = 9) -> dict:
    """A chat completion as the interface describes it."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"choices": [choice], "usage": {"total_tokens": total_tokens}}


@dataclass
class Answer:
    """One answer of the server."""

    body: Any = field(default_factory=completion)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    speak: Callable[[socket.socket], object] | None = None
    """What is done with the connection instead of answering; it is closed afterwards."""


def is_first_question(body: dict[str, Any]) -> bool:
    """Whether a request is the one that shows whether an endpoint answers, before the work."""
    return body["messages"][-1]["content"] == "Hello"


def after_hello(answer: Answer) -> Callable[[dict[str, Any]], Answer]:
    """The rule of a model that answers the first question, and all others with `answer`."""
    return lambda body: Answer() if is_first_question(body) else answer


@dataclass
class Stub:
    """The server's answers, and what it saw. The last answer is given again and again; with a
    `rule` each follows from what is asked."""

    answers: list[Answer]
    rule: Callable[[dict[str, Any]], Answer] | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    probe_status: int = 404
    """What the list of models, which the server lacks, is answered with."""
    pages: dict[str, Any] = field(default_factory=dict)
    """What other paths answer to GET, as JSON."""
    num_probes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Of the latest request."""
    num_at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class QuietServer(ThreadingHTTPServer):
    """A client that gave up waiting is no news."""

    request_queue_size = 64  # of the five that are usual a sixth has to knock again, a second later

    def handle_error(self, request, client_address) -> None:
        return


@contextmanager
def stub_endpoint(
    *answers: Answer, rule: Callable[[dict[str, Any]], Answer] | None = None
) -> Iterator[Stub]:
    """A running server; its address is `url`."""
    stub = Stub(list(answers) or [Answer()], rule)

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # header and body are sent apart

        def do_GET(self) -> None:
            stub.num_probes += self.path == "/v1/models"
            page = stub.pages.get(self.path)
            text = b"" if page is None else json.dumps(page).encode()
            self.send_response(stub.probe_status if page is None else 200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with stub.lock:
                stub.requests.append({"path": self.path, **body})
                stub.keys.append(self.headers["authorization"])
                stub.headers = dict(self.headers)
                stub.num_at_once += 1
                stub.most_at_once = max(stub.most_at_once, stub.num_at_once)
                if stub.rule is not None:
                    answer = stub.rule(body)
                else:
                    answer = stub.answers.pop(0) if len(stub.answers) > 1 else stub.answers[0]
            time.sleep(answer.seconds)
            with stub.lock:
                stub.num_at_once -= 1
            if answer.speak is not None:
                answer.speak(self.connection)
                self.close_connection = True
                return
            text = answer.body
            if not isinstance(text, bytes):
                text = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = QuietServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    with serving(server):
        yield stub


@contextmanager
def raw_endpoint(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that says anything at all to each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            speak(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request, client_address) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
