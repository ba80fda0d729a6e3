"""What happened in a generation: when each position was committed, how surely, and what was undone.

# B rows, L canvas length, n positions taken back in one step
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    """Calls of the model. A call with classifier-free guidance holds every row twice, counts one."""
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
