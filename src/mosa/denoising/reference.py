"""The published loops in plain tensors. Read this first: it shows how a diffusion language model
writes by filling masks.

A response begins as a row of mask tokens after the prompt. In each step the network looks at the
whole row, both ways, and predicts the token at every position. Some of the masks
become tokens, the rest stay masked, and the next step sees the result. `fill_block_by_block`
is LLaDA's `generate` (arXiv:2502.09992, Section 2.4), `fill_by_timesteps` Dream's `_sample`
(arXiv:2508.15487); they differ in how many masks a step fills, and in which.
`fill_network_blocks` is for networks that see blocks, not the whole row: LLaDA2's `generate`
(arXiv:2512.15745, arXiv:2602.08676) and, without edits, SDAR's (arXiv:2510.06303).

Nothing in the package samples with these functions. The loop that does (`batch`) computes less,
holds rows of different settings, and can be watched and edited; tests hold its tokens equal to
these at temperature 0, and `mosa bench sampler` times it against the first and the last. All were
written from the papers and from reading the authors' code, and differ from it in two points: the
mask token is never chosen (theirs may choose it, and leave a mask), and each row counts its own
masks (theirs counts those of the block, or the mean over the batch).

# B rows, L canvas length (prompt + response), V vocabulary, N masks of all rows, P prompt tokens,
# K tokens of a block
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

LogitsOf = Callable[[Tensor, Tensor], Tensor]
"""The model: tokens [B, L] and which of them are real, not padding [B, L], to logits [B, L, V] that
may be written to."""

LogitsOfRow = Callable[[Tensor], Tensor]
"""The model: tokens [1, L] that end with a block to logits [1, L, V], or those of that block alone,
that may be written to."""


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


@torch.no_grad()
def fill_by_timesteps(
    logits_of: LogitsOf,
    tokens: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    *,
    mask_token_id: int,
    steps: int,
    order: Literal["maskgit_plus", "topk_margin", "entropy"],
    top_p: float | None = None,
    top_k: int | None = None,
) -> Int[Tensor, "B L"]:
    """The canvas with every mask filled: all of it one block, by a schedule of times from 1 to 0.

    At temperature 0. Of the masks that are left, the step from time t to time s fills the share
    1 - s / t, rounded down.
    """
    tokens_BL = tokens.clone()
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        # 1. Open all masks, and count how many of each row the step fills: in the last, all.
        is_open_BL = (tokens_BL == mask_token_id) & real
        num_open_B = is_open_BL.sum(dim=1)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else torch.tensor(1.0)
        count_B = (num_open_B.cpu().float() * share).long()

        # 2. Ask the network about the whole canvas, and propose the likeliest token for each mask.
        logits_NV = logits_of(tokens_BL, real)[is_open_BL]
        allowed_NV = logits_NV.clone()
        allowed_NV[:, mask_token_id] = -torch.inf
        proposed_N = allowed_NV.argmax(dim=-1)

        # 3. Cut off unlikely tokens: all after the first that together hold more than top_p, and
        #    all but the top_k.
        if top_p is not None:
            sorted_NV, by_rank_NV = logits_NV.sort(dim=-1, descending=True)
            held_before_NV = sorted_NV.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
            held_before_NV[:, 0] = 0
            held_by_likelier_NV = held_before_NV.gather(-1, by_rank_NV.argsort(dim=-1))
            logits_NV = logits_NV.masked_fill(held_by_likelier_NV > top_p, -torch.inf)
        if top_k is not None:
            kth_N1 = logits_NV.topk(top_k, dim=-1).values[:, -1:]
            logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
        probs_NV = logits_NV.softmax(dim=-1)

        # 4. Rate the proposals: by their probability, by the lead of the likeliest token over the
        #    second, or by how little entropy is left.
        if order == "maskgit_plus":
            rating_N = probs_NV.gather(-1, proposed_N.unsqueeze(-1)).squeeze(-1)
        elif order == "topk_margin":
            best_N2 = probs_NV.topk(2, dim=-1).values
            rating_N = best_N2[:, 0] - best_N2[:, 1]
        else:
            rating_N = (probs_NV * (probs_NV + 1e-10).log()).sum(dim=-1)

        # 5. Commit the best rated of each row.
        proposed_BL = tokens_BL.masked_scatter(is_open_BL, proposed_N)
        rating_BL = torch.full(tokens_BL.shape, -torch.inf, device=tokens.device)
        rating_BL[is_open_BL] = rating_N.float()
        for row, count in enumerate(count_B.tolist()):
            best = rating_BL[row].topk(count).indices
            tokens_BL[row, best] = proposed_BL[row, best]
    return tokens_BL


@torch.no_grad()
def fill_network_blocks(
    logits_of: LogitsOfRow,
    prompt: Int[Tensor, "1 P"],
    *,
    mask_token_id: int,
    max_new_tokens: int,
    block_length: int,
    steps_per_block: int,
    threshold: float | None = None,
    edit_threshold: float | None = None,
    max_post_steps: int = 16,
    temperature: float = 0.0,
    end_token_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Int[Tensor, "1 L"]:
    """The canvas of one row with its blocks filled, up to the first that holds an end token.

    The blocks are the network's: counted from the prompt's first token, so that the end of the
    prompt may share one with the response, and whole, so that the canvas may be longer than asked
    for. Blocks of the prompt alone are read as they are.
    """
    num_prompt = prompt.shape[1]
    num_blocks = -(-(num_prompt + max_new_tokens) // block_length)
    num_more = num_blocks * block_length - num_prompt
    tokens_1L = functional.pad(prompt, (0, num_more), value=mask_token_id)
    bound = torch.inf if threshold is None else threshold
    for block in range(num_prompt // block_length, num_blocks):
        # 1. Open the block. What is written to this view is written to the canvas.
        begin, end = block * block_length, (block + 1) * block_length
        block_K = tokens_1L[0, begin:end]
        is_response_K = torch.arange(begin, end, device=prompt.device) >= num_prompt

        step = num_post_steps = 0
        while True:
            # 2. Close it when no mask is left, or with edits after so many looks at what is full.
            is_masked_K = block_K == mask_token_id
            num_masked = int(is_masked_K.sum())
            if not num_masked and (edit_threshold is None or num_post_steps == max_post_steps):
                break
            num_post_steps += not num_masked

            # 3. Ask the network about the block behind all before it; what is to come is not there.
            logits_KV = logits_of(tokens_1L[:, :end])[0, -block_length:]
            if temperature > 0:
                logits_KV = logits_KV / temperature
            probs_KV = logits_KV.softmax(dim=-1)

            # 4. Propose a token for every position of the block: the likeliest, or one that is
            #    drawn. Its probability is how sure the network is of it.
            logits_KV[:, mask_token_id] = -torch.inf
            proposed_K = logits_KV.argmax(dim=-1)
            if temperature > 0:
                allowed_KV = logits_KV.softmax(dim=-1)
                proposed_K = allowed_KV.multinomial(1, generator=generator)[:, 0]
            confidence_K = probs_KV.gather(-1, proposed_K[:, None])[:, 0]

            # 5. Commit the surest, as many as the schedule of a whole block says, and all that are
            #    surer than the threshold.
            share = block_length // steps_per_block + (step < block_length % steps_per_block)
            rating_K = confidence_K.masked_fill(~is_masked_K, -torch.inf)
            is_changed_K = rating_K > bound
            is_changed_K[rating_K.topk(min(share, num_masked)).indices] = True
            step += 1

            # 6. Edit: replace a written token by another of which the network is sure enough. A
            #    look at a full block that changes nothing is its last.
            if edit_threshold is not None:
                is_other_K = is_response_K & ~is_masked_K & (proposed_K != block_K)
                is_changed_K |= is_other_K & (confidence_K > edit_threshold)
                if num_post_steps and not is_changed_K.any():
                    break
            block_K[is_changed_K] = proposed_K[is_changed_K]

        # 7. End behind a block that holds an end token; what follows stays masked.
        ends = torch.tensor(end_token_ids, device=prompt.device)
        if torch.isin(block_K[is_response_K], ends).any():
            break
    return tokens_1L
