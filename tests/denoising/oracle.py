"""The published loops written out row by row and position by position, slowly, as an oracle.

Written from the papers and from reading the authors' code, not copied; it shares nothing with
mosa.denoising. `logits_of(tokens [L], real [L]) -> [L, V]` is the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor, Tensor], Tensor]


def even_counts(num_masked: int, num_steps: int) -> list[int]:
    """LLaDA: equal shares, the remainder one by one over the first steps."""
    return [
        num_masked // num_steps + (1 if i < num_masked % num_steps else 0) for i in range(num_steps)
    ]


def llada(
    logits_of: LogitsOf,
    prompt: Tensor,
    real: Tensor,
    *,
    mask: int,
    length: int,
    block_length: int,
    steps: int,
    cfg_scale: float = 0.0,
    banned: tuple[int, ...] = (),
) -> Tensor:
    """LLaDA's block-wise low-confidence sampling of one row at temperature 0; masks in the prompt
    are filled with the first block."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    real = torch.cat([real, torch.ones(length, dtype=torch.bool)])
    given = [column for column in range(len(tokens)) if tokens[column] != mask]
    num_blocks = length // block_length
    for block in range(num_blocks):
        end = len(prompt) + (block + 1) * block_length
        candidates = [c for c in range(end) if tokens[c] == mask and real[c]]
        for count in even_counts(len(candidates), steps // num_blocks):
            logits = logits_of(tokens, real)
            if cfg_scale > 0:
                blind = tokens.clone()
                blind[given] = mask
                blind_logits = logits_of(blind, real)
                logits = blind_logits + (cfg_scale + 1) * (logits - blind_logits)
            logits[:, list(banned)] = -torch.inf
            rated = []
            for column in candidates:
                if tokens[column] != mask:
                    continue
                probs = logits[column].softmax(-1)
                allowed = probs.clone()
                allowed[mask] = -1
                token = int(allowed.argmax())
                rated.append((-float(probs[token]), column, token))
            for _, column, token in sorted(rated)[:count]:
                tokens[column] = token
    return tokens


def dream(
    logits_of: LogitsOf,
    prompt: Tensor,
    real: Tensor,
    *,
    mask: int,
    length: int,
    steps: int,
    rule: str,
    top_p: float | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Dream's sampling of one row at temperature 0, no position temperature."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    real = torch.cat([real, torch.ones(length, dtype=torch.bool)])
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = [c for c in range(len(tokens)) if tokens[c] == mask and real[c]]
        count = int(torch.tensor(float(len(masked))) * (1 - times[step + 1] / times[step]))
        if step == steps - 1:
            count = len(masked)
        logits = logits_of(tokens, real)
        rated = []
        for column in masked:
            row = logits[column].clone()
            allowed = row.clone()
            allowed[mask] = -torch.inf
            token = int(allowed.argmax())
            if top_p is not None:
                held, probs = 0.0, row.softmax(-1).tolist()
                for candidate in row.argsort(descending=True).tolist():
                    if held > top_p:
                        row[candidate] = -torch.inf
                    held += probs[candidate]
            if top_k is not None:
                row[row < row.sort(descending=True).values[top_k - 1]] = -torch.inf
            probs = row.softmax(-1)
            best = probs.sort(descending=True).values
            confidence = {
                "maskgit_plus": float(probs[token]),
                "topk_margin": float(best[0] - best[1]),
                "entropy": float((probs * (probs + 1e-10).log()).sum()),
            }[rule]
            rated.append((-confidence, column, token))
        for _, column, token in sorted(rated)[:count]:
            tokens[column] = token
    return tokens
