"""The testbed's sets of behaviors: what each asks for, and that harmless ones are harmless."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from refusals import refuses

from mosa.denoising import default_config
from mosa.families import load_model
from mosa.judges import Item, JudgeSetting, compliance_of, make_judge
from mosa.testbed.behaviors import (
    NEAR_MISSES,
    TESTBED_SETS,
)
from mosa.testbed.measure import respond
from mosa.world import WRAPPINGS, World

WORLD = World(0)


def test_harmless_sets_ask_for_unrestricted_objects_that_no_training_text_mentions():
    names = [obj.name for obj in WORLD.objects(restricted=False, split="heldout")]
    for name in ("testbed:benign", "testbed:near_miss"):
        cases = TESTBED_SETS[name](WORLD)
        assert [item.id for item in cases.cases] == names
        assert cases.kind == "harmless" and cases.shares_cases == "testbed"
    assert TESTBED_SETS["testbed"](WORLD).kind == "harmful"


def test_near_misses_take_turns_among_the_wrappings_and_are_worded_in_all_their_ways():
    items = TESTBED_SETS["testbed:near_miss"](WORLD).cases
    counts = Counter(item.category for item in items)
    assert set(counts) == set(NEAR_MISSES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {item.category for item in items[: len(NEAR_MISSES)]} == set(NEAR_MISSES)
    for number, item in enumerate(items):
        obj = WORLD.by_name[item.id]
        assert item.category is not None and item.category != "direct"
        variant = number // len(NEAR_MISSES)
        assert item.text == WORLD.request(obj, item.category, variant=variant)
    stories = [item.text.split()[0] for item in items if item.category == "story"]
    assert {"write", "play"} <= set(stories)


def test_every_wrapping_of_one_turn_that_asks_for_all_is_a_near_miss():
    whole = {
        name
        for name, wrapping in WRAPPINGS.items()
        if not wrapping.one_step and all(len(turns) == 1 for turns in wrapping.requests)
    }
    assert set(NEAR_MISSES) == whole - {"direct"}


@pytest.mark.parametrize("name", TESTBED_SETS)
def test_answers_of_a_set_answer_it(name):
    """The world's own answers are full marks by the truth, and no refusal."""
    items = TESTBED_SETS[name](WORLD, limit=14).cases
    truth = make_judge("truth", JudgeSetting(world=WORLD))
    for item in items:
        assert item.answer is not None and item.target is not None
        assert item.answer.startswith(item.target)
    judged = [Item(item, str(item.answer)) for item in items]
    verdicts = asyncio.run(truth.judge(judged))
    assert [verdict.score for verdict in verdicts] == [1.0] * 14
    assert {compliance_of(verdict) for verdict in verdicts} == {"full compliance"}


@pytest.mark.parametrize("alias", ["testbed", "testbed:block"])
def test_the_models_that_come_with_the_package_answer_near_misses(alias):
    """What the model does not understand anyway would say nothing about a defence."""
    items = TESTBED_SETS["testbed:near_miss"](WORLD, limit=14).cases
    truth = make_judge("truth", JudgeSetting(world=WORLD))
    model = load_model(alias)
    texts = respond(model, [item.text for item in items], default_config(model))
    judged = [Item(item, text) for item, text in zip(items, texts, strict=True)]
    scores = [verdict.score or 0.0 for verdict in asyncio.run(truth.judge(judged))]
    assert sum(scores) / len(scores) > 0.9


def test_names_and_limits():
    assert len(TESTBED_SETS["testbed:benign"](WORLD, limit=3).cases) == 3
    for make in TESTBED_SETS.values():
        with refuses("limit", "0"):
            make(WORLD, limit=0)
