"""Hooks: what they see, what they may change, and how it is recorded."""

from typing import Any

import torch
from refusals import refuses

from mosa.denoising import Action, sample

PROMPTS = torch.randint(0, 250, (2, 6), generator=torch.Generator().manual_seed(7))
RUN: dict[str, Any] = {"max_new_tokens": 8, "steps": 4}


def test_a_hook_that_only_looks_changes_nothing(tiny_llada):
    """It sees each row after each step, with the logits of the step's pass."""
    seen: list[tuple[int, int]] = []
    tokens, rated = [], []

    def look(row):
        seen.append((row.step, row.number))
        tokens.append(row.tokens.clone())
        committed = (row.commit_step == row.step).nonzero()[:, 0]
        probs = row.logits(committed).softmax(dim=-1)
        rated.append((committed, probs.gather(1, row.tokens[committed, None])[:, 0]))

    plain = sample(tiny_llada, PROMPTS, **RUN, block_length=4)
    watched = sample(tiny_llada, PROMPTS, **RUN, block_length=4, hook=look)
    assert torch.equal(watched.tokens, plain.tokens)
    assert seen == [(step, row) for step in range(4) for row in range(2)]
    for (step, row), found, (committed, probs) in zip(seen, tokens, rated, strict=True):
        in_block = 6 + 4 * (step // 2) <= committed.min() <= committed.max() < 10 + 4 * (step // 2)
        assert len(committed) == 2 and in_block
        assert found.equal(watched.trace.replay(step)[row])
        kept = watched.trace.confidence[row, committed]
        torch.testing.assert_close(kept, probs.float())


def test_a_hook_writes_into_the_canvas(tiny_llada):
    """A token written at step 1, over a committed one in row 0 and over a mask in row 1."""
    seen = []

    def write(row):
        if row.step != 1:
            return None
        changed = row.commit_step == row.step if row.number == 0 else row.is_masked
        column = int(changed.nonzero()[0])
        seen.append((column, int(row.tokens[column])))
        row.tokens[column] = 42
        return Action(tokens=row.tokens)

    result = sample(tiny_llada, PROMPTS, **RUN, hook=write)
    (row_0, before), (row_1, _) = seen
    assert result.canvas.tokens[0, row_0] == result.canvas.tokens[1, row_1] == 42
    assert result.trace.commit_step[0, row_0] == result.trace.commit_step[1, row_1] == 1
    assert result.trace.confidence[0, row_0].isnan()
    (undone,) = result.trace.remasks
    assert (undone.step, undone.row, undone.columns.tolist()) == (1, 0, [row_0])
    assert undone.tokens.tolist() == [before] and undone.commit_steps.tolist() == [1]
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_masked_again_in_the_middle_is_filled_within_the_plan(tiny_llada):
    histories = {}

    def remask(row):
        histories[row.step, row.number] = row.tokens.clone()
        if row.step != 1:
            return None
        row.tokens[(row.positions >= 0) & (row.positions < 3)] = row.mask_token_id
        return Action(tokens=row.tokens)

    result = sample(tiny_llada, PROMPTS, max_new_tokens=8, steps=4, block_length=4, hook=remask)
    assert result.num_forward_passes == 4
    assert not (result.tokens == tiny_llada.mask_token_id).any()
    assert [(undone.step, undone.row) for undone in result.trace.remasks] == [(1, 0), (1, 1)]
    assert (result.trace.commit_step[:, 6:9] >= 2).all()
    # Every state that the hook saw can be replayed, apart from the step it edited.
    for (step, row), tokens in histories.items():
        assert step == 1 or torch.equal(result.trace.replay(step)[row], tokens)


def test_masked_again_at_the_end_takes_steps_of_its_own(tiny_llada):
    """All 8 positions of row 0 at the last of 4 steps: 4 more at the plan's pace of 2."""

    def remask(row):
        if row.step != 3 or row.number != 0:
            return None
        return Action(tokens=row.tokens.masked_fill(row.positions >= 0, row.mask_token_id))

    plain = sample(tiny_llada, PROMPTS, **RUN)
    result = sample(tiny_llada, PROMPTS, **RUN, hook=remask)
    assert result.trace.row_forward_passes.tolist() == [8, 4] and result.num_forward_passes == 8
    assert torch.equal(result.tokens, plain.tokens)  # it does the same again
    assert result.trace.commit_step[0, 6:].min() == 4
    assert torch.equal(result.trace.replay(3)[1], plain.trace.replay()[1])
    assert (result.trace.replay(3)[0, 6:] == tiny_llada.mask_token_id).all()
    assert torch.equal(result.trace.replay(2), plain.trace.replay(2))
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_a_hook_is_called_in_every_planned_step(tiny_llada):
    """Steps beyond the free positions make no forward pass, but a hook can still act in them."""
    steps = []

    def remask_late(row):
        steps.append((row.step, len(row.computed)))
        if row.step == 5:
            with refuses("Step 5"):
                row.logits(torch.tensor([6]))
        if row.step != 10:
            return None
        row.tokens[-1] = row.mask_token_id
        return Action(tokens=row.tokens)

    result = sample(tiny_llada, PROMPTS[:1], max_new_tokens=4, steps=12, hook=remask_late)
    assert steps == list(enumerate([10] * 4 + [0] * 7 + [10]))
    assert result.num_forward_passes == 5
    assert (result.trace.commit_step[:, -1] == 11).all()


def test_a_hook_may_stop_a_row_and_note_why(tiny_llada):
    """As a monitor may: what is left becomes end-of-text."""

    def stop(row):
        return Action(stop=True, note="enough", value=0.5) if row.step == 1 else None

    result = sample(tiny_llada, PROMPTS[:1], **RUN, hook=stop)
    assert (result.tokens == tiny_llada.eos_token_id).sum() >= 4
    assert result.num_forward_passes == 2
    (note,) = result.trace.notes
    assert (note.rule, note.step, note.text, note.value) == ("hook", 1, "enough", 0.5)


def test_rows_and_columns_are_right_when_rows_run_in_parts(tiny_llada):
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    rows = []

    def write(row):
        rows.append((row.number, len(row.tokens)))
        if row.step != 0:
            return None
        row.tokens[row.positions == 0] = row.mask_token_id
        return Action(tokens=row.tokens)

    result = sample(
        tiny_llada, PROMPTS, attention_mask=real, hook=write, batch_size=1, threshold=1e-9, **RUN
    )
    assert rows == [(1, 12), (1, 12), (0, 14), (0, 14)]  # shortest first
    assert [undone.row for undone in result.trace.remasks] == [1, 0]
    assert [undone.columns.tolist() for undone in result.trace.remasks] == [[6], [6]]
    assert torch.equal(result.trace.replay(), result.canvas.tokens)


def test_hooks_that_do_harm_are_stopped(tiny_llada):
    def change_prompt(row):
        row.tokens[0] = 9
        return Action(tokens=row.tokens)

    with refuses("hook", "prompt", "pinned"):
        sample(tiny_llada, PROMPTS.clamp(min=10), **RUN, hook=change_prompt)
    with refuses("row"):
        sample(tiny_llada, PROMPTS, **RUN, hook=lambda row: Action(tokens=row.tokens[6:]))

    def mask_all(row):
        return Action(tokens=row.tokens.masked_fill(row.positions >= 0, row.mask_token_id))

    with refuses("hook", "41"):
        sample(tiny_llada, PROMPTS, max_new_tokens=2, steps=1, hook=mask_all)
