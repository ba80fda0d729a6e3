"""One training step of MOSA in plain tensors (arXiv 2508.12398, Algorithm 1): start reading here.

`MosaTrainer` trains this objective with chunks of the vocabulary, one copy of the weights and a
dozen options; with the paper's settings its losses and gradients are those of `losses` below. Tests
assert this, and `mosa bench align` times them side by side. Everything here is written out:
a second copy of the model as the reference, and all log-probabilities of both.

    losses(policy, reference, prompts, safe, harmful).mean().backward()
    torch.nn.utils.clip_grad_norm_(adapter, 0.01)
    optimizer.step()

The paper calls this reinforcement learning. There is no rollout, advantage or ratio in it: the
reward is a differentiable function of one forward pass.

`block_losses` is the same step for a model that fills block after block, with one pass for each
block as it opens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mosa.families import DiffusionLM

# B prompts, L canvas length, R response positions, P response positions of a block, V vocabulary.


def losses(
    policy: DiffusionLM,
    reference: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    safe: Sequence[Sequence[int]],
    harmful: Sequence[Sequence[int]],
    *,
    window: tuple[int, int | None] = (20, 60),
    response_length: int = 128,
    beta: float = 0.05,
    noise_seed: int | Int[Tensor, " B"] = 0,
    network: nn.Module | None = None,
) -> Float[Tensor, " B"]:
    """The loss of each prompt: minus its reward, plus `beta` times its KL to the reference.

    Prompts and phrases are token ids. `safe[b]` is the refusal s+ drawn for prompt b with its
    breaker (the end tokens that cut the answer), `harmful[b]` the continuation s-. `window` is its
    first and last position, counted from 1 at the first response token, the last included.
    `noise_seed` says what stands in place of masks in a model of uniform noise. `network` is a
    wrapped form of the policy's network to call in its place.
    """
    # 1. The canvas: every prompt, padded on the left to one width, and a response of masks only.
    width = max(map(len, prompts))
    tokens_BL = torch.full((len(prompts), width + response_length), policy.mask_token_id)
    attended_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens_BL[row, :width] = policy.pad_token_id
        tokens_BL[row, width - len(prompt) : width] = torch.tensor(prompt)
        attended_BL[row, : width - len(prompt)] = False
    canvas = tokens_BL.to(policy.device), attended_BL.to(policy.device)
    columns_R = torch.arange(width, tokens_BL.shape[1], device=policy.device)

    # 2. Log-probabilities of every token at every response position, the frozen reference's and
    #    the policy's. Gradients flow only through the policy.
    with torch.no_grad():
        reference_BRV = reference.logits(
            *canvas, columns_R, response_start=width, noise_seed=noise_seed
        ).log_softmax(-1)
    policy_BRV = policy.logits(
        *canvas, columns_R, response_start=width, noise_seed=noise_seed, network=network
    ).log_softmax(-1)

    # 3. A phrase scores its log-likelihood at its best place in the window.
    # 4. The reward: the refusal should be likely somewhere in there, the continuation nowhere.
    reward_B = torch.stack(
        [
            score(policy_RV, s_plus, window) - score(policy_RV, s_minus, window)
            for policy_RV, s_plus, s_minus in zip(policy_BRV, safe, harmful, strict=True)
        ]
    )

    # 5. KL(policy || reference) of whole answers: given one canvas the policy fills positions
    #    independently, so it is the sum over positions of sum_v p_v (log p_v - log q_v).
    kl_B = (policy_BRV.exp() * (policy_BRV - reference_BRV)).sum(dim=(-1, -2))

    # 6. Maximise the reward, near the reference.
    return beta * kl_B - reward_B


def score(
    log_probs: Float[Tensor, "R V"], phrase: Sequence[int], window: tuple[int, int | None]
) -> Float[Tensor, ""]:
    """max over starts k of sum_j log p(token j of the phrase at position k + j), in nats.

    The whole phrase lies in the window; with no last position it starts exactly at the first one.

        p(token 7) = 1/2, 1/8 and p(token 8) = 1/4, 1/4 at positions 1, 2: phrase (7, 8), window
        (1, 2) or (1, None)  ->  ln 1/2 + ln 1/4
    """
    first, last = window[0] - 1, window[1]
    starts = [first] if last is None else range(first, last - len(phrase) + 1)
    of_tokens_Rn = log_probs[:, list(phrase)]  # once, since each look costs the backward pass R x V
    return torch.stack([_along(of_tokens_Rn, start) for start in starts]).max()


def block_losses(
    policy: DiffusionLM,
    reference: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    blocks: Sequence[tuple[int, int, int]],
    safe: Sequence[Sequence[int]],
    harmful: Sequence[Sequence[int]],
    *,
    beta: float = 0.05,
    network: nn.Module | None = None,
) -> Float[Tensor, " B"]:
    """The loss of each prompt in a model that fills block after block (placing.py says why).

    `answers[b]` is what stands in the blocks before the open one, a whole response long.
    `blocks[b]` is the open block as far as the window reaches: the first and the last position at
    which a phrase may start there, and the last that one may take, all counted from 1. The other
    arguments are those of `losses`.
    """
    found = []
    for prompt, answer, block, s_plus, s_minus in zip(
        prompts, answers, blocks, safe, harmful, strict=True
    ):
        # 1. Every block up to the open one as it opens: those before it written, its own masked.
        end, kl = 0, torch.zeros((), device=policy.device)
        while True:
            begin = end
            opened = block_log_probs(policy, prompt, answer, begin, network)
            with torch.no_grad():
                frozen = block_log_probs(reference, prompt, answer, begin)
            end = begin + len(opened)

            # 2. KL(policy || reference) of these blocks.
            kl_P = (opened.exp() * (opened - frozen)).sum(dim=-1)
            kl = kl + kl_P[: block[2] - begin].sum()
            if end >= block[2]:
                break

        # 3. Maximise the reward, near the reference.
        first, reward = block[0] - 1, 0.0
        for phrase, sign in ((s_plus, 1), (s_minus, -1)):
            last = min(block[1], block[2] + 1 - len(phrase))
            if last > first:  # the phrase fits: its best place in the open block
                window = (block[0] - begin, last - 1 + len(phrase) - begin)
                reward = reward + sign * score(opened, phrase, window)
                continue
            # It does not: it starts with the block. The rest of it is scored in the next blocks,
            # each as it opens behind what is written of the phrase.
            written = [*answer[:first], *phrase, *answer[first + len(phrase) :]]
            num_scored = end - first
            reward = reward + sign * _at(opened, first - begin, phrase[:num_scored])
            while num_scored < len(phrase):
                next_block = block_log_probs(policy, prompt, written, first + num_scored, network)
                rest = phrase[num_scored : num_scored + len(next_block)]
                reward = reward + sign * _at(next_block, 0, rest)
                num_scored += len(next_block)
        found.append(beta * kl - reward)
    return torch.stack(found)


def block_log_probs(
    model: DiffusionLM,
    prompt: Sequence[int],
    response: Sequence[int],
    begin: int,
    network: nn.Module | None = None,
) -> Float[Tensor, "P V"]:
    """Log-probabilities in the block of a response that begins with its position `begin`, counted
    from 0, before any of it is written; what comes before is as in `response`."""
    attention, place = model.attention, len(prompt) + begin
    end = attention.end_of_block(place, attention.shift(len(prompt)))
    if not attention.shares_prompt:  # whose last block ends with the response
        end = min(end, len(prompt) + len(response))
    tokens = [*prompt, *response[:begin], *[model.mask_token_id] * (end - place)]
    tokens_1L = torch.tensor([tokens], device=model.device)
    logits = model.logits(tokens_1L, response_start=len(prompt), network=network)
    return logits[0, place:].log_softmax(dim=-1)


def _at(log_probs: Float[Tensor, "P V"], start: int, phrase: Sequence[int]) -> Float[Tensor, ""]:
    """The log-likelihood of a phrase from `start` on."""
    return _along(log_probs[:, list(phrase)], start)


def _along(of_tokens: Float[Tensor, "P n"], start: int) -> Float[Tensor, ""]:
    """The sum of the first token's value at `start`, the second's one position later, and so on."""
    length = of_tokens.shape[1]
    return of_tokens[start : start + length].diagonal().sum()
