"""A chat server as a subject: what it answers, and what it was asked."""

from __future__ import annotations

from typing import Any

from chat.stub_endpoint import Answer, Stub, completion

AT_ONCE = {"retry-after": "0.01"}


def usage(text: str, *, finish: str = "stop", prompt: int = 7, completed: int = 5) -> dict:
    body = completion(text, finish=finish)
    total = prompt + completed
    counts = {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": total}
    return body | {"usage": counts, "model": "tea-1", "system_fingerprint": "fp1"}


def echo(body: dict[str, Any]) -> Answer:
    """Says the last words that it was told."""
    return Answer(usage(body["messages"][-1]["content"]))


def asked(stub: Stub) -> list[str]:
    """The last turns that the server got, without the greeting."""
    turns = [request["messages"][-1]["content"] for request in stub.requests]
    return [turn for turn in turns if turn != "Hello"]
