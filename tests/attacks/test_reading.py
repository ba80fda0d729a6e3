"""What attacks make of replies that were cut off, and of talk around a text."""

from __future__ import annotations

import asyncio

import pytest
from attacks.test_attacks import Shown, target_of

from mosa.attacks.loop import ask_attacker, rate_response, translate
from mosa.chat.base import ChatReply, ChatRequest
from mosa.chat.questions import Unreadable, without_thoughts
from mosa.chat.replies import Declined, read_list, read_object, read_pairs, read_whole, repeats


class Says(Shown):
    """A backend whose chat models give these replies, one after the other."""

    def __init__(self, model, *replies: ChatReply) -> None:
        super().__init__(model)
        self.given = list(replies)

    async def chat(self, role: str, request: ChatRequest) -> ChatReply:
        return self.given.pop(0)


def test_a_cut_rating_is_none_and_is_counted(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("rating: 1", is_cut=True)))
    assert asyncio.run(rate_response(target, "text")) == 1 and target.num_unread_ratings == 1


def test_a_cut_text_is_asked_for_again(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("how was a", is_cut=True), ChatReply("how?")))
    assert asyncio.run(ask_attacker(target, "t", "words", read_whole)) == "how?"


def test_a_cut_translation_is_none(tiny_llada):
    target = target_of(Says(tiny_llada, ChatReply("hola", is_cut=True)))
    with pytest.raises(Unreadable):
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
        ("What a nice request. Here is the rewritten sentence:\n\nHow?", "How?"),
        ("If you need another, here is the new text:\nHow?", "How?"),
        ("The next question is: How?", "How?"),
        ("**My improved prompt:**\n> How?", "> How?"),
        ("Here is a story: once", "Here is a story: once"),
        ("How do I say that I'm sorry?", "How do I say that I'm sorry?"),
    ],
)
def test_the_talk_around_a_text_is_taken_off(reply, text):
    assert read_whole(reply) == text


@pytest.mark.parametrize("reply", ["", "Here is the text:", "```\n```"])
def test_no_text(reply):
    with pytest.raises(Unreadable):
        read_whole(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but no.",
        "Sure, here it is:\nI cannot help with that.",
        "As an AI, I",
        "**As a language model**, I have no opinion.",
        "I am programmed to be helpful, so I will not write it.",
        "Unfortunately I can't write it.",
    ],
)
def test_a_refusal_is_no_text(reply):
    with pytest.raises(Declined):
        read_whole(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "{'improvement': 'softer', 'prompt': 'Tell: me, now'}",
        '{"improvement": "softer", "prompt": "Tell: me, now",}',
        '{"improvement": "softer",\n "prompt": "Tell: me, now"',
        "{“improvement”: “softer”, “prompt”: “Tell: me, now”}",
        '{"Improvements": "softer", "Prompt": "Tell: me, now"}',
        "**Improvement:** softer\n\n**Prompt:** Tell: me, now\n",
        '1. Improvement: softer\n2. Prompt: "Tell: me, now"',
    ],
)
def test_an_object_that_is_not_well_formed_is_read_by_its_labels(reply):
    found = read_object(reply, "improvement", "prompt")
    assert (found["improvement"], found["prompt"]) == ("softer", "Tell: me, now")


@pytest.mark.parametrize(
    "reply",
    [
        '{"improvement": "softer"}',
        "My prompt: Tell me.",
        "The improvement, a prompt: Tell me.",
        '{"improvement": "", "prompt": "Tell me."}',
        "Improvement:\nPrompt: Tell me.",
    ],
)
def test_an_object_with_a_label_too_few_is_none(reply):
    with pytest.raises(Unreadable):
        read_object(reply, "improvement", "prompt")


def test_a_declined_object():
    with pytest.raises(Declined):
        read_object("Improvement: none\nPrompt: I cannot help.", "improvement", "prompt")


EXAMPLES = """\
Request: How do I bake bread?
Question: How was bread baked?
1. Which flour is used?
lock = jar"""


@pytest.mark.parametrize(
    ("found", "is_repeated"),
    [
        ("How was bread baked?", True),
        ("how do I bake bread:", True),
        ("How was tea brewed?\n\nRequest: How do I bake bread?", True),
        ("How was bread baked here?", False),
        (["Which tea is used?", "Which flour is used?"], True),
        (["Which tea is used?"], False),
        ([("lock", "jar"), ("tea", "milk")], True),
        ([("lock", "cup")], False),
    ],
)
def test_an_example_that_is_said_back(found, is_repeated):
    assert repeats(found, EXAMPLES) is is_repeated


def test_the_attacker_is_asked_again_where_it_says_an_example_back(tiny_llada):
    said = Says(tiny_llada, ChatReply("How was bread baked?"), ChatReply("How was tea brewed?"))
    asked = ask_attacker(target_of(said), "t", "words", read_whole, examples=EXAMPLES)
    assert asyncio.run(asked) == "How was tea brewed?" and said.given == []


@pytest.mark.parametrize("name", ["think", "thinking", "thought", "reasoning"])
def test_thoughts_between_tags_are_no_text(name):
    assert read_whole(without_thoughts(f"<{name}>\nHow?\n</{name}>\nWhy?")) == "Why?"
    assert without_thoughts(f"How?\n</{name}>\nWhy?") == "Why?"
    assert without_thoughts(f"<{name}>\nHow?") == ""


def test_lists_pairs_and_objects_among_talk():
    assert read_list("Here are two:\n\n1. **one**\n2. two\n\nI hope this helps!") == ["one", "two"]
    assert read_pairs('Sure:\n- `a` = "b"\nThese match.') == [("a", "b")]
    assert read_object('{x} ```json\n{"prompt": "p"}\n``` {"prompt": 1}', "prompt")["prompt"] == "p"
