"""The schedule of filling: how many positions a row commits, in which block, step by step.

All of this is arithmetic on a few integers, so the loop never waits for the device before it can
plan a step, unless something decides during generation (see `Pace.is_watched`).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.families.attention import AttentionPattern
from mosa.types import UserError

NEVER = float("inf")


def spread_evenly(steps: int, num_blocks: int) -> list[int]:
    """The steps of each block, the remainder over the first: 5 steps for 2 blocks go 3 and 2."""
    base, remainder = divmod(steps, num_blocks)
    return [base + (block < remainder) for block in range(num_blocks)]


def spread_by_masks(steps: int, num_masked: Sequence[int]) -> list[int]:
    """The steps of stages that differ in size: one for each that has masks, and every further one
    where a step has most masks to fill (the first of them): 9 steps for 8 and 64 masks go 1 and 8.
    """
    per_stage = [int(n > 0) for n in num_masked]
    load = [(-float(n), stage) for stage, n in enumerate(num_masked) if n]
    heapq.heapify(load)
    for _ in range(steps - len(load) if load else 0):
        stage = load[0][1]
        per_stage[stage] += 1
        heapq.heapreplace(load, (-num_masked[stage] / per_stage[stage], stage))
    return per_stage


def step_plan(per_block: Sequence[int]) -> list[tuple[int, int, int]]:
    """For every step its block, its number within the block, and the block's number of steps."""
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


def commit_count(schedule: str, num_masked: int, slot: int, num_slots: int) -> int:
    """How many of its masked positions a row commits in step `slot` of a block's `num_slots`.

    `even` rounds up: 10 positions in 4 steps go 3, 3, 2, 2, the remainder first, which is LLaDA's
    `get_num_transfer_tokens`, and evens out what a hook fills or masks on the way. `timesteps`
    rounds down as Dream does: 8 positions in 4 steps go 1, 2, 2, 3 (of 8, 7, 5 and 3 still left).
    """
    if schedule == "even":
        return -(-num_masked // (num_slots - slot))
    return int(num_masked * commit_fraction(schedule, slot, num_slots))


def blocks_of(
    canvas: Canvas, config: DecoderConfig, attention: AttentionPattern
) -> Int[Tensor, "B L"]:
    """The block of each position, from 0, or its stage where a rule has stages; masks inside the
    prompt go with the first block.

    Blocks begin where the family's begin (`AttentionPattern.decoding_begins`). Counted from the
    sequence, a prompt of 6 tokens leaves 2 of the response to the first block of 4.
    """
    device = canvas.tokens.device
    positions_L = torch.arange(canvas.tokens.shape[1], device=device) - canvas.response_start
    block_length = config.block_length or config.max_new_tokens
    shared_B1 = torch.zeros(len(canvas.tokens), 1, dtype=torch.long, device=device)
    if config.block_length is not None and attention.decoding_begins == "sequence":
        prompt_BP = canvas.attention_mask[:, : canvas.response_start]
        shared_B1 = prompt_BP.sum(dim=1, keepdim=True) % block_length
    block_BL = (positions_L.clamp(min=0) + shared_B1) // block_length
    if config.stages is None:
        return block_BL
    return config.stages.stage_of(positions_L.expand_as(block_BL), block_BL)


def wanted_blocks(
    block: Int[Tensor, "B L"], response_start: int, stop_after: int | None
) -> Bool[Tensor, "B L"]:
    """The positions in blocks up to the last that response positions 1..`stop_after` need."""
    if stop_after is None:
        return torch.ones_like(block, dtype=torch.bool)
    last = min(response_start + stop_after, block.shape[1]) - 1
    return block <= block[:, : last + 1].amax(dim=1, keepdim=True)


@dataclass(frozen=True)
class PlannedStep:
    """The work of one row in one step."""

    step: int
    block: int
    """The active block; what is masked in it, or in one before it, may be filled."""
    num_open: int
    """How many masks that is."""
    count: int
    """How many positions the row commits at least."""
    bound: float
    """The confidence from which on a position is committed beyond the count."""


def _steps_of(config: DecoderConfig, num_masked: Sequence[int]) -> list[int]:
    """The steps of each block, or stage; UserError where one would have none."""
    if config.stages is not None:
        num_stages = sum(n > 0 for n in num_masked)
        if config.steps < num_stages:
            raise UserError(
                f"steps={config.steps} is too few for the {num_stages} stages that "
                f"{config.stages.name} makes of the response; give every stage at least one step."
            )
        return spread_by_masks(config.steps, num_masked)
    if config.steps < len(num_masked):
        raise UserError(
            f"steps={config.steps} is too few for the {len(num_masked)} blocks of "
            f"{config.block_length} tokens that the response lies in; give every block at "
            "least one step."
        )
    return spread_evenly(config.steps, len(num_masked))


class Pace:
    """The steps of one row that have work to do.

    What is masked at a step follows only from the plan, unless a threshold, an order that commits
    by chance, a row that may finish early, a monitor or a hook decide during it. Only then must
    `num_masked` be read from the device before each step.
    """

    def __init__(self, config: DecoderConfig, num_masked: Sequence[int], *, has_hook: bool) -> None:
        self.config = config
        self.num_masked = list(num_masked)
        """How many masks each block has before the next step."""
        self.has_hook = has_hook
        self.is_watched = (
            has_hook
            or not config.has_plan
            or config.order.commits_by_chance
            or bool(config.monitors)
            or config.stop_when_finished
        )
        # Without a plan confidence decides how many steps a block takes.
        self.plan = step_plan(_steps_of(config, num_masked)) if config.has_plan else []
        self.leftover_count = -(-sum(num_masked) // config.steps)
        self.limit = len(self.plan) + 10 * (config.steps + sum(num_masked) + len(num_masked))
        self.num_taken = 0
        """Steps so far, those without work included."""

    def next_step(self) -> PlannedStep | None:
        """The next step with work, or None if the row is full; with a hook every planned step is
        taken, for the hook to see."""
        while True:
            step = self.num_taken
            is_planned = step < len(self.plan)
            if not any(self.num_masked) and not (self.has_hook and is_planned):
                return None
            self.num_taken += 1
            if is_planned:
                block = self.plan[step][0]
            else:
                block = next((b for b, n in enumerate(self.num_masked) if n), 0)
            num_open = sum(self.num_masked[: block + 1])
            count, bound = self._count(step, num_open)
            if self.has_hook or (num_open and (count or bound < NEVER)):
                if not self.is_watched:  # all blocks before this one are full
                    self.num_masked[block] -= count
                return PlannedStep(step, block, num_open, count, bound)

    def _count(self, step: int, num_open: int) -> tuple[int, float]:
        """How many positions the row commits at least, and from which confidence on more."""
        config = self.config
        if not config.has_plan:
            self._check_end(step)
            return min(num_open, 1), NEVER if config.threshold is None else config.threshold
        if step >= len(self.plan):  # masks were left after the last step: continue at the same pace
            self._check_end(step)
            return min(num_open, self.leftover_count), NEVER
        _, slot, num_slots = self.plan[step]
        if config.order.commits_by_chance:  # each position by its own chance
            fraction = float(commit_fraction(config.schedule, slot, num_slots))
            # A block's last step takes everything, suppressed end tokens too.
            return 0, 1 - fraction if slot < num_slots - 1 else -NEVER
        return commit_count(config.schedule, num_open, slot, num_slots), NEVER

    def _check_end(self, step: int) -> None:
        if step >= self.limit:
            raise UserError(
                f"After {step} steps the hook or a rule still masks positions again; let it stop "
                "after some step, so that the generation can end."
            )
