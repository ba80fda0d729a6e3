"""The token grid that the sampler fills.

# B rows, L canvas length (prompt + response), P prompt length, R response length, n some positions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mosa.families.base import DiffusionLM
from mosa.types import Message, Prompt, UserError, dialogue


@dataclass(frozen=True)
class Canvas:
    """A grid of tokens in which every mask token is a free position that the sampler fills.

    Everything else is *pinned* and never changes: the prompt, and any response token put there by
    `pin`. Masks may be anywhere, inside the prompt too. Rows line up at `response_start`, so
    prompts of different lengths are padded on the left.

    A *column* counts from the left edge of the canvas, a *position* from `response_start`; both
    start at 0, and a position below 0 is in the prompt.
    """

    tokens: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    """True where there is a token, False on padding."""
    response_start: int
    """The column of response position 0."""
    mask_token_id: int

    def __post_init__(self):
        if not 0 <= self.response_start < self.tokens.shape[1]:
            raise UserError(
                f"response_start={self.response_start} lies outside the {self.tokens.shape[1]} "
                "columns of the canvas; a canvas needs at least one response column."
            )

    @classmethod
    def from_prompts(
        cls,
        model: DiffusionLM,
        prompts: Prompt | Sequence[Prompt] | Tensor,
        *,
        max_new_tokens: int,
        attention_mask: Tensor | None = None,
        system: str | None = None,
    ) -> Canvas:
        """Lays out prompts, each followed by `max_new_tokens` masks, padded on the left.

        `prompts` are strings or dialogues, which go through the model's chat template (`system`
        puts a system turn before each), or token ids [B, P] with an `attention_mask` [B, P].
        Padding in ids may be on either side: it is moved to the left, so it changes nothing.
        UserError where a prompt with its response is longer than the model's context.
        """
        if isinstance(prompts, Tensor):
            if system is not None:
                raise UserError(
                    "A system turn needs a chat template; give the prompts as text, or put the "
                    "turn into the ids."
                )
            ids_BP, real_BP = _left_aligned(prompts, attention_mask)
        else:
            if attention_mask is not None:
                raise UserError(
                    "attention_mask belongs to prompts given as token ids; leave it out, as text "
                    "prompts are padded and masked here."
                )
            if not prompts:
                raise UserError("There is no prompt; give at least one.")
            given = each_prompt(prompts)
            if system is not None:
                given = [dialogue(prompt, system) for prompt in given]
            ids_BP, real_BP = left_padded(map(model.encode, given), model.pad_token_id)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens} leaves no response; use 1 or more.")
        check_fits(model, int(real_BP.sum(dim=1).max()), max_new_tokens)
        masks_BR = ids_BP.new_full((len(ids_BP), max_new_tokens), model.mask_token_id)
        return cls(
            tokens=torch.cat([ids_BP, masks_BR], dim=1).to(model.device),
            attention_mask=torch.cat([real_BP, torch.ones_like(masks_BR).bool()], dim=1).to(
                model.device
            ),
            response_start=ids_BP.shape[1],
            mask_token_id=model.mask_token_id,
        )

    @property
    def free(self) -> Bool[Tensor, "B L"]:
        """The positions that the sampler fills: every mask token that is not padding."""
        return (self.tokens == self.mask_token_id) & self.attention_mask

    @property
    def positions(self) -> Int[Tensor, " L"]:
        """The position of each column."""
        columns_L = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return columns_L - self.response_start

    @property
    def response(self) -> Int[Tensor, "B R"]:
        """The response columns."""
        return self.tokens[:, self.response_start :]

    def pin(
        self,
        position: int | Tensor,
        ids: int | Sequence[int] | Tensor,
        rows: int | Sequence[int] | Tensor | None = None,
    ) -> Canvas:
        """A canvas with `ids` written at response positions, in all rows or in the given ones.

        An int `position` is where a run of ids starts; a tensor [n] names one position for each
        id. `ids` are one id, n ids, or a tensor [rows, n] with a run for each row. Mask ids among
        them leave their positions free, so that a template with gaps can be pinned in one call:

            canvas.pin(0, model.encode_text("Sure. Step 1:"))
        """
        device = self.tokens.device
        ids_n = torch.as_tensor(ids, device=device, dtype=torch.long)
        if ids_n.ndim == 0:
            ids_n = ids_n.unsqueeze(0)
        if isinstance(position, int):
            position = torch.arange(position, position + ids_n.shape[-1])
        columns_n = position.to(device) + self.response_start
        if columns_n.shape != ids_n.shape[-1:]:
            raise UserError(
                f"{ids_n.shape[-1]} ids were given for {columns_n.numel()} positions to pin; give "
                "one position for each."
            )
        if columns_n.numel() and not (
            int(columns_n.min()) >= 0 and int(columns_n.max()) < self.tokens.shape[1]
        ):
            raise UserError(
                f"The pinned positions {position.tolist()} are not all in the response of "
                f"{self.response.shape[1]} tokens; raise max_new_tokens or pin earlier."
            )
        rows_A = torch.arange(len(self.tokens), device=device)
        if rows is not None:
            rows_A = torch.as_tensor(rows, device=device).reshape(-1)
        tokens_BL = self.tokens.clone()
        tokens_BL[rows_A[:, None], columns_n] = ids_n
        return replace(self, tokens=tokens_BL)

    def select(self, rows: Tensor) -> Canvas:
        """The canvas of some rows, without the columns on the left that are padding in all."""
        real_AL = self.attention_mask[rows]
        padding = int((~real_AL[:, : self.response_start].any(dim=0)).cumprod(dim=0).sum())
        return replace(
            self,
            tokens=self.tokens[rows, padding:],
            attention_mask=real_AL[:, padding:],
            response_start=self.response_start - padding,
        )

    def to(self, device: torch.device | str) -> Canvas:
        """The same canvas on another device."""
        return replace(
            self, tokens=self.tokens.to(device), attention_mask=self.attention_mask.to(device)
        )


def check_fits(model: DiffusionLM, num_prompt: int, num_response: int) -> None:
    """UserError where so many tokens of prompt and response are more than the model's context."""
    if num_prompt + num_response > model.max_length:
        raise UserError(
            f"a prompt of {num_prompt} tokens and a response of {num_response} are longer than the "
            f"model's context of {model.max_length}; shorten the prompt or lower max_new_tokens"
        )


def left_padded(
    rows: Iterable[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Rows of ids side by side, and where they are."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side="left")
    real = [torch.ones_like(row, dtype=torch.bool) for row in tensors]
    return ids, pad_sequence(real, batch_first=True, padding_side="left")


def each_prompt(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts one by one, where one or several are given."""
    if isinstance(prompts, str | Mapping) or isinstance(prompts[0], Message | Mapping):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _left_aligned(
    ids: Tensor, attention_mask: Tensor | None
) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    if ids.ndim != 2 or ids.is_floating_point():
        raise UserError(
            f"Prompt ids must be integers of shape [rows, length], not {ids.dtype} of shape "
            f"{list(ids.shape)}."
        )
    if len(ids) == 0:
        raise UserError("There is no prompt; give at least one.")
    if attention_mask is None:
        return ids.long(), torch.ones_like(ids, dtype=torch.bool)
    if attention_mask.shape != ids.shape:
        raise UserError(
            f"attention_mask has shape {list(attention_mask.shape)} and the prompt ids "
            f"{list(ids.shape)}; they must be equal."
        )
    real_BP = attention_mask.bool()
    order_BP = real_BP.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
    return ids.long().gather(1, order_BP), real_BP.gather(1, order_BP)
