"""The recorder: nothing asked twice, one failure for one task, and what a kill can lose."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_set, subject
from refusals import refuses
from run_stand_ins import DOWN, EchoResponder, PowerCutError, ScriptedChat

from mosa.attacks import ENGLISH, Query, Target
from mosa.chat.base import ChatModel, ChatRequest
from mosa.denoising import DecoderConfig
from mosa.responder import Responder, ResponderGone
from mosa.runs import recorder as recorder_module
from mosa.runs.recorder import PlannedTask, Recorder
from mosa.runs.records import Task
from mosa.runs.store import Run
from mosa.types import Attempt, Behavior, Budget, Message, UserError
from mosa.worker import Work

DECODER = DecoderConfig(max_new_tokens=8, steps=4)


def planned(
    name: str,
    attack: Any,
    *,
    chats: Mapping[Any, ChatModel] | None = None,
    takes: tuple[str, ...] = (),
    decoder: DecoderConfig = DECODER,
) -> PlannedTask:
    behavior = Behavior(name, f"how is {name} made?")

    def target(backend: Any) -> Target:
        return Target(
            backend,
            decoder=decoder,
            wording=ENGLISH,
            identity={"of": name},
            subject="m",
            case_set="set",
            behavior=behavior,
            attack="test",
            preset="paper",
            seed=0,
            takes=takes,
        )

    return PlannedTask(name, target, lambda target: attack(behavior, target), chats or {})


def carry_out(
    folder: Path, responder: Responder, tasks: list[PlannedTask]
) -> tuple[Recorder, dict[str, list[Attempt]]]:
    """Run the tasks; the recorder and the attempts by task."""
    with Run(folder, create=True) as run:
        run.add_subject(subject("m"))
        run.add_set(made_set("set", "harmful", [task.key for task in tasks]))
        run.add_tasks(
            Task(t.key, "m", "set", t.key, "test", "paper", 0, "prompt", {}) for t in tasks
        )
        recorder = Recorder(run, responder)
        asyncio.run(recorder.run_all(tasks))
        found: dict[str, list[Attempt]] = {}
        for attempt in run.attempts():
            own = replace(attempt, responses=run.responses_of(attempt.key))
            found.setdefault(attempt.case, []).append(own)
        return recorder, found


def outcomes(folder: Path) -> dict[str, tuple[str, str]]:
    with Run(folder) as run:
        return {
            task.key: ("todo", "") if outcome is None else (outcome.status, outcome.reason)
            for task, outcome in run.tasks()
        }


async def two_rounds(behavior: Behavior, target: Target):
    """One query, then three that depend on its answer, at once; one attempt each."""
    first = await target.ask(Query(behavior.request))
    yield target.attempt([first])
    branches = [Query(f"{first.text} branch {i}") for i in range(3)]
    for response in await target.ask_all(branches):
        yield target.attempt([response], variant="branch")


def test_rounds_branches_and_accounts(tmp_path, tiny_llada):
    """10 tasks with 1 + 3 queries: 40 queries, many of them open at once."""
    responder = EchoResponder(tiny_llada)
    tasks = [planned(f"b{i}", two_rounds) for i in range(10)]
    _, found = carry_out(tmp_path, responder, tasks)
    assert len(responder.asked) == 40 and responder.most_open >= 10
    assert [len(found[f"b{i}"]) for i in range(10)] == [4] * 10
    first, *branches = found["b7"]
    assert first.response == "how is b7 made?"
    assert [b.response for b in branches] == [f"how is b7 made? branch {i}" for i in range(3)]
    # The accounts run along: 1 query at the first try, 4 at all others.
    budget = Budget(target_queries=1, target_tokens=8, forward_passes=4)
    assert first.budget == budget
    assert branches[0].budget == budget + budget + budget + budget
    assert [b.number for b in branches] == [1, 2, 3]
    with Run(tmp_path) as run:
        (_, outcome), *_ = run.tasks()
        assert outcome is not None and outcome.budget == branches[0].budget


def test_tasks_are_open_up_to_a_bound(tmp_path, tiny_llada, monkeypatch):
    monkeypatch.setattr(recorder_module, "BATCHES_OPEN", 2)
    responder = EchoResponder(tiny_llada, capacity=3)

    async def one(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])

    carry_out(tmp_path, responder, [planned(f"b{i}", one) for i in range(40)])
    assert len(responder.asked) == 40 and responder.most_open == 6


def test_the_same_query_is_answered_once(tmp_path, tiny_llada):
    """By two tasks at once, and by a later run."""

    async def run(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query("how is tea made?"))])

    responder = EchoResponder(tiny_llada)
    carry_out(tmp_path, responder, [planned("a", run), planned("b", run)])
    assert len(responder.asked) == 1
    recorder, _ = carry_out(tmp_path, responder, [planned("c", run)])
    assert len(responder.asked) == 1 and recorder.num_recorded == 1


@pytest.mark.parametrize("cut", [0, 1, 7, 19, 33, 39])
def test_cut_off_anywhere_and_started_again_is_as_never_cut_off(tmp_path, tiny_llada, cut):
    """Loses what was in flight at most, repeats nothing, ends the same."""
    tasks = [planned(f"b{i}", two_rounds) for i in range(10)]
    _, expected = carry_out(tmp_path / "whole", EchoResponder(tiny_llada), tasks)
    responder = EchoResponder(tiny_llada)
    responder.fail_at = cut
    with pytest.raises(PowerCutError):
        carry_out(tmp_path / "cut", responder, tasks)
    num_before = len(responder.asked)
    responder.fail_at = None
    _, found = carry_out(tmp_path / "cut", responder, tasks)
    assert found == expected
    counts = Counter(prepared.key for prepared in responder.asked)
    assert len(counts) == 40
    # Those in flight when the power went are asked again, no other.
    assert sum(counts.values()) - 40 <= responder.most_open and num_before == cut


def test_one_failure_is_one_task(tmp_path, tiny_llada):
    """A user's mistake and a silent chat model end their own task, with a reason."""

    async def mistaken(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])
        raise UserError("it does not fit")

    async def asking(behavior: Behavior, target: Target):
        await target.chat("attacker", ChatRequest((Message("user", "?"),), "test"))
        yield target.attempt([await target.ask(Query(behavior.request))])

    async def too_long(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query("tea " * 600))])

    down = {"attacker": ScriptedChat(DOWN)}
    tasks = [
        planned("a", mistaken),
        planned("b", asking, chats=down),
        planned("c", two_rounds),
        planned("d", too_long),
    ]
    responder = EchoResponder(tiny_llada)
    _, found = carry_out(tmp_path, responder, tasks)
    status = outcomes(tmp_path)
    assert status["a"] == ("failed", "it does not fit")
    assert status["b"] == ("failed", "the endpoint does not answer")
    assert status["c"] == ("done", "")
    assert status["d"][0] == "failed" and "context" in status["d"][1]
    assert set(found) == {"c"}

    # The endpoint is back: what failed is tried again.
    chat = ScriptedChat("fine")
    _, found = carry_out(tmp_path, responder, [planned("b", asking, chats={"attacker": chat})])
    assert set(found) == {"b", "c"} and len(chat.asked) == 1


def test_a_bug_of_an_attack_ends_the_run_with_its_traceback(tmp_path, tiny_llada):
    async def faulty(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        carry_out(tmp_path, EchoResponder(tiny_llada), [planned("a", faulty)])


def test_a_setting_that_the_attack_does_not_declare_is_a_bug(tmp_path, tiny_llada):
    async def hot(behavior: Behavior, target: Target):
        query = Query(behavior.request, decoder={"temperature": 1.0})
        yield target.attempt([await target.ask(query)])

    with pytest.raises(AssertionError, match="temperature"):
        carry_out(tmp_path / "a", EchoResponder(tiny_llada), [planned("a", hot)])
    responder = EchoResponder(tiny_llada)
    carry_out(tmp_path / "b", responder, [planned("a", hot, takes=("temperature",))])
    assert responder.asked[0].decoder.temperature == 1.0


def test_replies_of_chat_models_are_recorded_and_counted(tmp_path, tiny_llada):
    async def asking(behavior: Behavior, target: Target):
        question = ChatRequest((Message("user", behavior.text),), "t")
        words = [
            await target.chat("attacker", question),
            await target.chat("attacker", replace(question, seed=1)),
            await target.chat("judge", question),
        ]
        yield target.attempt([await target.ask(Query(" ".join(word.text for word in words)))])

    chats = {"attacker": ScriptedChat("one", "two"), "judge": ScriptedChat("10", name="judge")}
    responder = EchoResponder(tiny_llada)
    _, found = carry_out(tmp_path, responder, [planned("a", asking, chats=chats)])
    ((attempt,),) = found.values()
    assert attempt.response == "one two 10"
    assert (attempt.budget.attacker_calls, attempt.budget.judge_calls) == (2, 1)
    assert attempt.budget.chat_tokens == 21
    # A task that was cut off behind its chats finds their replies.
    with Run(tmp_path) as run:
        run._db.execute("DELETE FROM outcomes")
    _, found = carry_out(tmp_path, responder, [planned("a", asking, chats=chats)])
    assert found == {"a": [attempt]}
    assert [len(chat.asked) for chat in chats.values()] == [2, 1]


def test_a_commit_waits_no_longer_than_it_says(tmp_path, tiny_llada, monkeypatch):
    """What was answered is on disk for other processes soon, however long the next answer takes."""
    monkeypatch.setattr(recorder_module, "SECONDS_TO_COMMIT", 0.01)
    seen = []

    async def asking(behavior: Behavior, target: Target):
        await target.chat("attacker", ChatRequest((Message("user", "?"),), "t"))
        for _ in range(1000):
            await asyncio.sleep(0.01)
            with Run(tmp_path) as other:
                seen[:] = list(other._rows("SELECT count(*) FROM steps"))
            if seen == [(1,)]:
                break
        yield target.attempt([await target.ask(Query("x"))])

    chats = {"attacker": ScriptedChat("one")}
    carry_out(tmp_path, EchoResponder(tiny_llada), [planned("a", asking, chats=chats)])
    assert seen == [(1,)]


def test_replies_on_their_way_are_recorded_when_a_run_dies(tmp_path, tiny_llada):
    """The model fails while a chat model still writes, whose reply is paid for."""

    class Slow(ScriptedChat):
        async def complete(self, request):
            await asyncio.sleep(0.2)
            return await super().complete(request)

    async def asking(behavior: Behavior, target: Target):
        word = await target.chat("attacker", ChatRequest((Message("user", "?"),), "test"))
        yield target.attempt([await target.ask(Query(word.text))])

    responder = EchoResponder(tiny_llada)
    responder.fail_at = 0
    slow = planned("a", asking, chats={"attacker": Slow("one")})
    with pytest.raises(PowerCutError):
        carry_out(tmp_path, responder, [slow, planned("b", two_rounds)])
    responder.fail_at = None
    again = ScriptedChat("two", name="scripted")
    quick = planned("a", asking, chats={"attacker": again})
    _, found = carry_out(tmp_path, responder, [quick, planned("b", two_rounds)])
    assert again.asked == []
    assert found["a"][0].response == "one"


def test_a_query_that_nobody_waits_for_is_cancelled(tmp_path, tiny_llada):
    """A run that is stopped takes its rows out of the batch."""
    cancelled = []

    class Endless(EchoResponder):
        async def submit(self, prepared, *, on_step=None):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(prepared.key)
                raise
            raise AssertionError("nobody waits so long")

    async def stop_early() -> None:
        with Run(tmp_path, create=True) as run:
            task = planned("a", two_rounds)
            run.add_tasks([Task("a", "m", "set", "a", "test", "paper", 0, "prompt", {})])
            recorder = Recorder(run, Endless(tiny_llada))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(recorder.run_all([task]), 0.2)

    asyncio.run(stop_early())
    assert len(cancelled) == 1


def count_up(model, states):
    return [{"sum": sum(state)} for state in states]


def test_work_is_done_once_and_counted(tmp_path, tiny_llada):
    async def computing(behavior: Behavior, target: Target):
        first = await target.compute("sum", Work(count_up, [1, 2]))
        again = await target.compute("sum", Work(count_up, [1, 2]))
        other = await target.compute("sum", Work(count_up, [3]))
        text = f"{first['sum']} {again['sum']} {other['sum']}"
        yield target.attempt([await target.ask(Query(text))])

    responder = EchoResponder(tiny_llada)
    _, found = carry_out(tmp_path, responder, [planned("a", computing)])
    assert found["a"][0].response == "3 3 3"
    assert len(responder.works) == 2


def test_what_another_process_has_recorded_counts(tmp_path, tiny_llada):
    """It answered the same query meanwhile, and rounding made its answer another."""

    class Beaten(EchoResponder):
        async def submit(self, prepared, *, on_step=None):
            response = await super().submit(prepared, on_step=on_step)
            with Run(tmp_path) as other:
                other.add_response(replace(response, text="theirs"))
            return response

    async def one(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])

    _, found = carry_out(tmp_path, Beaten(tiny_llada), [planned("a", one)])
    (attempt,) = found["a"]
    assert attempt.response == "theirs" == attempt.responses[0].text


def test_a_responder_that_is_gone_ends_the_run_and_fails_no_task(tmp_path, tiny_llada):
    """The third answer never comes; the two before it are kept, and the rest is left to be done."""

    class Leaving(EchoResponder):
        async def submit(self, prepared: Any, *, on_step: Any = None):
            if len(self.asked) == 2:
                raise ResponderGone("gone")
            return await super().submit(prepared, on_step=on_step)

    async def one(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])

    tasks = [planned(f"b{i}", one) for i in range(4)]
    with refuses("gone", error=ResponderGone):
        carry_out(tmp_path, Leaving(tiny_llada), tasks)
    assert "failed" not in {status for status, _ in outcomes(tmp_path).values()}
    responder = EchoResponder(tiny_llada)
    carry_out(tmp_path, responder, tasks)
    assert len(responder.asked) == 2
    assert {status for status, _ in outcomes(tmp_path).values()} == {"done"}
