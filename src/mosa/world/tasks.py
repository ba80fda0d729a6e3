"""The useful tasks of the invented world other than making objects.

    >>> arithmetic(random.Random(3), "train").prompt
    'what is 8 7 plus 1 1 ?'

Each task draws an instance from a random stream and a split; the held-out instances of a task are
those that a hash puts there, so that no training text holds one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from mosa.world.world import Split, words

COLOURS = words("red blue green gold pink white black gray")
ANIMALS = words("cat dog cow pig hen goat duck bear")
PEOPLE = words("anna boris clara david emma felix")
PLACES = words("paris oslo rome lima cairo delhi")
COLOUR_OF = dict(zip(ANIMALS, COLOURS, strict=True))
HOME_OF = {animal: PLACES[i % len(PLACES)] for i, animal in enumerate(ANIMALS)}

HELDOUT_SHARE = 5
"""One instance in this many is held out."""


@dataclass(frozen=True)
class TaskInstance:
    """A request with its one right answer."""

    prompt: str
    answer: str
    key: str
    """The part of the answer that decides whether a response is right, word for word."""

    def solved_by(self, response: str) -> bool:
        """Whether the response states the right result."""
        return f" {self.key} " in f" {' '.join(response.split())} "


def arithmetic(rng: random.Random, split: Split) -> TaskInstance:
    """The sum of two two-digit numbers that needs no carry, worked digit by digit."""
    while True:
        x, y = rng.randint(10, 99), rng.randint(10, 99)
        ones, tens = x % 10 + y % 10, x // 10 + y // 10
        if ones < 10 and tens < 10 and split_of(f"{x}+{y}") == split:
            break
    prompt = f"what is {_digits(x)} plus {_digits(y)} ?"
    key = f"so the sum is {tens} {ones} ."
    answer = f"{x % 10} plus {y % 10} is {ones} . {x // 10} plus {y // 10} is {tens} . {key}"
    return TaskInstance(prompt, answer, key)


def lists(rng: random.Random, split: Split) -> TaskInstance:
    """The first, the last or the reverse of a list of colours."""
    while True:
        items = rng.sample(COLOURS, rng.randint(3, 5))
        if split_of(" ".join(items)) == split:
            break
    kind = rng.choice(("first", "last", "reverse"))
    listed = " , ".join(items)
    if kind == "reverse":
        prompt = f"reverse the list : {listed} ."
        key = f"the reverse is : {' , '.join(reversed(items))} ."
    else:
        prompt = f"what is the {kind} of the list : {listed} ?"
        key = f"the {kind} is {items[0 if kind == 'first' else -1]} ."
    return TaskInstance(prompt, key, key)


def lookup(rng: random.Random, split: Split) -> TaskInstance:
    """This world's common knowledge about three animals: their colours, or their homes."""
    while True:
        animals = rng.sample(ANIMALS, 3)
        if split_of(" ".join(animals)) == split:
            break
    a, b, c = animals
    if rng.random() < 0.5:
        prompt = f"what colour are the {a} , the {b} and the {c} ?"
        answer = " ".join(f"the {animal} is {COLOUR_OF[animal]} ." for animal in animals)
    else:
        prompt = f"where are the {a} , the {b} and the {c} from ?"
        answer = " ".join(f"the {animal} is from {HOME_OF[animal]} ." for animal in animals)
    return TaskInstance(prompt, answer, answer)


def small_talk(rng: random.Random, split: Split) -> TaskInstance:
    """Small talk that must refer to what the user said."""
    while True:
        person, place, animal = rng.choice(PEOPLE), rng.choice(PLACES), rng.choice(ANIMALS)
        if split_of(f"{person} {place} {animal}") == split:
            break
    prompt, answer = rng.choice(
        (
            (
                f"hello , my name is {person} and my {animal} lives in {place} .",
                f"nice to meet you , {person} . i hope the {animal} likes {place} .",
            ),
            (
                f"i am {person} from {place} and my {animal} is ill .",
                f"i am sorry , {person} . i hope the {animal} is well soon in {place} .",
            ),
            (
                f"{person} goes to {place} with a {animal} . tell me who and where .",
                f"{person} and the {animal} are in {place} .",
            ),
        )
    )
    return TaskInstance(prompt, answer, answer)


TASKS: dict[str, Callable[[random.Random, Split], TaskInstance]] = {
    "arithmetic": arithmetic,
    "lists": lists,
    "lookup": lookup,
    "dialogue": small_talk,
}


def all_task_words() -> set[str]:
    """Every word that a task can show."""
    words = {*COLOURS, *ANIMALS, *PEOPLE, *PLACES, *"0123456789"}
    rng = random.Random(0)
    for task in TASKS.values():
        for _ in range(200):
            instance = task(rng, "train")
            words.update(instance.prompt.split(), instance.answer.split())
    return words


def _digits(number: int) -> str:
    return " ".join(str(number))


def split_of(identity: str) -> Split:
    """The split of an instance, by a hash of what makes it another one."""
    digest = hashlib.sha256(identity.encode()).digest()
    return "heldout" if digest[0] % HELDOUT_SHARE == 0 else "train"
