"""The orders on a vocabulary of four, worked by hand, and the drawing of tokens."""

import math

import pytest
import torch

from mosa.denoising.drawing import draw, likeliest, shape_logits
from mosa.denoising.rules import ORDERS, Proposals
from mosa.denoising.rules.stochastic_annealing import StochasticAnnealing
from mosa.draws import counter_uniform, row_keys

PROBS = torch.tensor([[0.5, 0.25, 0.125, 0.125]])


def rate(rule, *, tokens, temperature=0.0, top_p=None, top_k=None):
    logits = PROBS.log()
    shaped = shape_logits(logits, temperature, top_p, top_k)
    proposals = Proposals(
        logits=logits,
        shaped=shaped,
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([7]),
        steps=torch.tensor([2]),
        uniform=torch.tensor([0.75], dtype=torch.float64),
    )
    order = ORDERS[rule]() if isinstance(rule, str) else rule
    return float(order.rate(proposals))


def test_ratings_by_hand():
    assert rate("low_confidence", tokens=1) == pytest.approx(0.25)
    # At temperature 1/2 the probabilities are squared: 16, 4, 1, 1 of 22.
    assert rate("low_confidence", tokens=1, temperature=0.5) == pytest.approx(0.25)
    assert rate("maskgit_plus", tokens=1, temperature=0.5) == pytest.approx(4 / 22)
    # The two likeliest of 0.5 and 0.25 hold 2/3 and 1/3 between them.
    assert rate("maskgit_plus", tokens=0, top_k=2) == pytest.approx(2 / 3)
    assert rate("topk_margin", tokens=1) == pytest.approx(0.25)
    assert rate("topk_margin", tokens=0, top_k=2) == pytest.approx(1 / 3)
    # 0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3 = 1.75 bits
    assert rate("entropy", tokens=0) == pytest.approx(-1.75 * math.log(2), abs=1e-6)
    assert rate("entropy", tokens=0, top_p=0.4) == pytest.approx(0.0, abs=1e-6)
    assert rate("random", tokens=2) == rate("origin", tokens=2) == 0.75
    assert rate("right_to_left", tokens=2) == 7
    assert rate("left_to_right", tokens=2) == -7
    # In step 2 of 5 chance has 0.4 * (1 - 2/4) = 0.2: 0.8 * 0.25 + 0.2 * 0.75.
    annealing = StochasticAnnealing(steps=5, alpha=0.4)
    assert rate(annealing, tokens=1) == pytest.approx(0.35)
    assert rate(StochasticAnnealing(steps=3), tokens=1) == pytest.approx(0.25)  # the last step


def test_cuts_by_hand():
    logits = PROBS.log()

    def kept(**cuts):
        cuts = {"temperature": 0.0, "top_p": None, "top_k": None} | cuts
        return (shape_logits(logits, **cuts) > -torch.inf)[0].tolist()

    assert kept() == [True] * 4
    assert kept(top_k=1) == [True, False, False, False]
    assert kept(top_k=3) == [True] * 4  # the third and the fourth tie
    assert kept(top_k=9) == [True] * 4
    # 0.5 alone is not more than 0.5, so the second stays; 0.75 is, so the third goes.
    assert kept(top_p=0.5) == [True, True, False, False]
    assert kept(top_p=0.45) == [True, False, False, False]
    assert kept(top_p=1.0) == [True] * 4
    assert torch.equal(shape_logits(logits, 1.0, None, None), logits)


def test_tokens_are_drawn_in_proportion():
    """The uniform number walks through the cumulative distribution; what is cut is never drawn."""
    uniform = torch.tensor([0.0001, 0.4999, 0.5001, 0.7499, 0.7501, 0.9999], dtype=torch.float64)
    assert draw(PROBS.expand(6, 4), uniform).tolist() == [0, 0, 1, 1, 2, 3]
    banned = PROBS.log().clone()
    banned[:, [0, 3]] = -torch.inf
    ends = torch.tensor([2.0**-60, 1 - 2.0**-49], dtype=torch.float64)
    assert draw(banned.softmax(-1).expand(2, 4), ends).tolist() == [1, 2]


def test_draws_fit_the_distribution():
    """Chi-squared of 20,000 draws at temperature 0.7; 16.3 is p=0.001 for 3 degrees of freedom."""
    num_draws = 20_000
    keys = torch.full((num_draws,), 77)
    uniform = counter_uniform(1, keys, torch.arange(num_draws), 0, 0)
    shaped = shape_logits(PROBS.log(), 0.7, None, None)
    counts = torch.bincount(draw(shaped.softmax(-1).expand(num_draws, 4), uniform), minlength=4)
    expected = num_draws * shaped.softmax(-1)[0]
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3


def test_the_likeliest_token_is_the_first_of_the_largest():
    """In vocabularies of less than a group, of whole groups, and with some left over."""
    generator = torch.Generator().manual_seed(3)
    for size in (4, 255, 256, 512, 700):
        logits = torch.randint(0, 40, (64, size), generator=generator).float()
        logits[0] = -torch.inf
        logits[0, -1] = -5.0
        first = [row.index(max(row)) for row in logits.tolist()]
        assert likeliest(logits).tolist() == first


def test_uniforms_are_uniform_and_independent():
    keys = torch.arange(64).repeat_interleave(256)
    positions = torch.arange(256).repeat(64)
    first = counter_uniform(0, keys, positions, 0, 0)
    assert 0 < first.min() < 0.001 and 0.999 < first.max() < 1
    assert float((torch.histc(first.float(), 16, 0, 1) / 1024 - 1).abs().max()) < 0.15
    changed = {
        "seed": counter_uniform(1, keys, positions, 0, 0),
        "wide seed": counter_uniform(1 << 40, keys, positions, 0, 0),
        "step": counter_uniform(0, keys, positions, 1, 0),
        "stream": counter_uniform(0, keys, positions, 0, 1),
        "key": counter_uniform(0, keys + 1, positions, 0, 0),
        "position": counter_uniform(0, keys, positions - 1, 0, 0),
    }
    for other in changed.values():
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.04
    # Recorded, since generations must not change from version to version or machine to machine.
    recorded = counter_uniform(7, torch.tensor([3, 3]), torch.tensor([0, -1]), 5, 1)
    assert recorded.tolist() == [0.9293848295829168, 0.6019988566495034]


def test_row_keys_see_the_tokens_and_not_the_padding():
    tokens = torch.tensor([[0, 5, 6, 9], [3, 5, 6, 9], [0, 6, 5, 9], [0, 5, 6, 9]])
    real = torch.tensor([[False, True, True, True], [True] * 4, [False, True, True, True]])
    real = torch.cat([real, real[:1]])
    keys = row_keys(tokens, real, 3).tolist()
    assert len(set(keys)) == 4  # the last repeats the first and is told apart
    alone = row_keys(tokens[:1, 1:], real[:1, 1:], 2)
    assert alone.tolist() == keys[:1]
    assert row_keys(tokens[[0, 0]], real[[0, 0]], 3).tolist() == [keys[0], keys[3]]
