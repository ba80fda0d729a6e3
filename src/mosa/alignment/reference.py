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
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mosa.families import DiffusionLM

# B prompts, L canvas length, R response positions, V vocabulary.


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
    network: nn.Module | None = None,
) -> Float[Tensor, " B"]:
    """The loss of each prompt: minus its reward, plus `beta` times its KL to the reference.

    Prompts and phrases are token ids. `safe[b]` is the refusal s+ drawn for prompt b with its
    breaker (the end tokens that cut the answer), `harmful[b]` the continuation s-. `window` is its
    first and last position, counted from 1 at the first response token, the last included.
    `network` is a wrapped form of the policy's network to call in its place.
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
        reference_BRV = reference.logits(*canvas, columns_R, response_start=width).log_softmax(-1)
    logits_BRV = policy.logits(*canvas, columns_R, response_start=width, network=network)
    policy_BRV = logits_BRV.log_softmax(-1)

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
    places = [
        torch.stack([log_probs[start + j, token] for j, token in enumerate(phrase)]).sum()
        for start in starts
    ]
    return torch.stack(places).max()
