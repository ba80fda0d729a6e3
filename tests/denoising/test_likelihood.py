"""Masks for training, log-probabilities and likelihood bounds, against enumeration."""

import itertools
import math

import pytest
import torch
from refusals import refuses

from mosa.denoising import (
    Canvas,
    log_likelihood_bound,
    mask_at_random_ratio,
    mask_exact_count,
)
from mosa.denoising.masks import stratified_counts

TOKENS = torch.arange(40).view(4, 10)
ELIGIBLE = TOKENS % 10 >= 3


def test_random_ratios():
    tokens, eligible = TOKENS.repeat(500, 1), ELIGIBLE.repeat(500, 1)
    run = {"low": 0.2, "high": 0.6}
    masked = mask_at_random_ratio(
        tokens, eligible, 99, generator=torch.Generator().manual_seed(0), **run
    )
    again = mask_at_random_ratio(
        tokens, eligible, 99, generator=torch.Generator().manual_seed(0), **run
    )
    assert torch.equal(masked.tokens, again.tokens)
    assert torch.equal(masked.tokens == 99, masked.is_masked)
    assert torch.equal(masked.tokens[~masked.is_masked], tokens[~masked.is_masked])
    assert not (masked.is_masked & ~eligible).any()
    ratio = masked.mask_probability
    assert 0.2 <= ratio.min() < 0.21 and 0.59 < ratio.max() <= 0.6
    # Within rows of like ratio, that share of the seven eligible positions is masked.
    high = ratio > 0.5
    share = masked.is_masked[high].sum() / (7 * high.sum())
    assert abs(float(share - ratio[high].mean())) < 0.03
    with refuses("0.5", "0.2"):
        mask_at_random_ratio(tokens, eligible, 99, generator=torch.Generator(), low=0.5, high=0.2)


def test_exact_counts():
    counts = torch.tensor([0, 1, 4, 7])
    draws = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0))
    masked = mask_exact_count(TOKENS, ELIGIBLE, 99, counts, draws)
    assert masked.is_masked.sum(dim=1).tolist() == [0, 1, 4, 7]
    assert not (masked.is_masked & ~ELIGIBLE).any()
    assert masked.mask_probability.tolist() == pytest.approx([0, 1 / 7, 4 / 7, 1])
    with refuses("[1, 2, 5, 8]", "[7, 7, 7, 7]"):
        mask_exact_count(TOKENS, ELIGIBLE, 99, counts + 1, draws)


def test_exact_counts_choose_every_set_alike():
    """2 of 4 positions: 6 sets, 2,000 each of 12,000; 5 standard deviations are 204."""
    tokens = torch.zeros(12_000, 4).long()
    masked = mask_exact_count(
        tokens,
        torch.ones_like(tokens).bool(),
        9,
        torch.full((12_000,), 2),
        torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)),
    )
    codes = (masked.is_masked * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    counts = torch.bincount(codes)
    assert (counts > 0).sum() == 6 and ((counts[counts > 0] - 2000).abs() < 204).all()


def test_stratified_counts_by_hand():
    # Length 8, four samples, starting at 3: 3, 5, 7, 9 -> 1. Length 2: 1, 1.5 -> 2, 2, 2.5 -> 2.
    counts = stratified_counts(torch.tensor([8, 2]), torch.tensor([0.25, 0.0]), 4)
    assert counts.tolist() == [[3, 5, 7, 1], [1, 2, 2, 2]]
    # As many samples as tokens: each count once, wherever it starts.
    for start in (0.0, 0.4, 0.99):
        row = stratified_counts(torch.tensor([5]), torch.tensor([start]), 5)
        assert sorted(row[0].tolist()) == [1, 2, 3, 4, 5]


def exact_bound(model, prompt, answer):
    """The bound by enumeration: mean over l of n/l times the mean over all sets of l masks."""
    n = len(answer)
    total = 0.0
    for num_masked in range(1, n + 1):
        sets = list(itertools.combinations(range(n), num_masked))
        for chosen in sets:
            masked = answer.clone()
            masked[list(chosen)] = model.mask_token_id
            with torch.no_grad():
                logits = model.logits(torch.cat([prompt, masked])[None])[0, len(prompt) :]
            log_probs = logits.log_softmax(-1)[range(n), answer][list(chosen)]
            total += float(log_probs.sum()) * n / num_masked / len(sets) / n
    return total


def test_the_bound_by_enumeration(tiny_llada):
    prompt, answer = torch.tensor([4, 8, 15]), torch.tensor([16, 23, 42])
    other = torch.tensor([7, 7])
    expected = [exact_bound(tiny_llada, prompt, row) for row in (answer, other)]
    tokens = torch.tensor([[4, 8, 15, 16, 23, 42], [4, 8, 15, 7, 7, 0]])
    real = torch.tensor([[True] * 6, [True] * 5 + [False]])
    canvas = Canvas(tokens, real, 3, tiny_llada.mask_token_id)
    bound = log_likelihood_bound(tiny_llada, canvas, num_samples=600, batch_size=100)
    for row in range(2):
        error = float(bound.standard_error[row])
        assert 0 < error < 0.5
        assert abs(float(bound.mean[row]) - expected[row]) < 3 * error
    alone = log_likelihood_bound(
        tiny_llada, canvas.select(torch.tensor([0])), num_samples=600, batch_size=77
    )
    assert float(alone.mean[0]) == pytest.approx(float(bound.mean[0]), abs=1e-3)


def test_a_single_token_needs_one_sample(tiny_llada):
    """With one response token there is one way of masking: its log-probability, exactly."""
    tokens = torch.tensor([[4, 8, 15, 16]])
    canvas = Canvas(tokens, torch.ones_like(tokens).bool(), 3, tiny_llada.mask_token_id)
    bound = log_likelihood_bound(tiny_llada, canvas, num_samples=1)
    masked = canvas.pin(0, tiny_llada.mask_token_id)
    with torch.no_grad():
        expected = float(tiny_llada.logits(masked.tokens)[0, 3].log_softmax(-1)[16])
    assert float(bound.mean[0]) == pytest.approx(expected, abs=1e-5)
    assert bound.standard_error.isnan().all()


def test_guidance_moves_the_bound_along_the_prompts_effect(tiny_llada):
    """One response token: guided logits are those without the prompt plus (1 + w) its effect."""
    tokens = torch.tensor([[4, 8, 15, 16]])
    mask = tiny_llada.mask_token_id
    canvas = Canvas(tokens, torch.ones_like(tokens).bool(), 3, mask)
    guided = log_likelihood_bound(tiny_llada, canvas, num_samples=1, cfg_scale=2.0)
    with torch.no_grad():
        given = tiny_llada.logits(torch.tensor([[4, 8, 15, mask]]))[0, 3]
        blind = tiny_llada.logits(torch.tensor([[mask] * 4]))[0, 3]
    expected = float((blind + 3 * (given - blind)).log_softmax(-1)[16])
    assert float(guided.mean[0]) == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(expected)


def test_mistakes(padded_canvas, tiny_llada):
    with refuses("canvas"):
        log_likelihood_bound(tiny_llada, padded_canvas)
    full = padded_canvas.pin(0, list(range(8)))
    with refuses("num_samples", "0"):
        log_likelihood_bound(tiny_llada, full, num_samples=0)
    empty = full.attention_mask.clone()
    empty[1, 6:] = False
    canvas = Canvas(full.tokens, empty, 6, full.mask_token_id)
    with refuses("row"):
        log_likelihood_bound(tiny_llada, canvas)
