"""What the objective needs from the head, by chunks of positions: [B, R, V] is never built.

A position's logits are z = W h, of its hidden state h and the head's weights W. The objective takes
a few numbers from them, and their gradients with respect to h are as small as h. With the
policy's probabilities p, the reference's q, and E_p[W] = sum_v p_v W_v:

    log p_u         gradient   W_u - E_p[W]
    KL(p || q)      gradient   sum_v p_v (log p_v - log q_v - KL) W_v

Where a model bounds its logits, z = c tanh(W h / c), each W_v has a slope with it, 1 - (z_v / c)^2.
So the gradients are computed with the values, while a chunk's logits exist, and nothing as
wide as the vocabulary is kept after its chunk. That takes three products with W at a position with
a KL, one more where log-probabilities are needed, and none at any other position. The head must be
frozen, as it is while an adapter is trained; `token_log_probs` is for any head.

log_softmax and objective.kl_divergence define these numbers; tests compare both with their
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mosa.families import DiffusionLM
from mosa.types import UserError

# B rows, R response positions, N chosen positions of all rows, n those of one chunk, D width,
# V vocabulary, U tokens that are scored at every position.

MAX_LOGITS_AT_ONCE = 2**25
"""How many logits of one model exist at a time (128 MB in float32)."""


@dataclass(frozen=True)
class Asked:
    """What the objective needs to know, and at which response positions of which rows."""

    kl: Bool[Tensor, "B R"]
    """Where the KL to the reference counts."""
    log_probs: Bool[Tensor, "B R"]
    """Where log-probabilities of tokens, and the likeliest token, are needed."""
    token_ids: Int[Tensor, " U"]
    """The tokens that are scored at each of those positions."""
    targets: Int[Tensor, "B R"]
    """One more token for each position."""
    of_reference: bool
    """Whether the reference's log-probabilities are needed as well."""


@dataclass(frozen=True)
class HeadTerms:
    """The answers to `Asked`, in float32 or wider; 0 where nothing was asked."""

    kl: Float[Tensor, "B R"]
    """KL(policy || reference) in nats."""
    log_probs: Float[Tensor, "B R U"]
    """The policy's log-probabilities of `token_ids`."""
    target_log_probs: Float[Tensor, "B R"]
    """The policy's log-probabilities of `targets`."""
    reference_log_probs: Float[Tensor, "B R U"]
    """The reference's log-probabilities of `token_ids`; no gradient."""
    reference_target_log_probs: Float[Tensor, "B R"]
    """The reference's log-probabilities of `targets`; no gradient."""
    likeliest: Int[Tensor, "B R"]
    """The policy's likeliest token; -1 where nothing was asked."""


def frozen_head(model: DiffusionLM) -> nn.Linear:
    """The head of a model; UserError where it is trained, or is not a plain linear map."""
    head = model.network.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise UserError(
            f"The head of {model.source} is a {type(head).__name__}, but the objective needs a "
            "linear map without bias; put adapters on the layers only."
        )
    if head.weight.requires_grad:
        raise UserError(
            f"The head of {model.source} is trainable, but this method trains an adapter alone; "
            "call mosa.alignment.add_adapter(model, config) first."
        )
    return head


def head_terms(
    head: nn.Linear,
    policy: Float[Tensor, "B R D"],
    reference: Float[Tensor, "B R D"] | None,
    asked: Asked,
    *,
    cap: float | None = None,
) -> HeadTerms:
    """The terms in `asked`, from the hidden states `policy` and `reference` and a frozen head.

    `cap` is the model's `logit_cap`. Gradients reach only `policy`. `reference` may be None where
    no term needs it.
    """
    device = policy.device
    weights_VD = head.weight.detach()  # in the number format that it computes in
    if torch.is_autocast_enabled(device.type):
        weights_VD = weights_VD.to(torch.get_autocast_dtype(device.type))
    max_rows = max(1, MAX_LOGITS_AT_ONCE // len(weights_VD))

    # 1. Positions of one kind side by side, in chunks. A kind without positions has an empty chunk,
    #    so that the loss depends on the policy for any draw, as data-parallel training needs.
    kinds = [(True, False), (True, True), (False, True)]
    if reference is None:
        assert not asked.kl.any() and not asked.of_reference, "a question about no reference"
        kinds = kinds[:1]
    chunks = [
        (index_n, has_log_probs, has_kl)
        for has_log_probs, has_kl in kinds
        for index_n in flat_indices(
            (asked.log_probs == has_log_probs) & (asked.kl == has_kl)
        ).split(max_rows)
    ]
    sizes = [len(index_n) for index_n, _, _ in chunks]
    index_N = torch.cat([index_n for index_n, _, _ in chunks]).to(device)

    def chosen(values_BR: Tensor) -> tuple[Tensor, ...]:
        return values_BR.flatten(0, 1).index_select(0, index_N).split(sizes)

    policies, targets = chosen(policy), chosen(asked.targets.to(device))
    references = [None] * len(chunks) if reference is None else chosen(reference)

    # 2. One chunk after the other.
    buffered = _Head(weights_VD, max(sizes), cap)
    token_ids_U = asked.token_ids.to(device)
    answers = []
    for (_, has_log_probs, has_kl), policy_nD, reference_nD, targets_n in zip(
        chunks, policies, references, targets, strict=True
    ):
        if not has_kl and not (has_log_probs and asked.of_reference):
            reference_nD = None
        answers.append(
            _Chunk.apply(
                policy_nD,
                reference_nD,
                buffered,
                token_ids_U,
                targets_n,
                has_log_probs,
                has_log_probs and asked.of_reference,
                has_kl,
            )
        )

    # 3. Back to rows and positions.
    def spread(values: tuple[Tensor, ...], fill: int = 0) -> Tensor:
        values_N = torch.cat(values)
        grid = values_N.new_full((policy.shape[0] * policy.shape[1], *values_N.shape[1:]), fill)
        return grid.index_copy(0, index_N, values_N).unflatten(0, policy.shape[:2])

    *terms, likeliest = zip(*answers, strict=True)
    found = [*map(spread, terms), spread(likeliest, fill=-1)]
    return HeadTerms(*found)


def flat_indices(where: Bool[Tensor, "B R"]) -> Int[Tensor, " N"]:
    """Where `where` holds, as indices of its rows laid end to end."""
    return where.flatten().nonzero().squeeze(1)


class _Head:
    """The head's weights, and the reusable buffers in which chunks are computed in turn.

    Chunks share the buffers because fresh memory costs a CPU nearly as much as the products.
    """

    def __init__(self, weights_VD: Tensor, num_rows: int, cap: float | None) -> None:
        self.weights_VD = weights_VD
        self.cap = cap
        self.slope_nV: Tensor | None = None
        """With a cap: how much each logit of the latest chunk of the policy grows with W h."""
        self.wide = torch.promote_types(weights_VD.dtype, torch.float32)
        self._num_rows = num_rows
        self._buffers: dict[str, Tensor] = {}

    def log_probs(self, hidden_nD: Tensor, buffer: str) -> Float[Tensor, "n V"]:
        """All log-probabilities, in float32 or wider; valid until `buffer` is used again."""
        if buffer not in self._buffers:
            shape = (self._num_rows, len(self.weights_VD))
            self._buffers[buffer] = hidden_nD.new_empty(shape, dtype=self.wide)
        buffer_nV = self._buffers[buffer][: len(hidden_nD)]
        hidden_nD = hidden_nD.to(self.weights_VD.dtype)
        if self.weights_VD.dtype == self.wide:
            torch.mm(hidden_nD, self.weights_VD.T, out=buffer_nV)
        else:
            buffer_nV.copy_(torch.mm(hidden_nD, self.weights_VD.T))
        if self.cap is not None:
            buffer_nV.div_(self.cap).tanh_()
            if buffer == "policy":
                self.slope_nV = 1 - buffer_nV.square()
            buffer_nV.mul_(self.cap)
        return torch.log_softmax(buffer_nV, dim=-1, out=buffer_nV)

    def sum_of_weights(self, factors_nV: Tensor) -> Float[Tensor, "n D"]:
        """sum_v factors_v W_v, each W_v with its slope."""
        if self.slope_nV is not None:
            factors_nV = factors_nV * self.slope_nV
        return torch.mm(factors_nV.to(self.weights_VD.dtype), self.weights_VD).to(self.wide)


class _Chunk(torch.autograd.Function):
    """The fields of `HeadTerms` for n positions of one kind."""

    @staticmethod
    def forward(
        ctx: Any,
        policy_nD: Tensor,
        reference_nD: Tensor | None,
        head: _Head,
        token_ids_U: Tensor,
        targets_n: Tensor,
        has_log_probs: bool,
        of_reference: bool,
        has_kl: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        with_gradient = ctx.needs_input_grad[0]
        policy_nV = head.log_probs(policy_nD, "policy")
        reference_nV = None if reference_nD is None else head.log_probs(reference_nD, "reference")

        nothing_nU = policy_nV.new_zeros(len(policy_nD), len(token_ids_U))
        nothing_n = policy_nV.new_zeros(len(policy_nD))
        log_probs_nU, target_n = nothing_nU, nothing_n
        of_reference_nU, target_of_reference_n = nothing_nU.clone(), nothing_n.clone()
        likeliest_n = torch.full_like(targets_n, -1)
        if has_log_probs:
            log_probs_nU, target_n = _pick(policy_nV, token_ids_U, targets_n)
            likeliest_n = policy_nV.argmax(dim=-1)
        if of_reference:
            assert reference_nV is not None
            of_reference_nU, target_of_reference_n = _pick(reference_nV, token_ids_U, targets_n)

        # From here on both buffers are overwritten, to save memory.
        ratio_nV = None
        if has_kl:
            assert reference_nV is not None
            ratio_nV = torch.sub(policy_nV, reference_nV, out=reference_nV)
        probs_nV = policy_nV.exp_()
        kl_n, kl_slope_nD, mean_weights_nD = nothing_n.clone(), None, None
        if ratio_nV is not None:
            kl_n = ratio_nV.mul_(probs_nV).sum(dim=-1)
            if with_gradient:
                # p (log p - log q) - KL p = p (log p - log q - KL)
                ratio_nV.addcmul_(kl_n[:, None], probs_nV, value=-1)
                kl_slope_nD = head.sum_of_weights(ratio_nV)
        if has_log_probs and with_gradient:
            mean_weights_nD = head.sum_of_weights(probs_nV)

        slope_nU, slope_n = None, None
        if head.slope_nV is not None:
            slope_nU, slope_n = _pick(head.slope_nV, token_ids_U, targets_n)
        ctx.dtype, ctx.weights_VD = policy_nD.dtype, head.weights_VD  # not the buffers
        ctx.save_for_backward(
            token_ids_U, targets_n, kl_slope_nD, mean_weights_nD, slope_nU, slope_n
        )
        ctx.mark_non_differentiable(of_reference_nU, target_of_reference_n, likeliest_n)
        return kl_n, log_probs_nU, target_n, of_reference_nU, target_of_reference_n, likeliest_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kl_n, log_probs_nU, target_n = gradients[:3]
        token_ids_U, targets_n, kl_slope_nD, mean_weights_nD, *slopes = ctx.saved_tensors
        slope_nU, slope_n = slopes
        policy_nD = kl_n.new_zeros(len(kl_n), ctx.weights_VD.shape[1])
        if kl_slope_nD is not None:
            policy_nD.addcmul_(kl_n[:, None], kl_slope_nD)
        if mean_weights_nD is not None:
            total_n = log_probs_nU.sum(dim=-1) + target_n
            if slope_nU is not None:
                log_probs_nU, target_n = log_probs_nU * slope_nU, target_n * slope_n
            policy_nD.addmm_(log_probs_nU, ctx.weights_VD[token_ids_U].to(kl_n.dtype))
            policy_nD.addcmul_(target_n[:, None], ctx.weights_VD[targets_n].to(kl_n.dtype))
            policy_nD.addcmul_(total_n[:, None], mean_weights_nD, value=-1)
        return policy_nD.to(ctx.dtype), *[None] * 7


def _pick(
    values_nV: Tensor, token_ids_U: Tensor, targets_n: Tensor
) -> tuple[Float[Tensor, "n U"], Float[Tensor, " n"]]:
    """The values of the tokens scored everywhere, and of each position's own."""
    return values_nV[:, token_ids_U], values_nV.gather(1, targets_n[:, None]).squeeze(1)


def token_log_probs(
    model: DiffusionLM, hidden: Float[Tensor, "N D"], tokens: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Each position's log-probability of its token, and its likeliest token, under any head.

    A chunk's logits are computed again for its gradients, which reach a trainable head too.
    """
    max_rows = max(1, MAX_LOGITS_AT_ONCE // model.vocab_size)

    def of_chunk(hidden_nD: Tensor, tokens_n: Tensor) -> tuple[Tensor, Tensor]:
        log_probs_nV = model.head(hidden_nD).log_softmax(dim=-1)
        log_probs_n = log_probs_nV.gather(1, tokens_n[:, None]).squeeze(1)
        return log_probs_n, log_probs_nV.argmax(dim=-1)

    parts = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(hidden.split(max_rows), tokens.split(max_rows), strict=True)
    ]
    log_probs, likeliest = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(likeliest)
