"""Masked-diffusion supervised training: what built the testbed, and the `sft` baseline.

Implements the loss of LLaDA (arXiv 2502.09992, eq. 5, and its GUIDELINES.md): only the response is
masked; its mask ratio t is uniform in [eps, 1]; every position is masked with probability t; the
cross-entropy of the masked positions is divided by t and averaged over the answer's length, which
includes the end-of-text tokens that pad it.

How we differ, and why:
1. Answers are padded to `response_length` (or a multiple of `length_multiple`), not to the longest
   of the batch, so that an example's loss does not depend on its neighbours.
2. `full_mask_share` puts some examples in the state in which generation begins, where a word of the
   prompt can be had only from the prompt. The default is LLaDA's: none.
3. `anchor_start` and `anchor_end` draw the states that the decoding rule `anchor_first` meets, and
   no others. The default is LLaDA's: none.
4. Masks are drawn from (seed, epoch, example), so that neither batch size nor an interruption
   changes what an example sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mosa.alignment.config import AlignConfig, Need, require
from mosa.alignment.head_loss import flat_indices, token_log_probs
from mosa.alignment.likelihood import masked_log_likelihood
from mosa.alignment.phrases import read_phrases
from mosa.alignment.states import (
    MIN_MASK_RATIO,
    EncodedExample,
    anchored_answer,
    build_canvas,
    encode_answers,
    encode_examples,
    masked_answer,
    rng,
)
from mosa.alignment.trainer import DiffusionTrainer, TrainingData
from mosa.data import TrainingExample
from mosa.families import DiffusionLM
from mosa.types import UserError

_MASK_STREAM = 0


@dataclass
class SftConfig(AlignConfig):
    """Masked-diffusion supervised training (LLaDA, arXiv 2502.09992, and its GUIDELINES.md)."""

    trainable: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all weights."""
    full_mask_share: float = 0.0
    """Share of draws whose answer is fully masked, as it is when generation begins; LLaDA: 0."""
    length_multiple: int | None = None
    """Pad answers with end-of-text to a multiple of this instead of to response_length."""
    anchor_start: int | None = None
    """First position, from 1, of a window that is filled before the rest of the answer; none: any
    position may be filled first."""
    anchor_end: int | None = None
    """Last position of that window, inclusive."""
    refusals: str = "refusals"
    """Answers given to harmful prompts: a packaged phrase set or a .txt file, one per line."""

    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped."""

    @property
    def uses(self) -> frozenset[Need]:
        """Benign examples are mixed in where they are given."""
        return frozenset({"benign"})

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model's own weights."""
        return self.trainable == "lora"

    @property
    def anchor_window(self) -> tuple[int, int] | None:
        """The first and last position of the window that is filled first, if there is one."""
        if self.anchor_start is None or self.anchor_end is None:
            return None
        return self.anchor_start, self.anchor_end

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        super().check()
        share, multiple = self.full_mask_share, self.length_multiple
        require(0 <= share <= 1, "full_mask_share", share, "in [0, 1]")
        require(multiple is None or multiple >= 1, "length_multiple", multiple, "at least 1")
        start, end, length = self.anchor_start, self.anchor_end, self.response_length
        if start is None or end is None:
            require(start == end, "anchor_start", start, f"given with anchor_end, which is {end}")
            return
        require(1 <= start <= end, "anchor_start", start, f"from 1 to anchor_end={end}")
        require(end <= length, "anchor_end", end, f"at most response_length={length}")


class SftTrainer(DiffusionTrainer):
    """Train a model, or the adapter that it carries, to give the answers of `train_dataset`.

    `optimizer` replaces the one that the settings name. Raises UserError for an example
    without an answer, or with one that exceeds the canvas.
    """

    config_class = SftConfig

    def __init__(
        self,
        model: DiffusionLM,
        args: SftConfig,
        train_dataset: Sequence[TrainingExample],
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.config = args
        if args.anchor_window is not None and model.attention.has_blocks(args.response_length):
            raise UserError(
                f"anchor_start trains a window that is filled before all else, and {model.source} "
                "fills block after block; leave anchor_start and anchor_end out."
            )
        encoded = encode_examples(model, train_dataset, args.response_length)
        answers = [example.answer for example in train_dataset]
        self.answers = encode_answers(model, answers, args.response_length)
        super().__init__(model, args, encoded, optimizer=optimizer)

    @classmethod
    def from_data(cls, model: DiffusionLM, config: SftConfig, data: TrainingData) -> SftTrainer:
        """The trainer of the baseline: harmful prompts answered by refusals."""
        return cls(model, config, refusal_examples(data.harmful, data.benign, config))

    def canvas_length(self, answer: Sequence[int]) -> int:
        """Response positions of an answer: all of them, or the next multiple of length_multiple."""
        multiple = self.config.length_multiple
        if multiple is None:
            return self.config.response_length
        return min(-(-max(len(answer), 1) // multiple) * multiple, self.config.response_length)

    def example_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """Loss of each example in nats per response token."""
        config, device, diffusion = self.config, self.args.device, self.diffusion_model
        examples: list[EncodedExample] = [self.examples[i] for i in indices]

        # 1. Mask every answer at its own ratio.
        states = []
        for e in examples:
            random = rng(config.seed, self.epoch_index, e.index, _MASK_STREAM)
            fully = config.full_mask_share > 0 and random.random() < config.full_mask_share
            state = masked_answer(
                diffusion,
                self.answers[e.index],
                self.canvas_length(self.answers[e.index]),
                random,
                ratio_min=1.0 if fully else MIN_MASK_RATIO,
            )
            if config.anchor_window is not None:
                state = anchored_answer(state, config.anchor_window, random)
            states.append(state)
        prompts = [e.prompt_ids for e in examples]
        canvas = build_canvas(diffusion, prompts, states, noise_seed=self.noise_seed)

        # 2. One pass, and the head on the positions that are scored only.
        lengths = [state.answer_length for state in states]
        width = max(lengths)
        target_BR = torch.zeros(len(states), width, dtype=torch.long)
        scored_BR = torch.zeros(len(states), width, dtype=torch.bool)
        for row, state in enumerate(states):
            target_BR[row, : lengths[row]] = state.tokens
            scored = state.masked if state.scored is None else state.scored
            # Of noise any position may be, so that the network says what stands at all of them.
            scored_BR[row, : lengths[row]] = scored | diffusion.is_noise
        index_N = flat_indices(scored_BR).to(device)
        target_N = target_BR.flatten().to(device)[index_N]
        scored_BR = scored_BR.to(device)
        hidden_BRD = canvas.hidden_states(diffusion, width, model)
        hidden_ND = hidden_BRD.flatten(0, 1).index_select(0, index_N)
        log_probs_N, likeliest_N = token_log_probs(diffusion, hidden_ND, target_N)

        # 3. Cross-entropy of the scored positions over t, averaged over the answer's length.
        is_right_BR = torch.zeros_like(scored_BR).masked_scatter(scored_BR, likeliest_N == target_N)
        num_scored_B = scored_BR.sum(dim=-1)
        self.track(
            "accuracy", is_right_BR.sum(dim=-1) / num_scored_B.clamp(min=1), num_scored_B > 0
        )
        likelihood_B = masked_log_likelihood(
            log_probs_N.new_zeros(scored_BR.shape).masked_scatter(scored_BR, log_probs_N),
            scored_BR,
            torch.tensor(
                [1.0 if diffusion.is_noise else state.mask_ratio for state in states], device=device
            ),
        )
        losses_B = -likelihood_B / torch.tensor(lengths, dtype=log_probs_N.dtype, device=device)
        self.track("loss_per_token", losses_B)
        return losses_B


def refusal_examples(
    harmful: Sequence[TrainingExample],
    benign: Sequence[TrainingExample] | None,
    config: SftConfig,
) -> list[TrainingExample]:
    """The baseline's data: harmful prompts answered by refusals, and as many benign examples."""
    refusals = read_phrases(config.refusals)
    random = np.random.default_rng(config.seed)
    examples = [
        TrainingExample(e.prompt, refusals[random.integers(len(refusals))]) for e in harmful
    ]
    if benign:
        wanted = len(harmful)
        while wanted > 0:
            order = random.permutation(len(benign))[:wanted]
            examples += [benign[i] for i in order]
            wanted -= len(order)
    return examples
