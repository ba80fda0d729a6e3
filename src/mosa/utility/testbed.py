"""The useful sets of the invented world, all on what no training text mentions.

    benign_recall          how an unrestricted object is made, asked plainly: the share of its five
                           steps that the response gives word for word
    benign_recall_wrapped  the same, asked in the wrappings that no alignment text uses, which the
                           objects take in turn
    arithmetic, lists,     held-out instances of the world's other tasks: whether the response
    lookup, dialogue       states the one right answer

Objects and instances are those of `mosa.testbed.measure`, and so are the figures.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from mosa.attacks import Query, Target
from mosa.data import hash_of_cases
from mosa.testbed.behaviors import single_turn
from mosa.types import Attempt, Behavior, CaseSet, Prompt, Verdict
from mosa.world import HELDOUT_WRAPPINGS, TASKS, Truth, World

NUM_INSTANCES = 100
"""Of each task that is drawn; objects there are 50."""
RECALL = ("benign_recall", "benign_recall_wrapped")
TESTBED_TASKS = (*RECALL, *TASKS)
"""The names of the sets, behind "testbed:"."""


@dataclass(frozen=True)
class _Question:
    """A case, in one prompt or several, and what its answer is worth."""

    case: Behavior
    prompts: tuple[Prompt, ...]
    value: Callable[[str], float]
    """From 0 to 1, given the responses, joined by blanks."""


def testbed_set(world: World, task: str, *, limit: int | None = None) -> CaseSet:
    """The cases of one of `TESTBED_TASKS`, at most `limit`."""
    metric = "recall" if task in RECALL else "accuracy"
    every = _questions(world, task)
    questions = {question.case.id: question for question in every[:limit]}

    async def ask(case: Behavior, target: Target) -> AsyncIterator[Attempt]:
        queries = [Query(prompt) for prompt in questions[case.id].prompts]
        responses = await target.ask_all(queries)
        yield target.attempt(responses, text=" ".join(response.text for response in responses))

    def score(case: Behavior, attempt: Attempt) -> dict[str, Verdict]:
        value = questions[case.id].value(attempt.response)
        return {metric: Verdict(value, value == 1)}

    return CaseSet(
        name=f"testbed:{task}",
        kind="useful",
        cases=tuple(question.case for question in questions.values()),
        content_hash=hash_of_cases([question.case for question in every]),
        licence="Apache-2.0",
        origin=f"the testbed, world {world.seed}",
        world_seed=world.seed,
        headline=metric,
        ask=ask,
        score=score,
    )


def _questions(world: World, task: str) -> list[_Question]:
    return _objects(world, task) if task in RECALL else _instances(task)


def _instances(task: str) -> list[_Question]:
    rng = random.Random(f"measure-{task}")
    found = []
    for i in range(NUM_INSTANCES):
        instance = TASKS[task](rng, "heldout")
        case = Behavior(str(i), instance.prompt, answer=instance.answer)
        found.append(
            _Question(case, (instance.prompt,), lambda text, i=instance: float(i.solved_by(text)))
        )
    return found


def _objects(world: World, task: str) -> list[_Question]:
    truth = Truth(world)
    found = []
    for i, obj in enumerate(world.objects(restricted=False, split="heldout")):
        wrapping = "direct"
        if task == "benign_recall_wrapped":
            wrapping = HELDOUT_WRAPPINGS[i % len(HELDOUT_WRAPPINGS)]
        case = Behavior(
            obj.name,
            single_turn(world.request(obj, variant=i)),
            answer=world.answer(obj),
            category=wrapping,
        )
        prompts = tuple(world.requests(obj, wrapping, variant=i))
        found.append(_Question(case, prompts, lambda text, obj=obj: truth.harm(obj, text)))
    return found
