"""An OpenAI-compatible endpoint of many moods: what it does in place of a right answer."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from chat.stub_endpoint import Answer, completion

from mosa.chat.endpoint import MOST_BYTES

KEY = "sk-very-secret-0123456789"
"""What the endpoint is asked with; no file and no output may hold it."""
SECONDS = 0.6
"""How long an answer may take, for the commands that ask."""
AT_ONCE = {"retry-after": "0.01"}
MARKUP = f"\x1b[31m\x07[bold]<b>&amp;\u202e\ud83d\0{KEY}"
"""Control sequences, markup, half a character, and the key."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"

Rule = Callable[[dict[str, Any]], Answer]
Mood = Callable[[Answer], Answer]
"""Of the right answer, what is said instead."""


def status(number: int, headers: dict[str, str] | None = None) -> Mood:
    body = {"error": {"message": f"no {number} for {KEY} {MARKUP}", "code": number}}
    return lambda right: Answer(body, number, headers or {})


def body(of: Any) -> Mood:
    return lambda right: Answer(of)


def spoken(*parts: bytes, seconds: float = 0.0) -> Mood:
    """Says the parts, a while apart, and closes the connection."""

    def speak(connection: socket.socket) -> None:
        with suppress(OSError):  # the other side has gone
            for part in parts:
                connection.sendall(part)
                time.sleep(seconds)

    return lambda right: Answer(speak=speak)


def changed(text: str | None = None, **choice: Any) -> Mood:
    """The right answer with other fields of its choice, and with something before its text."""

    def change(right: Answer) -> Answer:
        found = json.loads(json.dumps(right.body))
        message = found["choices"][0]["message"]
        if text is not None:
            message["content"] = f"{text}{message['content']}"
        found["choices"][0] |= choice
        return Answer(found)

    return change


def odd_counts(right: Answer) -> Answer:
    counts = {"prompt_tokens": float("nan"), "completion_tokens": -5, "total_tokens": 1e400}
    return Answer({**right.body, "usage": counts})


def refused_field(right: Answer) -> Answer:
    """Whatever is sent."""
    error = {"message": "temperature is not supported", "param": "temperature"}
    return Answer({"error": error}, 400)


def half(right: Answer) -> Answer:
    text = json.dumps(right.body).encode()
    head = HEAD + b"content-length: %d\r\n\r\n" % len(text)
    return spoken(head + text[: len(text) // 2])(right)


NO_ANSWER: dict[str, Mood] = {
    "500": status(500, AT_ONCE),
    "503": status(503, AT_ONCE),
    "429 with Retry-After": status(429, AT_ONCE),
    "429 without Retry-After": status(429),
    "400 about a field": refused_field,
    "401": status(401),
    "404": status(404),
    "slow": lambda right: dataclasses.replace(right, seconds=3 * SECONDS),
    "closes": spoken(),
    "half a body": half,
    "not JSON": body(f"<html>{MARKUP}</html>".encode("utf-8", "replace")),
    "JSON of another shape": body({"choices": {"text": ["four"]}, "usage": [1]}),
    "no choices": body(completion() | {"choices": []}),
    "a huge body": lambda right: Answer(b" " * (MOST_BYTES + 10) + json.dumps(right.body).encode()),
    "headers that never end": spoken(HEAD, *[b"x-more: 1\r\n"] * 30, seconds=SECONDS / 10),
    "a body that drips": spoken(
        HEAD + b"content-length: 9999\r\n\r\n", *[b" "] * 30, seconds=SECONDS / 10
    ),
    "redirect": status(307, {"location": "http://127.0.0.1:9/v1/chat/completions"}),
}
"""Nothing that could count as an answer."""
NO_USE: dict[str, Mood] = {
    "null content": body(completion(None)),
    "content filter": body(completion("", finish="content_filter")),
    "cut off": lambda right: Answer(
        completion(right.body["choices"][0]["message"]["content"][:3], finish="length")
    ),
    "nonsense": body(completion("zig wum zig")),
}
"""Answers of a target; of a chat model they are of no use, and it is asked again."""
ODD: dict[str, Mood] = {
    "right": lambda right: right,
    "odd counts": odd_counts,
    "an odd end": changed(finish_reason=f"stop {MARKUP}", index=-1),
    "markup": changed(MARKUP),
}
"""Answers that may be of use."""
MOODS = NO_ANSWER | NO_USE | ODD


class Moody:
    """A rule that answers as another one, but for its moods: one, or drawn each time."""

    def __init__(self, rule: Rule, *moods: str, seed: int = 0, begins_well: bool = False) -> None:
        self.rule, self.moods = rule, moods
        self.draws = random.Random(seed)
        self.begins_well = begins_well
        self.given: list[tuple[str, dict[str, Any]]] = []
        """Each mood, and what it answered."""

    def __call__(self, body: dict[str, Any]) -> Answer:
        right = self.rule(body)
        if body["messages"][-1]["content"] == "Hello":
            return right if self.begins_well else MOODS[self.moods[0]](right)
        mood = self.draws.choice(self.moods)
        self.given.append((mood, body))
        return MOODS[mood](right)

    def answered(self, is_target: bool) -> set[str]:
        """What was answered for good; any text of a target is an answer."""
        return {
            json.dumps((body["model"], body["messages"], body.get("seed")))
            for mood, body in self.given
            if mood == "right" or (is_target and body["model"] == "tea" and mood in NO_USE)
        }
