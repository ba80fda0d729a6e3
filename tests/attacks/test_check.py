"""`mosa attacks check`: shares of replies that are known beforehand."""

from __future__ import annotations

import asyncio

import pytest
from chat.stub_endpoint import Answer, after_hello, completion, stub_endpoint
from refusals import refuses

from mosa import cli
from mosa.attacks.base import ChatRole
from mosa.attacks.check import PromptCheck, check_prompts
from mosa.chat import CachedChat, ChatModel, ChatReply, ChatRequest
from mosa.cli.results import EXIT_NOTHING_DONE
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


def test_a_kept_reply_that_cannot_be_read_is_asked_for_again(tmp_path):
    cases = [Behavior(str(i), f"{kind}: {TEA}") for i, kind in enumerate(REPLIES)]
    for expected in (["0", "1", "2", "3"], ["2", "3"]):  # declined and cut
        writer = Writer()
        chats: dict[ChatRole, ChatModel] = {"attacker": CachedChat(writer, tmp_path)}
        asyncio.run(check_prompts(chats, cases, ["past_tense"]))
        assert writer.asked == expected


@pytest.mark.parametrize(
    ("role", "prompts"),
    [
        ("translator", {"translate"}),
        ("judge", {"judge/pair", "loop/on_topic", "avatar/closeness", "speak_easy/score"}),
    ],
)
def test_a_role_that_is_checked_alone_is_asked_all_its_prompts(role: ChatRole, prompts: set[str]):
    """The others say what the attacks can read, so that these go on."""

    class Rater(Writer):
        async def complete(self, request: ChatRequest) -> ChatReply:
            return ChatReply("rating: 3")

    cases = [Behavior("tea", TEA), Behavior("quoted", 'What does "brew" mean?')]
    checks = asyncio.run(check_prompts({role: Rater()}, cases))
    assert {check.prompt for check in checks} == prompts
    assert all(len(check.examples) == len(cases) for check in checks)


@pytest.mark.parametrize("status", [500, 200])
def test_a_model_without_a_readable_reply_is_told(capsys, status):
    declining = Answer(completion("I cannot help with that."), status)
    with stub_endpoint(rule=after_hello(declining)) as stub:
        argv = ["attacks", "check", "--attacks", "past_tense", "--limit", "1", "--max_retries", "0"]
        assert cli.main([*argv, "--attacker", f"{stub.url}#m"]) == EXIT_NOTHING_DONE
    assert "Nothing came of --attacker" in capsys.readouterr().out


def test_mistakes():
    with refuses("nonsense"):
        asyncio.run(check_prompts({"attacker": Writer()}, [], ["nonsense"]))
    with refuses("translator"):
        asyncio.run(check_prompts({"translator": Writer()}, [], ["past_tense"]))
