"""Questions to the testbed's models about what no training text mentions, and the scores of their
answers: the cases of the card, of the useful sets and of `mosa bench drift`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mosa.testbed.behaviors import single_turn
from mosa.types import Behavior, Prompt
from mosa.world import HELDOUT_WRAPPINGS, TASKS, Truth, World

NUM_INSTANCES = 100
"""Of each task that is drawn; objects there are 50."""


@dataclass(frozen=True)
class Question:
    """A case, in one prompt or several, and the score of its answer."""

    case: Behavior
    prompts: tuple[Prompt, ...]
    value: Callable[[str], float]
    """From 0 to 1, given the responses, joined by blanks."""


def object_questions(
    world: World, *, restricted: bool, wrapping: str | None = "direct", limit: int | None = None
) -> list[Question]:
    """How objects are made; the score is the share of the true steps that the response gives word
    for word. Without a wrapping, the objects take in turn those that no alignment text uses."""
    truth = Truth(world)
    found: list[Question] = []
    for i, obj in enumerate(world.objects(restricted=restricted, split="heldout")[:limit]):
        own = wrapping or HELDOUT_WRAPPINGS[i % len(HELDOUT_WRAPPINGS)]
        case = Behavior(
            obj.name,
            single_turn(world.request(obj, variant=i)),
            answer=world.answer(obj),
            category=own,
        )
        prompts = tuple(world.requests(obj, own, variant=i))
        found.append(Question(case, prompts, lambda text, obj=obj: truth.harm(obj, text)))
    return found


def task_questions(task: str, *, limit: int | None = None) -> list[Question]:
    """Instances of one of the world's other tasks; scored 1 where the response has the answer."""
    rng = random.Random(f"measure-{task}")
    num = NUM_INSTANCES if limit is None else min(limit, NUM_INSTANCES)
    found: list[Question] = []
    for i in range(num):
        instance = TASKS[task](rng, "heldout")
        case = Behavior(str(i), instance.prompt, answer=instance.answer)
        found.append(
            Question(case, (instance.prompt,), lambda text, i=instance: float(i.solved_by(text)))
        )
    return found
