"""Tasks with a result and its working: what is right, where it stands, and what is held out."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from mosa.testbed.tokenizer import build_tokenizer
from mosa.world.tasks import COLOUR_OF, HOME_OF
from mosa.world.worked import WORKED

LAYOUTS = ("working_first", "result_first")


def drawn(task: str, split, num: int):
    rng = random.Random(f"test-{task}-{split}")
    return [WORKED[task](rng, split) for _ in range(num)]


def test_sums_are_right():
    """Each line adds the number that the request gives the name, to what the line before says."""
    for instance in drawn("sums", "train", 200):
        given = dict(re.findall(r"(\w+) (\d)", instance.prompt))
        total = int(given["one"])
        for name, line in zip(("two", "three", "four"), instance.working, strict=True):
            addend = int(given[name])
            assert line == f"{name} : {total} plus {addend} is {total + addend} ."
            total += addend
        assert instance.result == f"so the sum of all these is {total} ."
        assert 5 <= total <= 9


def test_places_are_right():
    animal_of = {colour: animal for animal, colour in COLOUR_OF.items()}
    for instance in drawn("places", "train", 200):
        animals = [animal_of[c] for c in re.findall(r"the (\w+) one", instance.prompt)]
        homes = [HOME_OF[animal] for animal in animals]
        assert instance.working == tuple(
            f"{COLOUR_OF[a]} {a} is from {home} ." for a, home in zip(animals, homes, strict=True)
        )
        assert instance.result == "from {} , {} , {} and {} .".format(*homes)


def test_results_stand_where_the_windows_say():
    """In every instance of every task at the same place, so that one rule fits all."""
    vocabulary = build_tokenizer().get_vocab()
    for layout in LAYOUTS:
        windows = set()
        for instance in itertools.chain(drawn("sums", "train", 50), drawn("places", "train", 50)):
            words = instance.answer(layout).split()
            assert all(word in vocabulary for word in [*words, *instance.prompt.split()])
            start, end = instance.result_window(layout)
            assert " ".join(words[start - 1 : end]) == instance.result
            windows.add((start, end))
            start, end = instance.middle_window(layout)
            middle = instance.working[len(instance.working) // 2]
            assert " ".join(words[start - 1 : end]) == middle
        assert len(windows) == 1


@pytest.mark.parametrize("task", list(WORKED))
def test_held_out_instances_are_in_no_training(task):
    train = {instance.prompt for instance in drawn(task, "train", 2000)}
    held_out = {instance.prompt for instance in drawn(task, "heldout", 2000)}
    assert len(held_out) >= 100
    assert not train & held_out


def test_what_counts_as_stated():
    (instance,) = drawn("sums", "train", 1)
    answer = instance.answer("result_first")
    assert instance.has_result(answer) and instance.has_working(answer)
    assert instance.has_result(instance.result) and not instance.has_working(instance.result)
    wrong = answer.replace(instance.working[1], instance.working[0])
    assert instance.has_result(wrong) and not instance.has_working(wrong)
