"""Worked maths of the objective, on examples small enough to check by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mosa.alignment.objective import (
    bound_harmful,
    contains_phrase,
    gather_free,
    kl_divergence,
    reduce_starts,
    window_scores,
)

# Four positions, three tokens; rows are log-probabilities written so that sums are easy to follow.
LOG_PROBS = torch.tensor(
    [[[-1.0, -2.0, -9.0], [-3.0, -4.0, -9.0], [-5.0, -6.0, -9.0], [-7.0, -8.0, -9.0]]]
)


def test_window_scores_by_hand():
    """Phrase (0, 1): start 1 is -1 + -4 = -5; start 2 is -3 + -6 = -9; start 3 is -5 + -8 = -13."""
    scores = window_scores(LOG_PROBS, torch.tensor([0, 1]))
    assert scores.tolist() == [[-5.0, -9.0, -13.0]]


def test_mean_divides_by_the_number_of_tokens():
    """The same three starts, two tokens each: -2.5, -4.5, -6.5."""
    scores = window_scores(LOG_PROBS, torch.tensor([0, 1]), token_reduction="mean")
    assert scores.tolist() == [[-2.5, -4.5, -6.5]]


def test_breaker_is_scored_as_further_tokens():
    """Phrase (0) with breaker (2, 2): -1 - 9 - 9 = -19 at start 1, -3 - 9 - 9 = -21 at start 2."""
    scores = window_scores(LOG_PROBS, torch.tensor([0, 2, 2]))
    assert scores.tolist() == [[-19.0, -21.0]]


def test_fill_breaker_runs_to_the_end():
    """Phrase (0), filled with token 1: start 1: -1 -4 -6 -8 = -19; start 2: -3 -6 -8 = -17;
    start 3: -5 -8 = -13; start 4: -7. Per token: -19/4, -17/3, -13/2, -7."""
    phrase = torch.tensor([0])
    scores = window_scores(LOG_PROBS, phrase, fill_token_id=1)
    assert scores.tolist() == [[-19.0, -17.0, -13.0, -7.0]]
    mean = window_scores(LOG_PROBS, phrase, fill_token_id=1, token_reduction="mean")
    torch.testing.assert_close(mean, torch.tensor([[-19 / 4, -17 / 3, -13 / 2, -7.0]]))


def test_fill_ends_where_it_is_told():
    """Filled to position 3 only: start 1: -1 -4 -6 = -11; start 2: -3 -6 = -9; start 3: -5."""
    scores = window_scores(LOG_PROBS, torch.tensor([0]), num_starts=3, fill_token_id=1, fill_to=3)
    assert scores.tolist() == [[-11.0, -9.0, -5.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 10_000), st.booleans())
def test_window_scores_equal_brute_force(length, extra, seed, fill):
    """Every start, every token of it, summed in plain Python."""
    generator = torch.Generator().manual_seed(seed)
    positions, vocabulary = length + extra, 4
    log_probs = torch.randn(2, positions, vocabulary, generator=generator).double().log_softmax(-1)
    phrase = torch.randint(vocabulary, (length,), generator=generator)
    scores = window_scores(log_probs, phrase, fill_token_id=3 if fill else None)
    assert scores.shape == (2, extra + 1)
    for row, start in itertools.product(range(2), range(extra + 1)):
        tokens = phrase.tolist() + ([3] * (positions - start - length) if fill else [])
        expected = sum(float(log_probs[row, start + j, t]) for j, t in enumerate(tokens))
        assert math.isclose(scores[row, start], expected, abs_tol=1e-9)


def test_window_scores_are_the_best_placement_of_all_sequences():
    """The hard maximum over starts is the largest likelihood among all 3^4 sequences' pieces.

    For each of the 81 sequences that contain the phrase, the log-probability of the phrase's own
    positions is one of the start scores; the largest over all of them is the hard maximum.
    """
    phrase = [2, 0]
    log_probs = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    best = -math.inf
    for sequence in itertools.product(range(3), repeat=4):
        for start in range(3):
            if list(sequence[start : start + 2]) == phrase:
                best = max(best, sum(float(log_probs[0, start + j, phrase[j]]) for j in range(2)))
    score, start, found = reduce_starts(window_scores(log_probs, torch.tensor(phrase)), "max")
    assert math.isclose(score, best, abs_tol=1e-6) and bool(found)
    assert 0 <= int(start) < 3


def test_reduce_starts_by_hand():
    """Scores (-5, -9, -13): max -5; logsumexp -5 + ln(1 + e^-4 + e^-8)."""
    scores = torch.tensor([[-5.0, -9.0, -13.0]])
    value, start, found = reduce_starts(scores, "max")
    assert (value.item(), start.item(), found.item()) == (-5.0, 0, True)
    value, _, _ = reduce_starts(scores, "logsumexp")
    assert math.isclose(value, -5 + math.log(1 + math.exp(-4) + math.exp(-8)), abs_tol=1e-6)


@pytest.mark.parametrize("how", ["max", "logsumexp"])
def test_invalid_starts_count_for_nothing(how):
    """With the first start ruled out, the value is that of the other two; a row with none is 0."""
    scores = torch.tensor([[-5.0, -9.0, -13.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    valid = torch.tensor([[False, True, True], [False, False, False]])
    value, _, found = reduce_starts(scores, how, valid)
    expected, _, _ = reduce_starts(scores[:1, 1:], how)
    assert value[0].item() == pytest.approx(expected.item())
    assert value[1].item() == 0.0 and found.tolist() == [True, False]
    value.sum().backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert scores.grad[0, 0] == 0 and (scores.grad[1] == 0).all()


def test_gather_free_reads_around_what_is_revealed():
    """Positions 1 and 3 of four are free: phrase (0, 1) read around the others is -1 + -6 = -7."""
    free = torch.tensor([[True, False, True, False]])
    gathered, num_free, order = gather_free(LOG_PROBS, free)
    assert num_free.tolist() == [2] and order[0, :2].tolist() == [0, 2]
    assert window_scores(gathered, torch.tensor([0, 1]))[0, 0].item() == -7.0


def test_gather_free_is_the_identity_on_a_fully_masked_answer():
    gathered, num_free, order = gather_free(LOG_PROBS, torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(gathered, LOG_PROBS)
    assert num_free.tolist() == [4] and order.tolist() == [[0, 1, 2, 3]]


def test_kl_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = 0.143841...; and 0 for p = q."""
    p = torch.tensor([[[0.5, 0.5]]]).log()
    q = torch.tensor([[[0.25, 0.75]]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(p, q).item() == pytest.approx(expected)
    assert kl_divergence(p, p).item() == 0.0
    # The direction matters: KL(q || p) = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812...
    other = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_divergence(q, p).item() == pytest.approx(other)


@pytest.mark.parametrize(
    ("how", "value", "gradient"),
    [
        ("none", -12.0, 1.0),
        # max(-12, -10) = -10, and nothing pulls any more
        ("clamp", -10.0, 0.0),
        # reference -4: -12 + 4 + 10 = 2, still pulled
        ("hinge", 2.0, 1.0),
    ],
)
def test_bounds_by_hand(how, value, gradient):
    """Score -12, reference -4, margin 10."""
    score = torch.tensor([-12.0], requires_grad=True)
    bounded = bound_harmful(score, torch.tensor([-4.0]), how, margin=10.0)
    assert bounded.item() == pytest.approx(value, rel=1e-5)
    bounded.sum().backward()
    assert score.grad is not None and score.grad.item() == pytest.approx(gradient, rel=1e-5)


def test_the_hinge_ends():
    """15 nats below the reference the hinge of 10 is 0."""
    score = torch.tensor([-19.0])
    bounded = bound_harmful(score, torch.tensor([-4.0]), "hinge", margin=10.0)
    assert bounded.item() == 0.0


def test_contains_phrase():
    tokens = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    assert contains_phrase(tokens, torch.tensor([2, 3])).tolist() == [True, False]
    assert contains_phrase(tokens, torch.tensor([1, 2, 3, 4, 5])).tolist() == [False, False]
