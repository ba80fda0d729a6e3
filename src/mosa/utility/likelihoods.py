"""How likely a model finds given answers, for tasks that compare them: work on the responder.

An answer of a single token has one masking, which gives its log-probability exactly; a longer one
has the Monte-Carlo bound of `mosa.denoising.likelihood`. The result of a pair of prompt and
answer depends on no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from mosa.denoising import Canvas, DecoderConfig, sample
from mosa.denoising.canvas import left_padded
from mosa.denoising.likelihood import guided_logits, log_likelihood_bound
from mosa.denoising.sampler import evaluation_mode
from mosa.families import DiffusionLM
from mosa.types import Ids
from mosa.worker import Work

NUM_DRAWS = 128
"""Maskings of an answer of several tokens, where nothing else is asked for."""

Pair = tuple[Ids, Ids]
"""A prompt and an answer."""
Item = TypeVar("Item")


def comparisons(
    pairs: Iterable[Pair], decoder: DecoderConfig, *, num_draws: int, greedy: bool, together: int
) -> list[Work]:
    """The work that compares pairs, one for each prompt with its answers; `greedy` also asks
    whether each answer is the model's own."""
    answers: dict[Ids, dict[Ids, None]] = defaultdict(dict)
    for prompt, answer in pairs:
        answers[prompt][answer] = None
    return [
        Work(
            likelihoods,
            {
                "prompt": list(prompt),
                "answers": [list(answer) for answer in group],
                "num_draws": num_draws if any(len(answer) > 1 for answer in group) else 1,
                "cfg_scale": decoder.cfg_scale,
                "seed": decoder.seed,
                "greedy": greedy,
            },
            together=together,
        )
        for prompt, group in answers.items()
    ]


def compared(
    works: Sequence[Work], outcomes: Iterable[dict[str, Any]]
) -> dict[Pair, tuple[float, bool]]:
    """The log-likelihood of each pair in nats, and whether its answer is the greedy one."""
    found: dict[Pair, tuple[float, bool]] = {}
    for work, outcome in zip(works, outcomes, strict=True):
        pairs, values = _pairs(work.state), outcome["log_likelihoods"]
        greedy = outcome.get("is_greedy") or [False] * len(pairs)
        found |= dict(zip(pairs, zip(values, greedy, strict=True), strict=True))
    return found


def likelihoods(model: DiffusionLM, states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each state `log_likelihoods`, in nats, and `is_greedy` (where asked for) by answer.

    A forward pass holds as many canvases as there are states. `forward_passes` counts canvases.
    """
    found: list[dict[str, Any]] = [{} for _ in states]
    alike = defaultdict(list)
    for number, state in enumerate(states):
        alike[state["num_draws"], state["cfg_scale"], state["seed"]].append(number)
    for (num_draws, cfg_scale, seed), numbers in alike.items():
        asked = {number: _pairs(states[number]) for number in numbers}
        pairs = list(dict.fromkeys(pair for group in asked.values() for pair in group))
        wanted = [pair for n in numbers if states[n]["greedy"] for pair in asked[n]]
        size = len(states)
        values = _single_tokens(model, pairs, size, cfg_scale)
        values |= _bounds(model, pairs, size, cfg_scale, num_draws, seed)
        best = _greedy_answers(model, wanted, size, cfg_scale)
        for number, group in asked.items():
            found[number]["log_likelihoods"] = [values[pair] for pair in group]
            is_longer = [len(answer) > 1 for _, answer in group]
            cost = int(not all(is_longer)) + num_draws * sum(is_longer)
            if states[number]["greedy"]:
                found[number]["is_greedy"] = [
                    best[prompt, len(answer)] == answer for prompt, answer in group
                ]
                cost += sum({len(answer) for _, answer in group})
            found[number]["forward_passes"] = cost
    return found


def _pairs(state: Mapping[str, Any]) -> list[Pair]:
    return [(tuple(state["prompt"]), tuple(answer)) for answer in state["answers"]]


@torch.no_grad()
def _single_tokens(
    model: DiffusionLM, pairs: Sequence[Pair], size: int, cfg_scale: float
) -> dict[Pair, float]:
    """Log-probabilities of single tokens; a prompt with several takes one canvas for all."""
    answers: dict[Ids, list[int]] = defaultdict(list)
    for prompt, answer in pairs:
        if len(answer) == 1:
            answers[prompt].append(answer[0])
    values: dict[Pair, float] = {}
    for prompts in batches(list(answers), size, len):
        ids, real = left_padded(prompts, model.pad_token_id)
        canvas = Canvas.from_prompts(model, ids, max_new_tokens=1, attention_mask=real)
        with evaluation_mode(model):
            log_probs_B1V = guided_logits(
                model,
                canvas.tokens,
                canvas.attention_mask,
                torch.tensor([canvas.response_start], device=canvas.tokens.device),
                response_start=canvas.response_start,
                written=canvas.tokens,
                given=canvas.attention_mask & ~canvas.free,
                cfg_scale=cfg_scale,
            ).log_softmax(dim=-1)
        for prompt, log_probs_V in zip(prompts, log_probs_B1V[:, 0], strict=True):
            tokens = answers[prompt]
            found = log_probs_V[tokens].tolist()
            values |= {(prompt, (t,)): value for t, value in zip(tokens, found, strict=True)}
    return values


def _bounds(
    model: DiffusionLM,
    pairs: Sequence[Pair],
    size: int,
    cfg_scale: float,
    num_draws: int,
    seed: int,
) -> dict[Pair, float]:
    """The bound on log p(answer | prompt) of every answer of several tokens."""
    longer = [pair for pair in pairs if len(pair[1]) > 1]
    values: dict[Pair, float] = {}
    for batch in batches(longer, size, lambda pair: len(pair[0]) + len(pair[1])):
        bound = log_likelihood_bound(
            model,
            pair_canvas(model, batch),
            num_samples=num_draws,
            batch_size=size,
            cfg_scale=cfg_scale,
            seed=seed,
        )
        values |= dict(zip(batch, bound.mean.tolist(), strict=True))
    return values


def _greedy_answers(
    model: DiffusionLM, pairs: Sequence[Pair], size: int, cfg_scale: float
) -> dict[tuple[Ids, int], Ids]:
    """The model's own answers of a given length, by prompt and length: the likeliest token of the
    surest position, one after another."""
    prompts: dict[int, dict[Ids, None]] = defaultdict(dict)
    for prompt, answer in pairs:
        prompts[len(answer)][prompt] = None
    values: dict[tuple[Ids, int], Ids] = {}
    for length, alike in prompts.items():
        config = DecoderConfig(max_new_tokens=length, steps=length, cfg_scale=cfg_scale)
        for batch in batches(list(alike), size, len):
            ids, real = left_padded(batch, model.pad_token_id)
            tokens = sample(model, ids, config, attention_mask=real).tokens.tolist()
            values |= {(p, length): tuple(row) for p, row in zip(batch, tokens, strict=True)}
    return values


def batches(items: list[Item], size: int, length: Any) -> Iterator[list[Item]]:
    """Of similar length together, the longest first: one that does not fit fails at once."""
    ordered = sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def pair_canvas(model: DiffusionLM, pairs: Sequence[Pair]) -> Canvas:
    """Prompts with their answers, padded on both sides."""
    ids, real = left_padded([prompt for prompt, _ in pairs], model.pad_token_id)
    answers = [torch.tensor(answer) for _, answer in pairs]
    answer_ids = pad_sequence(answers, batch_first=True, padding_value=model.pad_token_id)
    is_answer = [torch.ones_like(row, dtype=torch.bool) for row in answers]
    return Canvas(
        tokens=torch.cat([ids, answer_ids], dim=1).to(model.device),
        attention_mask=torch.cat([real, pad_sequence(is_answer, batch_first=True)], dim=1).to(
            model.device
        ),
        response_start=ids.shape[1],
        mask_token_id=model.mask_token_id,
    )
