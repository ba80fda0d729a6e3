"""What a step could fill in a row, as a hook sees it afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from mosa.denoising import RowView


def open_masks(row: RowView, block_length: int) -> tuple[Tensor, Tensor]:
    """The masks of the active block before the step's commits, and the confidence in each.

    At temperature 0, where the mask token counts in the confidences and is not chosen.
    """
    before = row.tokens.masked_fill(row.commit_step == row.step, row.mask_token_id)
    is_mask = before == row.mask_token_id
    end = (int(row.positions[is_mask].min()) // block_length + 1) * block_length
    is_open = is_mask & (row.positions < end)
    probs = row.logits(is_open.nonzero()[:, 0]).softmax(dim=-1)
    return is_open, probs.index_fill(1, torch.tensor(row.mask_token_id), 0).amax(dim=-1)
