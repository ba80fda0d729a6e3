"""When what is filled: how many positions each row commits, in which block, step by step.

All of this is arithmetic on small CPU tensors, so the loop never waits for the device to learn
what to do next, unless something decides as it goes (see `Turns`).

# B rows, A rows that commit in a step, L canvas length, K columns of the active block. Tensors
# named `host_...` are on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.types import UserError

NEVER = float("inf")


def step_plan(steps: int, num_blocks: int) -> list[tuple[int, int, int]]:
    """For every step its block, its number within the block, and the block's number of steps.

    Steps are spread evenly, the remainder over the first blocks: 5 steps for 2 blocks go 3 and 2.
    """
    base, remainder = divmod(steps, num_blocks)
    per_block = [base + (block < remainder) for block in range(num_blocks)]
    return [(block, slot, n) for block, n in enumerate(per_block) for slot in range(n)]


def commit_fraction(schedule: str, slot: int, num_slots: int) -> float | Tensor:
    """Which share of the positions still masked goes in step `slot` of a block's `num_slots`.

    `even` is 1 / (steps left). `timesteps` is 1 - s/t for times t > s on a line from 1 to 0.001,
    in float32 as in Dream's `_sample`, since rounding it decides. The last step takes everything.
    """
    if slot == num_slots - 1:
        return 1.0
    if schedule == "even":
        return 1 / (num_slots - slot)
    times = torch.linspace(1, 1e-3, num_slots + 1)
    return 1 - times[slot + 1] / times[slot]


def commit_counts(
    schedule: str, num_masked: Int[Tensor, " B"], slot: int, num_slots: int
) -> Int[Tensor, " B"]:
    """How many of its masked positions each row commits in step `slot` of a block's `num_slots`.

    `even` rounds up: 10 positions in 4 steps go 3, 3, 2, 2, the remainder first, which is LLaDA's
    `get_num_transfer_tokens`, and evens out what a hook fills or masks on the way. `timesteps`
    rounds down as Dream does: 8 positions in 4 steps go 1, 2, 2, 3 (of 8, 7, 5 and 3 still left).
    """
    if schedule == "even":
        return -(-num_masked // (num_slots - slot))
    return (num_masked * commit_fraction(schedule, slot, num_slots)).long()


@dataclass(frozen=True)
class Turn:
    """What is to be done in one step."""

    step: int
    in_block: Bool[Tensor, "#B L"]
    """The columns of the active block; what is masked there may be filled."""
    host_rows: Int[Tensor, " A"]
    """The rows that commit something."""
    host_columns: Int[Tensor, " K"]
    """The columns where one of them has, or at least had, a mask."""
    host_num_masked: Int[Tensor, " A"]
    """How many masks the rows have in the active block."""
    host_counts: Int[Tensor, " A"]
    """How many positions the rows commit at least."""
    bound: float
    """The confidence from which on a position is committed beyond the count."""


class Turns:
    """Iterates over the steps that have work to do.

    What is masked at a step follows from the plan alone, unless a threshold, a rule that commits by
    chance, rows that finish early, or a hook decide as it goes. Only then each step reads from the
    device which positions are masked: one small copy for all rows, the step's only
    synchronisation.
    """

    def __init__(
        self, canvas: Canvas, tokens: Int[Tensor, "B L"], config: DecoderConfig, has_hook: bool
    ):
        self.canvas = canvas
        self.tokens = tokens  # the loop's own, written in place
        self.config = config
        self.has_hook = has_hook
        self.is_watched = (
            has_hook
            or config.threshold is not None
            or config.remasking == "origin"
            or config.stop_when_finished
        )
        # A threshold decides by itself how many steps a block takes.
        has_plan = config.threshold is None
        self.plan = step_plan(config.steps, config.num_blocks) if has_plan else []
        positions_L = torch.arange(tokens.shape[1]) - canvas.response_start
        block_length = config.block_length or config.max_new_tokens
        # Masks inside the prompt are filled with the first block.
        self.host_block_L = positions_L.clamp(min=0) // block_length
        self.host_free_BL = canvas.free.cpu()
        self.host_pace_B = -(-self.host_free_BL.sum(dim=1) // config.steps)
        self.num_left = int(self.host_free_BL.sum())
        """Masks in all rows before the latest turn."""

    def __iter__(self) -> Iterator[Turn]:
        host_masked_BL = self.host_free_BL
        host_num_filled_B = torch.zeros(len(host_masked_BL), dtype=torch.long)
        step = -1
        while True:
            step += 1
            if self.is_watched:
                # Exact, so nothing is to be taken off the counts below.
                is_masked_BL = self.tokens == self.canvas.mask_token_id
                host_masked_BL = (is_masked_BL & self.canvas.attention_mask).cpu()
            elif step < len(self.plan) and self.plan[step][1] == 0:  # the blocks before are full
                host_masked_BL = host_masked_BL & (self.host_block_L >= self.plan[step][0])
                host_num_filled_B = torch.zeros_like(host_num_filled_B)
            self.num_left = int(host_masked_BL.sum() - host_num_filled_B.sum())
            if self.num_left == 0 and not (self.has_hook and step < len(self.plan)):
                return
            host_in_block = self._active_block(step, host_masked_BL)
            host_open_BL = host_masked_BL & host_in_block
            host_left_B = host_open_BL.sum(dim=1) - host_num_filled_B
            host_counts_B, bound = self._counts(step, host_left_B)
            runs_B = (host_left_B > 0) & ((host_counts_B > 0) | (bound < NEVER))
            if self.has_hook:
                runs_B = torch.ones_like(runs_B)  # a hook sees every row in every step
            if not bool(runs_B.any()):
                continue
            yield Turn(
                step=step,
                in_block=host_in_block.to(self.tokens.device, non_blocking=True),
                host_rows=runs_B.nonzero().squeeze(1),
                host_columns=host_open_BL[runs_B].any(dim=0).nonzero().squeeze(1),
                host_num_masked=host_left_B[runs_B],
                host_counts=host_counts_B[runs_B],
                bound=bound,
            )
            if not self.is_watched:
                host_num_filled_B = host_num_filled_B + host_counts_B

    def _active_block(self, step: int, host_masked_BL: Bool[Tensor, "B L"]) -> Bool[Tensor, "#B L"]:
        """The planned block and all before it; without a plan, each row's first with a mask."""
        if step < len(self.plan):
            return (self.host_block_L <= self.plan[step][0])[None]
        block_BL = self.host_block_L.expand_as(host_masked_BL)
        first_B1 = block_BL.masked_fill(~host_masked_BL, self.config.num_blocks).amin(1, True)
        return block_BL == first_B1

    def _counts(self, step: int, host_left_B: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], float]:
        """How many positions each row commits at least, and from which confidence on more."""
        config = self.config
        if config.threshold is not None:
            self._check_end(step)
            return host_left_B.clamp(max=1), config.threshold
        if step >= len(self.plan):  # a hook left masks after the last step: go on at the same pace
            self._check_end(step)
            return torch.minimum(host_left_B, self.host_pace_B), NEVER
        _, slot, num_slots = self.plan[step]
        if config.remasking == "origin":  # each position by its own chance
            fraction = float(commit_fraction(config.schedule, slot, num_slots))
            # A block's last step takes everything, suppressed end tokens too.
            bound = 1 - fraction if slot < num_slots - 1 else -NEVER
            return torch.zeros_like(host_left_B), bound
        return commit_counts(config.schedule, host_left_B, slot, num_slots), NEVER

    def _check_end(self, step: int) -> None:
        limit = len(self.plan) + 10 * (self.config.steps + self.host_free_BL.shape[1])
        if step >= limit:
            raise UserError(
                f"After {step} steps the hook still masks positions again; let it stop after some "
                "step, so that the generation can end."
            )
