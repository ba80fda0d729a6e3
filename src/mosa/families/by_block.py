"""All blocks of a canvas in one pass, each as it opens: earlier blocks written, its own masked.

The state that a block-causal sampler really meets differs from block to block, and the fully masked
response occurs in its first block alone. Block diffusion training (arXiv:2503.09573, Section 4 and
Appendix B) takes all blocks at once: the row holds the written canvas and, behind it, the canvas
with masks; a block of the latter sees itself, and the written blocks before it.

    prompt a b, answer c d e f, blocks of 2, the second half of each masked

    written   a b c d e f            sees the written blocks up to its own
    masked            c . e .        `e .` sees itself and the written a b c d

# B rows, L columns, M columns of the masked part, N = L + M
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.families.attention import AttentionPattern


def first_masked_column(attention: AttentionPattern, response_start: int) -> int:
    """The column with which the part with masks begins: that of the response, or as far before it
    as its first block may reach."""
    return max(0, response_start - attention.most_shared)


def by_block(
    attention: AttentionPattern,
    masked: Int[Tensor, "B L"],
    written: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    response_start: int,
    mask_token_id: int,
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"], Bool[Tensor, "B 1 N N"], int]:
    """Both parts of every row, the one with masks from the first block of the response on: tokens,
    position ids, which key (last) each query sees, and what a column counts more in that part.

    Where the last block is a whole one, masks behind the canvas fill it up, as in the sampler.
    """
    assert attention.block_length is not None, "there are blocks"
    first = first_masked_column(attention, response_start)
    shift_B1 = attention.shift(real[:, :response_start].sum(dim=1, keepdim=True))
    places_BL = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    length_B1 = real.sum(dim=1, keepdim=True)
    more_X = torch.arange(attention.most_shared, device=masked.device)
    is_more_BX = more_X < -length_B1 % attention.block_length
    masks_BX = masked.new_full(is_more_BX.shape, mask_token_id)

    tokens_BN = torch.cat([written, masked[:, first:], masks_BX], dim=1)
    position_BN = torch.cat([places_BL, places_BL[:, first:], length_B1 + more_X], dim=1)
    real_BN = torch.cat([real, real[:, first:], is_more_BX], dim=1)
    block_BN = (position_BN + shift_B1) // attention.block_length
    num_written = written.shape[1]
    is_written_N = torch.arange(tokens_BN.shape[1], device=masked.device) < num_written
    earlier_BNN = block_BN[:, None, :] < block_BN[:, :, None]
    same_BNN = block_BN[:, None, :] == block_BN[:, :, None]
    of_kind_NN = is_written_N[:, None] == is_written_N[None, :]
    sees_BNN = (is_written_N & earlier_BNN) | (of_kind_NN & same_BNN)
    sees_BNN &= real_BN[:, None, :]
    # Padding sees itself, so that nothing is undefined.
    sees_BNN |= torch.eye(tokens_BN.shape[1], dtype=torch.bool, device=masked.device)
    return tokens_BN, position_BN, sees_BNN[:, None], num_written - first
