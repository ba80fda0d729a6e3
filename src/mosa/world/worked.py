"""Tasks whose answer is a result and its working, written in either order.

    >>> sums(random.Random(0), "train").answer("working_first")  # doctest: +SKIP
    'two : 2 plus 1 is 3 . three : 3 plus 3 is 6 . four : 6 plus 2 is 8 . so the sum of all ... .'

A sum of four digits needs its working: each partial sum follows from the one before it. The places
of four animals do not: each is a look-up by itself. Every answer of a task has as many words, so
that its result stands at one place, where an order of filling can begin (`anchor_first`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from mosa.world.tasks import ANIMALS, COLOUR_OF, HOME_OF, split_of
from mosa.world.world import Split, words

NAMES = words("one two three four")
"""Of the addends, so that the working can say which it has come to."""
NUM_ADDENDS = len(NAMES)
NUM_ANIMALS = 4

Layout = Literal["working_first", "result_first"]
"""Which stands first on the page; which is written first is the decoder's affair."""


@dataclass(frozen=True)
class WorkedInstance:
    """A request with its result and the working that leads to it."""

    prompt: str
    working: tuple[str, ...]
    """Its sentences, in their order."""
    result: str

    def answer(self, layout: Layout) -> str:
        """The right answer."""
        working = " ".join(self.working)
        parts = (working, self.result) if layout == "working_first" else (self.result, working)
        return " ".join(parts)

    def result_window(self, layout: Layout) -> tuple[int, int]:
        """The positions of the result in an answer, from 1, inclusive."""
        length, before = len(self.result.split()), len(" ".join(self.working).split())
        start = 1 + (before if layout == "working_first" else 0)
        return start, start + length - 1

    def middle_window(self, layout: Layout) -> tuple[int, int]:
        """The positions of the middle sentence of the working, likewise."""
        lengths = [len(sentence.split()) for sentence in self.working]
        middle = len(lengths) // 2
        before = 0 if layout == "working_first" else len(self.result.split())
        start = 1 + before + sum(lengths[:middle])
        return start, start + lengths[middle] - 1

    def has_result(self, response: str) -> bool:
        """Whether a response states the right result."""
        return _states(response, self.result)

    def has_working(self, response: str) -> bool:
        """Whether a response states the whole working, word for word."""
        return _states(response, " ".join(self.working))


def sums(rng: random.Random, split: Split) -> WorkedInstance:
    """The sum of four digits, worked by partial sums; it is from 5 to 9, each as often."""
    while True:
        total = rng.randint(5, 9)
        cuts = sorted(rng.choices(range(total + 1), k=NUM_ADDENDS - 1))
        addends = [after - before for before, after in pairwise([0, *cuts, total])]
        if split_of("+".join(map(str, addends))) == split:
            break
    partial = list(accumulate(addends))
    listed = " , ".join(f"{name} {addend}" for name, addend in zip(NAMES, addends, strict=True))
    return WorkedInstance(
        f"what is the sum : {listed} ?",
        tuple(
            f"{NAMES[i]} : {partial[i - 1]} plus {addends[i]} is {partial[i]} ."
            for i in range(1, NUM_ADDENDS)
        ),
        f"so the sum of all these is {total} .",
    )


def places(rng: random.Random, split: Split) -> WorkedInstance:
    """Where four animals are from that are named by their colours, worked animal by animal."""
    while True:
        animals = rng.sample(ANIMALS, NUM_ANIMALS)
        if split_of("places of " + " ".join(animals)) == split:
            break
    asked = [f"the {COLOUR_OF[animal]} one" for animal in animals]
    return WorkedInstance(
        f"where are {_listed(asked)} from ?",
        tuple(f"{COLOUR_OF[a]} {a} is from {HOME_OF[a]} ." for a in animals),
        f"from {_listed([HOME_OF[animal] for animal in animals])} .",
    )


WORKED: dict[str, Callable[[random.Random, Split], WorkedInstance]] = {
    "sums": sums,
    "places": places,
}
"""Every such task by its name. The packaged checkpoints have learnt none of them."""


def _listed(items: list[str]) -> str:
    return f"{' , '.join(items[:-1])} and {items[-1]}"


def _states(response: str, text: str) -> bool:
    return f" {text} " in f" {' '.join(response.split())} "
