"""What happened in a generation: when each position was committed, how surely, and what was undone.

# B rows, A some of them, L canvas length, K columns of a block, n positions taken back in one step
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.types import UserError


@dataclass(frozen=True)
class Remasking:
    """Committed tokens that a hook took back in one step: masked again, or replaced by another."""

    step: int
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    """The tokens that stood there."""
    commit_steps: Int[Tensor, " n"]
    confidences: Float[Tensor, " n"]


@dataclass(frozen=True)
class DenoisingTrace:
    """The history of a generation, one entry for each position of the canvas.

    Prompt, pinned positions and padding were never committed: their `commit_step` is -1 and their
    `confidence` NaN. Confidence is also NaN where the model had no say: tokens that a hook wrote,
    and the end tokens that fill a finished row. Steps count from 0; a step in which nothing was to
    be done has a number but made no forward pass.
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
    """In how many of them each row took part: what the row would have needed alone."""
    remasks: list[Remasking] = field(default_factory=list)
    """Every step in which committed tokens were taken back, in order."""

    @property
    def free(self) -> Bool[Tensor, "B L"]:
        """The positions that the sampler had to fill."""
        return self.commit_step >= 0

    def replay(self, until_step: int | None = None) -> Int[Tensor, "B L"]:
        """The canvas as it stood after step `until_step`, or at the end; -1 gives the start.

        `replay()[:, trace.response_start :]` equals the `tokens` of the result.
        """
        last = int(self.commit_step.max()) if until_step is None else until_step
        canvas_BL = torch.where(self.free & (self.commit_step <= last), self.tokens, self.initial)
        for remask in self.remasks:
            stood_n = (remask.commit_steps <= last) & (last < remask.step)
            rows_n, columns_n = remask.rows[stood_n], remask.columns[stood_n]
            canvas_BL[rows_n, columns_n] = remask.tokens[stood_n]
        return canvas_BL


class TraceRecorder:
    """The canvas while it is being filled, and its history."""

    def __init__(self, canvas: Canvas):
        self.canvas = canvas
        self.tokens = canvas.tokens.clone()
        """[B, L], written in place."""
        self.commit_step = torch.full_like(canvas.tokens, -1)
        self.confidence = torch.full_like(canvas.tokens, torch.nan, dtype=torch.float32)
        self.remasks: list[Remasking] = []
        self.num_forward_passes = 0
        self.row_forward_passes = torch.zeros(len(canvas.tokens), dtype=torch.long)

    def commit(
        self,
        step: int,
        rows: Int[Tensor, "A 1"],
        columns: Int[Tensor, " K"],
        commits: Bool[Tensor, "A K"],
        tokens: Int[Tensor, "A K"],
        confidence: Float[Tensor, "A K"],
    ) -> None:
        """Writes `tokens` into some columns of some rows, where `commits` says so."""
        for grid, values in (
            (self.tokens, tokens),
            (self.commit_step, torch.full_like(tokens, step)),
            (self.confidence, confidence),
        ):
            grid[rows, columns] = torch.where(commits, values, grid[rows, columns])

    def fill(self, step: int, where: Bool[Tensor, "B L"], token_id: int) -> None:
        """Writes one token wherever `where` says so."""
        self.tokens.masked_fill_(where, token_id)
        self.commit_step.masked_fill_(where, step)

    def edit(self, step: int, edited: Tensor, free: Bool[Tensor, "B L"]) -> None:
        """Takes over the canvas that a hook returned; UserError if it changed what is pinned."""
        if edited.shape != self.tokens.shape:
            raise UserError(
                f"The hook returned a tensor of shape {list(edited.shape)}; return the whole "
                f"canvas, {list(self.tokens.shape)}, or None."
            )
        is_edited_BL = edited != self.tokens
        if bool((is_edited_BL & ~free).any()):
            raise UserError(
                "The hook changed a prompt or pinned token, which stay as they are; edit free "
                "positions only, or sample from a new canvas."
            )
        is_undone_BL = is_edited_BL & (self.commit_step >= 0)
        rows_n, columns_n = is_undone_BL.nonzero(as_tuple=True)
        if len(rows_n):
            self.remasks.append(
                Remasking(
                    step=step,
                    rows=rows_n,
                    columns=columns_n,
                    tokens=self.tokens[is_undone_BL],
                    commit_steps=self.commit_step[is_undone_BL],
                    confidences=self.confidence[is_undone_BL],
                )
            )
        is_masked_BL = is_edited_BL & (edited == self.canvas.mask_token_id)
        self.tokens.copy_(edited)
        self.commit_step.masked_fill_(is_edited_BL, step).masked_fill_(is_masked_BL, -1)
        self.confidence.masked_fill_(is_edited_BL, torch.nan)

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
        )


def merge_traces(
    canvas_tokens: Int[Tensor, "B L"],
    response_start: int,
    parts: list[tuple[Tensor, DenoisingTrace]],
) -> DenoisingTrace:
    """One trace for all rows, from traces of some rows each whose canvas may lack left padding."""
    num_rows, length = canvas_tokens.shape
    device = canvas_tokens.device
    whole = DenoisingTrace(
        initial=canvas_tokens,
        tokens=canvas_tokens.clone(),
        commit_step=torch.full_like(canvas_tokens, -1),
        confidence=torch.full(
            (num_rows, length), torch.nan, dtype=parts[0][1].confidence.dtype, device=device
        ),
        response_start=response_start,
        num_forward_passes=sum(trace.num_forward_passes for _, trace in parts),
        row_forward_passes=torch.zeros(num_rows, dtype=torch.long),
    )
    for rows, trace in parts:
        skipped = length - trace.tokens.shape[1]
        whole.tokens[rows, skipped:] = trace.tokens
        whole.commit_step[rows, skipped:] = trace.commit_step
        whole.confidence[rows, skipped:] = trace.confidence
        whole.row_forward_passes[rows.cpu()] = trace.row_forward_passes
        whole.remasks.extend(
            replace(remask, rows=rows[remask.rows], columns=remask.columns + skipped)
            for remask in trace.remasks
        )
    return whole
