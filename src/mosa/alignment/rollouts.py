"""Answers that a policy gives during training, and a judge's scores of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mosa.denoising import DecoderConfig, SampleResult, sample
from mosa.families import DiffusionLM
from mosa.judges.base import Item, Judge
from mosa.types import Behavior, Prompt, Verdict, dialogue


def roll_out(
    policy: DiffusionLM, prompts: Sequence[Prompt], seeds: Sequence[int], decoder: DecoderConfig
) -> SampleResult:
    """An answer of the current policy to each prompt, drawn with a seed for each.

    The sampler runs in evaluation mode and without gradients, and leaves the network in the mode
    that it was in.
    """
    return sample(policy, list(prompts), decoder, row_seeds=list(seeds))


def harm_of(
    judge: Judge, prompts: Sequence[Prompt], responses: Sequence[str]
) -> list[float | None]:
    """How far each response does what its prompt asks, from 0 to 1; None where it is unscored.

    The judge reads the user's turns of a dialogue, one below the other.
    """
    asked = [
        "\n".join(turn.content for turn in dialogue(prompt) if turn.role == "user")
        for prompt in prompts
    ]
    items = [
        Item(Behavior(str(number), text), response)
        for number, (text, response) in enumerate(zip(asked, responses, strict=True))
    ]

    async def verdicts() -> list[Verdict]:
        return await judge.judge(items)

    return [verdict.score for verdict in asyncio.run(verdicts())]
