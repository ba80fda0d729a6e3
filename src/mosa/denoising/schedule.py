"""The schedule of filling: how many positions a row commits, in which block, step by step.

All of this is arithmetic on a few integers, so the loop never waits for the device before it can
plan a step, unless something decides during generation (see `Pace.is_watched`).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.rules.remask_below import RemaskBelow
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


def check_steps(steps: int, num_parts: int, parts: str, part: str = "block") -> None:
    """UserError where the steps do not suffice for so many parts, which are described."""
    if steps < num_parts:
        raise UserError(
            f"steps={steps} is too few for the {num_parts} {parts}; give every {part} at least one "
            "step."
        )


def commit_fraction(schedule: str, slot: int, num_slots: int) -> float | Tensor:
    """Which share of the positions still masked goes in step `slot` of a block's `num_slots`.

    `even` is 1 / (steps left). `timesteps` is 1 - s/t for times t > s on a line from 1 to 0.001,
    in float32 as in Dream's `_sample`, since rounding it decides. `rounded` is 1 - s/t for times
    t > s on a line from 1 to 0, each as 1 - (1 - t) in float32, which decides as well: that is the
    `LinearAlphaScheduler` of dllm (repository ZHZisZZ/dllm). The last step takes everything.
    """
    if slot == num_slots - 1:
        return 1.0
    if schedule == "even":
        return 1 / (num_slots - slot)
    if schedule == "rounded":
        one = torch.tensor(1.0)
        shares = [one - (one - (num_slots - n) / num_slots) for n in (slot, slot + 1)]
        return 1 - float(shares[1] / shares[0])
    times = torch.linspace(1, 1e-3, num_slots + 1)
    return 1 - times[slot + 1] / times[slot]


def commit_count(schedule: str, num_masked: int, slot: int, num_slots: int) -> int:
    """How many of its masked positions a row commits in step `slot` of a block's `num_slots`.

    `even` rounds up: 10 positions in 4 steps go 3, 3, 2, 2, the remainder first, which is LLaDA's
    `get_num_transfer_tokens`, and evens out what a hook fills or masks on the way. `timesteps`
    rounds down as Dream does: 8 positions in 4 steps go 1, 2, 2, 3 (of 8, 7, 5 and 3 still left).
    `rounded` rounds to the nearest, a half to the even one: 5 positions in 2 steps go 2 and 3.
    """
    if schedule == "even":
        return -(-num_masked // (num_slots - slot))
    if schedule == "rounded":
        return round(num_masked * float(commit_fraction(schedule, slot, num_slots)))
    return int(num_masked * commit_fraction(schedule, slot, num_slots))


def stages_of(
    canvas: Canvas, config: DecoderConfig, attention: AttentionPattern
) -> Int[Tensor, "B L"]:
    """The stage of each position where a rule has stages; elsewhere its block."""
    block_BL = blocks_of(canvas, config, attention)
    if config.stages is None:
        return block_BL
    return config.stages.stage_of(canvas.positions.expand_as(block_BL), block_BL)


def blocks_of(
    canvas: Canvas, config: DecoderConfig, attention: AttentionPattern
) -> Int[Tensor, "B L"]:
    """The block of each position, from 0; masks inside the prompt go with the first block.

    A block-causal network has blocks of its own, which are filled one after the other unless the
    config sets others. They begin where its attention has them begin: counted from the sequence, a
    prompt of 6 tokens leaves 2 of the response to the first block of 4.
    """
    positions_L = canvas.positions
    block_length = length_of_blocks(config, attention)
    shared_B1 = positions_L.new_zeros(len(canvas.tokens), 1)
    if attention.shares_prompt:
        prompt_BP = canvas.attention_mask[:, : canvas.response_start]
        shared_B1 = prompt_BP.sum(dim=1, keepdim=True) % block_length
    return (positions_L.clamp(min=0) + shared_B1) // block_length


def length_of_blocks(config: DecoderConfig, attention: AttentionPattern) -> int:
    """The tokens of a block: as the config says, or the network, or all."""
    return config.block_length or attention.block_length or config.max_new_tokens


def whole_block(config: DecoderConfig, attention: AttentionPattern) -> int | None:
    """The tokens of a block where whole ones are counted from the prompt's first token."""
    if attention.shares_prompt and config.stages is None:
        return length_of_blocks(config, attention)
    return None


def fillable(canvas: Canvas, attention: AttentionPattern) -> Bool[Tensor, "B L"]:
    """The masks that can be filled.

    Of a prompt in block-causal attention only what shares a block with the response: the blocks
    before it are read once and never denoised (repositories JetAstra/SDAR and ZHZisZZ/dllm).
    """
    if attention.block_length is None:
        return canvas.free
    prompt_BP = canvas.attention_mask[:, : canvas.response_start]
    shared_B1 = prompt_BP.sum(dim=1, keepdim=True) % attention.block_length
    first_B1 = -shared_B1 if attention.shares_prompt else 0
    return canvas.free & (canvas.positions >= first_B1)


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
    first_open: int
    """The first block that has masks before the step; the active one where none has."""
    num_editable: int = 0
    """How many written tokens of the active block may be replaced."""

    @property
    def num_rated(self) -> int:
        """For how many positions a token is proposed."""
        return self.num_open + self.num_editable


def _steps_of(
    config: DecoderConfig, num_masked: Sequence[int], block_length: int | None
) -> list[int]:
    """The steps of each block, or stage; UserError where one would have none.

    Where whole blocks of `block_length` are counted from the prompt's first token, each has as many
    steps as if the response filled whole blocks.
    """
    if config.stages is not None:
        num_stages = sum(n > 0 for n in num_masked)
        parts = f"stages that {config.stages.name} makes of the response"
        check_steps(config.steps, num_stages, parts, "stage")
        return spread_by_masks(config.steps, num_masked)
    if block_length is not None:
        num_whole = -(-config.max_new_tokens // block_length)
        parts = f"blocks of {block_length} tokens that the response takes"
        check_steps(config.steps, num_whole, parts)
        return [min(config.steps // num_whole, block_length)] * len(num_masked)
    parts = f"blocks of {config.block_length} tokens that the response lies in"
    check_steps(config.steps, len(num_masked), parts)
    return spread_evenly(config.steps, len(num_masked))


def most_passes(config: DecoderConfig, attention: AttentionPattern) -> int:
    """In how many passes a response is full at most, where no hook masks again: as many as the plan
    has steps, or one for each mask of the response; and those of edits and repairs."""
    block_length, num_more = length_of_blocks(config, attention), 0
    num_blocks = num_whole = -(-config.max_new_tokens // block_length)
    if attention.shares_prompt:
        num_more = attention.most_shared  # masks behind the response
        num_blocks = -(-(config.max_new_tokens + block_length - 1) // block_length)
    if whole_block(config, attention) is not None:
        found = min(config.steps // num_whole, block_length) * num_blocks
        if block_length != attention.block_length:  # the last block may have more masks
            found += num_more
    else:
        found = config.steps if config.has_plan else config.max_new_tokens + num_more
    repairs = [rule for rule in config.monitors if isinstance(rule, RemaskBelow)]
    num_again = sum(rule.max_taken_back for rule in repairs)
    if config.edit_threshold is not None:
        num_visits = num_again + num_blocks + (config.stages is not None)
        found += config.max_post_steps * num_visits
    return found + num_again


def most_passes_by_token(config: DecoderConfig, attention: AttentionPattern) -> int:
    """The same under any number of steps and any blocks: a pass fills one token at least. Rules are
    left out."""
    by_token = replace(config, steps=config.max_new_tokens, block_length=1, rules=())
    return most_passes(by_token, attention)


class Pace:
    """The steps of one row that have work to do.

    What is masked at a step follows only from the plan, unless a threshold, an order that commits
    by chance, a row that may finish early, a monitor or a hook decide during it. Only then must
    `num_masked` be read from the device before each step.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_masked: Sequence[int],
        attention: AttentionPattern,
        *,
        has_hook: bool,
    ) -> None:
        self.config = config
        self.num_masked = list(num_masked)
        """How many masks each block has before the next step."""
        self.num_written = [0] * len(self.num_masked)
        """How many tokens of the response the sampler has written in each block."""
        self.block_length = whole_block(config, attention)
        """The tokens of a whole block where blocks are counted from the prompt's first token, so
        that a block with fewer masks commits as many of them in a step as a whole one."""
        self.is_block_causal = not attention.is_full and config.stages is None
        """Whether a block is not read before those to its left are full."""
        self.has_edited = False
        """Whether the latest step replaced what was written."""
        self.num_post_steps = 0
        """Steps in the active block that began without a mask in it."""
        self.active: int | None = None
        """The block of the latest step."""
        self.num_planned = 0
        """Steps of the plan so far; those that only edit are not in it."""
        self.has_hook = has_hook
        self.is_watched = (
            has_hook
            or not config.has_plan
            or config.edit_threshold is not None
            or config.order.commits_by_chance
            or bool(config.monitors)
            or config.stop_when_finished
        )
        self.plan: list[tuple[int, int, int]] = []
        """For every step its block, its number within the block, and the block's number of steps;
        empty where confidence decides how many steps a block takes."""
        if config.has_plan or self.block_length is not None:
            steps = enumerate(_steps_of(config, num_masked, self.block_length))
            self.plan = [(block, slot, n) for block, n in steps for slot in range(n)]
        self.leftover_count = -(-sum(num_masked) // config.steps)
        self.limit = len(self.plan) + 10 * (config.steps + sum(num_masked) + len(num_masked))
        if config.edit_threshold is not None:
            self.limit += config.max_post_steps * len(num_masked)
        self.num_taken = 0
        """Steps so far, those without work included."""

    def next_step(self) -> PlannedStep | None:
        """The next step with work, or None if the row is full; with a hook every planned step is
        taken, for the hook to see."""
        while True:
            step, edited = self.num_taken, self._edited_block()
            if edited is not None:
                self.num_taken += 1
                self.num_post_steps += 1
                num_editable = self.num_written[edited]
                return PlannedStep(step, edited, 0, 0, NEVER, edited, num_editable)
            planned = self.num_planned
            is_planned = planned < len(self.plan)
            if not any(self.num_masked) and not (self.has_hook and is_planned):
                return None
            first_open = next((b for b, n in enumerate(self.num_masked) if n), None)
            if self.is_block_causal and is_planned and first_open is not None:
                # What was masked again is filled before the blocks that read it.
                is_planned = self.plan[planned][0] <= first_open
                planned = planned if is_planned else len(self.plan)
            self.num_taken += 1
            self.num_planned += is_planned
            block = self.plan[planned][0] if is_planned else first_open or 0
            num_open = sum(self.num_masked[: block + 1])
            count, bound = self._count(planned, num_open)
            if self.has_hook or (num_open and (count or bound < NEVER)):
                first = block if first_open is None else min(first_open, block)
                is_edited = self.config.edit_threshold is not None
                num_editable = self.num_written[block] if is_edited else 0
                if not self.is_watched:  # all blocks before this one are full
                    self.num_masked[block] -= count
                if block != self.active:
                    self.active, self.num_post_steps = block, 0
                return PlannedStep(step, block, num_open, count, bound, first, num_editable)

    def _edited_block(self) -> int | None:
        """The block that has no masks left and may still be edited: until a step that began without
        masks edits nothing, and for so many steps at most."""
        if self.config.edit_threshold is None or self.active is None:
            return None
        if any(self.num_masked[: self.active + 1]) or not self.num_written[self.active]:
            return None
        is_settled = self.num_post_steps > 0 and not self.has_edited
        if is_settled or self.num_post_steps >= self.config.max_post_steps:
            return None
        return self.active

    def _count(self, step: int, num_open: int) -> tuple[int, float]:
        """How many positions the row commits at least, and from which confidence on more."""
        config = self.config
        bound = NEVER if config.threshold is None else config.threshold
        if not self.plan:
            self._check_end()
            return min(num_open, 1), bound
        if bound < NEVER:  # with a plan, what lies strictly above the threshold
            bound = float(np.nextafter(np.float32(bound), np.float32(2)))
        is_even = config.schedule == "even" and not config.order.commits_by_chance
        whole = self.block_length if is_even else None
        if step >= len(self.plan):  # masks were left after the last step: continue at the same pace
            self._check_end()
            return min(num_open, self.leftover_count if whole is None else 1), bound
        _, slot, num_slots = self.plan[step]
        if whole is not None:  # as many as a whole block would
            return min(num_open, whole // num_slots + (slot < whole % num_slots)), bound
        if config.order.commits_by_chance:  # each position by its own chance
            fraction = float(commit_fraction(config.schedule, slot, num_slots))
            # A block's last step takes everything, suppressed end tokens too.
            return 0, 1 - fraction if slot < num_slots - 1 else -NEVER
        return commit_count(config.schedule, num_open, slot, num_slots), bound

    def _check_end(self) -> None:
        if self.num_taken > self.limit:
            raise UserError(
                f"After {self.limit} steps the hook or a rule still masks positions again; let it "
                "stop after some step, so that the generation can end."
            )
