"""What happened in a generation: when each position was committed, how surely, what was undone, and
what the rules noted.

# B rows, L canvas length, n positions taken back in one step
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas


@dataclass(frozen=True)
class Remasking:
    """Committed tokens of a row that a hook or a rule took back: masked again, or replaced."""

    step: int
    row: int
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


@dataclass
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
    row_forward_passes: Int[Tensor, " B"]
    """In how many calls of the model each row took part: what the row would have needed by
    itself."""
    num_forward_passes: int = 0
    """Calls of the model; one with guidance holds every row twice and counts once."""
    remasks: list[Remasking] = field(default_factory=list)
    """Every time that committed tokens were taken back, in order."""
    notes: list[Note] = field(default_factory=list)
    """What rules and hooks noted, in order."""

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
            canvas_BL[remask.row, remask.columns[stood_n]] = remask.tokens[stood_n]
        return canvas_BL

    def undone(self, row: int) -> list[tuple[int, int, int, int]]:
        """What stood in a row's response and was taken back or replaced: position (from 0), token,
        the step that wrote it (-1: before the first), and the step that undid it."""
        found: list[tuple[int, int, int, int]] = []
        for remask in self.remasks:
            if remask.row == row:
                positions = (remask.columns - self.response_start).tolist()
                each = zip(
                    positions, remask.tokens.tolist(), remask.commit_steps.tolist(), strict=True
                )
                found += [(p, token, step, remask.step) for p, token, step in each if p >= 0]
        return found


class Filling:
    """A canvas while it is being filled; rows may be at different steps."""

    def __init__(self, canvas: Canvas, free: Bool[Tensor, "B L"]) -> None:
        self.canvas = canvas
        self.free = free
        """The positions to be filled."""
        self.trace = DenoisingTrace(
            initial=canvas.tokens,
            tokens=canvas.tokens.clone(),
            commit_step=torch.full_like(canvas.tokens, -1),
            confidence=torch.full_like(canvas.tokens, torch.nan, dtype=torch.float32),
            response_start=canvas.response_start,
            row_forward_passes=torch.zeros(len(canvas.tokens), dtype=torch.long),
        )
        """The history so far; a row is written to it when the row is full."""
        self.num_rows_left = len(canvas.tokens)
        self.num_masked = int(self.free.sum())
        """Masks in all rows, as far as known without a synchronization."""
        self.unusable_step: int | None = None
        """The first step at which the logits of a row chose no token; there is no answer then."""

    @property
    def is_full(self) -> bool:
        """Whether all rows have ended."""
        return self.num_rows_left == 0
