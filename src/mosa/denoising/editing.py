"""How monitors and hooks see a row after a step, and how their actions change it."""

from __future__ import annotations

import torch

from mosa.denoising.passes import PassStates
from mosa.denoising.rows import POSITION, BatchRow, PackedRows
from mosa.denoising.rules import Action, RowView
from mosa.denoising.trace import Note
from mosa.types import UserError


def show_to_watchers(packed: PackedRows, row: BatchRow, states: PassStates | None) -> None:
    """Shows a row to its monitors and then to its hook, and does what they ask for.

    A step that computed nothing for the row is shown to the hook alone, and a row that has been
    stopped to nobody.
    """
    for monitor, state in row.monitors:
        if states is not None and not row.is_stopped:
            action = monitor.look(_view(packed, row, states), state)
            _act(packed, row, monitor.name, f"The rule {monitor.name}", action)
    if row.hook is not None and not row.is_stopped:
        _act(packed, row, "hook", "The hook", row.hook(_view(packed, row, states)))


def _view(packed: PackedRows, row: BatchRow, states: PassStates | None) -> RowView:
    assert row.planned is not None
    step, begin, guidance = row.planned.step, row.begin, row.config.guidance
    num_shown = len(row.columns)
    computed = torch.arange(num_shown if states is not None else 0, device=packed.fields.device)
    at = row.shown
    if states is not None and states.computed is not None:
        is_mine = (states.computed >= row.begin) & (states.computed < row.begin + num_shown)
        where = is_mine.nonzero()[:, 0]
        computed = states.computed[where] - row.begin
        at = slice(int(where[0]), int(where[-1]) + 1)  # the tokens of a row are side by side

    def made() -> PassStates:
        if states is None:
            raise UserError(
                f"Step {step} computed nothing, as no mask was open; look at `computed` before "
                "asking for logits or hidden states."
            )
        return states

    return RowView(
        number=row.number,
        step=step,
        tokens=packed.tokens_T[row.shown].clone(),
        positions=packed.fields[POSITION, row.shown],
        is_free=packed.is_free_T[row.shown],
        commit_step=packed.commit_step_T[row.shown].clone(),
        mask_token_id=packed.model.mask_token_id,
        computed=computed,
        logits=lambda index: made().of_tokens(guidance, index + begin),
        hidden=lambda layer: made().hidden[layer][at],
    )


def _act(packed: PackedRows, row: BatchRow, name: str, editor: str, action: Action | None) -> None:
    if action is None:
        return
    edited_n = packed.tokens_T[row.shown] if action.tokens is None else action.tokens
    if action.stop:
        is_left_n = packed.is_free_T[row.shown] & (edited_n == packed.model.mask_token_id)
        edited_n = edited_n.masked_fill(is_left_n, packed.model.eos_token_id)
    if action.tokens is not None or action.stop:
        packed.edit(row, editor, edited_n)
    row.is_stopped = action.stop
    if action.note or action.stop:
        assert row.planned is not None
        row.filling.trace.notes.append(
            Note(name, row.number, row.planned.step, action.note, action.value, action.stop)
        )
