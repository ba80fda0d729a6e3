"""What happened in a generation: when each position was committed, how surely, what was undone, and
what the rules noted.

# B rows, A some of them, L canvas length, n positions taken back in one step
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.types import UserError


@dataclass(frozen=True)
class Remasking:
    """Committed tokens that a hook or a rule took back in one step: masked again, or replaced."""

    step: int
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    """The tokens that were there."""
    commit_steps: Int[Tensor, " n"]
    confidences: Float[Tensor, " n"]


@dataclass(frozen=True)
class Note:
    """What a rule noted about a row after one of its steps."""

    rule: str
    row: int
    step: int
    text: str
    value: float | None
    """A number that goes with it."""
    stopped: bool
    """Whether the rule stopped the row there."""


@dataclass(frozen=True)
class DenoisingTrace:
    """The history of a generation, one entry for each position of the canvas.

    Prompt, pinned positions and padding were never committed: their `commit_step` is -1 and their
    `confidence` NaN. Confidence is also NaN where the model did not decide: tokens that a hook or a
    rule wrote, and the end tokens that fill a finished or stopped row. Steps count from 0; a step
    without work has a number but made no forward pass.
    """

    initial: Int[Tensor, "B L"]
    """The canvas before the first step."""
    tokens: Int[Tensor, "B L"]
    """The canvas after the last step."""
    commit_step: Int[Tensor, "B L"]
    confidence: Float[Tensor, "B L"]
    response_start: int
    num_forward_passes: int
    """Calls of the model; one with guidance holds every row twice and counts once."""
    row_forward_passes: Int[Tensor, " B"]
    """In how many of them each row took part: what the row would have needed by itself."""
    remasks: list[Remasking] = field(default_factory=list)
    """Every step in which committed tokens were taken back, in order."""
    notes: list[Note] = field(default_factory=list)
    """What the rules noted, in order."""

    @property
    def free(self) -> Bool[Tensor, "B L"]:
        """The positions that the sampler filled."""
        return self.commit_step >= 0

    def replay(self, until_step: int | None = None) -> Int[Tensor, "B L"]:
        """The canvas after step `until_step`, or at the end; -1 gives the start.

        `replay()[:, trace.response_start :]` equals the `tokens` of the result.
        """
        last = int(self.commit_step.max()) if until_step is None else until_step
        canvas_BL = torch.where(self.free & (self.commit_step <= last), self.tokens, self.initial)
        for remask in self.remasks:
            stood_n = (remask.commit_steps <= last) & (last < remask.step)
            rows_n, columns_n = remask.rows[stood_n], remask.columns[stood_n]
            canvas_BL[rows_n, columns_n] = remask.tokens[stood_n]
        return canvas_BL


class Filling:
    """A canvas while it is being filled, and its history; rows may be at different steps."""

    def __init__(self, canvas: Canvas, free: Bool[Tensor, "B L"]) -> None:
        self.canvas = canvas
        self.free = free
        """The positions to be filled."""
        self.tokens = canvas.tokens.clone()
        """[B, L]; rows are written when they are full, those with a hook after every step."""
        self.commit_step = torch.full_like(canvas.tokens, -1)
        self.confidence = torch.full_like(canvas.tokens, torch.nan, dtype=torch.float32)
        self.remasks: list[Remasking] = []
        self.notes: list[Note] = []
        self.num_forward_passes = 0
        self.row_forward_passes = torch.zeros(len(canvas.tokens), dtype=torch.long)
        self.num_rows_left = len(canvas.tokens)
        self.num_masked = int(self.free.sum())
        """Masks in all rows, as far as known without a synchronization."""

    @property
    def is_full(self) -> bool:
        """Whether all rows have ended."""
        return self.num_rows_left == 0

    def edit(
        self, editor: str, step: int, rows: Int[Tensor, " A"], edited: Int[Tensor, "A L"]
    ) -> None:
        """Takes over rows that an editor (the hook, or a rule) returned; UserError if it changed
        what is pinned."""
        tokens_AL, commit_AL = self.tokens[rows], self.commit_step[rows]
        if edited.shape != tokens_AL.shape:
            raise UserError(
                f"{editor} returned a tensor of shape {list(edited.shape)}; return the whole "
                f"canvas, {list(tokens_AL.shape)}, or None."
            )
        is_edited_AL = edited != tokens_AL
        if bool((is_edited_AL & ~self.free[rows]).any()):
            raise UserError(
                f"{editor} changed a prompt or pinned token, which stay as they are; edit free "
                "positions only, or sample from a new canvas."
            )
        is_undone_AL = is_edited_AL & (commit_AL >= 0)
        number_n, columns_n = is_undone_AL.nonzero(as_tuple=True)
        if len(number_n):
            self.remasks.append(
                Remasking(
                    step=step,
                    rows=rows[number_n],
                    columns=columns_n,
                    tokens=tokens_AL[is_undone_AL],
                    commit_steps=commit_AL[is_undone_AL],
                    confidences=self.confidence[rows][is_undone_AL],
                )
            )
        is_masked_AL = is_edited_AL & (edited == self.canvas.mask_token_id)
        self.tokens[rows] = edited
        self.commit_step[rows] = commit_AL.masked_fill(is_edited_AL, step).masked_fill(
            is_masked_AL, -1
        )
        self.confidence[rows] = self.confidence[rows].masked_fill(is_edited_AL, torch.nan)

    def trace(self) -> DenoisingTrace:
        """The history so far."""
        return DenoisingTrace(
            initial=self.canvas.tokens,
            tokens=self.tokens,
            commit_step=self.commit_step,
            confidence=self.confidence,
            response_start=self.canvas.response_start,
            num_forward_passes=self.num_forward_passes,
            row_forward_passes=self.row_forward_passes,
            remasks=self.remasks,
            notes=self.notes,
        )
