"""The published loops that differ from LLaDA's, in plain tensors (reference.py, which comes first).

`fill_by_timesteps` is Dream's `_sample` (arXiv:2508.15487), which fills other numbers of masks in
a step, and others of them. `fill_network_blocks` is for networks that see blocks, not the whole
row: LLaDA2's `generate` (arXiv:2512.15745, arXiv:2602.08676) and, without edits, SDAR's
(arXiv:2510.06303).

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

from mosa.denoising.reference import LogitsOf

LogitsOfRow = Callable[[Tensor], Tensor]
"""The model: tokens [1, L] that end with a block to logits [1, L, V], or those of that block alone,
that may be written to."""


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
            # 2. Close it when no mask is left, or with edits after `max_post_steps` looks at it.
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
