"""The published loop in plain tensors. Read this first: it shows how a diffusion language model
writes by filling masks.

A response begins as a row of mask tokens after the prompt. In each step the network looks at the
whole row, both ways, and predicts the token at every position. Some of the masks
become tokens, the rest stay masked, and the next step sees the result. `fill_block_by_block`
is LLaDA's `generate` (arXiv:2502.09992, Section 2.4); other_references.py has the loops of Dream
and of networks that see blocks.

Nothing in the package samples with these functions. The loop that does (`batch`) computes less,
holds rows of different settings, and can be watched and edited; tests hold its tokens equal to
these at temperature 0, and `mosa bench sampler` times it against them. All were
written from the papers and from reading the authors' code, and differ from it in two points: the
mask token is never chosen (theirs may choose it, and leave a mask), and each row counts its own
masks (theirs counts those of the block, or the mean over the batch).

# B rows, L canvas length (prompt + response), V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

LogitsOf = Callable[[Tensor, Tensor], Tensor]
"""The model: tokens [B, L] and which of them are real, not padding [B, L], to logits [B, L, V] that
may be written to."""


@torch.no_grad()
def fill_block_by_block(
    logits_of: LogitsOf,
    tokens: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    *,
    mask_token_id: int,
    response_start: int,
    block_length: int,
    steps: int,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    banned_token_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B L"]:
    """The canvas with every mask filled: blocks from left to right, the surest tokens first.

    The response, from column `response_start` on, is whole blocks, each of which takes its share of
    the steps. Masks in the prompt are filled with the first block.
    """
    tokens_BL = tokens.clone()
    given_BL = tokens != mask_token_id
    num_blocks = (tokens.shape[1] - response_start) // block_length
    num_steps = steps // num_blocks
    assert num_blocks * block_length == tokens.shape[1] - response_start, "no whole blocks"
    assert num_blocks * num_steps == steps, "blocks have as many steps"
    for block in range(num_blocks):
        # 1. Open the block: its masks, and any to the left of it.
        end = response_start + (block + 1) * block_length
        in_reach_BL = real & (torch.arange(tokens.shape[1], device=tokens.device) < end)
        num_open_B = ((tokens_BL == mask_token_id) & in_reach_BL).sum(dim=1)

        for step in range(num_steps):
            # 2. Ask the network about the whole canvas. With guidance, ask again without all that
            #    was given, and move away from that answer.
            logits_BLV = logits_of(tokens_BL, real)
            if cfg_scale > 0:
                blind_BLV = logits_of(tokens_BL.masked_fill(given_BL, mask_token_id), real)
                logits_BLV = blind_BLV + (cfg_scale + 1) * (logits_BLV - blind_BLV)
            logits_BLV[..., list(banned_token_ids)] = -torch.inf
            probs_BLV = logits_BLV.softmax(dim=-1)

            # 3. Propose a token for every position: the likeliest, or above temperature 0 one drawn
            #    with Gumbel noise.
            logits_BLV[..., mask_token_id] = -torch.inf
            if temperature > 0:
                uniform_BLV = torch.rand(
                    logits_BLV.shape, generator=generator, dtype=torch.float64, device=tokens.device
                )
                logits_BLV = logits_BLV.double().exp() / (-uniform_BLV.log()) ** temperature
            proposed_BL = logits_BLV.argmax(dim=-1)

            # 4. Rate each proposal by its probability, where there is an open mask.
            confidence_BL = probs_BLV.gather(-1, proposed_BL.unsqueeze(-1)).squeeze(-1)
            is_open_BL = (tokens_BL == mask_token_id) & in_reach_BL
            confidence_BL = confidence_BL.masked_fill(~is_open_BL, -torch.inf)

            # 5. Commit the surest: in each step an equal share of what the block began with, and
            #    one more in the first steps where that does not come out even.
            for row, num_open in enumerate(num_open_B.tolist()):
                count = num_open // num_steps + (step < num_open % num_steps)
                surest = confidence_BL[row].topk(count).indices
                tokens_BL[row, surest] = proposed_BL[row, surest]
    return tokens_BL
