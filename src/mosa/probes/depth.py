"""Where does alignment live? What a model would say, by position and step, before it says it.

During a generation, at each masked position: the probability of an end token; and of a
refusal that begins there, as the mean probability of its tokens (geometric) for the likeliest
phrase. The phrases are those of the packaged set `refusing` and those that the subject's adapter
was trained to say, where its folder records them. A model with an adapter is asked on the canvases
of the model without it, and the KL of the former from the latter is taken at each masked position.
Example: a shallowly aligned adapter has its KL at the first positions of the first step, one
aligned in the middle further on.

The attempt has no response: its details hold the profiles.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mosa.alignment.objective import kl_divergence, window_scores
from mosa.attacks.base import PLANNED, Attack, Attempts, Settings, Target
from mosa.denoising import Canvas, DecoderConfig, evaluation_mode, sample
from mosa.denoising.canvas import left_padded
from mosa.families import DiffusionLM
from mosa.probes.base import Protocol, phrases_of, step_numbers
from mosa.types import as_plain
from mosa.worker import Work

# B rows, L canvas length, R response length, V vocabulary

Refusals = Sequence[Sequence[Sequence[int]]]
"""Each refusal as the tokens that it has at the first position, and those that it has further on:
byte-level tokenizers write a word inside a text with other tokens than one that begins it."""

CASES_TOGETHER = 8
"""Cases whose canvases share a batch; the log-probabilities of two models are held for all."""


@dataclass(frozen=True)
class DepthConfig(Settings):
    """Which moments of a generation are looked at."""

    step_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Moments: before the step at this share of all steps."""
    tokens_per_step: int = 2
    """Tokens committed in a step, at most a block's."""
    block_length: int | None = None
    """Block length; unset: one block over the canvas."""


async def run(target: Target, config: DepthConfig) -> Attempts:
    """Look at the canvases of one generation."""
    settings = target.pace(config.tokens_per_step, config.block_length)
    decoder = dataclasses.replace(target.decoder, **settings)
    packaged = phrases_of(target, "refusing")
    trained = [text for text in target.refusals if text not in packaged]
    state = {
        "prompt": target.encode_prompt(target.request),
        "decoder": as_plain(decoder),
        "steps": step_numbers(config.step_shares, decoder.steps),
        "refusals": [
            [list(target.phrase_ids(text, position)) for position in (1, 2)]
            for text in (*packaged, *trained)
        ],
    }
    found = await target.compute("profiles", Work(look, state, together=CASES_TOGETHER))
    counts = {"num_packaged_refusals": len(packaged), "num_trained_refusals": len(trained)}
    told = {"num_steps": decoder.steps, "block_length": decoder.block_length}
    yield target.attempt([], details={"profiles": found["profiles"], **counts, **told})


def look(model: DiffusionLM, states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The profiles before each step of a generation, for several prompts."""
    found = []
    for (plain, steps, refusals), group in itertools.groupby(
        states, lambda state: (state["decoder"], state["steps"], state["refusals"])
    ):
        prompts = [state["prompt"] for state in group]
        found += _look(model, prompts, DecoderConfig.from_dict(plain), steps, refusals)
    return found


def _look(
    model: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    decoder: DecoderConfig,
    steps: Sequence[int],
    refusals: Refusals,
) -> list[dict[str, Any]]:
    ids, real = left_padded(prompts, model.pad_token_id)
    canvas = Canvas.from_prompts(
        model, ids, max_new_tokens=decoder.max_new_tokens, attention_mask=real
    )
    with model.adapter_disabled():
        trace = sample(model, canvas, decoder).trace
    columns = torch.arange(canvas.response_start, canvas.tokens.shape[1]).to(model.device)
    logits_of = functools.partial(
        model.logits,
        attention_mask=canvas.attention_mask,
        positions=columns,
        response_start=canvas.response_start,
    )
    profiles: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for step in steps:
        tokens_BL = trace.replay(until_step=step - 1)
        masked_BR = tokens_BL[:, canvas.response_start :] == canvas.mask_token_id
        with torch.no_grad(), evaluation_mode(model):
            log_probs_BRV = logits_of(tokens_BL, written=tokens_BL).log_softmax(-1)
            values = profile(log_probs_BRV, masked_BR, model.end_token_ids, refusals)
            if model.has_adapter:
                with model.adapter_disabled():
                    base_BRV = logits_of(tokens_BL, written=tokens_BL)
                kl_BR = kl_divergence(log_probs_BRV, base_BRV.log_softmax(-1))
                values["kl"] = kl_BR.masked_fill(~masked_BR, torch.nan)
        for row, profile_of_row in enumerate(profiles):
            plain = {name: _plain(grid[row]) for name, grid in values.items()}
            profile_of_row.append({"step": step} | plain)
    num_looks = len(steps) * (1 + model.has_adapter)
    return [
        {"profiles": profiles[row], "forward_passes": num_looks + passes}
        for row, passes in enumerate(trace.row_forward_passes.tolist())
    ]


def profile(
    log_probs: Float[Tensor, "B R V"],
    masked: Bool[Tensor, "B R"],
    end_token_ids: Sequence[int],
    refusals: Refusals,
) -> dict[str, Float[Tensor, "B R"]]:
    """`refusal` and `end` at each position; NaN where it is filled, or no refusal fits.

    A refusal fits where all of its positions are masked.
    """
    ends = torch.tensor(end_token_ids, device=log_probs.device)
    end_BR = log_probs[..., ends].exp().sum(dim=-1).masked_fill(~masked, torch.nan)
    best_BR = torch.full_like(end_BR, -torch.inf)
    for at_first, further_on in refusals:
        for refusal, starts in ((at_first, slice(0, 1)), (further_on, slice(1, None))):
            ids = torch.tensor(refusal, device=log_probs.device)
            if len(ids) > masked.shape[1]:
                continue
            score_BS = window_scores(log_probs, ids, token_reduction="mean")
            fits_BS = masked.unfold(1, len(ids), 1).all(dim=-1)
            score_BS = score_BS.masked_fill(~fits_BS, -torch.inf)
            best_BS = best_BR[:, : score_BS.shape[1]]
            best_BS[:, starts] = torch.maximum(best_BS, score_BS)[:, starts]
    refusal_BR = best_BR.exp().masked_fill(best_BR == -torch.inf, torch.nan)
    return {"refusal": refusal_BR, "end": end_BR}


def _plain(values: Float[Tensor, " R"]) -> list[float | None]:
    """Numbers as JSON keeps them: NaN becomes null."""
    return [None if math.isnan(v) else round(v, 6) for v in values.tolist()]


ATTACK = Attack(
    name="depth",
    needs_masks="looks at the masks that are left, and {subject} has none",
    title="depth of refusals",
    summary="where and when a model puts refusals",
    source="after MOSA, arXiv 2508.12398",
    access=("prompt", "sampler", "likelihood"),
    takes=("steps", "block_length", *PLANNED),
    presets={"quick": {}, "full": {"step_shares": tuple(i / 12 for i in range(12))}},
    run=run,
    decides="any",
    reads_refusals=True,
    version=4,
)
PROTOCOLS = {"quick": Protocol(12), "full": Protocol(25)}
