"""The rows of a batch, laid end to end: what is kept of each of their tokens, and of each row.

# S rows of the batch, B rows and L columns of a canvas, T tokens of all rows, n tokens of a row
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
from mosa.denoising.noise import row_keys
from mosa.denoising.rules import Action, Monitor, RowView
from mosa.denoising.schedule import Pace, PlannedStep
from mosa.denoising.trace import Filling, Remasking
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

# What is kept of every token of the batch, a row of one integer tensor each.
TOKEN, COMMIT_STEP, FREE, BLOCK, POSITION, POSITION_ID, KEY, SEED, BROKEN = range(9)

NOT_BROKEN = 2**31
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
    """The canvas column of each token; padding has none."""
    fields: Int[Tensor, "9 n"]
    """What the batch keeps of every token, as it was when the row was added."""
    host_block: Int[Tensor, " n"]
    """The block of each token; -1 in the prompt, where it is never active."""
    hook: Hook | None
    on_step: OnStep | None
    monitors: list[tuple[Monitor, Any]] = field(default_factory=list)
    """The decoder's monitors, each with its state of this row."""
    planned: PlannedStep | None = None
    """The step that the row takes now."""
    is_stopped: bool = False
    """Whether a monitor has ended the row."""
    begin: int = 0
    """Where the row's tokens begin in the batch."""
    cached_block: int | None = None
    """The block for which the row's keys and values are cached."""
    has_begun: bool = False
    """Whether a step has computed logits for it."""
    is_looked_at: bool = False
    """Whether its first logits are known to choose tokens, or to be broken."""
    broken_step: int | None = None
    """The first step at which logits of the row chose no token, as far as it is known."""
    cached_steps: int = 0
    """Steps since everything was recomputed."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at the row after each of its steps."""
        return bool(self.monitors) or self.hook is not None or self.on_step is not None

    @property
    def is_new(self) -> bool:
        """Whether its first logits are there and were not looked at."""
        return self.has_begun and not self.is_looked_at

    @property
    def length(self) -> int:
        return len(self.columns)

    @property
    def place(self) -> slice:
        return slice(self.begin, self.begin + self.length)


def rows_of(
    model: DiffusionLM,
    filling: Filling,
    config: DecoderConfig,
    blocks: Int[Tensor, "B L"],
    seeds: Sequence[int],
    hook: Hook | None,
    on_step: OnStep | None,
) -> list[BatchRow]:
    """The canvas's rows, shortest first, since rows of one length share a call of attention."""
    canvas = filling.canvas
    positions_L = torch.arange(canvas.tokens.shape[1]) - canvas.response_start
    host, host_free_BL = canvas.to("cpu"), filling.free.cpu()
    seeds_B = torch.tensor(seeds, dtype=torch.long)
    keys_B = row_keys(host.tokens, host.attention_mask, host.response_start, seeds_B)
    rows = []
    for number, real_L in enumerate(host.attention_mask):
        columns = real_L.nonzero()[:, 0]
        tokens, free = host.tokens[number, columns], host_free_BL[number, columns]
        positions, block = positions_L[columns], blocks[number, columns]
        # Padding has no position in a family that counts tokens; in others it has one.
        steps_right = columns - columns[0]
        if model.family.logits_shifted:
            steps_right = torch.arange(len(columns))
        fields = torch.stack(
            [
                tokens,
                torch.full_like(tokens, -1),
                free.long(),
                block,
                positions,
                steps_right,
                keys_B[number].expand_as(tokens),
                seeds_B[number].expand_as(tokens),
                torch.full_like(tokens, NOT_BROKEN),
            ]
        )
        num_blocks = int(blocks[number].max()) + 1
        num_masked = torch.bincount(block[free], minlength=num_blocks).tolist()
        rows.append(
            BatchRow(
                filling=filling,
                number=number,
                config=config,
                pace=Pace(config, num_masked, has_hook=hook is not None),
                columns=columns.to(canvas.tokens.device),
                fields=fields,
                host_block=block.masked_fill((positions < 0) & ~free, -1),
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
        is_cached = any(row.config.cache != "none" for row in rows)
        if not is_cached:
            self.cache = None
        elif self.cache is None:
            self.cache = KeyValueCache()
        elif kept:
            self.cache.repack(torch.cat(index).to(device, non_blocking=True))
        self.rows = rows
        self.lengths = tuple(row.length for row in rows)
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
        before: dict[int, int] = {}
        for row in rows:
            before[id(row.filling)] = before.get(id(row.filling), 0) + sum(row.pace.num_masked)
            blocks = row.host_block[is_masked[row.place]]
            num_blocks = len(row.pace.num_masked)
            row.pace.num_masked = torch.bincount(blocks, minlength=num_blocks).tolist()
        fillings = {id(row.filling): row.filling for row in rows}
        for key, filling in fillings.items():
            now = sum(sum(row.pace.num_masked) for row in rows if row.filling is filling)
            filling.num_masked += now - before[key]

    def note_broken(
        self, index: Int[Tensor, " N"], step: Int[Tensor, " N"], broken: Tensor
    ) -> None:
        """Notes the step at those tokens whose logits chose nothing; on the device alone."""
        first = torch.where(broken, step, NOT_BROKEN)
        self.fields[BROKEN].scatter_reduce_(0, index, first, "amin")

    def look_at(self, rows: Sequence[BatchRow]) -> None:
        """Finds out which of the rows are broken, at the cost of a synchronization."""
        if not rows:
            return
        first_T = self.fields[BROKEN].cpu()
        for row in rows:
            step = int(first_T[row.place].min())
            row.broken_step = None if step == NOT_BROKEN else step
            row.is_looked_at = True

    def count_pass(self) -> None:
        """Counts a forward pass for each row that would need it by itself, and for its canvas."""
        has_open = [row for row in self.rows if row.planned is not None and row.planned.num_open]
        fillings = {id(row.filling): row.filling for row in has_open}
        for row in has_open:
            row.filling.trace.row_forward_passes[row.number] += 1
        for filling in fillings.values():
            filling.trace.num_forward_passes += 1

    def rest_of_finished_rows(self, ends: Int[Tensor, " n"]) -> Bool[Tensor, " T"]:
        """The masks of every row in which all before the first generated end token is filled."""
        device = self.fields.device
        stops_S = torch.tensor([row.config.stop_when_finished for row in self.rows], device=device)
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

    def write_back(self, row: BatchRow) -> None:
        """Copies the row to the trace of its canvas."""
        trace, number = row.filling.trace, row.number
        trace.tokens[number, row.columns] = self.tokens_T[row.place]
        trace.commit_step[number, row.columns] = self.commit_step_T[row.place]
        trace.confidence[number, row.columns] = self.confidence_T[row.place]

    def edit(self, row: BatchRow, editor: str, edited: Int[Tensor, " n"]) -> None:
        """Makes the tokens of an editor (its hook, or a rule) the row's; UserError if it changed
        what is pinned."""
        assert row.planned is not None
        # Views: what is written to them is written to the batch.
        tokens_n, commit_n = self.tokens_T[row.place], self.commit_step_T[row.place]
        confidence_n = self.confidence_T[row.place]
        if edited.shape != tokens_n.shape:
            raise UserError(
                f"{editor} returned a tensor of shape {list(edited.shape)}; return all tokens of "
                f"the row, {list(tokens_n.shape)}, or None."
            )
        is_edited_n = edited != tokens_n
        if bool((is_edited_n & ~self.is_free_T[row.place]).any()):
            raise UserError(
                f"{editor} changed a prompt or pinned token, which stay as they are; edit free "
                "positions only, or sample from a new canvas."
            )
        is_undone_n = is_edited_n & (commit_n >= 0)
        if bool(is_undone_n.any()):
            row.filling.trace.remasks.append(
                Remasking(
                    step=row.planned.step,
                    row=row.number,
                    columns=row.columns[is_undone_n],
                    tokens=tokens_n[is_undone_n],
                    commit_steps=commit_n[is_undone_n],
                    confidences=confidence_n[is_undone_n],
                )
            )
        tokens_n.copy_(edited)
        commit_n.masked_fill_(is_edited_n, row.planned.step)
        commit_n.masked_fill_(is_edited_n & (edited == self.model.mask_token_id), -1)
        confidence_n.masked_fill_(is_edited_n, torch.nan)

    def changes_of(self, row: BatchRow, before_T: Int[Tensor, " T"]) -> StepChanges:
        """What its step has changed in a row, given the tokens of all rows before it."""
        assert row.planned is not None
        tokens_n = self.tokens_T[row.place]
        where = (tokens_n != before_T[row.place]).nonzero()[:, 0]
        return StepChanges(
            row=row.number,
            step=row.planned.step,
            positions=self.fields[POSITION, row.place][where].tolist(),
            tokens=tokens_n[where].tolist(),
            confidences=self.confidence_T[row.place][where].tolist(),
        )
