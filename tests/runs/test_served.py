"""Subjects that are served elsewhere: what is asked of them, what is recorded, and what becomes of
an evaluation when their server is down, busy, in the way of one, or no use."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat.stub_endpoint import Answer, Stub, completion, stub_endpoint
from refusals import refuses
from run_stand_ins import PowerCutError
from served_models import AT_ONCE, OVER_CHAT, asked, attacked_over_chat, echo, usage

from mosa.attacks import ATTACKS
from mosa.chat import ChatOptions
from mosa.denoising import DecoderConfig
from mosa.responder import Prepared
from mosa.runs import evaluate as evaluate_module
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.recorder import SECONDS_TO_COMMIT
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import ALL_ACCESS, Subject, subject_from, subjects_of
from mosa.served import SENT, ServedResponder, ServerGone
from mosa.types import Response

KEY = "sk-very-secret-0123456789"
DECODER = {"max_new_tokens": 24}
QUICK = ChatOptions(max_retries=1)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def requests(tmp_path) -> Path:
    file = tmp_path / "requests.jsonl"
    rows = [{"id": str(i), "behavior": f"Write about tea, part {i}."} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(stub: Stub, requests: Path, **settings: Any) -> EvaluateConfig:
    (subject,) = subjects_of(f"{stub.url}#tea", decoder=DECODER, i_am_authorized=True)
    changes = {n: settings.pop(n) for n in ("grants", "request", "system_prompt") if n in settings}
    options = SetOptions(limit=settings.pop("limit", None))
    return EvaluateConfig(
        (dataclasses.replace(subject, **changes),),
        (str(requests),),
        **{"preset": "smoke", "options": options, **settings},
    )


def done(out: Path, config: EvaluateConfig, **settings: Any) -> Run:
    run = run_evaluation(out, config, endpoint_options=QUICK, **settings)
    assert run is not None
    return run


# ------------------------------------------------------------------------------ what is asked


def test_a_served_subject_is_asked_like_a_local_one(requests, tmp_path):
    """Its texts, what its server counted and told, and the settings that were sent, on record."""
    with stub_endpoint(rule=echo) as stub:
        stub.pages = {
            "/v1/models": {"data": [{"id": "other"}, {"id": "tea", "owned_by": "vllm"}]},
            "/version": {"version": "0.33.0"},
        }
        config = config_of(stub, requests, limit=2, seeds=(3,), system_prompt="Be kind.")
        with done(tmp_path / "run", config) as run:
            (subject,) = run.subjects().values()
            attempts = list(run.attempts())
            responses = [response for a in attempts for response in run.responses_of(a.key)]
            (outcome,) = {outcome for _, outcome in run.tasks()}
        assert (subject.name, subject.source) == ("tea", f"{stub.url}#tea")
        greeting, *asked = stub.requests
        # Both are asked at once, so that either can come first.
        first, _ = sorted(asked, key=lambda body: body["messages"][-1]["content"])
    assert subject.server == {
        "owned_by": "vllm",
        "version": "0.33.0",
        "model": "tea-1",
        "system_fingerprint": "fp1",
    }
    assert subject.decoder == {"max_new_tokens": 24, "temperature": 0.0, "seed": 0}
    assert subject.grants == ["prompt", "history"]
    assert greeting["max_tokens"] == 16
    assert first == {
        "path": "/v1/chat/completions",
        "model": "tea",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Write about tea, part 0."},
        ],
        "max_tokens": 24,
        "temperature": 0.0,
        "seed": 3,
    }
    assert [a.response for a in attempts] == [
        "Write about tea, part 0.",
        "Write about tea, part 1.",
    ]
    assert responses[0].decoder == {"max_new_tokens": 24, "temperature": 0.0, "seed": 3}
    served = responses[0].served
    assert served is not None and (served.prompt_tokens, served.completion_tokens) == (7, 5)
    assert served.finish_reason == "stop" and served.told["model"] == "tea-1"
    assert responses[0].num_read == 5 and not responses[0].tokens
    assert outcome is not None
    budget = outcome.budget
    assert (budget.target_queries, budget.prompt_tokens, budget.target_tokens) == (1, 7, 5)


def test_the_key_is_that_of_the_role_or_of_a_named_variable(requests, tmp_path, monkeypatch):
    monkeypatch.setenv("TEA_KEY", "sk-tea-0123456789")
    monkeypatch.setenv("MOSA_API_KEY_MODEL", "sk-model-0123456789")
    with stub_endpoint(Answer(usage("I was told sk-tea-0123456789."))) as stub:
        for number, name in enumerate(("tea", "tea@TEA_KEY")):
            subjects = subjects_of(f"{stub.url}#{name}", decoder=DECODER, i_am_authorized=True)
            config = dataclasses.replace(config_of(stub, requests, limit=1), subjects=subjects)
            with done(tmp_path / str(number), config) as run:
                ((attempt,), (subject,)) = list(run.attempts()), run.subjects().values()
            assert subject.source == f"{stub.url}#tea" and subject.name == "tea"
        assert stub.keys[0] == "Bearer sk-model-0123456789"
        assert stub.keys[-1] == "Bearer sk-tea-0123456789"
        assert attempt.response == "I was told [key]."
        monkeypatch.delenv("TEA_KEY")
        with refuses("TEA_KEY"):
            done(tmp_path / "none", config)


def test_thoughts_are_cut_from_what_is_judged_and_kept_in_full(requests, tmp_path):
    said = Answer(usage("<think>Tea?</think>Steep it.", finish="length"))
    with stub_endpoint(said) as stub, done(tmp_path / "r", config_of(stub, requests)) as run:
        attempt = next(iter(run.attempts()))
    assert (attempt.response, attempt.response_full) == (
        "Steep it.",
        "<think>Tea?</think>Steep it.",
    )


@pytest.mark.parametrize("status", [200, 400])
def test_what_a_filter_of_the_service_took_away_is_an_empty_answer(requests, tmp_path, status):
    """It is an outcome of the service under test, and no failure of the run."""
    taken = usage("", finish="content_filter")
    error = {"error": {"code": "content_filter", "message": "no"}}

    def rule(body: dict[str, Any]) -> Answer:
        if body["messages"][-1]["content"] == "Hello":
            return Answer(usage("Hello!"))
        return Answer(taken if status == 200 else error, status)

    with (
        stub_endpoint(rule=rule) as stub,
        done(tmp_path / "run", config_of(stub, requests, limit=1)) as run,
    ):
        (attempt,) = run.attempts()
        (response,) = run.responses_of(attempt.key)
    assert attempt.response == "" and response.served is not None
    assert response.served.finish_reason == "content_filter"


def test_a_refusal_in_a_field_of_its_own_is_the_answer(requests, tmp_path):
    body = usage("")
    body["choices"][0]["message"] = {"content": None, "refusal": "I cannot help with that."}
    with (
        stub_endpoint(Answer(body)) as stub,
        done(tmp_path / "run", config_of(stub, requests, limit=1)) as run,
    ):
        (attempt,) = run.attempts()
    assert attempt.response == "I cannot help with that."


def test_a_setting_that_the_server_refuses_is_not_on_record(requests, tmp_path):
    def rule(body: dict[str, Any]) -> Answer:
        if "seed" in body:
            return Answer({"error": {"message": "seed is not supported"}}, 400)
        return echo(body)

    with stub_endpoint(rule=rule) as stub, pytest.warns(UserWarning, match="seed"):
        run = done(tmp_path / "run", config_of(stub, requests, limit=1))
    with run:
        (attempt,) = run.attempts()
        (response,) = run.responses_of(attempt.key)
    assert response.decoder == {"max_new_tokens": 24, "temperature": 0.0}


def test_fields_of_the_subject_are_in_every_request(requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        config = config_of(
            stub, requests, limit=1, request={"max_denoising_steps": 8, "seed": None}
        )
        with done(tmp_path / "run", config) as run:
            (subject,) = run.subjects().values()
    assert all(r["max_denoising_steps"] == 8 and "seed" not in r for r in stub.requests)
    assert subject.request == {"max_denoising_steps": 8, "seed": None}


# ---------------------------------------------------------------------- what it does not grant


def test_attacks_that_need_more_are_not_applicable(requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        config = config_of(stub, requests, limit=1, attacks=("direct", "prefill", "gcg"))
        with done(tmp_path / "run", config) as run:
            left_out = {pair.attack: pair.reason for pair in run.not_applicable()}
            assert {task.attack for task, _ in run.tasks()} == {"direct"}
    assert "canvas" in left_out["prefill"] and "gradients" in left_out["gcg"]


def test_a_served_subject_to_which_nothing_is_applicable_is_not_asked(requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        config = config_of(stub, requests, limit=1, attacks=("prefill",))
        with done(tmp_path / "run", config) as run:
            assert [pair.attack for pair in run.not_applicable()] == ["prefill"]
    assert not stub.requests


def test_it_grants_what_an_attack_over_a_chat_needs():
    subject = Subject("s", "http://localhost/v1#m", i_am_authorized=True)
    applicable = {name for name, attack in ATTACKS.items() if not subject.missing_for(attack)}
    assert applicable == {
        name for name, attack in ATTACKS.items() if {*attack.access} <= {"prompt", "history"}
    }
    assert len(applicable) == 16


@pytest.mark.parametrize("name", OVER_CHAT)
def test_each_attack_over_a_chat_runs_to_its_end(name, tmp_path):
    """As in test_served_small_model.py, which has a real model behind the address."""
    with stub_endpoint(rule=echo) as stub:
        (subject,) = subjects_of(f"{stub.url}#tea", decoder=DECODER, i_am_authorized=True)
        attacked_over_chat(name, subject, tmp_path, QUICK)


def test_what_a_server_cannot_be_asked_is_refused():
    url = "http://localhost/v1#m"
    with refuses("m", "adapter"):
        Subject("m", url, adapter="runs/mosa")
    with refuses("m", "canvas"):
        Subject("m", url, grants=("prompt", "canvas"))
    with refuses("steps", *SENT):
        subjects_of(url, decoder={"steps": 64})
    with refuses("block_length", "request"):
        subject_from({"name": "m", "model": url, "decoder": {"block_length": 8}})
    with refuses("messages"):
        Subject("m", url, request={"messages": []})
    with refuses("plain", "request"):
        Subject("plain", "testbed", request={"a": 1})
    assert Subject("m", url, grants=("prompt",)).access == ("prompt",)
    assert Subject("plain", "testbed").access == ALL_ACCESS


def test_nothing_is_asked_before_the_user_says_that_it_is_theirs(requests):
    with stub_endpoint(rule=echo) as stub:
        subjects = subjects_of(f"{stub.url}#tea", decoder=DECODER)
        with refuses("i_am_authorized", f"{stub.url}#tea"):
            EvaluateConfig(subjects, (str(requests),))
    assert stub.requests == [] and stub.num_probes == 0


# ------------------------------------------------------------------------------ what goes wrong


@pytest.fixture
def nothing_loads(monkeypatch):
    """No weights may be loaded, and no judge be asked."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(evaluate_module, "load_model", refuse)
    monkeypatch.setattr(evaluate_module, "judge_run", refuse)


def beside_a_local_one(config: EvaluateConfig) -> EvaluateConfig:
    local = Subject("local", "testbed", decoder=DecoderConfig(max_new_tokens=8, steps=2))
    return dataclasses.replace(config, subjects=(local, *config.subjects))


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (Answer({"error": {"message": "out of memory"}}, 500, AT_ONCE), ["500", "out of memory"]),
        (Answer({"error": {"message": "no such model"}}, 404), ["404", "no such model"]),
        (Answer({"error": {"message": "slow down"}}, 429, AT_ONCE), ["429", "slow down"]),
        (Answer({}, 401), ["401", "MOSA_API_KEY"]),
        (Answer("<html>"), ["JSON"]),
    ],
)
def test_a_server_that_answers_nothing_ends_the_run_before_anything_is_loaded(
    requests, tmp_path, nothing_loads, answer, names
):
    with stub_endpoint(answer) as stub:
        config = beside_a_local_one(config_of(stub, requests, limit=1))
        with refuses(*names, error=ServerGone) as caught:
            done(tmp_path / "run", config)
    assert ServerGone.exit_status == 3 and KEY not in str(caught.value)


def test_a_server_that_is_not_there_ends_the_run_before_anything_is_loaded(
    requests, tmp_path, nothing_loads
):
    with stub_endpoint() as stub:
        config = beside_a_local_one(config_of(stub, requests, limit=1))
    with refuses("tea", "refused"):
        done(tmp_path / "run", config)


class Sometimes:
    """Answers as `rule` does but for some of the questions, counted from 0 at the greeting."""

    def __init__(self, rule: Callable[[dict[str, Any]], Answer], bad: Answer, at: range) -> None:
        self.rule, self.bad, self.at = rule, bad, at
        self.number = -1

    def __call__(self, body: dict[str, Any]) -> Answer:
        self.number += 1
        return self.bad if self.number in self.at else self.rule(body)


ONE = ChatOptions(max_retries=0, num_concurrent=1)


def test_answers_that_nobody_waits_for_any_more_are_no_error_of_ours(requests, tmp_path, caplog):
    """The third of six that fail one after the other ends the run."""

    def rule(body: dict[str, Any]) -> Answer:
        number = len(stub.requests) - 1
        return Answer({}, 500, seconds=0.1 * number) if number else echo(body)

    with stub_endpoint(rule=rule) as stub:
        options = ChatOptions(max_retries=0, num_concurrent=6)
        with refuses("tea", "500", error=ServerGone):
            run_evaluation(tmp_path / "run", config_of(stub, requests), endpoint_options=options)
    gc.collect()
    assert not caplog.records


def test_a_server_that_goes_away_ends_the_run_which_goes_on_later(requests, tmp_path):
    """What it answered is not asked again."""
    rule = Sometimes(echo, Answer({"error": "gone"}, 500, AT_ONCE), range(3, 99))
    with stub_endpoint(rule=rule) as stub:
        config = config_of(stub, requests)
        with refuses("tea", "500", "recorded", error=ServerGone):
            run_evaluation(tmp_path / "run", config, endpoint_options=ONE)
        before = asked(stub)
        assert len(before) == 2 + 3
        rule.at = range(0)
        with done(tmp_path / "run", config) as run:
            assert sum(counts["done"] for counts in run.counts().values()) == 6
        assert sorted({*asked(stub)}) == [f"Write about tea, part {i}." for i in range(6)]
        assert not {*before[:2]} & {*asked(stub)[5:]}


def test_a_run_that_was_cut_off_asks_only_for_what_is_missing(requests, tmp_path, monkeypatch):
    """The power goes after two answers are on record, in the middle of a third."""
    submit = ServedResponder.submit
    answered: list[str] = []

    async def cut(self: ServedResponder, prepared: Prepared, **how: Any) -> Response:
        if len(answered) == 2:
            await asyncio.sleep(2 * SECONDS_TO_COMMIT)
            raise PowerCutError
        response = await submit(self, prepared, **how)
        answered.append(response.text)
        return response

    with stub_endpoint(rule=echo) as stub:
        config = config_of(stub, requests)
        with monkeypatch.context() as patch, pytest.raises(PowerCutError):
            patch.setattr(ServedResponder, "submit", cut)
            run_evaluation(tmp_path / "run", config, endpoint_options=ONE)
        assert len(asked(stub)) == 2
        with done(tmp_path / "run", config) as run:
            assert {a.response for a in run.attempts()} >= {*answered}
        assert sorted(asked(stub)) == [f"Write about tea, part {i}." for i in range(6)]


def test_a_request_that_the_server_refuses_fails_alone(requests, tmp_path):
    def rule(body: dict[str, Any]) -> Answer:
        if "part 1" in body["messages"][-1]["content"]:
            return Answer({"error": {"message": "too long"}}, 400)
        return echo(body)

    with stub_endpoint(rule=rule) as stub, done(tmp_path / "r", config_of(stub, requests)) as run:
        (counts,) = run.counts().values()
        assert (counts["done"], counts["failed"]) == (5, 1)
        assert "too long" in run.failures()[0][1]


def test_a_busy_server_is_waited_for(requests, tmp_path):
    rule = Sometimes(echo, Answer({}, 429, AT_ONCE), range(2, 4))
    with stub_endpoint(rule=rule) as stub:
        options = ChatOptions(max_retries=4, num_concurrent=1)
        run = run_evaluation(tmp_path / "r", config_of(stub, requests), endpoint_options=options)
        assert run is not None
        with run:
            (counts,) = run.counts().values()
    assert counts["done"] == 6 and len(asked(stub)) == 8


def test_no_more_questions_at_once_than_allowed(requests, tmp_path):
    def slowly(body: dict[str, Any]) -> Answer:
        return dataclasses.replace(echo(body), seconds=0.05)

    with stub_endpoint(rule=slowly) as stub:
        options = ChatOptions(num_concurrent=2)
        run = run_evaluation(tmp_path / "r", config_of(stub, requests), endpoint_options=options)
        assert run is not None
        run.close()
    assert stub.most_at_once == 2


def test_another_server_under_the_same_name_is_refused(requests, tmp_path):
    """A fingerprint may change at any time; a version, a request or an address may not."""
    with stub_endpoint(rule=echo) as stub:
        stub.pages = {"/version": {"version": "1"}}
        out, config = tmp_path / "run", config_of(stub, requests, limit=1)
        done(out, config).close()
        more = dataclasses.replace(config, options=SetOptions(limit=2))
        stub.pages = {"/version": {"version": "2"}}
        with refuses("tea", "version"):
            done(out, more)
        stub.pages = {}
        done(out, more).close()
        with stub_endpoint(rule=echo) as other, refuses("tea", f"{other.url}#tea"):
            done(out, config_of(other, requests, limit=3))
        with refuses("tea", "request"):
            done(out, config_of(stub, requests, limit=3, request={"a": 1}))


def test_a_finished_run_asks_no_server(requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        config = config_of(stub, requests, limit=2)
        done(tmp_path / "run", config).close()
    with done(tmp_path / "run", config) as run:
        assert len(list(run.attempts())) == 2


# ------------------------------------------------------------------------------------- tokens


def test_a_run_stops_where_its_tokens_are_spent_and_goes_on(requests, tmp_path):
    """12 tokens a question: a third one is not asked once 24 are taken."""
    said: list[str] = []
    with stub_endpoint(rule=echo) as stub:
        config = config_of(stub, requests, max_tokens_total=24)
        run = run_evaluation(tmp_path / "r", config, endpoint_options=ONE, on_stopped=said.append)
        assert run is not None
        with run:
            (counts,) = run.counts().values()
            assert (counts["done"], counts["todo"]) == (2, 4)
            assert run.num_tokens() == 24 and len(run.judges()) == 1
        assert len(said) == 1 and "24" in said[0] and "max-tokens-total" in said[0]
        assert len(asked(stub)) == 2
        more = dataclasses.replace(config, max_tokens_total=1000)
        with done(tmp_path / "r", more, on_stopped=said.append) as run:
            (counts,) = run.counts().values()
        assert counts["done"] == 6 and len(said) == 1
        assert sorted(asked(stub)) == [f"Write about tea, part {i}." for i in range(6)]


def test_answers_on_their_way_are_kept_when_tokens_are_spent(requests, tmp_path):
    def slowly(body: dict[str, Any]) -> Answer:
        return dataclasses.replace(echo(body), seconds=0.1 if "part 0" in str(body) else 0.5)

    with stub_endpoint(rule=slowly) as stub:
        config = config_of(stub, requests, max_tokens_total=12)
        run = run_evaluation(tmp_path / "r", config, endpoint_options=ChatOptions(num_concurrent=3))
        assert run is not None
        with run:
            assert run.num_tokens() == 36
        assert len(asked(stub)) == 3


def test_a_limit_of_tokens_needs_a_server_that_counts(requests, tmp_path):
    body = completion("tea")
    del body["usage"]
    with stub_endpoint(Answer(body)) as stub, refuses("tea", "max_tokens_total"):
        done(tmp_path / "r", config_of(stub, requests, max_tokens_total=12))
    with refuses("max_tokens_total"):
        config_of(stub, requests, max_tokens_total=0)
