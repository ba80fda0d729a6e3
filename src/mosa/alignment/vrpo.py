"""Preference optimisation of a masked diffusion model: VRPO, with pairs of answers or a judge.

Implements LLaDA 1.5 (arXiv 2505.19223): the DPO loss (arXiv 2305.18290, eq. 7) with each answer's
log-likelihood replaced by an estimate B of its lower bound (likelihood.py), of a preferred answer w
and a rejected one l:

    loss = - log sigmoid(beta (B_policy(w) - B_reference(w)) - beta (B_policy(l) - B_reference(l)))

The estimate's variance biases the loss, since it goes through the sigmoid; the paper has three
remedies, all used here: more samples, one masking for each mask ratio, and the same maskings for
policy and reference ("antithetic sampling").

Where the data has no pairs, the policy makes them, as in online DPO (arXiv 2402.04792): it answers
each prompt `num_rollouts` times, a judge rates how harmful each answer is, and the least and the
most harmful are the pair. Prompts whose answers have equal ratings have no pair, and no loss.

How we differ, and why:
1. The paper trains all weights; we train an adapter, and the reference is the same model with the
   adapter off.
2. Answers are padded to `response_length` with end-of-text, as in sft.py, and for the same reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mosa.alignment.config import AlignConfig, Need, require
from mosa.alignment.head_loss import Asked, frozen_head
from mosa.alignment.likelihood import masked_log_likelihood, maskings
from mosa.alignment.rollouts import harm_of, roll_out
from mosa.alignment.states import encode_answers, encode_examples, rng
from mosa.alignment.trainer import DiffusionTrainer, TrainingData
from mosa.data import TrainingExample
from mosa.denoising import DecoderConfig
from mosa.families import DiffusionLM
from mosa.judges.base import Judge
from mosa.types import UserError

# B prompts, R response positions, S maskings of an answer, M = B x 2 x S canvases.

_MASK_STREAM, _ROLLOUT_STREAM = 0, 1

TokenPair = tuple[Sequence[int], Sequence[int]]
"""Token ids of the preferred and of the rejected answer."""


@dataclass
class VrpoConfig(AlignConfig):
    """Variance-reduced preference optimisation (LLaDA 1.5, arXiv 2505.19223)."""

    beta: float = 0.1
    """Sharpness of the preference, per nat: the smaller, the further from the reference."""
    num_samples: int = 8
    """Maskings of an answer from which its likelihood bound is estimated."""
    num_rollouts: int = 0
    """Answers of the policy to each prompt, from which a judge makes a pair; 0: pairs are data."""
    rollout_steps: int = 128
    """Denoising steps of such an answer."""
    rollout_temperature: float = 1.0
    """Temperature at which its tokens are drawn."""

    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped."""

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs; or a judge, and answers of the policy for it."""
        return frozenset({"judge", "rollouts"} if self.num_rollouts else {"pairs"})

    @property
    def decoder(self) -> DecoderConfig:
        """How the policy's own answers are decoded."""
        return DecoderConfig(
            max_new_tokens=self.response_length,
            steps=self.rollout_steps,
            temperature=self.rollout_temperature,
        )

    def check(self) -> None:
        """Raise UserError for a setting outside its range."""
        super().check()
        require(self.beta > 0, "beta", self.beta, "above 0")
        require(self.num_samples >= 1, "num_samples", self.num_samples, "at least 1")
        rollouts = self.num_rollouts
        require(rollouts == 0 or rollouts >= 2, "num_rollouts", rollouts, "0, or at least 2")
        temperature = self.rollout_temperature
        require(0 <= temperature < float("inf"), "rollout_temperature", temperature, "0 or above")
        _ = self.decoder  # a UserError for what the sampler does not take


class VrpoTrainer(DiffusionTrainer):
    """Preference optimisation of a model that carries a LoRA adapter.

    `train_dataset` holds prompts with a preferred `answer` and a `rejected` one; or only prompts,
    with a `judge` of the policy's answers to them.
    """

    config_class = VrpoConfig

    def __init__(
        self,
        model: DiffusionLM,
        args: VrpoConfig,
        train_dataset: Sequence[TrainingExample],
        judge: Judge | None = None,
    ) -> None:
        if model.is_noise:
            raise UserError(
                f"vrpo trains the likelihood bound of masked diffusion, and {model.source} has no "
                "mask; use mosa or sft."
            )
        TrainingData(train_dataset, judge=judge).check(args)
        self.config, self.judge = args, judge
        self._has_pair = not args.num_rollouts
        """Whether the judge has told any two answers apart."""
        self.prompts = [example.prompt for example in train_dataset]
        encoded = encode_examples(model, train_dataset, args.response_length)
        self.pairs: list[TokenPair] = []
        if not args.num_rollouts:
            sides = (
                encode_answers(model, [e.answer for e in train_dataset], args.response_length),
                encode_answers(model, [e.rejected for e in train_dataset], args.response_length),
            )
            self.pairs = list(zip(*sides, strict=True))
        frozen_head(model)  # raise a UserError now, not at the first step
        super().__init__(model, args, encoded)

    @classmethod
    def from_data(cls, model: DiffusionLM, config: VrpoConfig, data: TrainingData) -> VrpoTrainer:
        """The trainer for pairs, or for prompts and a judge."""
        return cls(model, config, data.harmful, data.judge)

    def example_losses(self, model: nn.Module, indices: list[int]) -> Float[Tensor, " B"]:
        """The preference loss of each prompt; also tracks the metrics."""
        # 1. A preferred and a rejected answer to every prompt.
        if self.config.num_rollouts:
            pairs, is_pair_B = self.judged_pairs(indices)
        else:
            pairs = [self.pairs[index] for index in indices]
            is_pair_B = torch.ones(len(pairs), dtype=torch.bool)
        return self.pair_losses(model, indices, pairs, is_pair_B.to(self.args.device))

    def judged_pairs(self, indices: list[int]) -> tuple[list[TokenPair], Bool[Tensor, " B"]]:
        """For each prompt the least and the most harmful of the policy's answers, and whether the
        judge distinguishes them."""
        config, count = self.config, self.config.num_rollouts
        prompts = [self.prompts[index] for index in indices for _ in range(count)]
        seeds = [
            int(seed)
            for index in indices
            for seed in rng(config.seed, self.epoch_index, index, _ROLLOUT_STREAM).integers(
                2**31, size=count
            )
        ]
        answers = roll_out(self.diffusion_model, prompts, seeds, config.decoder)
        assert self.judge is not None and answers.text is not None
        harm = harm_of(self.judge, prompts, answers.text)

        pairs: list[TokenPair] = []
        is_pair = []
        for start in range(0, len(prompts), count):
            scored = sorted(
                (score, row)
                for row in range(start, start + count)
                if (score := harm[row]) is not None
            )
            is_pair.append(len(scored) > 1 and scored[0][0] < scored[-1][0])
            # Without a pair any two will do: their loss does not count.
            best, worst = (scored[0][1], scored[-1][1]) if is_pair[-1] else (start, start + 1)
            pairs.append((answers.tokens[best].tolist(), answers.tokens[worst].tolist()))
        self._has_pair = self._has_pair or any(is_pair)
        scores = torch.tensor([0.0 if score is None else score for score in harm])
        is_scored = torch.tensor([score is not None for score in harm])
        self.track("harm", scores.to(self.args.device), is_scored.to(self.args.device))
        return pairs, torch.tensor(is_pair)

    def check_result(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """As the trainer's; warns where the judge has found no pair, so that nothing was learnt."""
        super().check_result(tensors)
        if not self._has_pair:
            assert self.judge is not None
            warnings.warn(
                f"{self.judge.id} told no two answers of a prompt apart in this training, which "
                "therefore changed nothing; try the judge with `mosa judge check`, or raise "
                "num_rollouts",
                stacklevel=2,
            )

    def pair_losses(
        self,
        model: nn.Module,
        indices: list[int],
        pairs: Sequence[TokenPair],
        is_pair: Bool[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """- log sigmoid of what the policy gained on the preferred answer over the rejected one."""
        config, length = self.config, self.config.response_length
        # 2. Masks for each answer, which policy and reference share.
        prompts, states = [], []
        for index, pair in zip(indices, pairs, strict=True):
            random = rng(config.seed, self.epoch_index, index, _MASK_STREAM)
            for answer in pair:
                states += maskings(self.diffusion_model, answer, length, config.num_samples, random)
                prompts += [self.examples[index].prompt_ids] * config.num_samples
        masked_MR = torch.stack([state.masked for state in states])

        # 3. One pass of each, and the head on the masked positions.
        asked = Asked(
            kl=torch.zeros_like(masked_MR),
            log_probs=masked_MR,
            token_ids=torch.zeros(0, dtype=torch.long),
            targets=torch.stack([state.tokens for state in states]),
            of_reference=True,
        )
        terms = self.terms(model, prompts, states, asked, with_reference=True)

        # 4. What the policy gained over the reference, in nats of the likelihood bound.
        masked_MR = masked_MR.to(self.args.device)
        ratio_M = torch.tensor([state.mask_ratio for state in states], device=self.args.device)
        gain_M = masked_log_likelihood(
            terms.target_log_probs - terms.reference_target_log_probs, masked_MR, ratio_M
        )
        gain_B2 = gain_M.view(len(pairs), 2, config.num_samples).mean(dim=-1)

        # 5. The preference.
        margin_B = gain_B2[:, 0] - gain_B2[:, 1]
        self.track("gain_preferred", gain_B2[:, 0], is_pair)
        self.track("gain_rejected", gain_B2[:, 1], is_pair)
        self.track("margin", margin_B, is_pair)
        self.track("pair_share", is_pair.float())
        return preference_loss(margin_B, config.beta) * is_pair


def preference_loss(margin: Float[Tensor, " B"], beta: float) -> Float[Tensor, " B"]:
    """- log sigmoid(beta * margin), DPO's loss (arXiv 2305.18290, eq. 7) of margins in nats.

    ln 2 where the policy is the reference, with gradient -beta / 2; 0 once the margin is large.
    """
    return torch.nn.functional.softplus(-beta * margin)
