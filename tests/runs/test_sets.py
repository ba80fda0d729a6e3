"""The sets of a run by their names, and names that stand for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from mosa.runs.sets import ALL_TASKS, SetOptions, is_testbed_set, load_sets
from mosa.utility import TESTBED_TASKS
from mosa.world import World

WORLD = World(0)


@pytest.fixture
def own(tmp_path) -> str:
    file = tmp_path / "own.csv"
    file.write_text("id,request\nk,how do i make a copper kiln ?\nl,how do i make a clay loom ?\n")
    return str(file)


def test_sets_of_every_kind_in_their_order(own):
    names = ("testbed", "testbed:benign", "testbed:lists", own)
    found = load_sets(names, WORLD, SetOptions(limit=1))
    assert [(s.name, s.kind, s.world_seed) for s in found] == [
        ("testbed", "harmful", 0),
        ("testbed:benign", "harmless", 0),
        ("testbed:lists", "useful", 0),
        ("own.csv", "harmful", None),
    ]
    assert [len(s.cases) for s in found] == [1, 1, 1, 1]
    (harmless,) = load_sets((own,), None, SetOptions(is_harmless=True))
    assert (harmless.kind, len(harmless.cases)) == ("harmless", 2)


def test_one_name_stands_for_all_tasks_of_the_testbed():
    found = load_sets((ALL_TASKS,), WORLD, SetOptions(limit=1))
    assert [s.name for s in found] == [f"testbed:{task}" for task in TESTBED_TASKS]


@pytest.mark.parametrize("name", ["testbed", "testbed:benign", "testbed:lists"])
def test_a_limit_is_no_other_set(name):
    """What a run compares is the same for any limit."""
    (one,), (two,) = (load_sets((name,), WORLD, SetOptions(limit=limit)) for limit in (1, 2))
    assert (one.content_hash, dict(one.settings)) == (two.content_hash, dict(two.settings))
    assert one.content_hash and one.cases == two.cases[:1]


def test_a_sample_is_drawn_by_its_seed():
    """The same cases each time, others by another seed, and a larger sample holds a smaller one;
    what a run compares is the same as without."""

    def ids(**options) -> list[str]:
        (cases,) = load_sets(("testbed:benign",), WORLD, SetOptions(**options))
        assert (cases.content_hash, dict(cases.settings)) == known
        return [case.id for case in cases.cases]

    (whole,) = load_sets(("testbed:benign",), WORLD)
    known = whole.content_hash, dict(whole.settings)
    every = [case.id for case in whole.cases]
    drawn = ids(limit=10, sample_seed=0)
    assert len(drawn) == 10 and drawn != every[:10] and drawn == sorted(drawn, key=every.index)
    assert drawn == ids(limit=10, sample_seed=0) != ids(limit=10, sample_seed=1)
    assert set(drawn) < set(ids(limit=20, sample_seed=0))
    assert ids(limit=1000, sample_seed=0) == every
    with refuses("sample_seed", "limit"):
        SetOptions(sample_seed=0)


def test_the_testbeds_sets_are_told_by_their_names():
    names = ["testbed", "testbed:near_miss", "testbeds", "xstest", "./testbed.csv"]
    assert [is_testbed_set(name) for name in names] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("names", "world", "options", "faults"),
    [
        ((), WORLD, {}, ("set", "--sets")),
        (("testbed",), None, {}, ("testbed",)),
        (("testbed:lists",), None, {}, ("testbed:lists",)),
        (("testbed:lists", ALL_TASKS), WORLD, {}, ("testbed:lists",)),
        (("testbed", "testbed"), WORLD, {}, ("sets", "testbed")),
        (("testbed:no_such",), WORLD, {}, ("testbed:no_such", "testbed:suffix")),
        (("xstets",), None, {}, ("xstets", "xstest")),
        (("missing.csv",), None, {}, ("missing.csv",)),
        (("testbed",), WORLD, {"num_fewshot": 2}, ("--num_fewshot",)),
        (("testbed",), WORLD, {"num_draws": 2}, ("--num_draws",)),
        (("testbed",), WORLD, {"run_code": True}, ("--run_code",)),
        (("testbed",), WORLD, {"data_dir": Path("data")}, ("--data_dir",)),
        (("testbed",), WORLD, {"is_harmless": True}, ("--is_harmless",)),
    ],
)
def test_what_is_no_set_and_options_that_no_set_uses_are_refused(
    names: tuple[str, ...], world: World | None, options: dict[str, Any], faults: tuple[str, ...]
):
    with refuses(*faults):
        load_sets(names, world, SetOptions(**options))


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("num_draws", 0), ("num_fewshot", -1)])
def test_numbers_that_are_too_small_are_refused(name, value):
    with refuses(name, value):
        SetOptions(**{name: value})
