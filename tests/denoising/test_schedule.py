"""How many positions go in which step, worked by hand."""

import torch

from mosa.denoising import sample
from mosa.denoising.schedule import commit_count, spread_by_masks, spread_evenly


def run_down(schedule, num_masked, num_slots):
    """The commits of each step when one row starts with `num_masked` masks."""
    left, counts = num_masked, []
    for slot in range(num_slots):
        counts.append(commit_count(schedule, left, slot, num_slots))
        left -= counts[-1]
    return counts


def test_even_counts_put_the_remainder_first():
    assert run_down("even", 10, 4) == [3, 3, 2, 2]  # 10 = 4 * 2 + 2
    assert run_down("even", 8, 4) == [2, 2, 2, 2]
    assert run_down("even", 3, 5) == [1, 1, 1, 0, 0]
    assert run_down("even", 0, 3) == [0, 0, 0]
    assert run_down("even", 7, 1) == [7]


def test_timestep_counts_round_down_and_the_last_step_takes_the_rest():
    # t = 1, 0.75025, 0.5005, 0.25075, 0.001; 1 - s/t = 0.24975, 0.33289, 0.49900, then all.
    # 8 * 0.24975 = 1.998 -> 1; 7 * 0.33289 = 2.33 -> 2; 5 * 0.499 = 2.495 -> 2; 3.
    assert run_down("timesteps", 8, 4) == [1, 2, 2, 3]
    # As many steps as tokens: 32 * 0.99900 / 32 < 1, so the first commits nothing, the last two.
    assert run_down("timesteps", 32, 32) == [0, *[1] * 30, 2]


def test_steps_are_spread_over_the_blocks():
    # 5 steps for 2 blocks: 3 and 2.
    assert spread_evenly(5, 2) == [3, 2]


def test_steps_are_spread_over_stages_by_their_masks():
    """The next step goes where steps fill most: of 8 and 64 masks to 64, 32, ... until both are 8.
    Of 6 masks in 3 steps and 4 in 2, both fill two a step."""
    assert spread_by_masks(9, [8, 64]) == [1, 8]
    assert spread_by_masks(5, [6, 4]) == [3, 2]
    assert spread_by_masks(2, [1, 70]) == [1, 1]  # every stage has a step
    assert spread_by_masks(6, [4, 0, 8]) == [2, 0, 4]  # but for those without masks
    assert spread_by_masks(3, [0, 0]) == [0, 0]
    assert sum(spread_by_masks(40, [5, 7, 9])) == 40


def test_commits_of_a_run_follow_the_schedule(tiny_llada):
    prompts = torch.arange(8).view(2, 4)
    result = sample(tiny_llada, prompts, max_new_tokens=10, block_length=4, steps=7)
    # 3 blocks of 4, 4 and 2 positions, with 3, 2 and 2 steps.
    commits = [torch.bincount(row[row >= 0]).tolist() for row in result.trace.commit_step]
    assert commits == [[2, 1, 1, 2, 2, 1, 1]] * 2
    response_steps = result.trace.commit_step[:, 4:]
    assert (response_steps[:, :4] < 3).all()
    assert (response_steps[:, 4:8] >= 3).all() and (response_steps[:, 4:8] < 5).all()
    assert (response_steps[:, 8:] >= 5).all()


def test_steps_beyond_the_free_positions_cost_nothing(tiny_llada):
    result = sample(tiny_llada, torch.arange(4)[None], max_new_tokens=6, steps=20)
    assert result.num_forward_passes == 6
    first_is_empty = sample(
        tiny_llada, torch.arange(4)[None], max_new_tokens=8, steps=8, schedule="timesteps"
    )
    assert first_is_empty.num_forward_passes == 7
    assert first_is_empty.trace.commit_step.max() == 7


def test_a_row_with_fewer_free_positions_takes_part_in_fewer_passes(tiny_llada):
    from mosa.denoising import Canvas

    canvas = Canvas.from_prompts(tiny_llada, torch.arange(8).view(2, 4), max_new_tokens=8)
    canvas = canvas.pin(1, [20, 21, 22, 23, 24], rows=1)
    result = sample(tiny_llada, canvas, steps=8)
    assert result.num_forward_passes == 8
    assert result.trace.row_forward_passes.tolist() == [8, 3]
