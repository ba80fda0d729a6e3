"""Hooks: what they see, what they may change, and how it is recorded."""

from typing import Any

import torch
from refusals import refuses

from mosa.denoising import sample

PROMPTS = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(7))
RUN: dict[str, Any] = {"max_new_tokens": 8, "steps": 4}


def test_a_hook_that_only_looks_changes_nothing(tiny_llada):
    states = []
    plain = sample(tiny_llada, PROMPTS, **RUN, block_length=4)
    watched = sample(tiny_llada, PROMPTS, **RUN, block_length=4, hook=states.append)
    assert torch.equal(watched.tokens, plain.tokens)
    assert [state.step for state in states] == [0, 1, 2, 3]
    assert [state.columns.tolist() for state in states[::2]] == [[6, 7, 8, 9], [10, 11, 12, 13]]
    for state in states:
        here = state.committed[:, state.columns]
        assert torch.equal(state.tokens[:, state.columns][here], state.proposals[here])
        probs = state.logits.softmax(-1).gather(-1, state.proposals[..., None])[..., 0]
        was_masked = state.confidence > -torch.inf
        torch.testing.assert_close(state.confidence[was_masked], probs[was_masked])
        kept = watched.trace.confidence[:, state.columns][here]
        assert torch.equal(state.confidence[here], kept)
        assert state.tokens[:, 6:].equal(watched.trace.replay(state.step)[:, 6:])


def test_a_hook_writes_into_the_canvas(tiny_llada):
    """A token written at step 1, over a committed one in row 0 and over a mask in row 1."""
    seen = []

    def write(state):
        if state.step == 1:
            row_0 = int(state.committed[0].nonzero()[0])
            row_1 = int((state.tokens[1] == state.mask_token_id).nonzero()[0])
            seen.append((row_0, row_1, int(state.tokens[0, row_0])))
            state.tokens[0, row_0] = state.tokens[1, row_1] = 42
            return state.tokens
        return None

    result = sample(tiny_llada, PROMPTS, **RUN, hook=write)
    ((row_0, row_1, before),) = seen
    assert result.canvas.tokens[0, row_0] == result.canvas.tokens[1, row_1] == 42
    assert result.trace.commit_step[0, row_0] == result.trace.commit_step[1, row_1] == 1
    assert result.trace.confidence[0, row_0].isnan()
    (undone,) = result.trace.remasks
    assert (undone.step, undone.rows.tolist(), undone.columns.tolist()) == (1, [0], [row_0])
    assert undone.tokens.tolist() == [before] and undone.commit_steps.tolist() == [1]
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_masked_again_in_the_middle_is_filled_within_the_plan(tiny_llada):
    histories = []

    def remask(state):
        histories.append(state.tokens.clone())
        if state.step != 1:
            return None
        state.tokens[0][state.tokens[0] == state.response[0, 0]] = state.mask_token_id
        is_first = torch.arange(state.tokens.shape[1]) < state.response_start + 3
        is_prompt = torch.arange(state.tokens.shape[1]) < state.response_start
        edited = state.tokens.masked_fill(is_first & ~is_prompt, state.mask_token_id)
        edited[:, : state.response_start] = PROMPTS
        return edited

    result = sample(tiny_llada, PROMPTS, max_new_tokens=8, steps=4, block_length=4, hook=remask)
    assert result.num_forward_passes == 4
    assert not (result.tokens == tiny_llada.mask_token_id).any()
    (undone,) = result.trace.remasks
    assert undone.step == 1 and set(undone.rows.tolist()) == {0, 1}
    assert (result.trace.commit_step[:, 6:9] >= 2).all()
    # Every state that the hook saw can be replayed, apart from the step it edited.
    for step in (0, 2, 3):
        assert torch.equal(result.trace.replay(step), histories[step])


def test_masked_again_at_the_end_takes_steps_of_its_own(tiny_llada):
    """All 8 positions of row 0 at the last of 4 steps: 4 more at the plan's pace of 2."""

    def remask(state):
        if state.step != 3:
            return None
        edited = state.tokens.clone()
        edited[0, state.response_start :] = state.mask_token_id
        return edited

    plain = sample(tiny_llada, PROMPTS, **RUN)
    result = sample(tiny_llada, PROMPTS, **RUN, hook=remask)
    assert result.num_forward_passes == 8
    assert torch.equal(result.tokens, plain.tokens)  # it does the same again
    assert result.trace.commit_step[0, 6:].min() == 4
    assert torch.equal(result.trace.replay(3)[1], plain.trace.replay()[1])
    assert (result.trace.replay(3)[0, 6:] == tiny_llada.mask_token_id).all()
    assert torch.equal(result.trace.replay(2), plain.trace.replay(2))
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_a_hook_is_called_in_every_planned_step(tiny_llada):
    """Steps beyond the free positions make no forward pass, but a hook can still act in them."""
    steps = []

    def remask_late(state):
        steps.append((state.step, len(state.columns)))
        if state.step == 10:
            state.tokens[:, -1] = state.mask_token_id
            return state.tokens
        return None

    result = sample(tiny_llada, PROMPTS, max_new_tokens=4, steps=12, hook=remask_late)
    assert [step for step, _ in steps] == list(range(12))
    assert [columns for _, columns in steps] == [4, 3, 2, 1, *[0] * 7, 1]
    assert result.num_forward_passes == 5
    assert (result.trace.commit_step[:, -1] == 11).all()


def test_rows_and_columns_are_right_when_rows_run_in_parts(tiny_llada):
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    rows = []

    def write(state):
        rows.append(state.rows.tolist())
        if state.step == 0:
            state.tokens[:, state.response_start] = state.mask_token_id
            return state.tokens
        return None

    result = sample(
        tiny_llada, PROMPTS, attention_mask=real, hook=write, batch_size=1, threshold=1e-9, **RUN
    )
    assert rows == [[1], [1], [0], [0]]  # shortest first
    assert [undone.rows.tolist() for undone in result.trace.remasks] == [[1], [0]]
    assert [undone.columns.tolist() for undone in result.trace.remasks] == [[6], [6]]
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_hooks_that_do_harm_are_stopped(tiny_llada):
    def change_prompt(state):
        state.tokens[0, 0] = 9
        return state.tokens

    with refuses("hook", "prompt", "pinned"):
        sample(tiny_llada, PROMPTS.clamp(min=10), **RUN, hook=change_prompt)
    with refuses("hook", "[2, 8]", "[2, 14]"):
        sample(tiny_llada, PROMPTS, **RUN, hook=lambda state: state.response)

    def mask_all(state):
        state.tokens[:, state.response_start :] = state.mask_token_id
        return state.tokens

    with refuses("hook", "41"):
        sample(tiny_llada, PROMPTS, max_new_tokens=2, steps=1, hook=mask_all)
