"""Greedy coordinate gradient: a suffix for the user's turn that makes given tokens likely.

The algorithm is GCG (arXiv 2307.15043, section 2.2); the loss is taken where a diffusion model
begins, on the fully masked response, as mean negative log-probability of the target tokens at their
positions (for experiment E2 of arXiv 2508.12398, which does not define its loss). One iteration:

    gradient   of the loss by every token of the suffix, as if tokens were continuous
    swaps      of one token each, among the most promising by that gradient
    filter     only suffixes that the tokenizer reads back from their text token for token
    choice     the swap of the lowest true loss

With a guide (PAL, arXiv 2402.09674) gradient and a first choice come from another model's loss, and
only the swaps that it rates best reach the model itself.

The suffix is text that the attacker can send: what counts is the prompt as it is encoded. A search
can be stopped and resumed at any iteration: its `GcgState` is all that it knows.
"""

from __future__ import annotations

import base64
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mosa.denoising.sampler import evaluation_mode
from mosa.families import DiffusionLM
from mosa.families.by_block import first_masked_column
from mosa.types import UserError, dialogue, short_hash

# L canvas length, S suffix tokens, N target tokens, C candidates, D embedding width, V vocabulary

LossKind = Literal["ce", "cw"]
CW_MARGIN = 1e-3
"""The lead that the target's logit needs; PAL's published setting."""


@dataclass(frozen=True)
class SearchBudget:
    """The budget of a search."""

    num_iterations: int = 500
    """Iterations of each search."""
    num_candidates: int = 512
    """Swaps of one token that are drawn in an iteration."""
    top_k: int = 256
    """Swaps at a position are drawn among this many tokens of the steepest gradient."""
    suffix_length: int = 20
    """Tokens of the suffix."""


@dataclass(frozen=True)
class GcgConfig(SearchBudget):
    """One search."""

    candidate_batch_size: int = 64
    """Candidates per forward pass."""
    loss: LossKind = "ce"
    """Cross-entropy, or the logit margin (`Loss`)."""
    skip_visited: bool = False
    """Whether a suffix that an iteration has ended with is left out of later ones."""
    num_target_queries: int | None = None
    """With a guide: candidates that the model itself decides among, the guide's best; null: all."""
    seed: int = 0
    """Seed of the first suffix and of the swaps."""


@dataclass(frozen=True)
class GcgState:
    """The state of a search; plain data, so that it can be recorded."""

    suffix: list[int]
    """The suffix that the next iteration changes."""
    best: list[int]
    """The suffix of the least loss so far."""
    best_loss: float
    losses: list[float]
    """Loss in nats per target token: of the first suffix, then of the one after each iteration."""
    random_state: str
    """The generator's state, in base 64."""
    num_forward_passes: int
    """Rows that went through the model: a batch of 8 counts 8."""
    num_backward_passes: int
    visited: list[str] = field(default_factory=list)
    """Hashes of the suffixes of all iterations, where they are not to come back."""
    guide_passes: list[int] = field(default_factory=lambda: [0, 0])
    """Forward and backward passes of the guide, where there is one."""

    @property
    def num_iterations(self) -> int:
        """Iterations done."""
        return len(self.losses) - 1

    @property
    def first_and_best(self) -> dict[str, float]:
        """The first loss and the best one, for the details of an attempt."""
        return {"first_loss": self.losses[0], "best_loss": self.best_loss}


class GcgSearch:
    """The search for a suffix of `prompt` that makes `target_ids` likely from 0-based response
    position `position` on.

    Raises UserError where the target does not fit into the response.
    """

    def __init__(
        self,
        model: DiffusionLM,
        prompt: str,
        target_ids: list[int],
        position: int,
        config: GcgConfig,
        *,
        response_length: int,
        guide: DiffusionLM | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """`guide` may be the model itself, which then guides without its adapter."""
        if not target_ids or position < 0 or position + len(target_ids) > response_length:
            raise UserError(
                f"A target of {len(target_ids)} tokens at position {position + 1} does not fit "
                f"into a response of {response_length}; use an earlier position or a longer "
                "response."
            )
        longest = (
            len(model.encode(dialogue(prompt, system_prompt)))
            + config.suffix_length
            + response_length
        )
        if longest > model.max_length:
            raise UserError(
                f"The prompt, a suffix of {config.suffix_length} tokens and a response of "
                f"{response_length} are longer than the model's context of {model.max_length}; "
                "shorten one of them."
            )
        self.model, self.prompt, self.config = model, prompt, config
        self.system_prompt = system_prompt
        self._ordinary_V = ordinary_tokens(model)
        where = (target_ids, position, response_length, config.candidate_batch_size)
        self._loss = Loss(model, *where, kind=config.loss)
        self._guide = (
            self._loss
            if guide is None
            else Loss(guide, *where, kind=config.loss, without_adapter=guide is model)
        )

    def begin(self) -> GcgState:
        """A random suffix and its loss."""
        generator = torch.Generator().manual_seed(self.config.seed)
        suffix = self._first_suffix(generator)
        ids_L, _ = self.with_suffix(suffix)
        with evaluation_mode(self.model):
            loss = float(self._loss(ids_L[None])[0])
        return GcgState(suffix, suffix, loss, [loss], _packed(generator), 1, 0)

    def advance(self, state: GcgState, num_iterations: int) -> GcgState:
        """The state after some more iterations."""
        generator = _unpacked(state.random_state)
        for loss in (self._loss, self._guide):
            loss.num_forward_passes = loss.num_backward_passes = 0
        suffix, best, best_loss = state.suffix, state.best, state.best_loss
        losses, visited = list(state.losses), dict.fromkeys(state.visited)
        ids_L, start = self.with_suffix(suffix)
        length = self.config.suffix_length
        with evaluation_mode(self.model):
            for _ in range(num_iterations):
                gradient_SV = self._guide.gradient(ids_L)[start : start + length].cpu()
                gradient_SV[:, ~self._ordinary_V] = torch.inf
                kept, rows = [], []
                if self.config.skip_visited:
                    visited[short_hash(str(suffix))] = None
                for candidate in _swaps(suffix, gradient_SV, self.config, generator):
                    if short_hash(str(candidate)) in visited:
                        continue
                    expected = ids_L.tolist()
                    expected[start : start + length] = candidate
                    if self._encoded(candidate) == expected:
                        kept.append(candidate)
                        rows.append(expected)
                if kept and self._guide is not self._loss:
                    guess_C = self._guide(torch.tensor(rows))
                    num_best = min(self.config.num_target_queries or len(kept), len(kept))
                    best_of = guess_C.topk(num_best, largest=False).indices.tolist()
                    kept, rows = [kept[i] for i in best_of], [rows[i] for i in best_of]
                if kept:
                    loss_C = self._loss(torch.tensor(rows))
                    choice = int(loss_C.argmin())
                    suffix, ids_L = kept[choice], torch.tensor(rows[choice])
                    losses.append(float(loss_C[choice]))
                else:  # no swap of one token can be sent: another draw may do better
                    losses.append(losses[-1])
                if losses[-1] < best_loss:
                    best, best_loss = suffix, losses[-1]
        guide_passes = state.guide_passes
        if self._guide is not self._loss:
            guide_passes = [
                guide_passes[0] + self._guide.num_forward_passes,
                guide_passes[1] + self._guide.num_backward_passes,
            ]
        return replace(
            state,
            suffix=suffix,
            best=best,
            best_loss=best_loss,
            losses=losses,
            random_state=_packed(generator),
            visited=list(visited),
            num_forward_passes=state.num_forward_passes + self._loss.num_forward_passes,
            num_backward_passes=state.num_backward_passes + self._loss.num_backward_passes,
            guide_passes=guide_passes,
        )

    def prompt_of(self, state: GcgState) -> str:
        """The user's turn with the best suffix."""
        return self._suffixed(state.best)

    def _suffixed(self, suffix: list[int]) -> str:
        """The user's turn with the suffix, as text."""
        return f"{self.prompt.rstrip()} {self.model.decode(suffix).strip()}"

    def _encoded(self, suffix: list[int]) -> list[int]:
        """The ids of the whole prompt with the suffix, as they are read from its text."""
        return self.model.encode(dialogue(self._suffixed(suffix), self.system_prompt))

    def with_suffix(self, suffix: list[int]) -> tuple[Int[Tensor, " L"], int]:
        """The encoded prompt with its suffix, and the column where the suffix begins.

        Raises UserError where the tokenizer reads the text back as other tokens.
        """
        ids = self._encoded(suffix)
        start = _last_place(ids, suffix)
        if start is None:
            raise UserError(
                "The suffix is not read back from its text token for token; choose other tokens."
            )
        return torch.tensor(ids), start

    def _first_suffix(self, generator: torch.Generator) -> list[int]:
        """Ordinary tokens drawn until the tokenizer reads them back; the first that do."""
        choices = self._ordinary_V.nonzero().flatten()
        length = self.config.suffix_length
        for _ in range(1000):
            draw = torch.randint(len(choices), (length,), generator=generator)
            # Tokens that merge with their neighbours are read back as others: take what is read.
            read = self.model.encode_text(self.model.decode(choices[draw].tolist()).strip())
            suffix = read[:length]
            if len(suffix) < length or not bool(self._ordinary_V[suffix].all()):
                continue
            if _last_place(self._encoded(suffix), suffix) is not None:
                return suffix
        raise UserError(
            f"No suffix of {length} tokens was found that this tokenizer reads back; try another "
            "suffix_length."
        )


def _packed(generator: torch.Generator) -> str:
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode()


def _unpacked(state: str) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8))
    return generator


def _last_place(ids: list[int], suffix: list[int]) -> int | None:
    """Where `suffix` begins in `ids` for the last time; None where it is not in them."""
    starts = range(len(ids) - len(suffix), -1, -1)
    return next((i for i in starts if ids[i : i + len(suffix)] == suffix), None)


_ORDINARY: WeakKeyDictionary[DiffusionLM, Tensor] = WeakKeyDictionary()
"""Checking every token takes seconds for a large vocabulary, and is the same for every search."""


def ordinary_tokens(model: DiffusionLM) -> torch.Tensor:
    """Which tokens a suffix may hold: printable ASCII text, nothing that steers the model. [V]"""
    if model in _ORDINARY:
        return _ORDINARY[model]
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError("A suffix is text, and the model has no tokenizer; use one that has.")
    special = {*tokenizer.all_special_ids, model.mask_token_id, *model.end_token_ids}
    special.add(model.pad_token_id)
    allowed = torch.zeros(model.vocab_size, dtype=torch.bool)
    for token in range(len(tokenizer)):
        text = model.decode([token]).strip()
        allowed[token] = (
            token not in special and bool(text) and text.isascii() and text.isprintable()
        )
    _ORDINARY[model] = allowed
    return allowed


def _swaps(
    suffix: list[int],
    gradient: Float[Tensor, "S V"],
    config: GcgConfig,
    generator: torch.Generator,
) -> list[list[int]]:
    """Different suffixes with one token changed to one of its position's `top_k` best."""
    top_SK = gradient.topk(min(config.top_k, gradient.shape[1]), largest=False).indices
    places = torch.randint(len(suffix), (config.num_candidates,), generator=generator)
    ranks = torch.randint(top_SK.shape[1], (config.num_candidates,), generator=generator)
    found = {}
    for place, token in zip(places.tolist(), top_SK[places, ranks].tolist(), strict=True):
        if token != suffix[place] and gradient[place, token] < torch.inf:
            swapped = [*suffix[:place], token, *suffix[place + 1 :]]
            found[tuple(swapped)] = swapped
    return list(found.values())


@dataclass(eq=False)
class Loss:
    """The loss of a target on the fully masked response, for prompts in a row, and its budget.

    Of kind `ce` it is the mean negative log-probability of the target's tokens; of kind `cw` (after
    Carlini and Wagner, as in PAL) how far the best other token's logit lies above each, at
    least -CW_MARGIN, on average. `without_adapter` takes the model as it is without its adapter.
    """

    model: DiffusionLM
    target_ids: list[int]
    position: int
    response_length: int
    batch_size: int
    kind: LossKind = "ce"
    without_adapter: bool = False

    def __post_init__(self) -> None:
        self.target_N = torch.tensor(self.target_ids, device=self.model.device)
        self.num_forward_passes = self.num_backward_passes = 0

    def __call__(self, prompts: Int[Tensor, "C P"]) -> Float[Tensor, " C"]:
        """The loss of each prompt."""
        self.num_forward_passes += len(prompts)
        losses = []
        with torch.no_grad():
            for part in prompts.split(self.batch_size):
                losses.append(self._losses(part).cpu())
        return torch.cat(losses)

    def gradient(self, prompt: Int[Tensor, " P"]) -> Float[Tensor, "P V"]:
        """The loss's gradient by the one-hot vector of each prompt token.

        It is that by the token's embedding, times the embedding of every token.
        """
        embedding = self.model.network.get_input_embeddings()
        kept: list[Tensor] = []

        def keep(module, arguments, output):
            leaf = output.detach().requires_grad_()
            kept.append(leaf)
            return leaf

        handle = embedding.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                loss = self._losses(prompt[None])[0]
        finally:
            handle.remove()
        # A model of noise embeds the prompt before each canvas of the target, and then the canvas.
        prompts = kept[::2] if self.model.is_noise else kept[:1]
        gradients = torch.autograd.grad(loss, prompts)
        self.num_forward_passes += 1  # its own
        self.num_backward_passes += 1
        weight_VD = embedding.get_parameter("weight").detach()
        scale = getattr(embedding, "scalar_embed_scale", 1.0)  # some scale what they hold
        num_prompt = len(prompt)
        gradient_PD = torch.stack([each[0, :num_prompt].float() for each in gradients]).sum(dim=0)
        if not self.model.attention.is_full:
            # The end of the prompt is in the row twice, where it shares a block with the response.
            first = first_masked_column(self.model.attention, num_prompt)
            again = num_prompt + self.response_length
            gradient_PD[first:] += gradients[0][0, again : again + num_prompt - first].float()
        return scale * gradient_PD @ weight_VD.float().T

    def _losses(self, prompts: Int[Tensor, "C P"]) -> Float[Tensor, " C"]:
        """One forward pass, with the gradients that the caller asks for."""
        model = self.model
        prompts = prompts.to(model.device)
        masks = prompts.new_full((len(prompts), self.response_length), model.mask_token_id)
        first = prompts.shape[1] + self.position
        columns = torch.arange(first, first + len(self.target_N), device=model.device)
        canvas = torch.cat([prompts, masks], dim=1)
        written = canvas.clone()  # each block of the target is found behind those before it
        written[:, columns] = self.target_N
        with model.adapter_disabled() if self.without_adapter else nullcontext():
            logits_CNV = model.logits(
                canvas,
                positions=columns,
                response_start=prompts.shape[1],
                written=written,
            )
        target_CN1 = self.target_N.expand(len(prompts), -1)[..., None]
        if self.kind == "cw":
            target_CN = logits_CNV.gather(-1, target_CN1).squeeze(-1)
            others_CN = logits_CNV.scatter(-1, target_CN1, -torch.inf).amax(dim=-1)
            return (others_CN - target_CN).clamp(min=-CW_MARGIN).mean(dim=-1)
        return -logits_CNV.log_softmax(dim=-1).gather(-1, target_CN1).squeeze(-1).mean(dim=-1)
