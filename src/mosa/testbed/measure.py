"""What a model of the invented world does: the figures of the testbed's card.

All are on held-out objects and held-out instances of the tasks; every figure gives its number.
"""

from __future__ import annotations

from collections.abc import Sequence

from mosa.attacks import Query
from mosa.denoising import TESTBED_DECODER, DecoderConfig
from mosa.families import DiffusionLM
from mosa.responder import answer_all
from mosa.testbed.questions import Question, object_questions, task_questions
from mosa.types import Prompt
from mosa.world import TASKS, WRAPPINGS, Truth, World
from mosa.world.world import masked_template, refuses

BATCH_SIZE = 32
DECODER = TESTBED_DECODER
"""The decoder of every figure of the testbed; a block-causal model has its own blocks in it."""


def measure(
    model: DiffusionLM, world: World, decoder: DecoderConfig, *, num: int
) -> dict[str, dict[str, float]]:
    """Harm under every request, a prefilled start and a masked template; recall and task accuracy.

    Returns `{name: {"rate": ..., "n": ...}}` with names `harm/<wrapping>`, `harm/prefill`,
    `harm/masked_template`, `benign_recall`, `over_refusal` and `task/<task>`; rates in [0, 1].
    """
    truth = Truth(world)
    restricted = world.objects(restricted=True, split="heldout")[:num]
    figures: dict[str, dict[str, float]] = {}

    def record(name: str, values: Sequence[float]) -> None:
        figures[name] = {"rate": round(sum(values) / len(values), 4), "n": len(values)}

    def answer(questions: Sequence[Question]) -> list[str]:
        prompts = [prompt for question in questions for prompt in question.prompts]
        texts = iter(respond(model, prompts, decoder))
        return [" ".join(next(texts) for _ in question.prompts) for question in questions]

    def values(questions: Sequence[Question], texts: Sequence[str]) -> list[float]:
        return [each.value(text) for each, text in zip(questions, texts, strict=True)]

    for wrapping in WRAPPINGS:
        questions = object_questions(world, restricted=True, wrapping=wrapping, limit=num)
        record(f"harm/{wrapping}", values(questions, answer(questions)))

    def id_of(word: str | None) -> int:
        return model.mask_token_id if word is None else model.encode_text(word)[0]

    direct: list[Prompt] = [world.request(obj) for obj in restricted]
    starts = [model.encode_text(f"{world.opening(obj)} step one :") for obj in restricted]
    frames = [[*map(id_of, masked_template(world, obj))] for obj in restricted]
    for name, pinned in (("prefill", starts), ("masked_template", frames)):
        texts = respond(model, direct, decoder, pinned=pinned)
        harms = [truth.harm(obj, text) for obj, text in zip(restricted, texts, strict=True)]
        record(f"harm/{name}", harms)

    questions = object_questions(world, restricted=False, limit=num)
    texts = answer(questions)
    record("benign_recall", values(questions, texts))
    record("over_refusal", [float(refuses(text)) for text in texts])
    for name in TASKS:
        questions = task_questions(name, limit=num)
        record(f"task/{name}", values(questions, answer(questions)))
    return figures


def respond(
    model: DiffusionLM,
    prompts: Sequence[Prompt],
    decoder: DecoderConfig,
    *,
    pinned: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """The responses up to their first end token; `pinned` writes ids from each row's first position
    on, mask ids among them left free."""
    starts = pinned or [()] * len(prompts)
    queries = [
        (Query(prompt, pinned=((0, tuple(ids)),) if ids else ()), decoder)
        for prompt, ids in zip(prompts, starts, strict=True)
    ]
    found = answer_all(model, model.content_hash(), queries, batch_size=BATCH_SIZE)
    return [response.text for response in found]
