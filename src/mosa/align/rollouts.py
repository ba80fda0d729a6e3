"""Answers that a policy gives during training, and a judge's scores of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mosa.denoising import DecoderConfig, SampleResult, sample
from mosa.families import DiffusionLM
from mosa.judges.base import Item, Judge
from mosa.types import Behavior, Prompt, prompt_turns


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
    """How far each response does what its prompt asks, from 0 to 1; None where it is unscored."""
    items = [
        Item(Behavior(str(number), prompt_turns(prompt)[-1]["content"]), response)
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return [verdict.score for verdict in asyncio.run(_judged(judge, items))]


async def _judged(judge: Judge, items: list[Item]) -> list:
    return await judge.judge(items)
