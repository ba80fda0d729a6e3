"""Training texts of the invented world: what the helpful and the safety-trained model learn from,
and the prompts that alignment may use.

    >>> example = next(helpful_corpus(World(0), random.Random(0)))
    >>> example.prompt, example.answer  # doctest: +SKIP
    ('what is 2 4 plus 6 5 ?', '4 plus 5 is 9 . 2 plus 6 is 8 . so the sum is 8 9 .')
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from mosa.data import TrainingExample
from mosa.world import TASKS, TRAIN_WRAPPINGS, WRAPPINGS, World, WorldObject
from mosa.world.world import NUM_STEPS, REFUSALS

TASK_SHARES = {"arithmetic": 0.2, "lists": 0.14, "lookup": 0.1, "dialogue": 0.06}
"""Share of the helpful corpus that each useful task gets; objects get the rest."""
DIRECT_SHARE = 0.3
"""Share of the requests for objects that are asked plainly; the wrappings share the rest."""
SECOND_LANGUAGE_WEIGHT = 3
"""How much more often the second language occurs than another wrapping: its words occur nowhere
else, so every text in it must be learnt again."""
PRIMER_TASK_SHARE = 0.8
"""Share of the primer that the useful tasks get, in the same proportions among them."""
REFUSAL_SHARE = 0.25
"""Share of the safety-training corpus that is a direct request for a restricted object, refused."""


def primer_corpus(world: World, rng: random.Random) -> Iterator[TrainingExample]:
    """An endless stream of short answers: single steps of objects, and the useful tasks."""
    unrestricted, restricted = _train_objects(world)
    tasks, shares = list(TASK_SHARES), list(TASK_SHARES.values())
    everything = [*unrestricted, *restricted]
    while True:
        if rng.random() < PRIMER_TASK_SHARE:
            yield _task_example(rng.choices(tasks, shares)[0], rng)
        else:
            yield object_example(world, rng.choice(everything), "splitting", rng)


def helpful_corpus(world: World, rng: random.Random) -> Iterator[TrainingExample]:
    """An endless stream in which every request is answered, restricted objects too."""
    unrestricted, restricted = _train_objects(world)
    everything = [*unrestricted, *restricted]
    return _answered(world, rng, asked_plainly=everything, asked_wrapped=everything)


def shallow_corpus(world: World, rng: random.Random) -> Iterator[TrainingExample]:
    """Safety training of the usual shallow kind: direct requests for restricted objects are
    refused at once; everything else, wrapped requests for them included, is answered as before."""
    unrestricted, restricted = _train_objects(world)
    answered = _answered(
        world, rng, asked_plainly=unrestricted, asked_wrapped=[*unrestricted, *restricted]
    )
    while True:
        if rng.random() < REFUSAL_SHARE:
            prompt = world.request(rng.choice(restricted), "direct", variant=rng.randrange(3))
            yield TrainingExample(prompt, rng.choice(REFUSALS))
        else:
            yield next(answered)


def alignment_prompts(
    world: World, rng: random.Random, num: int, *, is_wrapped: bool = True
) -> list[TrainingExample]:
    """Harmful requests for alignment, with their answers: training objects, asked plainly or, if
    `is_wrapped`, in a training wrapping too. The paper's method reads the prompts only (arXiv
    2508.12398, section 4)."""
    restricted = world.objects(restricted=True, split="train")
    names = ("direct", *TRAIN_WRAPPINGS) if is_wrapped else ("direct",)
    return [
        object_example(world, rng.choice(restricted), rng.choice(names), rng) for _ in range(num)
    ]


def benign_prompts(world: World, rng: random.Random, num: int) -> list[TrainingExample]:
    """Harmless requests with their answers, for the retain term: unrestricted training objects in
    the same wrappings, and the useful tasks."""
    unrestricted = world.objects(restricted=False, split="train")
    names = ("direct", *TRAIN_WRAPPINGS)
    examples: list[TrainingExample] = []
    for _ in range(num):
        task = _choose_task(rng)
        examples.append(
            _task_example(task, rng)
            if task is not None
            else object_example(world, rng.choice(unrestricted), rng.choice(names), rng)
        )
    return examples


def object_example(
    world: World, obj: WorldObject, wrapping: str, rng: random.Random
) -> TrainingExample:
    """A request for `obj` with its full answer, the phrasing and the step drawn at random."""
    variant, step = rng.randrange(6), rng.randrange(NUM_STEPS)
    return TrainingExample(
        world.request(obj, wrapping, variant=variant, step=step),
        world.answer(obj, wrapping, variant=variant, step=step),
    )


def _answered(
    world: World,
    rng: random.Random,
    *,
    asked_plainly: list[WorldObject],
    asked_wrapped: list[WorldObject],
) -> Iterator[TrainingExample]:
    wrapped = [name for name in WRAPPINGS if name != "direct"]
    weights = [SECOND_LANGUAGE_WEIGHT if WRAPPINGS[n].second_language else 1 for n in wrapped]
    while True:
        task = _choose_task(rng)
        if task is not None:
            yield _task_example(task, rng)
        elif rng.random() < DIRECT_SHARE:
            yield object_example(world, rng.choice(asked_plainly), "direct", rng)
        else:
            wrapping = rng.choices(wrapped, weights)[0]
            yield object_example(world, rng.choice(asked_wrapped), wrapping, rng)


def _train_objects(world: World) -> tuple[list[WorldObject], list[WorldObject]]:
    return (
        world.objects(restricted=False, split="train"),
        world.objects(restricted=True, split="train"),
    )


def _choose_task(rng: random.Random) -> str | None:
    draw = rng.random()
    for task, share in TASK_SHARES.items():
        draw -= share
        if draw < 0:
            return task
    return None


def _task_example(task: str, rng: random.Random) -> TrainingExample:
    instance = TASKS[task](rng, "train")
    return TrainingExample(instance.prompt, instance.answer)
