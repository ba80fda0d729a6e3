"""The order of commits, against orders whose figures are known."""

import math

import numpy as np
import pytest
from mosa.analysis.order import OrderConfig, conditions, mean_positions, measures_of

NO_END = np.zeros(4, dtype=bool)


@pytest.mark.parametrize(
    ("steps", "tau", "leftmost", "slope"),
    [
        ([0, 1, 2, 3], 1.0, 1.0, 1.0),  # left to right
        ([3, 2, 1, 0], -1.0, 0.25, -1.0),  # right to left: only the last commit is the leftmost
        ([1, 0, 3, 2], 1 / 3, 0.5, 0.6),  # 4 of 6 pairs in order, 2 not
    ],
)
def test_orders_of_four_positions(steps, tau, leftmost, slope):
    found = measures_of(np.array(steps), NO_END, None)
    assert found["kendall_tau"] == pytest.approx(tau)
    assert found["leftmost_share"] == leftmost
    assert found["slope"] == pytest.approx(slope)
    assert found["spread"] == 0.0
    assert math.isnan(found["end_from_right"])


def test_two_positions_a_step():
    """Positions 1 and 4, then 2 and 3: means 2.5 and 2.5, spreads 1.5 and 0.5."""
    found = measures_of(np.array([0, 1, 1, 0]), NO_END, None)
    assert mean_positions(np.array([0, 1, 1, 0])) == [(0, 2.5), (1, 2.5)]
    assert found["spread"] == 1.0
    assert found["slope"] == 0.0
    # Of the two leftmost masks (1, 2) one was taken first; then both that were left.
    assert found["leftmost_share"] == 0.75


def test_blocks_make_an_order_that_is_not_there_within_them():
    """Each block of four is filled from the right; the blocks themselves from the left."""
    steps = np.array([3, 2, 1, 0, 7, 6, 5, 4])
    found = measures_of(steps, np.zeros(8, dtype=bool), 4)
    assert found["kendall_tau_in_block"] == -1.0
    assert found["kendall_tau"] > 0


def test_end_tokens_from_the_right():
    """Three end tokens; two of them committed at the rightmost mask of their step."""
    is_end = np.array([False, True, True, True])
    found = measures_of(np.array([3, 0, 2, 1]), is_end, None)
    assert found["end_from_right"] == pytest.approx(2 / 3)
    # Before the first end token there is one position, which has no order.
    assert math.isnan(found["kendall_tau_text"])


def test_conditions_change_one_setting_each():
    config = OrderConfig(
        tokens_per_step=(4, 1),
        block_lengths=(8, 64),
        temperatures=(0.0, 1.0),
        remaskings=("low_confidence", "random"),
        canvas_lengths=(32,),
    )
    named = conditions(config, 64)
    # A block as long as the canvas is the base itself.
    assert list(named) == [
        "base",
        "block 8",
        "1 tokens a step",
        "temperature 1",
        "remasking random",
        "canvas 32",
    ]
    base = named.pop("base")
    assert (base.steps, base.block_length) == (16, None)
    assert (named["canvas 32"].max_new_tokens, named["canvas 32"].steps) == (32, 8)
    for name, decoder in named.items():
        changed = [f for f in vars(base) if getattr(base, f) != getattr(decoder, f)]
        assert changed == (["max_new_tokens", "steps"] if name == "canvas 32" else changed[:1])
