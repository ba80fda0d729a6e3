"""How monitors and hooks see the rows after a step, and how the rows take over what they edit.

# A rows of one hook, L canvas length, K columns of the block, T tokens of all rows
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.hooks import StepState
from mosa.denoising.passes import PassStates
from mosa.denoising.rows import POSITION, BatchRow, PackedRows
from mosa.denoising.rules import Action, Monitor, RowView
from mosa.denoising.trace import Note


def show_to_monitors(packed: PackedRows, row: BatchRow, states: PassStates) -> None:
    """Shows a row to its monitors, one after the other, and does what they ask for."""
    for monitor, state in row.monitors:
        action = monitor.look(_view(packed, row, states), state)
        if action is not None:
            _act(packed, row, monitor, action)
        if row.is_stopped:
            return


def _view(packed: PackedRows, row: BatchRow, states: PassStates) -> RowView:
    assert row.planned is not None
    computed = torch.arange(row.length, device=packed.fields.device)
    at = row.place
    if states.computed is not None:
        is_mine = (states.computed >= row.begin) & (states.computed < row.begin + row.length)
        where = is_mine.nonzero()[:, 0]
        computed = states.computed[where] - row.begin
        at = slice(int(where[0]), int(where[-1]) + 1)  # the tokens of a row are side by side
    guidance = row.config.guidance
    return RowView(
        step=row.planned.step,
        tokens=packed.tokens_T[row.place].clone(),
        positions=packed.fields[POSITION, row.place],
        is_free=packed.is_free_T[row.place],
        commit_step=packed.commit_step_T[row.place].clone(),
        mask_token_id=packed.model.mask_token_id,
        computed=computed,
        read_logits=lambda index: states.of_tokens(guidance, index + row.begin),
        read_hidden=lambda layer: states.hidden[layer][at],
    )


def _act(packed: PackedRows, row: BatchRow, monitor: Monitor, action: Action) -> None:
    assert row.planned is not None
    filling, step = row.filling, row.planned.step
    if action.tokens is not None or action.stop:
        packed.write_back(row)
        edited_1L = filling.tokens[[row.number]]
        if action.tokens is not None:
            edited_1L[0, row.columns] = action.tokens
        if action.stop:
            is_left_L = filling.free[row.number] & (edited_1L[0] == packed.model.mask_token_id)
            edited_1L[0, is_left_L] = packed.model.eos_token_id
        number = torch.tensor([row.number], device=edited_1L.device)
        filling.edit(f"The rule {monitor.name}", step, number, edited_1L)
        packed.take_over(row)
    row.is_stopped = action.stop
    if action.note or action.stop:
        filling.notes.append(
            Note(monitor.name, row.number, step, action.note, action.value, action.stop)
        )


def call_hook(
    packed: PackedRows,
    rows: list[BatchRow],
    is_open_T: Bool[Tensor, " T"],
    proposed_T: Int[Tensor, " T"],
    rated_T: Float[Tensor, " T"],
    states: PassStates | None,
) -> None:
    """Shows some rows of one canvas to their hook, and takes over what it edits."""
    filling, hook, planned = rows[0].filling, rows[0].hook, rows[0].planned
    assert hook is not None and planned is not None
    model, device = packed.model, packed.fields.device
    for row in rows:
        packed.write_back(row)
    numbers = torch.tensor([row.number for row in rows], device=device)
    shape = (len(rows), filling.tokens.shape[1])

    def grid(packed_T: Tensor, elsewhere: Tensor) -> Tensor:
        for number, row in enumerate(rows):
            elsewhere[number, row.columns] = packed_T[row.place]
        return elsewhere

    is_open_AL = grid(is_open_T, torch.zeros(shape, dtype=torch.bool, device=device))
    columns_K = is_open_AL.any(dim=0).nonzero()[:, 0]

    def make_logits() -> Tensor:
        index_AL = grid(
            torch.arange(len(proposed_T), device=device), torch.full(shape, -1, device=device)
        )
        index_AK = index_AL[:, columns_K]
        logits = torch.full((*index_AK.shape, model.vocab_size), torch.nan, device=device)
        is_token_AK = index_AK >= 0
        if states is not None:  # else no column is open
            with torch.no_grad():
                logits[is_token_AK] = states.of_tokens(
                    rows[0].config.guidance, index_AK[is_token_AK]
                ).to(logits.dtype)
        return logits

    state = StepState(
        step=planned.step,
        rows=numbers,
        tokens=filling.tokens[numbers],
        committed=filling.commit_step[numbers] == planned.step,
        columns=columns_K,
        proposals=grid(proposed_T, filling.tokens[numbers])[:, columns_K],
        confidence=grid(rated_T, torch.full(shape, -torch.inf, device=device))[:, columns_K],
        response_start=filling.canvas.response_start,
        mask_token_id=filling.canvas.mask_token_id,
        make_logits=make_logits,
    )
    edited_AL = hook(state)
    if edited_AL is not None:
        filling.edit("The hook", planned.step, numbers, edited_AL)
        for row in rows:
            packed.take_over(row)
