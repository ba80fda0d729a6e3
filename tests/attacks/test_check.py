"""`mosa attacks check`: shares of replies that are known beforehand."""

from __future__ import annotations

import asyncio

import pytest
from refusals import refuses

from mosa.attacks.check import PromptCheck, check_prompts
from mosa.chat import ChatReply, ChatRequest
from mosa.types import Behavior

TEA = "How is strong tea brewed?"
REPLIES = {
    "readable": ChatReply("Here is the question:\n\nHow was strong tea brewed?"),
    "off topic": ChatReply("How were shoes mended?"),
    "declined": ChatReply("I'm sorry, but I cannot help with that."),
    "cut": ChatReply("How was strong", is_cut=True),
}


class Writer:
    """Answers each request about a case with the reply of the case's name."""

    name = place = "writer"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request.fields["behavior"])
        return REPLIES[request.fields["request"].partition(": ")[0]]


def checked(*kinds: str) -> tuple[PromptCheck, Writer]:
    writer = Writer()
    cases = [Behavior(str(i), f"{kind}: {TEA}") for i, kind in enumerate(kinds)]
    (check,) = asyncio.run(check_prompts({"attacker": writer}, cases, ["past_tense"]))
    return check, writer


def test_shares_are_those_of_the_replies():
    """Of four replies two are read; of these one has a word of its request."""
    check, writer = checked(*REPLIES)
    assert (check.role, check.prompt) == ("attacker", "past_tense/reformulate")
    assert check.shares == {
        "readable": 0.5,
        "declined": 0.25,
        "cut": 0.25,
        "on topic": 0.5,
        "distinct": 1.0,
    }
    assert len(writer.asked) == len(REPLIES), "later askings get the same reply"
    by_trouble = {example.trouble: example.read for example in check.examples}
    assert len(by_trouble) == 3 and "How was strong tea brewed?" not in by_trouble


def test_the_same_text_twice_is_not_distinct():
    check, _ = checked("readable", "readable", "off topic")
    assert check.shares["distinct"] == pytest.approx(2 / 3)


def test_mistakes():
    with refuses("nonsense"):
        asyncio.run(check_prompts({"attacker": Writer()}, [], ["nonsense"]))
    with refuses("translator"):
        asyncio.run(check_prompts({"translator": Writer()}, [], ["past_tense"]))
