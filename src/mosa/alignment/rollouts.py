"""Answers that a policy gives during training, and a judge's scores of them."""

from __future__ import annotations

from collections.abc import Sequence

from mosa.denoising import DecoderConfig, SampleResult, sample
from mosa.families import DiffusionLM
from mosa.judges.base import Item, Judge
from mosa.judges.prompted import DOWN, NOTHING_TO_READ
from mosa.types import Behavior, Prompt, UserError, dialogue
from mosa.worker import run_coroutine


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

    The judge reads the user's turns of a dialogue, one below the other. Raises UserError where its
    model is down, or gives nothing to read for any of them: the training would go on without its
    scores, and end in other weights than with them.
    """
    asked = [
        "\n".join(turn.content for turn in dialogue(prompt) if turn.role == "user")
        for prompt in prompts
    ]
    items = [
        Item(Behavior(str(number), text), response)
        for number, (text, response) in enumerate(zip(asked, responses, strict=True))
    ]
    found = run_coroutine(judge.judge(items))
    is_down = [verdict.reason.startswith(DOWN) for verdict in found]
    gives_nothing = [verdict.reason.startswith(NOTHING_TO_READ) for verdict in found]
    if any(is_down) or all(gives_nothing):
        reason = found[is_down.index(True) if any(is_down) else 0].reason
        raise UserError(
            f"{reason.rstrip('.')}; once it answers, --resume goes on from the last checkpoint, "
            "and where there is none the same command starts again"
        )
    return [verdict.score for verdict in found]
