"""The rows of a batch, laid end to end: what is kept of each of their tokens, and of each row.

# S rows of the batch, B rows and L columns of a canvas, T tokens of all rows, n tokens of a row on
# its canvas, m tokens of a row with those that fill its last block
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.denoising.config import DecoderConfig
from mosa.denoising.rules import Action, Monitor, RowView
from mosa.denoising.schedule import Pace, PlannedStep
from mosa.denoising.trace import Filling, Remasking
from mosa.draws import row_keys
from mosa.families.base import DiffusionLM
from mosa.families.packed import KeyValueCache
from mosa.types import UserError


@dataclass(frozen=True)
class StepChanges:
    """What one step changed in one row: tokens committed, written or taken back."""

    row: int
    """Which row of its canvas it is."""
    step: int
    """The row's own step, from 0."""
    positions: list[int]
    """Response positions, from 0; below 0 in the prompt."""
    tokens: list[int]
    """The tokens that are there now; the mask token where one was taken back."""
    confidences: list[float]
    """As in the trace: NaN where the model did not decide, and for what was taken back."""


OnStep = Callable[[StepChanges], object]
"""Called for each row after each step that changed it, when all rows have taken their step. It may
add canvases to the batch and remove them from it."""

Hook = Callable[[RowView], Action | None]
"""Looks at a row after each of its planned steps and each that follows them, and may act on it.

A hook belongs to the caller who samples, such as an attacker who owns the sampler; what belongs to
the decoder, is hashed and recorded, is a rule (`mosa.denoising.rules`). What it masks again is
filled with the masks of the active block, or after the plan's last step in steps of their own, so
nothing stays masked. It is not shown a row that a rule has stopped.
"""


def edited_places(
    editor: str, edited: Int[Tensor, " k"], tokens: Int[Tensor, " n"], is_free: Bool[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Where an editor (a hook, or a rule) has changed a row's tokens; UserError if it changed what
    is pinned, or returned other than all of them."""
    if edited.shape != tokens.shape:
        raise UserError(
            f"{editor} returned a tensor of shape {list(edited.shape)}; return all tokens of "
            f"the row, {list(tokens.shape)}, or None."
        )
    is_edited_n = edited != tokens
    if bool((is_edited_n & ~is_free).any()):
        raise UserError(
            f"{editor} changed a prompt or pinned token, which stay as they are; edit free "
            "positions only, or sample from a new canvas."
        )
    return is_edited_n


# What is kept of every token of the batch, a row of one integer tensor each.
TOKEN, COMMIT_STEP, FREE, BLOCK, POSITION, POSITION_ID, KEY, SEED, UNUSABLE = range(9)

NO_STEP = 2**31
"""In the place of the first step at which a token's logits chose nothing."""


@dataclass
class BatchRow:
    """One row of a canvas, in the batch or waiting for it."""

    filling: Filling
    number: int
    """Which row of its canvas it is."""
    config: DecoderConfig
    pace: Pace
    columns: Int[Tensor, " n"]
    """The canvas column of each token; padding has none. In a family whose last block is a whole
    one, masks that follow the canvas fill it up; they are the row's last tokens, without a column.
    """
    fields: Int[Tensor, "9 m"]
    """What the batch keeps of every token, as it was when the row was added."""
    host_block: Int[Tensor, " m"]
    """The block of each token; -1 in the prompt, where it is never active."""
    shift: int
    """How many places of its first block come before the row's first token."""
    hook: Hook | None
    on_step: OnStep | None
    monitors: list[tuple[Monitor, Any]] = field(default_factory=list)
    """The decoder's monitors, each with its state of this row."""
    planned: PlannedStep | None = None
    """The step that the row takes now."""
    ended_block: int | None = None
    """Where tokens can be edited: the block in which all up to the first end token is filled."""
    is_stopped: bool = False
    """Whether a monitor has ended the row."""
    begin: int = 0
    """Where the row's tokens begin in the batch."""
    cached_block: int | None = None
    """The block for which the row's keys and values are cached."""
    has_begun: bool = False
    """Whether a step has computed logits for it."""
    is_looked_at: bool = False
    """Whether its first logits are known to choose tokens, or to be unusable."""
    unusable_step: int | None = None
    """The first step at which logits of the row chose no token, as far as it is known."""
    cached_steps: int = 0
    """Steps since everything was recomputed."""
    num_settled: int = 0
    """In block-causal attention: how many tokens, from the first on, have keys and values that stay
    right whatever the next steps write."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at the row after each of its steps."""
        return bool(self.monitors) or self.hook is not None or self.on_step is not None

    @property
    def has_ended(self) -> bool:
        """Whether tokens can be edited and a block that is closed holds an end token, behind which
        nothing is asked for."""
        if not self.config.stop_when_finished or self.ended_block is None:
            return False
        return self.planned is None or self.ended_block < self.planned.first_open

    @property
    def length(self) -> int:
        return len(self.host_block)

    @property
    def shown(self) -> slice:
        """The tokens that are on the canvas."""
        return slice(self.begin, self.begin + len(self.columns))

    @property
    def place(self) -> slice:
        return slice(self.begin, self.begin + self.length)


def rows_of(
    model: DiffusionLM,
    filling: Filling,
    config: DecoderConfig,
    block: Int[Tensor, "B L"],
    is_last_wanted: Bool[Tensor, " B"],
    seeds: Sequence[int],
    hook: Hook | None,
    on_step: OnStep | None,
) -> list[BatchRow]:
    """The canvas's rows, shortest first, since rows of one length share a call of attention.

    `block` has the block, or stage, of each position, `is_last_wanted` whether the last position of
    each row is to be filled; both are on the host.
    """
    canvas, attention = filling.canvas, model.attention
    host, host_free_BL = canvas.to("cpu"), filling.free.cpu()
    positions_L = host.positions
    seeds_B = torch.tensor(seeds, dtype=torch.long)
    keys_B = row_keys(host.tokens, host.attention_mask, host.response_start, seeds_B)
    rows = []
    for number, real_L in enumerate(host.attention_mask):
        columns = real_L.nonzero()[:, 0]
        tokens, free = host.tokens[number, columns], host_free_BL[number, columns]
        positions, block_n = positions_L[columns], block[number, columns]
        # Padding has no position in a family that counts tokens; in others it has one.
        steps_right = columns - columns[0]
        if model.family.logits_shifted:
            steps_right = torch.arange(len(columns))
        fields = torch.stack(
            [
                tokens,
                torch.full_like(tokens, -1),
                free.long(),
                block_n,
                positions,
                steps_right,
                keys_B[number].expand_as(tokens),
                seeds_B[number].expand_as(tokens),
                torch.full_like(tokens, NO_STEP),
            ]
        )
        num_prompt = int((positions < 0).sum())
        host_block = block_n.masked_fill((positions < 0) & ~free, -1)
        if attention.shares_prompt:
            assert attention.block_length is not None
            is_wanted = bool(is_last_wanted[number])
            num_more = -len(columns) % attention.block_length
            more = fields[:, -1:].repeat(1, num_more)
            more[TOKEN], more[FREE] = model.mask_token_id, int(is_wanted)
            more[POSITION] += torch.arange(1, num_more + 1)
            more[POSITION_ID] += torch.arange(1, num_more + 1)
            fields = torch.cat([fields, more], dim=1)
            host_block = torch.cat([host_block, more[BLOCK]])
            filling.num_masked += num_more * is_wanted
        num_blocks = int(block[number].max()) + 1
        num_masked = torch.bincount(fields[BLOCK][fields[FREE] == 1], minlength=num_blocks).tolist()
        rows.append(
            BatchRow(
                filling=filling,
                number=number,
                config=config,
                pace=Pace(config, num_masked, attention, has_hook=hook is not None),
                columns=columns.to(canvas.tokens.device),
                fields=fields,
                host_block=host_block,
                shift=attention.shift(num_prompt),
                hook=hook,
                on_step=on_step,
                monitors=[(monitor, monitor.start(model)) for monitor in config.monitors],
            )
        )
    return sorted(rows, key=lambda row: row.length)


class PackedRows:
    """The rows that are in the batch now, their tokens side by side on the model's device."""

    def __init__(self, model: DiffusionLM) -> None:
        self.model = model
        self.rows: list[BatchRow] = []
        self.lengths: tuple[int, ...] = ()
        self.fields = torch.empty(9, 0, dtype=torch.long, device=model.device)
        self.confidence_T = torch.empty(0, device=model.device)
        self.ends = torch.tensor(model.end_token_ids)
        self.cache: KeyValueCache | None = None

    @property
    def tokens_T(self) -> Int[Tensor, " T"]:
        return self.fields[TOKEN]

    @property
    def commit_step_T(self) -> Int[Tensor, " T"]:
        return self.fields[COMMIT_STEP]

    @property
    def is_free_T(self) -> Bool[Tensor, " T"]:
        """What the sampler fills."""
        return self.fields[FREE] == 1

    @property
    def is_masked_T(self) -> Bool[Tensor, " T"]:
        """The masks of all rows."""
        return (self.fields[TOKEN] == self.model.mask_token_id) & (self.fields[FREE] == 1)

    def replace(self, rows: Sequence[BatchRow]) -> None:
        """Makes these the rows: their tokens end to end, those that were in the batch
        unchanged."""
        device = self.fields.device
        kept = {id(row) for row in self.rows}
        rows = sorted(rows, key=lambda row: row.length)
        fields, confidences, index = [], [], []
        for row in rows:
            if id(row) in kept:
                fields.append(self.fields[:, row.place])
                confidences.append(self.confidence_T[row.place])
                index.append(torch.arange(row.begin, row.begin + row.length))
            else:
                fields.append(row.fields.to(device, non_blocking=True))
                confidences.append(torch.full((row.length,), torch.nan, device=device))
                index.append(torch.zeros(row.length, dtype=torch.long))
        self.lengths = tuple(row.length for row in rows)
        is_block_causal = not self.model.attention.is_full
        if not rows or not (is_block_causal or any(row.config.cache != "none" for row in rows)):
            self.cache = None
        elif self.cache is None or not self.cache.layers:
            self.cache = KeyValueCache()
        else:
            self.cache.repack(torch.cat(index).to(device, non_blocking=True))
        self.rows = rows
        for row, begin in zip(rows, accumulate(self.lengths, initial=0), strict=False):
            row.begin = begin
        if rows:
            self.fields, self.confidence_T = torch.cat(fields, dim=1), torch.cat(confidences)
            self.row_of_token_T = torch.repeat_interleave(
                torch.arange(len(rows)), torch.tensor(self.lengths)
            ).to(device, non_blocking=True)
            self.rotary = self.model.rotary(self.fields[POSITION_ID])
            begins = torch.tensor([row.begin for row in rows])
            self.begins_S = begins.to(device, non_blocking=True)
            # Where each token's prediction is read: one to the left in a shifted family.
            self.read_T = torch.arange(len(self.row_of_token_T), device=device)
            if self.model.family.logits_shifted:
                first_T = self.begins_S[self.row_of_token_T]
                self.read_T = torch.maximum(self.read_T - 1, first_T)

    def count_masks(self, rows: Sequence[BatchRow]) -> None:
        """Counts the masks in the rows' blocks for their plans: the only synchronization of a step
        without monitors, hooks and listeners."""
        is_masked = self.is_masked_T.cpu()
        edits = any(row.config.edit_threshold is not None for row in rows)
        tokens = self.tokens_T.cpu() if edits else None
        for row in rows:
            num_before = sum(row.pace.num_masked)
            blocks = row.host_block[is_masked[row.place]]
            num_blocks = len(row.pace.num_masked)
            row.pace.num_masked = torch.bincount(blocks, minlength=num_blocks).tolist()
            row.filling.num_masked += sum(row.pace.num_masked) - num_before
            if tokens is not None and row.config.edit_threshold is not None:
                is_written = (row.fields[FREE] == 1) & (row.fields[POSITION] >= 0)
                is_written &= ~is_masked[row.place]
                blocks = row.host_block[is_written]
                row.pace.num_written = torch.bincount(blocks, minlength=num_blocks).tolist()
                is_end = is_written & torch.isin(tokens[row.place], self.ends)
                row.ended_block = None
                if bool(is_end.any()):  # stages may fill later what stands before an end token
                    first_end = int(is_end.nonzero()[0, 0])
                    row.ended_block = int(row.host_block[: first_end + 1].max())

    def note_unusable(
        self, index: Int[Tensor, " N"], step: Int[Tensor, " N"], unusable: Tensor
    ) -> None:
        """Notes the step at those tokens whose logits chose nothing; on the device alone."""
        first = torch.where(unusable, step, NO_STEP)
        self.fields[UNUSABLE].scatter_reduce_(0, index, first, "amin")

    def look_at(self, rows: Sequence[BatchRow]) -> None:
        """Finds out which of the rows are unusable, at the cost of a synchronization."""
        if not rows:
            return
        first_T = self.fields[UNUSABLE].cpu()
        for row in rows:
            step = int(first_T[row.place].min())
            row.unusable_step = None if step == NO_STEP else step
            row.is_looked_at = True

    def count_pass(self) -> None:
        """Counts a forward pass for each row that would need it by itself, and for its canvas."""
        has_open = [row for row in self.rows if row.planned is not None and row.planned.num_rated]
        for row in has_open:
            row.filling.trace.row_forward_passes[row.number] += 1
        for filling in {row.filling for row in has_open}:
            filling.trace.num_forward_passes += 1

    def rest_of_finished_rows(self, ends: Int[Tensor, " n"]) -> Bool[Tensor, " T"]:
        """The masks of every row in which all before the first generated end token is filled."""
        device = self.fields.device
        # Where tokens can be edited, an end counts when its block is closed (`finish`).
        stops = [r.config.stop_when_finished and r.config.edit_threshold is None for r in self.rows]
        stops_S = torch.tensor(stops, device=device)
        is_end_T = torch.isin(self.tokens_T, ends) & self.is_free_T & (self.fields[POSITION] >= 0)
        num_ends_T = is_end_T.cumsum(0)
        before_S = torch.cat([num_ends_T.new_zeros(1), num_ends_T])[self.begins_S]
        is_after_end_T = num_ends_T > before_S[self.row_of_token_T]
        is_masked_T = self.is_masked_T
        num_waiting_S = torch.zeros_like(self.begins_S).index_add_(
            0, self.row_of_token_T, (is_masked_T & ~is_after_end_T).long()
        )
        is_finished_S = (num_waiting_S == 0) & stops_S
        return is_masked_T & is_after_end_T & is_finished_S[self.row_of_token_T]

    def finish(self, row: BatchRow) -> None:
        """Fills what is left of a row with end-of-text."""
        is_left_n = self.is_masked_T[row.place]
        self.tokens_T[row.place].masked_fill_(is_left_n, self.model.eos_token_id)
        self.commit_step_T[row.place].masked_fill_(is_left_n, row.pace.num_taken - 1)
        row.filling.num_masked -= sum(row.pace.num_masked)

    def write_back(self, row: BatchRow) -> None:
        """Copies the row to the trace of its canvas."""
        trace, number = row.filling.trace, row.number
        trace.tokens[number, row.columns] = self.tokens_T[row.shown]
        trace.commit_step[number, row.columns] = self.commit_step_T[row.shown]
        trace.confidence[number, row.columns] = self.confidence_T[row.shown]

    def edit(self, row: BatchRow, editor: str, edited: Int[Tensor, " n"]) -> None:
        """Makes the tokens of an editor (its hook, or a rule) the row's; UserError if it changed
        what is pinned."""
        assert row.planned is not None
        # Views: what is written to them is written to the batch.
        tokens_n, commit_n = self.tokens_T[row.shown], self.commit_step_T[row.shown]
        confidence_n = self.confidence_T[row.shown]
        is_edited_n = edited_places(editor, edited, tokens_n, self.is_free_T[row.shown])
        self.note_undone(row, is_edited_n & (commit_n >= 0))
        if not self.model.attention.is_full and bool(is_edited_n.any()):
            first = int(is_edited_n.nonzero()[0, 0])
            settled = self.model.attention.begin_of_block(first, row.shift)
            row.num_settled = min(row.num_settled, settled)
        tokens_n.copy_(edited)
        commit_n.masked_fill_(is_edited_n, row.planned.step)
        commit_n.masked_fill_(is_edited_n & (edited == self.model.mask_token_id), -1)
        confidence_n.masked_fill_(is_edited_n, torch.nan)

    def note_undone(self, row: BatchRow, is_undone_n: Bool[Tensor, " n"]) -> None:
        """Keeps in the trace what stands at some of the row's tokens, which something else will
        replace."""
        assert row.planned is not None
        if bool(is_undone_n.any()):
            row.filling.trace.remasks.append(
                Remasking(
                    step=row.planned.step,
                    row=row.number,
                    columns=row.columns[is_undone_n],
                    tokens=self.tokens_T[row.shown][is_undone_n],
                    commit_steps=self.commit_step_T[row.shown][is_undone_n],
                    confidences=self.confidence_T[row.shown][is_undone_n],
                )
            )

    def changes_of(self, row: BatchRow, before_T: Int[Tensor, " T"]) -> StepChanges:
        """What its step has changed in a row, given the tokens of all rows before it."""
        assert row.planned is not None
        tokens_n = self.tokens_T[row.shown]
        where = (tokens_n != before_T[row.shown]).nonzero()[:, 0]
        return StepChanges(
            row=row.number,
            step=row.planned.step,
            positions=self.fields[POSITION, row.shown][where].tolist(),
            tokens=tokens_n[where].tolist(),
            confidences=self.confidence_T[row.shown][where].tolist(),
        )
