"""The one loop that fills a canvas: every experiment, attack and evaluation denoises through it.

Implements LLaDA's sampling (arXiv:2502.09992, Section 2.4 and Appendix A.3; `generate.py`) and
Dream's (arXiv:2508.15487; `_sample` in `generation_utils.py`), with confidence thresholds as in
Fast-dLLM (arXiv:2505.22618, Section 3.3). At temperature 0 in float32 the tokens are those of the
authors' code. How we differ, and why (docs/denoising.md has the list with measurements):

1. The mask token is never committed, and counts are kept per row, so nothing stays masked.
2. Tokens are drawn by inverting the distribution with one uniform number per drawn position, made
   from seed, row, position and step. A row's text depends on no other row, nor on padding.
3. Logits are asked for the active block only. A step in which a row commits nothing does not run
   that row, and one in which no row does is skipped; the outcome is the same.
4. Ties in confidence go to the leftmost position, where the order of `topk` is undefined.

# B rows of the canvas, A rows that run in this step, L canvas length, K columns of the active block,
# N masked positions among [A, K], V vocabulary. Tensors named `host_...` are on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import Progress
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.denoising.noise import ORDER_DRAW, POSITION_DRAW, TOKEN_DRAW, counter_uniform, row_keys
from mosa.denoising.remasking import REMASKING, Proposals, draw, shape_logits
from mosa.denoising.trace import DenoisingTrace, Remasking, merge_traces
from mosa.families.base import DiffusionLM
from mosa.types import Prompt, UserError

_MAX_LOGITS_AT_ONCE = 2**26
"""Logits that are rated at once (256 MB in float32); more positions are taken in parts."""


@dataclass(frozen=True)
class DecoderConfig:
    """Every setting of a generation; belongs beside each number that is measured on its output."""

    max_new_tokens: int = 128
    """Length of the response in tokens; the end token may come earlier."""
    steps: int = 128
    """Denoising steps, spread evenly over the blocks, the remainder over the first ones; not used with a threshold."""  # noqa: E501
    block_length: int | None = None
    """Response tokens in a block; blocks are filled from left to right; null makes the whole response one block."""  # noqa: E501
    temperature: float = 0.0
    """Temperature of the drawn tokens; 0 takes the likeliest."""
    top_p: float | None = None
    """Draws from the smallest set of tokens that holds this much probability; null does not cut."""
    top_k: int | None = None
    """Draws from this many likeliest tokens; null does not cut."""
    remasking: str = "low_confidence"
    """Which masked positions are filled first: low_confidence, random, maskgit_plus, topk_margin, entropy or origin."""  # noqa: E501
    alg_temp: float | None = None
    """Above 0, draws the positions from softmax(confidence / alg_temp) instead of taking the best."""
    schedule: Literal["even", "timesteps"] = "even"
    """Commits per step: even takes as many in each, timesteps int(masked * (1 - s/t)) for t falling from 1 to 0.001."""  # noqa: E501
    threshold: float | None = None
    """Commits every position of at least this confidence, and the best one always, until the block is full."""  # noqa: E501
    cfg_scale: float = 0.0
    """Classifier-free guidance against the canvas with all given tokens masked; 0 is off."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that are never generated."""
    end_tokens: Literal["allow", "forbid", "suppress"] = "allow"
    """Whether end tokens may be generated, or only where nothing else in the block is left to fill (suppress)."""  # noqa: E501
    stop_when_finished: bool = False
    """Fills the rest of a row with the end token, at no cost, once all before a generated end token is filled."""  # noqa: E501
    seed: int = 0
    """Seed of every random choice; the same prompt, settings and seed give the same text in any batch."""  # noqa: E501

    def __post_init__(self):
        object.__setattr__(self, "banned_token_ids", tuple(self.banned_token_ids))
        for name in ("max_new_tokens", "steps", "block_length", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        for name in ("temperature", "cfg_scale", "alg_temp"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be 0 or more, not {value}.")
        for name in ("top_p", "threshold"):
            value = getattr(self, name)
            if name == "threshold" and self.remasking == "entropy":
                continue  # a negative entropy, not a probability
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} must lie above 0 and at most at 1, not {value}.")
        if self.remasking not in REMASKING:
            raise UserError(
                f"remasking={self.remasking!r} is not known; choose from {', '.join(REMASKING)}."
            )
        for name, choices in (
            ("schedule", ("even", "timesteps")),
            ("end_tokens", ("allow", "forbid", "suppress")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not known; choose from {', '.join(choices)}."
                )
        if self.remasking in ("origin", "random") and (self.threshold or self.alg_temp):
            raise UserError(
                f"remasking={self.remasking!r} has no confidence, so threshold and alg_temp do not "
                "apply to it; leave them out or choose another rule."
            )
        if self.threshold is not None and self.alg_temp:
            raise UserError("threshold and alg_temp exclude each other; leave one of them out.")
        if self.threshold is None and self.steps < self.num_blocks:
            raise UserError(
                f"steps={self.steps} is fewer than the {self.num_blocks} blocks of "
                f"{self.block_length} tokens; every block needs at least one step."
            )

    @property
    def num_blocks(self) -> int:
        """Blocks of the response; the last may be shorter than the others."""
        return -(-self.max_new_tokens // (self.block_length or self.max_new_tokens))

    def step_plan(self) -> list[tuple[int, int, int]]:
        """For every step its block, its number within the block, and the block's steps.

        Empty with a threshold, where confidence alone decides how long a block takes.
        """
        if self.threshold is not None:
            return []
        base, remainder = divmod(self.steps, self.num_blocks)
        return [
            (block, slot, base + (block < remainder))
            for block in range(self.num_blocks)
            for slot in range(base + (block < remainder))
        ]


def commit_fraction(schedule: str, slot: int, num_slots: int) -> float | Tensor:
    """Which share of the positions still masked goes in step `slot` of `num_slots` (both per block).

    `even` is 1/(steps left). `timesteps` is 1 - s/t for times t > s on a line from 1 to 0.001, in
    float32 as in Dream's code, whose rounding it decides. The last step takes everything.
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
    """How many of its masked positions each row commits in step `slot` of `num_slots` of a block.

    `even` rounds up: 10 positions in 4 steps go 3, 3, 2, 2, the remainder first, as in LLaDA's
    `get_num_transfer_tokens`, and it stays even when a hook fills or masks positions in between.
    `timesteps` rounds down, as in Dream's code: 8 in 4 steps go 1, 2, 2, 3 (of 8, 7, 5 and 3 left).
    """
    if schedule == "even":
        return -(-num_masked // (num_slots - slot))
    return (num_masked * commit_fraction(schedule, slot, num_slots)).long()


@dataclass(frozen=True)
class StepState:
    """What a hook sees after the commits of a step, one entry for each row of the batch."""

    step: int
    rows: Int[Tensor, " B"]
    """Which prompts of the call the rows are; a call with a batch_size runs its rows in parts."""
    tokens: Int[Tensor, "B L"]
    """The canvas after this step's commits. Edit a clone of it and return that."""
    committed: Bool[Tensor, "B L"]
    """The positions committed in this step."""
    columns: Int[Tensor, " K"]
    """The canvas columns that the three tensors below are about: those of the active block."""
    logits: Float[Tensor, "B K V"]
    """Guided logits before bans, temperature and cuts; no columns where nothing was left to fill."""
    proposals: Int[Tensor, "B K"]
    """The token proposed for each masked position; elsewhere the token that stands there."""
    confidence: Float[Tensor, "B K"]
    """The rating of each proposal by the remasking rule; -inf where nothing was masked."""
    response_start: int
    mask_token_id: int

    @property
    def response(self) -> Int[Tensor, "B R"]:
        """The response columns of the canvas."""
        return self.tokens[:, self.response_start :]


Hook = Callable[[StepState], Tensor | None]
"""Called after every step; returns None, or the canvas [B, L] with free positions overwritten or
set to the mask token, which are then filled later."""


@dataclass(frozen=True)
class SampleResult:
    """The responses of a call, in the order of its prompts."""

    tokens: Int[Tensor, "B R"]
    """The response ids, as long as the canvas: what follows the first end token included."""
    text: list[str] | None
    """Each response up to its first end token; None for a model without a tokenizer."""
    full_text: list[str] | None
    """Each response whole, with what stands after the first end token."""
    trace: DenoisingTrace
    canvas: Canvas
    """The filled canvas."""
    config: DecoderConfig
    """The settings as used."""

    @property
    def num_forward_passes(self) -> int:
        """How often the model was called."""
        return self.trace.num_forward_passes


def sample(
    model: DiffusionLM,
    prompts: Canvas | Tensor | Prompt | Sequence[Prompt],
    config: DecoderConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    hook: Hook | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> SampleResult:
    """Generates a response for every prompt, or fills a canvas.

    `prompts` are strings, dialogues, token ids [B, P] with an `attention_mask`, or a `Canvas`;
    `settings` override fields of `config`. `batch_size` bounds the rows that run together (of
    similar length); it changes neither order nor text. `hook` is described at `Hook`. The model
    runs in evaluation mode and without gradients.

        result = sample(model, ["What is a kiln?"], max_new_tokens=64, steps=32, block_length=32)
        print(result.text[0], result.num_forward_passes)

    Raises UserError for settings that contradict each other or the model.
    """
    unknown = settings.keys() - {field.name for field in fields(DecoderConfig)}
    if unknown:
        raise UserError(
            f"There is no setting {sorted(unknown)[0]!r}; the settings are "
            f"{', '.join(field.name for field in fields(DecoderConfig))}."
        )
    if isinstance(prompts, Canvas):
        width = prompts.response.shape[1]
        if attention_mask is not None or settings.get("max_new_tokens", width) != width:
            raise UserError(
                f"A canvas brings its own attention mask and response length ({width}); leave out "
                "attention_mask and max_new_tokens."
            )
        config = replace(config or DecoderConfig(), **settings | {"max_new_tokens": width})
        canvas = prompts.to(model.device)
    else:
        config = replace(config or DecoderConfig(), **settings)
        canvas = Canvas.from_prompts(
            model, prompts, max_new_tokens=config.max_new_tokens, attention_mask=attention_mask
        )
    _check_against_model(config, model)
    num_rows = len(canvas.tokens)
    order = torch.arange(num_rows, device=canvas.tokens.device)
    if batch_size is not None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}.")
        order = canvas.attention_mask.sum(dim=1).argsort(stable=True)
    keys_B = row_keys(canvas.tokens, canvas.attention_mask, canvas.response_start)

    parts = []
    with Progress(disable=not progress) as bar, _evaluation_mode(model), torch.no_grad():
        task = bar.add_task("denoising", total=int(canvas.free.sum()))
        for rows in order.split(batch_size or num_rows):
            part = canvas.select(rows)
            trace = denoise(
                model,
                part,
                config,
                keys_B[rows],
                rows=rows,
                hook=hook,
                on_filled=lambda filled: bar.advance(task, filled),
            )
            parts.append((rows, trace))
    trace = merge_traces(canvas.tokens, canvas.response_start, parts)
    filled = replace(canvas, tokens=trace.tokens)
    return SampleResult(
        tokens=filled.response,
        text=_texts(model, filled.response, until_end=True),
        full_text=_texts(model, filled.response, until_end=False),
        trace=trace,
        canvas=filled,
        config=config,
    )


def denoise(
    model: DiffusionLM,
    canvas: Canvas,
    config: DecoderConfig,
    keys: Int[Tensor, " B"],
    *,
    rows: Int[Tensor, " B"],
    hook: Hook | None,
    on_filled: Callable[[int], object],
) -> DenoisingTrace:
    """Fills every mask of the canvas, step by step, and tells how. `sample` is the way in."""
    device = canvas.tokens.device
    tokens_BL = canvas.tokens.clone()
    commit_step_BL = torch.full_like(tokens_BL, -1)
    confidence_BL = torch.full(tokens_BL.shape, torch.nan, dtype=torch.float32, device=device)
    remasks: list[Remasking] = []
    attention_BL = None if bool(canvas.attention_mask.all()) else canvas.attention_mask
    given_BL = ~canvas.free  # what guidance hides: all that was given
    columns_L = torch.arange(tokens_BL.shape[1]) - canvas.response_start
    # Masks inside the prompt belong to the first block.
    host_block_L = columns_L.div(config.block_length or len(columns_L), rounding_mode="floor")
    host_block_L = host_block_L.clamp(min=0)
    plan = config.step_plan()
    # What is masked follows from the plan alone unless one of these decides as it goes; only then
    # the host looks at the device, once a step.
    watched = (
        hook is not None
        or config.threshold is not None
        or config.remasking == "origin"
        or config.stop_when_finished
    )
    host_masked_BL = canvas.free.cpu()
    host_num_filled_B = torch.zeros(len(tokens_BL), dtype=torch.long)
    host_pace_B = -(-host_masked_BL.sum(dim=1) // config.steps)
    last_left = int(host_masked_BL.sum())
    row_forward_passes = torch.zeros(len(tokens_BL), dtype=torch.long)
    num_forward_passes = 0

    for step in itertools.count():
        # 1. The active block: the planned one; without a plan, a row's first that has a mask.
        planned = step < len(plan)
        if watched:
            host_masked_BL = ((tokens_BL == canvas.mask_token_id) & canvas.attention_mask).cpu()
            left = int(host_masked_BL.sum())
        else:
            left = int((host_masked_BL.sum(dim=1) - host_num_filled_B).sum())
        on_filled(last_left - left)
        last_left = left
        if left == 0 and not (hook is not None and planned):
            break
        if planned:
            block, slot, num_slots = plan[step]
            host_active_BL = host_masked_BL & (host_block_L <= block)
        else:
            _check_progress(step, plan, config)
            masked_block_BL = host_block_L.expand_as(host_masked_BL).masked_fill(
                ~host_masked_BL, config.num_blocks
            )
            host_active_BL = host_masked_BL & (
                masked_block_BL == masked_block_BL.amin(dim=1, keepdim=True)
            )
        host_left_B = host_active_BL.sum(dim=1) - host_num_filled_B

        # 2. How many each row commits: a count, and whatever reaches a confidence.
        bound = float("inf")
        if config.threshold is not None:
            host_counts_B, bound = host_left_B.clamp(max=1), config.threshold
        elif not planned:  # a hook masked positions after the plan's end: go on at its pace
            host_counts_B = torch.minimum(host_left_B, host_pace_B)
        elif config.remasking == "origin":
            host_counts_B = torch.zeros_like(host_left_B)
            bound = 1 - float(commit_fraction(config.schedule, slot, num_slots))
        else:
            host_counts_B = commit_counts(config.schedule, host_left_B, slot, num_slots)
        runs_B = (host_left_B > 0) & ((host_counts_B > 0) | (bound < float("inf")))
        if hook is not None:
            runs_B = torch.ones_like(runs_B)  # a hook sees every row in every step
        if not bool(runs_B.any()):
            continue
        ...
    raise AssertionError
