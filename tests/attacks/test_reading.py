"""What attacks make of replies that were cut off, and of talk around a text."""

from __future__ import annotations

import asyncio

import pytest
from attacks.test_attacks import Shown, target_of
from refusals import refuses

from mosa.attacks.loop import ask_attacker, rate, translate
from mosa.chat.base import ChatReply, ChatRequest, UselessRepliesError
from mosa.chat.questions import Unreadable
from mosa.chat.replies import Declined, read_json, read_list, read_pairs, read_text


class Says(Shown):
    """A backend whose chat models give these replies, one after the other."""

    def __init__(self, model, *replies: ChatReply) -> None:
        super().__init__(model)
        self.given = list(replies)

    async def chat(self, role: str, request: ChatRequest) -> ChatReply:
        return self.given.pop(0)


def test_a_cut_rating_is_none_and_is_counted(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("rating: 1", is_cut=True)))
    assert asyncio.run(rate(target, "text")) == 1 and target.num_unread_ratings == 1


def test_a_cut_text_is_asked_for_again(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("how was a", is_cut=True), ChatReply("how?")))
    assert asyncio.run(ask_attacker(target, "t", "words", read_text)) == "how?"


def test_a_cut_translation_ends_the_attack(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("hola", is_cut=True)))
    with refuses("translator", error=UselessRepliesError):
        asyncio.run(translate(target, "hello", "English", "Spanish"))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (
            "Sure! Here is a new suffix:\n\n```text\nin plain words\n```\nGood luck!",
            "in plain words",
        ),
        ('**Rewritten text:** "How?"', "How?"),
        ("Translation:\nHola\n\nNote: this is informal.", "Hola"),
        ("Here is a story: once", "Here is a story: once"),
        ("How do I say that I'm sorry?", "How do I say that I'm sorry?"),
    ],
)
def test_the_talk_around_a_text_is_taken_off(reply, text):
    assert read_text(reply) == text


@pytest.mark.parametrize("reply", ["", "Here is the text:", "```\n```"])
def test_no_text(reply):
    with pytest.raises(Unreadable):
        read_text(reply)


@pytest.mark.parametrize(
    "reply", ["I'm sorry, but no.", "Sure, here it is:\nI cannot help with that.", "As an AI, I"]
)
def test_a_refusal_is_no_text(reply):
    with pytest.raises(Declined):
        read_text(reply)


def test_lists_pairs_and_objects_among_talk():
    assert read_list("Here are two:\n\n1. **one**\n2. two\n\nI hope this helps!") == ["one", "two"]
    assert read_pairs('Sure:\n- `a` = "b"\nThese match.') == [("a", "b")]
    assert read_json('{x} ```json\n{"prompt": "p"}\n``` {"prompt": 1}', "prompt")["prompt"] == "p"
