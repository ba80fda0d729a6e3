"""The canvases on which the objective is taken: how much of an answer is revealed, and where.

The paper scores phrases on a *fully masked* answer (arXiv 2508.12398, Algorithm 1). An attacker who
prefills an answer or sends a template brings the model into other states; two of them can be
trained on too: *random_reveal* (tokens of a harmful answer at random places) and *prefix* (its
beginning). Example on a canvas of five tokens, with the answer "mix flour and water":

    fully masked `. . . . .`    random reveal `. flour . water .`    prefix `mix flour . . .`

Every draw is a function of (seed, epoch, index of the example): neither batch size, accumulation,
nor an interruption changes what an example sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mosa.alignment.mosa_config import MosaConfig
from mosa.data import TrainingExample
from mosa.denoising.masks import mask_at_random_ratio
from mosa.draws import row_keys
from mosa.families import DiffusionLM
from mosa.types import UserError

# B rows, Q prompt columns (left-padded), R response positions, L = Q + R canvas length, D width.

State = Literal["fully_masked", "random_reveal", "prefix"]
STATES: tuple[State, ...] = ("fully_masked", "random_reveal", "prefix")

REVEAL_RATIO = (0.1, 0.9)
"""Least and largest share of the answer's tokens that random reveal shows."""
PREFIX_LENGTH = (1, 40)
"""Least and largest number of answer tokens that prefix shows; never more than the answer has."""
MIN_MASK_RATIO = 0.001
"""Least mask ratio of an answer that is masked at random (GUIDELINES.md of LLaDA: eps)."""


@dataclass(frozen=True)
class EncodedExample:
    """A `TrainingExample` as token ids."""

    index: int
    prompt_ids: list[int]
    answer_ids: list[int] | None
    """The answer's tokens, without end tokens, cut at the response length."""


@dataclass(frozen=True)
class ResponseState:
    """What one row's response looks like before the forward pass."""

    tokens: Int[Tensor, " R"]
    """The answer, padded; anything where the example has none."""
    masked: Bool[Tensor, " R"]
    state: State = "fully_masked"
    answer_length: int = 0
    """Number of positions that belong to the answer."""
    mask_ratio: float = 1.0
    """The ratio that the masks were drawn with; the chance of a position to be scored."""
    scored: Bool[Tensor, " R"] | None = None
    """The masked positions that a loss on the answer counts; None: all of them."""


def rng(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one example in one epoch; `stream` separates uses."""
    return np.random.default_rng((seed, epoch, index, stream))


def encode_examples(
    model: DiffusionLM, examples: Sequence[TrainingExample], response_length: int
) -> list[EncodedExample]:
    """Prompts through the chat template, answers as bare text.

    Raises UserError for an empty list, or a prompt that leaves no room for the response.
    """
    if not examples:
        raise UserError("There is nothing to train on; give at least one prompt.")
    limit = model.max_length
    encoded = []
    for index, example in enumerate(examples):
        prompt_ids = model.encode(example.prompt)
        if len(prompt_ids) + response_length > limit:
            raise UserError(
                f"Prompt {index + 1} has {len(prompt_ids)} tokens, which with a response of "
                f"{response_length} exceeds the model's {limit} positions; shorten either."
            )
        answer_ids = [] if example.answer is None else model.encode_text(example.answer)
        encoded.append(EncodedExample(index, prompt_ids, answer_ids[:response_length] or None))
    return encoded


def encode_answers(
    model: DiffusionLM, answers: Sequence[str | None], response_length: int
) -> list[list[int]]:
    """Answers as token ids, each with its end of turn.

    Raises UserError for one that is missing or longer than the canvas.
    """
    turn_end = turn_end_ids(model)
    encoded = []
    for number, text in enumerate(answers, start=1):
        if text is None:
            raise UserError(
                f"Example {number} has no answer, but this training needs one; add an `answer` to "
                "the data."
            )
        answer = model.encode_text(text) + turn_end
        if len(answer) > response_length:
            raise UserError(
                f"The answer of example {number} takes {len(answer)} tokens, but the canvas has "
                f"{response_length}; raise response_length or shorten the answer."
            )
        encoded.append(answer)
    return encoded


def harmful_state(
    example: EncodedExample, config: MosaConfig, random: np.random.Generator
) -> ResponseState:
    """Draw one of the three states, in the shares that `config` gives."""
    length = config.response_length
    masked = torch.ones(length, dtype=torch.bool)
    if example.answer_ids is None:
        return ResponseState(torch.zeros(length, dtype=torch.long), masked)

    answer_length = len(example.answer_ids)
    tokens = torch.zeros(length, dtype=torch.long)
    tokens[:answer_length] = torch.tensor(example.answer_ids)
    weights = np.array(
        [config.fully_masked_weight, config.random_reveal_weight, config.prefix_weight]
    )
    state = STATES[int(random.choice(3, p=weights / weights.sum()))]
    ratio = 0.0
    if state == "random_reveal":
        ratio = float(random.uniform(*REVEAL_RATIO))
        num_revealed = max(1, round(ratio * answer_length))
        masked[random.permutation(answer_length)[:num_revealed]] = False
    elif state == "prefix":
        longest = min(PREFIX_LENGTH[1], answer_length)
        shortest = min(PREFIX_LENGTH[0], longest)
        masked[: int(random.integers(shortest, longest, endpoint=True))] = False
    return ResponseState(tokens, masked, state, answer_length, 1.0 - ratio)


def turn_end_ids(model: DiffusionLM) -> list[int]:
    """The end-of-turn token, where the model has one other than end-of-text."""
    return [] if model.turn_end_token_id is None else [model.turn_end_token_id]


def padded_answer(model: DiffusionLM, answer_ids: Sequence[int], length: int) -> Int[Tensor, " R"]:
    """An answer with end-of-text up to `length`, as a model trained with that padding gives it."""
    tokens = torch.full((length,), model.eos_token_id, dtype=torch.long)
    tokens[: len(answer_ids)] = torch.tensor(answer_ids, dtype=torch.long)
    return tokens


def masked_answer(
    model: DiffusionLM,
    answer_ids: Sequence[int],
    length: int,
    random: np.random.Generator,
    *,
    ratio_min: float = MIN_MASK_RATIO,
) -> ResponseState:
    """An answer padded to `length` with end-of-text, masked at a random ratio.

    The ratio is uniform in [ratio_min, 1] and every position, padding included, is masked
    independently with it (LLaDA, arXiv 2502.09992, GUIDELINES.md).
    """
    tokens = padded_answer(model, answer_ids, length)
    noisy = mask_at_random_ratio(
        tokens[None],
        torch.ones(1, length, dtype=torch.bool),
        model.mask_token_id,
        generator=torch.Generator().manual_seed(int(random.integers(2**63))),
        low=ratio_min,
        high=1.0,
    )
    return ResponseState(
        tokens,
        noisy.is_masked[0],
        "random_reveal",
        length,
        float(noisy.mask_probability[0]),
    )


def anchored_answer(
    state: ResponseState, window: tuple[int, int], random: np.random.Generator
) -> ResponseState:
    """A state of `masked_answer` as it occurs where a window is filled before all else.

    By a toss, either the window is being filled and all else is masked, or the window stands and
    the rest is being filled; what is being filled keeps its masks and is scored. Over both, the
    loss is the bound of the likelihood of the window, then of the rest given the window. `window`
    has its first and last position, from 1.
    """
    is_window = torch.zeros_like(state.masked)
    is_window[window[0] - 1 : window[1]] = True
    fills_window = bool(random.random() < 0.5)
    scored = state.masked & (is_window == fills_window)
    masked = scored | ~is_window if fills_window else scored
    return replace(state, masked=masked, scored=scored, mask_ratio=state.mask_ratio / 2)


@dataclass(frozen=True)
class TrainingCanvas:
    """Rows of a forward pass: prompts left-padded to one width, then the responses."""

    tokens: Int[Tensor, "B L"]
    attended: Bool[Tensor, "B L"]
    """Where there is a token, and not padding."""
    written: Int[Tensor, "B L"]
    """The same without masks: what stands in the blocks before one that is filled."""
    response_start: int
    noise_seed: int
    """What decides, with a row's tokens, what stands in place of its masks in a model of uniform
    noise."""

    @property
    def noise_seeds(self) -> Int[Tensor, " B"]:
        """The seed of each row's noise."""
        keys_B = row_keys(self.tokens, self.attended, self.response_start, counts_equal_rows=False)
        return keys_B + (self.noise_seed << 32)

    def hidden_states(
        self, model: DiffusionLM, num_positions: int, network: nn.Module
    ) -> Float[Tensor, "B R D"]:
        """What goes into the head at the last `num_positions` columns, by a wrapped network.

        In a block-causal model each block is computed as it is when the blocks before it are
        written and its own masks are still there.
        """
        device, length = model.device, self.tokens.shape[1]
        return model.hidden_states(
            self.tokens.to(device),
            self.attended.to(device),
            torch.arange(length - num_positions, length, device=device),
            response_start=self.response_start,
            written=self.written.to(device),
            noise_seed=self.noise_seeds.to(device),
            network=network,
        )


def build_canvas(
    model: DiffusionLM,
    prompts: Sequence[Sequence[int]],
    states: Sequence[ResponseState],
    *,
    noise_seed: int,
) -> TrainingCanvas:
    """The rows of some prompts and states.

    Responses shorter than the longest are padded on the right and not attended to.
    """
    width = max(len(prompt) for prompt in prompts)
    length = max(state.tokens.shape[0] for state in states)
    tokens = torch.full((len(prompts), width + length), model.pad_token_id, dtype=torch.long)
    attended = torch.zeros_like(tokens, dtype=torch.bool)
    written = tokens.clone()
    for row, (prompt, state) in enumerate(zip(prompts, states, strict=True)):
        end = width + state.tokens.shape[0]
        tokens[row, width - len(prompt) : width] = torch.tensor(prompt, dtype=torch.long)
        written[row, :width] = tokens[row, :width]
        written[row, width:end] = state.tokens
        tokens[row, width:end] = state.tokens.masked_fill(state.masked, model.mask_token_id)
        attended[row, width - len(prompt) : end] = True
    return TrainingCanvas(tokens, attended, written, width, noise_seed)
