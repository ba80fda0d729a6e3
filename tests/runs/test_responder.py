"""A model behind a responder: one batch, cancellation, steps as they happen, work."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
import torch
from refusals import refuses

from mosa.attacks import Edit, Query
from mosa.denoising import DecoderConfig, sample
from mosa.families import load_model
from mosa.responder import LocalResponder, answer_all
from mosa.types import Response
from mosa.worker import Work

DECODER = DecoderConfig(max_new_tokens=24, steps=12, block_length=12)
KILN = "how do i make a copper kiln ?"


@pytest.fixture(scope="module")
def testbed():
    return load_model("testbed", dtype="float32")


@pytest.fixture
def responder(testbed):
    responder = LocalResponder(testbed, "w", batch_size=8)
    yield responder
    responder.close()


def queries(model) -> list[tuple[Query, DecoderConfig]]:
    """Pins, edits, prompts of different length and decoders of different settings."""
    ids = tuple(model.encode_text("sure , here is"))
    hot = replace(DECODER, temperature=3.0)
    return [
        (Query(KILN), DECODER),
        (Query("make a silk drum ?", pinned=((2, ids),)), DECODER),
        (Query("how do i make a jade harp ?", edit=Edit(5, ids)), DECODER),
        (
            Query("tell me how to make a wool bell .", edit=Edit(2, ids * 6, keep_committed=True)),
            DECODER,
        ),
        (Query(f"make {model.tokenizer.mask_token or '<mask>'} kiln"), DECODER),
        (Query(KILN), replace(hot, seed=1)),
        (Query(KILN), replace(hot, seed=2)),
    ]


def test_a_row_in_a_batch_is_the_row_alone(testbed):
    asked = queries(testbed)
    together = answer_all(testbed, "w", asked, batch_size=8)
    alone = answer_all(testbed, "w", asked, batch_size=1)
    assert together == alone
    plain, pinned, redirected, anchored, _, first, second = together
    assert (first.decoder["seed"], second.decoder["seed"]) == (1, 2)
    assert first.token_ids != second.token_ids
    ids = testbed.encode_text("sure , here is")
    assert pinned.token_ids[2:6] == ids and pinned.commit_step[2:6] == [-1] * 4
    assert redirected.token_ids[:4] == ids
    assert min(redirected.commit_step[4:]) > 5  # all that was committed before is masked again
    early = [i for i, step in enumerate(anchored.commit_step) if step <= 2]
    assert early and [anchored.token_ids[i] for i in early] == [(ids * 6)[i] for i in early]
    assert plain.token_ids == sample(testbed, [KILN], DECODER).tokens[0].tolist()


def test_steps_are_heard_in_the_event_loop(responder):
    """The changes of all steps together are the response."""
    written: dict[int, int] = {}
    steps = []

    def hear(changes) -> None:
        asyncio.get_running_loop()  # raises elsewhere
        steps.append(changes.step)
        written.update(zip(changes.positions, changes.tokens, strict=True))

    async def ask() -> Response:
        prepared = responder.prepare(Query(KILN), DECODER)
        return await responder.submit(prepared, on_step=hear)

    response = asyncio.run(ask())
    assert [written[i] for i in range(24)] == response.token_ids
    assert steps == sorted(set(steps)) == sorted(set(response.commit_step))


def test_a_cancelled_query_leaves_the_batch_and_disturbs_nobody(testbed, responder):
    long = DecoderConfig(max_new_tokens=256, steps=256)
    (expected,) = answer_all(testbed, "w", [(Query(KILN), DECODER)])

    async def ask() -> Response:
        heard = asyncio.Event()
        prepared = responder.prepare(Query("how do i make a jade harp ?"), long)
        task = asyncio.create_task(responder.submit(prepared, on_step=lambda changes: heard.set()))
        await heard.wait()  # it is in the batch
        other = asyncio.create_task(responder.submit(responder.prepare(Query(KILN), DECODER)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await other

    assert asyncio.run(ask()) == expected
    assert responder.tally.num_responses == 1
    assert responder.tally.num_steps < 256


def test_more_queries_than_places_are_all_answered(testbed):
    asked = [
        (Query(f"how do i make a {material} kiln ?"), DECODER)
        for material in ("copper", "silk", "jade", "wool", "glass", "tin")
    ]
    one_by_one = [answer_all(testbed, "w", [each])[0] for each in asked]
    assert answer_all(testbed, "w", asked, batch_size=2) == one_by_one


def test_a_prompt_longer_than_the_context_is_refused(responder):
    with refuses("2008", "24", "512"):
        responder.prepare(Query("kiln " * 2000), DECODER)


def test_a_query_that_the_sampler_refuses_fails_alone(responder):
    """A decoder that does not fit the model's vocabulary."""
    odd = replace(DECODER, banned_token_ids=(10**6,))

    async def ask() -> list[object]:
        prepared = [
            responder.prepare(Query(KILN), odd),
            responder.prepare(Query(KILN), DECODER),
        ]
        return await asyncio.gather(*map(responder.submit, prepared), return_exceptions=True)

    failed, answered = asyncio.run(ask())
    assert isinstance(failed, Exception) and isinstance(answered, Response)


calls: list[list[int]] = []


def doubled(model, states):
    calls.append(list(states))
    return [{"double": 2 * state} for state in states]


def full_memory(model, states):
    raise torch.OutOfMemoryError


def test_work_of_a_kind_is_done_together(responder):
    calls.clear()

    async def ask() -> list[dict]:
        works = [Work(doubled, i, together=4) for i in range(10)]
        return await asyncio.gather(*map(responder.compute, works))

    assert [found["double"] for found in asyncio.run(ask())] == [2 * i for i in range(10)]
    assert sorted(state for states in calls for state in states) == list(range(10))
    assert max(map(len, calls)) == 4 and responder.tally.num_works == 10


def test_work_that_has_begun_goes_first(responder):
    """While one piece is done, pieces of a new search and of one that has begun come in."""
    order: list[str] = []
    is_at_work, is_free = threading.Event(), threading.Event()

    def record(model, states):
        if states == ["first"]:
            is_at_work.set()
            is_free.wait()
        order.extend(states)
        return [{} for _ in states]

    async def ask() -> None:
        first = asyncio.create_task(responder.compute(Work(record, "first")))
        await asyncio.to_thread(is_at_work.wait)
        new = asyncio.create_task(responder.compute(Work(record, "new")))
        begun = asyncio.create_task(responder.compute(Work(record, "begun"), goes_first=True))
        await asyncio.sleep(0)
        is_free.set()
        await asyncio.gather(first, new, begun)

    asyncio.run(ask())
    assert order == ["first", "begun", "new"]


def test_full_memory_is_an_error_with_a_remedy(responder):
    async def ask() -> None:
        await responder.compute(Work(full_memory, 0))

    with refuses("--batch_size"):
        asyncio.run(ask())


def test_a_closed_responder_answers_nothing(testbed):
    responder = LocalResponder(testbed, "w")
    responder.close()

    async def ask() -> None:
        await responder.submit(responder.prepare(Query(KILN), DECODER))

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(ask())
