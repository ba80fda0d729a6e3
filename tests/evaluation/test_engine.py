"""The engine: full batches across tasks, nothing done twice, and one failure for one task."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from mosa.evaluation.engine import Engine, Job, LocalResponder, Responder
from mosa.evaluation.store import Store, Task
from stand_ins import DOWN, EchoResponder, PowerCutError, ScriptedChat

from mosa.attacks import ATTACKS, ENGLISH, Edit, Query, Target
from mosa.chat.base import ChatRequest
from mosa.denoising import DecoderConfig
from mosa.families import load_model
from mosa.types import Attempt, Behavior, Budget, Message, UserError

DECODER = DecoderConfig(max_new_tokens=8, steps=4)


def job(name: str, run: Any, decoder: DecoderConfig = DECODER) -> Job:
    behavior = Behavior(name, f"how is {name} made?")

    def target(backend: Any) -> Target:
        return Target(
            backend,
            decoder=decoder,
            wording=ENGLISH,
            identity={"of": name},
            model_name="m",
            behavior=behavior,
            attack="test",
            preset="paper",
            seed=0,
        )

    return Job(name, "test", target, lambda target: run(behavior, target))


def carry_out(
    folder: Any, responder: Responder, jobs: list[Job], *, batch_size: int = 4, chats: Any = None
) -> tuple[Engine, Store]:
    store = Store(folder, create=True)
    store.add_tasks(Task(j.task, "m", "test", "paper", 0, j.task, {}) for j in jobs)
    engine = Engine(responder, store, batch_size=batch_size, chats=chats)
    try:
        asyncio.run(engine.run(jobs))
    except BaseException:
        store.close()
        raise
    return engine, store


async def two_rounds(behavior: Behavior, target: Target):
    """One query, then three that depend on its answer, at once; one attempt each."""
    first = await target.ask(Query(behavior.request))
    yield target.attempt([first])
    branches = [Query(f"{first.text} branch {i}") for i in range(3)]
    for response in await target.ask_all(branches):
        yield target.attempt([response], variant="branch")


def attempts_by_task(store: Store) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = {}
    for attempt in store.attempts():
        found.setdefault(attempt.behavior, []).append(
            replace(attempt, responses=store.responses_of(attempt.key))
        )
    return found


@pytest.fixture(scope="module")
def testbed():
    return load_model("testbed", dtype="float32")


def test_batches_are_full_across_tasks_rounds_and_branches(tmp_path, tiny_llada):
    """10 tasks with 1 + 3 queries: 40 rows in batches of four are ten batches."""
    responder = EchoResponder(tiny_llada)
    jobs = [job(f"b{i}", two_rounds) for i in range(10)]
    engine, store = carry_out(tmp_path, responder, jobs)
    with store:
        assert [len(batch) for batch in responder.batches] == [4] * 10
        assert engine.tally.num_rows == 40 and engine.tally.num_steps == 10
        found = attempts_by_task(store)
        assert [len(found[f"b{i}"]) for i in range(10)] == [4] * 10
        first, *branches = found["b7"]
        assert first.response == "how is b7 made?"
        assert [b.response for b in branches] == [f"how is b7 made? branch {i}" for i in range(3)]
        # The accounts run along: 1 query at the first try, 4 at all others.
        budget = Budget(target_queries=1, target_tokens=8, forward_passes=4)
        assert first.budget == budget
        assert branches[0].budget == budget + budget + budget + budget
        assert [b.number for b in branches] == [1, 2, 3]
        assert store.tasks()[0].budget == branches[0].budget


def test_batches_stay_full_where_few_tasks_are_open(tmp_path, tiny_llada, monkeypatch):
    """40 tasks, 8 of them at once: the engine starts more before it runs half a batch."""
    from mosa.evaluation import engine as engine_module

    monkeypatch.setattr(engine_module, "BATCHES_OPEN", 2)
    responder = EchoResponder(tiny_llada)
    engine, store = carry_out(tmp_path, responder, [job(f"b{i}", two_rounds) for i in range(40)])
    store.close()
    assert engine.tally.num_rows == 160
    assert len(responder.batches) <= 44  # at least 90 % full


def test_queries_that_are_decoded_otherwise_share_a_batch(tmp_path, tiny_llada):
    async def run(behavior: Behavior, target: Target):
        plain = Query(behavior.request)
        edited = Query(behavior.request, edit=Edit(0, ()))
        hot = Query(behavior.request, decoder={"temperature": 1.0})
        for response in await target.ask_all([plain, edited, hot]):
            yield target.attempt([response])

    responder = EchoResponder(tiny_llada)
    _, store = carry_out(tmp_path, responder, [job(f"b{i}", run) for i in range(4)])
    with store:
        assert [len(batch) for batch in responder.batches] == [4, 4, 4]
        temperatures = Counter(
            attempt.responses[0].decoder["temperature"]
            for attempts in attempts_by_task(store).values()
            for attempt in attempts
        )
        assert temperatures == {0.0: 8, 1.0: 4}


def test_the_same_query_is_answered_once(tmp_path, tiny_llada):
    """By two tasks at once, and by a later run."""

    async def run(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query("how is tea made?"))])

    responder = EchoResponder(tiny_llada)
    engine, store = carry_out(tmp_path, responder, [job("a", run), job("b", run)])
    store.close()
    assert [len(batch) for batch in responder.batches] == [1]
    engine, store = carry_out(tmp_path, responder, [job("c", run)])
    store.close()
    assert len(responder.batches) == 1 and engine.tally.num_recorded == 1


@pytest.mark.parametrize("cut", range(10))
def test_cut_off_anywhere_and_started_again_is_as_never_cut_off(tmp_path, tiny_llada, cut):
    """Loses the batch in flight at most, repeats nothing, ends the same."""
    jobs = [job(f"b{i}", two_rounds) for i in range(10)]
    whole = EchoResponder(tiny_llada)
    _, store = carry_out(tmp_path / "whole", whole, jobs)
    expected = attempts_by_task(store)
    store.close()

    responder = EchoResponder(tiny_llada)
    responder.fail_at = cut
    with pytest.raises(PowerCutError):
        carry_out(tmp_path / "cut", responder, jobs)
    assert len(responder.batches) == cut
    responder.fail_at = None
    _, store = carry_out(tmp_path / "cut", responder, jobs)
    rows = Counter(row.key for batch in responder.batches for row in batch)
    assert set(rows.values()) == {1} and len(rows) == 40
    assert attempts_by_task(store) == expected
    store.close()


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

    jobs = [job("a", mistaken), job("b", asking), job("c", two_rounds), job("d", too_long)]
    chat = ScriptedChat(DOWN)
    responder = EchoResponder(tiny_llada)
    _, store = carry_out(tmp_path, responder, jobs, chats={"attacker": chat})
    with store:
        status = {task.key: (task.status, task.reason) for task in store.tasks()}
        assert status["a"] == ("failed", "it does not fit")
        assert status["b"] == ("failed", "the endpoint does not answer")
        assert status["c"] == ("done", "")
        assert status["d"][0] == "failed" and "longer than the model's context" in status["d"][1]
        assert set(attempts_by_task(store)) == {"c"}

    # The endpoint is back: what failed is tried again.
    chat = ScriptedChat("fine")
    _, store = carry_out(tmp_path, responder, jobs[1:2], chats={"attacker": chat})
    with store:
        assert set(attempts_by_task(store)) == {"b", "c"} and len(chat.asked) == 1


def test_a_bug_of_an_attack_ends_the_run_with_its_traceback(tmp_path, tiny_llada):
    async def broken(behavior: Behavior, target: Target):
        yield target.attempt([await target.ask(Query(behavior.request))])
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        carry_out(tmp_path, EchoResponder(tiny_llada), [job("a", broken)])


def test_a_run_that_is_stopped_ends_the_steps_of_its_batch(tmp_path, tiny_llada):
    """The thread of the model is not left at work until a row is done."""
    ended = threading.Event()

    class Endless(EchoResponder):
        def advance(self, rows, is_wanted):
            deadline = time.monotonic() + 30
            while not is_wanted() and time.monotonic() < deadline:
                time.sleep(0.01)
            if is_wanted():
                ended.set()
            return super().advance(rows, is_wanted)

    with Store(tmp_path, create=True) as store:
        store.add_tasks([Task("a", "m", "test", "paper", 0, "a", {})])
        engine = Engine(Endless(tiny_llada), store, batch_size=4)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(engine.run([job("a", two_rounds)]), 0.5))
    assert ended.wait(10)


def test_replies_of_chat_models_are_recorded_and_counted(tmp_path, tiny_llada):
    async def asking(behavior: Behavior, target: Target):
        question = ChatRequest((Message("user", behavior.text),), "t")
        words = [
            await target.chat("attacker", question),
            await target.chat("attacker", replace(question, seed=1)),
            await target.chat("judge", question),
        ]
        yield target.attempt([await target.ask(Query(" ".join(words)))])

    chats = {"attacker": ScriptedChat("one", "two"), "judge": ScriptedChat("10", name="judge")}
    responder = EchoResponder(tiny_llada)
    _, store = carry_out(tmp_path, responder, [job("a", asking)], chats=chats)
    with store:
        ((attempt,),) = attempts_by_task(store).values()
        assert attempt.response == "one two 10"
        assert (attempt.budget.attacker_calls, attempt.budget.judge_calls) == (2, 1)
        assert attempt.budget.chat_tokens == 21
    # A task that was cut off behind its chats finds their replies.
    with Store(tmp_path) as store:
        store._db.execute("UPDATE tasks SET status = 'todo'")
    _, store = carry_out(tmp_path, responder, [job("a", asking)], chats=chats)
    with store:
        assert attempts_by_task(store) == {"a": [attempt]}
    assert [len(chat.asked) for chat in chats.values()] == [2, 1]


def test_a_reply_is_on_disk_before_anything_else_happens(tmp_path, tiny_llada):
    """It may be paid for, and the next commit may be minutes away."""
    seen = []

    async def asking(behavior: Behavior, target: Target):
        await target.chat("attacker", ChatRequest((Message("user", "?"),), "t"))
        with Store(tmp_path) as other:
            seen.append(list(other._rows("SELECT count(*) FROM steps")))
        yield target.attempt([await target.ask(Query("x"))])

    chats = {"attacker": ScriptedChat("one")}
    _, store = carry_out(tmp_path, EchoResponder(tiny_llada), [job("a", asking)], chats=chats)
    store.close()
    assert seen == [[(1,)]]


def test_replies_on_their_way_are_recorded_when_a_run_dies(tmp_path, tiny_llada):
    """The model fails while a chat model still writes, whose reply is paid for."""

    class Slow(ScriptedChat):
        async def complete(self, request):
            await asyncio.sleep(0.2)
            return await super().complete(request)

    async def asking(behavior: Behavior, target: Target):
        word = await target.chat("attacker", ChatRequest((Message("user", "?"),), "test"))
        yield target.attempt([await target.ask(Query(word))])

    jobs = [job("a", asking), job("b", two_rounds)]
    responder = EchoResponder(tiny_llada)
    responder.fail_at = 0
    with pytest.raises(PowerCutError):
        carry_out(tmp_path, responder, jobs, chats={"attacker": Slow("one")})
    responder.fail_at = None
    again = ScriptedChat("two", name="scripted")
    _, store = carry_out(tmp_path, responder, jobs, chats={"attacker": again})
    with store:
        assert again.asked == []
        assert attempts_by_task(store)["a"][0].response == "one"


def test_a_search_that_has_begun_comes_first(tmp_path, tiny_llada):
    """Three tasks of three pieces of work each: one is finished after the other."""
    done = []

    async def searching(behavior: Behavior, target: Target):
        for i in range(3):
            await target.compute("work", {"i": i}, lambda model: done.append(behavior.id) or {})
        yield target.attempt([await target.ask(Query(behavior.request))])

    jobs = [job(name, searching) for name in "abc"]
    _, store = carry_out(tmp_path, EchoResponder(tiny_llada), jobs)
    store.close()
    assert "".join(done) == "aaabbbccc"


def test_what_another_process_has_recorded_counts(tmp_path, tiny_llada):
    """It answered the same query meanwhile, and rounding made its answer another."""

    class Beaten(EchoResponder):
        def advance(self, rows, is_wanted):
            advance = super().advance(rows, is_wanted)
            with Store(tmp_path) as other:
                for response in advance.responses:
                    other.add_response(replace(response, text="theirs"))
            return advance

    _, store = carry_out(tmp_path, Beaten(tiny_llada), [job("a", two_rounds)])
    with store:
        for attempt in attempts_by_task(store)["a"]:
            assert attempt.response == "theirs" == attempt.responses[0].text


def test_gradients_are_asked_for_plainly(tmp_path, tiny_llada):
    attack = ATTACKS["gcg"]
    config = attack.config("smoke")

    def run(behavior: Behavior, target: Target):
        return attack.run(replace(behavior, target="Sure"), target, config)

    responder = EchoResponder(tiny_llada, gives_weights=False)
    _, store = carry_out(
        tmp_path, responder, [job("a", run, replace(DECODER, max_new_tokens=48, steps=4))]
    )
    with store:
        (task,) = store.tasks(status="failed")
        assert "computes with the weights" in task.reason


def test_a_row_in_a_batch_is_the_row_alone(tmp_path, testbed):
    """Pins, edits and prompts of different length side by side, through the real sampler."""
    decoder = DecoderConfig(max_new_tokens=24, steps=12, block_length=12)

    async def run(behavior: Behavior, target: Target):
        ids = target.encode("sure , here is")
        queries = [
            Query("how do i make a copper kiln ?"),
            Query("make a silk drum ?", pinned=(target.pin(3, ids),)),
            Query("how do i make a jade harp ?", edit=Edit(5, ids)),
            Query("tell me how to make a wool bell .", edit=Edit(2, ids * 6, keep_committed=True)),
            Query(f"make {target.mask_token} kiln", allow_special_tokens=True),
            # One batch holds rows of several seeds.
            Query("how do i make a copper kiln ?", decoder={"temperature": 3.0, "seed": 1}),
            Query("how do i make a copper kiln ?", decoder={"temperature": 3.0, "seed": 2}),
        ]
        for response in await target.ask_all(queries):
            yield target.attempt([response])

    responder = LocalResponder(testbed, "w")
    engine, together = carry_out(tmp_path / "a", responder, [job("a", run, decoder)], batch_size=8)
    _, alone = carry_out(tmp_path / "b", responder, [job("a", run, decoder)], batch_size=1)
    with together, alone:
        assert attempts_by_task(together) == attempts_by_task(alone)
        (attempts,) = attempts_by_task(together).values()
        # All seven in one batch, one step of each at a time; those who drew the seeds too.
        assert engine.tally.num_steps == 12 and engine.tally.num_row_steps == 7 * 12
    responses = [attempt.responses[0] for attempt in attempts]
    plain, pinned, redirected, anchored, masked, first, second = responses
    assert (first.decoder["seed"], second.decoder["seed"]) == (1, 2)
    assert first.token_ids != second.token_ids
    ids = testbed.encode_text("sure , here is")
    assert pinned.token_ids[2:6] == ids and pinned.commit_step[2:6] == [-1] * 4
    assert redirected.token_ids[:4] == ids
    assert min(redirected.commit_step[4:]) > 5  # all that was committed before is masked again
    early = [i for i, step in enumerate(anchored.commit_step) if step <= 2]
    assert early and [anchored.token_ids[i] for i in early] == [(ids * 6)[i] for i in early]
    assert plain.filled_prompt_ids is None and masked.filled_prompt_ids is not None
    assert testbed.mask_token_id not in masked.filled_prompt_ids
