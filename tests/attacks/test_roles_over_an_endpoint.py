"""Attacker, in-loop judge and translator behind an address: what is asked of them, what becomes of
an evaluation when they are slow, busy, down or no use, and what is asked again afterwards.

The stub plays all three (scripted_roles.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacks.scripted_roles import ROLES, said, well
from chat.stub_endpoint import Answer, Stub, completion, is_first_question, stub_endpoint
from refusals import refuses

from mosa import cli
from mosa.attacks.base import ChatRole
from mosa.chat import ChatModel, ChatOptions, EndpointChat
from mosa.chat.base import without_quotations
from mosa.responder import LocalResponder
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import subjects_of
from mosa.testbed.measure import DECODER as TESTBED_DECODER

KEY = "sk-very-secret-0123456789"
ATTACKS = ("tap", "speak_easy", "aos")
DECODER = dataclasses.replace(TESTBED_DECODER, max_new_tokens=48, steps=6)
"""Short and in few steps, since the answers need not be good."""
CONFIG = EvaluateConfig(
    subjects_of("testbed", decoder={"max_new_tokens": 48, "steps": 6}),
    ("testbed",),
    attacks=ATTACKS,
    preset="smoke",
    options=SetOptions(limit=1),
)
Rule = Callable[[dict[str, Any]], Answer]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# ------------------------------------------------------------------------------------- the rules


class Rules:
    """A rule that counts what attacks ask, so that it may answer otherwise in the beginning or from
    some time on."""

    def __init__(self, rule: Callable[[dict[str, Any], int], Answer]) -> None:
        self.rule = rule
        self.counts: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any]) -> Answer:
        if is_first_question(body):
            return well(body)
        number = self.counts[body["model"]]
        self.counts[body["model"]] += 1
        return self.rule(body, number)


# ------------------------------------------------------------------------------------- the runs


@dataclass
class Left:
    """What an evaluation left behind."""

    attempts: list[tuple[Any, ...]]
    """In an order that no timing decides."""
    status: dict[str, str]
    reasons: dict[str, str]
    asked: list[str]
    """What the server was asked, sorted."""
    stub: Stub


def evaluated(folder: Path, rule: Rule, **options: Any) -> Left:
    options = {"max_retries": 2, **options}
    with stub_endpoint(rule=rule) as stub:
        chats: dict[ChatRole, ChatModel] = {
            role: EndpointChat(stub.url, name, ChatOptions(**options))
            for role, name in ROLES.items()
        }
        run = run_evaluation(folder, CONFIG, chats=chats)
        assert run is not None
        run.close()
    return outcome_of(folder, stub)


def outcome_of(folder: Path, stub: Stub) -> Left:
    with Run(folder) as store:
        attempts = [
            (a.attack, a.case, a.number, a.key, a.response, a.variant, a.details, a.budget)
            for a in store.attempts()
        ]
        tasks = store.tasks()
    for path in folder.iterdir():
        assert KEY.encode() not in path.read_bytes(), path
    return Left(
        sorted(attempts, key=lambda a: a[:3]),
        {task.attack: outcome.status for task, outcome in tasks if outcome is not None},
        {task.attack: o.reason for task, o in tasks if o is not None and o.reason},
        sorted(json.dumps(body, sort_keys=True) for body in asked_by_attacks(stub)),
        stub,
    )


def asked_by_attacks(stub: Stub) -> list[dict[str, Any]]:
    """What the server was asked but for the question of one token with which a run begins."""
    return [body for body in stub.requests if not is_first_question(body)]


@pytest.fixture(scope="module")
def smooth(tmp_path_factory) -> Iterator[Left]:
    """Everything goes well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("MOSA_API_KEY", KEY)
        yield evaluated(tmp_path_factory.mktemp("smooth"), well)


def one_sentence(reason: str) -> bool:
    reason = without_quotations(reason, "...")
    return "\n" not in reason and reason.rstrip(".").count(". ") == 0 and len(reason) > 10


# ------------------------------------------------------------------------------------- all is well


def test_every_role_is_asked_and_paid_for(smooth):
    assert smooth.status == dict.fromkeys(ATTACKS, "done")
    assert set(smooth.stub.keys) == {f"Bearer {KEY}"}
    budgets = {attempt[0]: attempt[-1] for attempt in smooth.attempts}
    calls = Counter(body["model"] for body in asked_by_attacks(smooth.stub))
    written = 1 + budgets["tap"].attacker_calls + budgets["aos"].attacker_calls
    assert calls["writer"] == written
    # These two are asked once where two answers came to the same text; budgets count both.
    assert 5 < calls["speaker"] <= budgets["speak_easy"].attacker_calls - 1 == 10
    assert 2 + 4 < calls["rater"] <= sum(b.judge_calls for b in budgets.values())
    assert len(set(smooth.asked)) == len(smooth.asked), "nothing is asked twice"
    assert budgets["tap"].chat_tokens == 9 * (
        budgets["tap"].attacker_calls + budgets["tap"].judge_calls
    )
    # What the attacks say of the model's answers came back from the model.
    responses = {attempt[0]: attempt[4] for attempt in smooth.attempts}
    assert responses["speak_easy"].count("\n") == 4
    assert "step one : you" in responses["speak_easy"], "and not in the second language"


def test_settings_of_the_questions_arrive(smooth):
    """Drawn where draws are meant, with a seed each; at temperature 0 where one answer is."""
    asked = asked_by_attacks(smooth.stub)
    drawn = [b for b in asked if b["temperature"] > 0]
    tap = [b for b in drawn if b["max_tokens"] == 500]
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in tap} == {(1.0, 0.9, 500)}
    aos = [b for b in drawn if b["max_tokens"] == 256]
    assert {(b["temperature"], b["top_p"]) for b in aos} == {(1.2, 0.9)}
    assert {b["model"] for b in drawn} == {"writer"}
    # 2 + 4 prompts, and further askings where one repeats another.
    assert 2 + 4 <= len({b["seed"] for b in tap}) == len(tap) <= 2 * (2 + 4)
    assert not any("seed" in b for b in asked if b["temperature"] == 0)


def test_on_the_command_line_and_once_more(tmp_path, capsys):
    """The same through the options; the second time nothing is asked and nothing generated."""
    with stub_endpoint(rule=well) as stub:
        argv = [
            *("evaluate", "--model", "testbed", "--sets", "testbed", "--limit", "2"),
            *("--attacks", ",".join(ATTACKS), "--preset", "smoke", "--out", str(tmp_path)),
            *("--steps", str(DECODER.steps), "--max_new_tokens", str(DECODER.max_new_tokens)),
            *("--attacker", f"{stub.url}#writer", "--loop_judge", f"{stub.url}#rater"),
            *("--translator", f"{stub.url}#speaker"),
        ]
        assert cli.main(argv) == 0
        first = outcome_of(tmp_path, stub)
        assert cli.main(argv) == 0
        assert outcome_of(tmp_path, stub).asked == first.asked
    shown = capsys.readouterr()
    assert all(name in shown.out for name in ATTACKS) and KEY not in shown.out + shown.err
    with Run(tmp_path) as store:
        assert [o.status for _, o in store.tasks() if o is not None] == ["done"] * 6
        used = store.sessions()[0]["chat_models"]
    assert {role: chat["name"] for role, chat in used.items()} == {
        role: f"{name} (endpoint)" for role, name in ROLES.items()
    }


# ------------------------------------------------------------------------------ trouble that passes


def slowly(body: dict[str, Any], number: int) -> Answer:
    """In another order than it was asked."""
    return Answer(completion(said(body)), seconds=0.05 if number % 2 else 0.01)


def failing_at_first(body: dict[str, Any], number: int) -> Answer:
    return Answer("{}", 500, {"retry-after": "0.01"}) if number < 2 else well(body)


def limiting(body: dict[str, Any], number: int) -> Answer:
    return Answer("{}", 429, {"retry-after": "0.05"}) if number % 5 == 0 else well(body)


@pytest.mark.parametrize("trouble", [slowly, failing_at_first, limiting])
def test_trouble_that_passes_leaves_no_trace(tmp_path, smooth, trouble):
    found = evaluated(tmp_path, Rules(trouble), max_retries=4, num_concurrent=3)
    assert found.attempts == smooth.attempts and found.status == smooth.status
    assert set(found.asked) == set(smooth.asked)
    assert found.stub.most_at_once <= 3 * len(ROLES)


# ------------------------------------------------------------------------------- trouble that stays


def down(*models: str, after: int = 0) -> Rules:
    """Some of the models fail from some request on, and quote the key while they do."""

    def rule(body: dict[str, Any], number: int) -> Answer:
        if body["model"] in models and number >= after:
            body = {"error": {"message": f"no model for {KEY}"}}
            return Answer(body, 500, {"retry-after": "0.01"})
        return well(body)

    return Rules(rule)


@pytest.mark.parametrize(
    ("role", "after", "failed"),
    [
        ("attacker", 9, {"tap", "aos"}),
        ("judge", 0, set(ATTACKS)),
        ("judge", 5, set()),  # whichever came too late
        ("translator", 5, {"speak_easy"}),
    ],
)
def test_a_role_that_is_down_fails_what_needs_it_and_is_asked_only_for_the_rest(
    tmp_path, smooth, role, after, failed
):
    model = ROLES[role]
    first = evaluated(tmp_path, down(model, after=after), max_retries=1)
    found = {attack for attack, status in first.status.items() if status == "failed"}
    assert found == failed or (found and not failed)
    for attack, reason in first.reasons.items():
        assert reason == f"{model} (endpoint) answered with status 500: “no model for [key]”."
        assert one_sentence(reason) and attack in found
    # What is done is what it would have been; attempts of a failed task are not shown.
    assert [a for a in smooth.attempts if a[0] not in found] == first.attempts

    second = evaluated(tmp_path, well)
    assert second.attempts == smooth.attempts and second.reasons == {}
    # Asked again is what got no answer, and nothing that did.
    answered = Counter(first.asked) + Counter(second.asked)
    unanswered = {text for text, count in Counter(first.asked).items() if count > 1}
    assert all(count == 1 or text in unanswered for text, count in answered.items())
    assert set(first.asked) | set(second.asked) == set(smooth.asked)
    third = evaluated(tmp_path, well)
    assert third.asked == [] and third.attempts == smooth.attempts


def test_an_endpoint_that_never_answers_in_time(tmp_path, smooth):
    def rule(body: dict[str, Any]) -> Answer:
        answer = well(body)
        return dataclasses.replace(answer, seconds=0.6) if body["model"] == "speaker" else answer

    first = evaluated(tmp_path, rule, timeout_seconds=0.25, max_retries=0)
    assert first.reasons == {
        "speak_easy": "speaker (endpoint) did not answer within 0.25 seconds (tried 1 times)."
    }
    assert evaluated(tmp_path, well).attempts == smooth.attempts


def test_an_address_that_is_gone(tmp_path, smooth):
    gone = "http://127.0.0.1:9/v1"
    chats: dict[ChatRole, ChatModel] = {
        role: EndpointChat(gone, name, ChatOptions(max_retries=0)) for role, name in ROLES.items()
    }
    with refuses("127.0.0.1:9", "connection refused"):
        run_evaluation(tmp_path, CONFIG, chats=chats)
    # Records go by the name of a model, so that it may answer from another address.
    assert evaluated(tmp_path, well).attempts == smooth.attempts


# ------------------------------------------------------------------------- answers that are no use


def cut(body: dict[str, Any]) -> Answer:
    """The first half of each answer, as where `max_tokens` is too few."""
    text = said(body)
    return Answer(completion(text[: len(text) // 2], finish="length"))


def refusing(body: dict[str, Any]) -> Answer:
    return Answer(completion(DECLINES))


def nonsense(body: dict[str, Any]) -> Answer:
    return Answer(completion("zig wum zig"))


DECLINES = "I cannot help with that."
NO_PROMPT = "the attacker wrote no prompt that can be read and is on topic"
NO_QUESTIONS = "the attacker wrote no 5 questions in 3 tries"
NO_RATING = "no rating of the in-loop judge can be read"
NO_SUFFIX = "the attacker wrote no suffix in 2 rounds"


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        # Of a suffix the first tokens are used, so that its end does not matter.
        (cut, {"tap": NO_PROMPT, "speak_easy": NO_QUESTIONS, "aos": NO_RATING}),
        (refusing, {"tap": NO_PROMPT, "speak_easy": NO_QUESTIONS, "aos": NO_SUFFIX}),
        (nonsense, {"tap": NO_PROMPT, "speak_easy": NO_QUESTIONS, "aos": NO_RATING}),
    ],
)
def test_answers_that_are_no_use_are_told_in_a_sentence(tmp_path, rule, reasons):
    found = evaluated(tmp_path, rule)
    assert without_what_came(found.reasons) == reasons
    assert all(map(one_sentence, found.reasons.values()))
    kind = {cut: "cut off", refusing: "declined", nonsense: "unreadable"}[rule]
    for reason in found.reasons.values():  # of each role one kind, and how it began
        told = re.findall(
            r"replies of the (?:attacker|in-loop judge): (\d+) ([\w ]+), the first", reason
        )
        assert told and all(int(number) and why == kind for number, why in told), reason
    if rule is refusing:
        # Three askings, each of which the attacker declines.
        (said,) = {found.reasons["speak_easy"].removeprefix(NO_QUESTIONS)}
        assert said == " (replies of the attacker: 3 declined, the first “I cannot help with that”)"
        assert DECLINES[:-1] not in without_quotations(said, "[redacted]")
    assert {a for a, status in found.status.items() if status == "failed"} == set(reasons)
    # Each was asked a bounded number of times: 2 prompts 5 times, questions and 8 suffixes 3 times.
    asked = Counter(body["model"] for body in asked_by_attacks(found.stub))
    assert asked["writer"] <= 2 * 5 + 3 + 8 * 3 and asked["speaker"] == 0


def without_what_came(reasons: dict[str, str]) -> dict[str, str]:
    """Reasons as the attacks give them."""
    return {attack: reason.partition(" (replies")[0] for attack, reason in reasons.items()}


def only(model: str, rule: Rule) -> Rule:
    return lambda body: rule(body) if body["model"] == model else well(body)


@pytest.mark.parametrize("rule", [refusing, nonsense])
def test_a_judge_of_no_use_is_told_of(tmp_path, smooth, rule):
    """Its ratings would steer nothing; once it is mended, its ratings are asked for anew."""
    first = evaluated(tmp_path, only("rater", rule))
    assert without_what_came(first.reasons) == dict.fromkeys(ATTACKS, NO_RATING)
    assert all("attacker" not in reason for reason in first.reasons.values())
    second = evaluated(tmp_path, well)
    assert second.attempts == smooth.attempts and second.reasons == {}


def test_a_translator_that_refuses_leaves_the_requests_own_language(tmp_path, smooth):
    found = evaluated(tmp_path, only("speaker", refusing))
    assert found.status == smooth.status
    (details,) = [attempt[6] for attempt in found.attempts if attempt[0] == "speak_easy"]
    assert set(details["languages"]) == {"first language"}
    others = [
        [attempt for attempt in run.attempts if attempt[0] != "speak_easy"]
        for run in (found, smooth)
    ]
    assert others[0] == others[1]


def test_a_refusal_of_the_translator_is_no_prompt(tmp_path):
    evaluated(tmp_path, only("speaker", refusing))
    with Run(tmp_path) as store:
        (attempt,) = [a for a in store.attempts() if a.attack == "speak_easy"]
        sent = [response.prompt[0]["content"] for response in store.responses_of(attempt.key)]
    assert "I cannot help with that." not in sent


def test_a_model_that_has_been_mended_is_asked_again(tmp_path, smooth):
    """As where a reasoning model's thoughts took all the tokens, until they were switched off."""
    evaluated(tmp_path, cut)
    second = evaluated(tmp_path, well)
    assert second.status == smooth.status


# --------------------------------------------------------------------------------------- cut off


def test_a_run_that_was_cut_off_asks_for_the_rest_alone(tmp_path, smooth, monkeypatch):
    """The process dies in the middle; replies that had come are not paid for twice."""
    submit = LocalResponder.submit
    done = 0

    async def dying(self, prepared, *, on_step=None):
        nonlocal done
        done += 1
        if done == 4:
            raise ZeroDivisionError("the power goes")
        return await submit(self, prepared, on_step=on_step)

    monkeypatch.setattr(LocalResponder, "submit", dying)
    with stub_endpoint(rule=well) as stub:
        chats: dict[ChatRole, ChatModel] = {
            role: EndpointChat(stub.url, name) for role, name in ROLES.items()
        }
        with pytest.raises(ZeroDivisionError):
            run_evaluation(tmp_path, CONFIG, chats=chats)
    first = {json.dumps(body, sort_keys=True) for body in stub.requests}
    assert first
    monkeypatch.setattr(LocalResponder, "submit", submit)
    second = evaluated(tmp_path, well)
    assert second.attempts == smooth.attempts and second.status == smooth.status
    assert set(second.asked) <= set(smooth.asked)
    assert set(second.asked) == set(smooth.asked) - first
