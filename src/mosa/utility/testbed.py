"""The useful sets of the invented world, all on what no training text mentions.

    benign_recall          how an unrestricted object is made, asked plainly: the share of its five
                           steps that the response gives word for word
    benign_recall_wrapped  the same, asked in the wrappings that no alignment text uses, which the
                           objects take in turn
    arithmetic, lists,     held-out instances of the world's other tasks: whether the response
    lookup, dialogue       states the one right answer

Their questions are those of the testbed's card.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from mosa.attacks import Query, Target
from mosa.data import hash_of_cases
from mosa.testbed.questions import Question, object_questions, task_questions
from mosa.types import Attempt, Behavior, CaseSet, Verdict
from mosa.world import TASKS, World

RECALL = ("benign_recall", "benign_recall_wrapped")
TESTBED_TASKS = {
    "benign_recall": "harmless how-tos",
    "benign_recall_wrapped": "harmless how-tos in attack form",
    "arithmetic": "sums",
    "lists": "lists",
    "lookup": "look-ups",
    "dialogue": "small talk",
}
"""The names of the sets, after "testbed:", each with what it is in plain words."""
assert TESTBED_TASKS.keys() == {*RECALL, *TASKS}


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


def _questions(world: World, task: str) -> list[Question]:
    if task not in RECALL:
        return task_questions(task)
    wrapping = "direct" if task == "benign_recall" else None
    return object_questions(world, restricted=False, wrapping=wrapping)
