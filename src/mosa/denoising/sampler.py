"""The one loop that fills a canvas: every experiment, attack and evaluation denoises through it.

Implements LLaDA's sampling (arXiv:2502.09992, Section 2.4; `generate.py`) and Dream's
(arXiv:2508.15487; `_sample` in `generation_utils.py`), with confidence thresholds as in Fast-dLLM
(arXiv:2505.22618). At temperature 0 in float32 the tokens are those of the authors' code. How we
differ, and why (docs/denoising.md lists every point, and what was measured):

1. The mask token is never generated, and commits are counted for each row by itself and over all
   the positions it can fill, so nothing stays masked.
2. A token is drawn with a single uniform number made from seed, row, position and step, instead of
   Gumbel noise for the whole vocabulary. A row's text depends on no other row and on no padding.
3. The model is asked for the active block's logits only. A row that commits nothing in a step sits
   it out, and a step in which no row does is skipped; the outcome is the same.
4. Ties of confidence go to the leftmost position; the references leave them to chance.

# B rows of the canvas, A rows that run in a step, L canvas length, R response length, K columns of
# the active block, N masked positions among [A, K], n some of them, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import Progress
from torch import Tensor

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.noise import ORDER_DRAW, POSITION_DRAW, TOKEN_DRAW, counter_uniform, row_keys
from mosa.denoising.remasking import REMASKING, Proposals, draw, shape_logits
from mosa.denoising.schedule import Turns
from mosa.denoising.trace import DenoisingTrace, TraceRecorder, merge_traces
from mosa.families.base import DiffusionLM
from mosa.types import Prompt, UserError

MAX_LOGITS_AT_ONCE = 2**26
"""How many logits are rated at once (256 MB in float32); more positions are taken in parts."""


@dataclass(frozen=True)
class StepState:
    """What a hook sees of a step, after its commits; one entry for each row of the batch."""

    step: int
    rows: Int[Tensor, " B"]
    """Which prompts of the call these rows are; with a `batch_size` they come in parts."""
    tokens: Int[Tensor, "B L"]
    """A copy of the canvas; change it and return it to edit the canvas itself."""
    committed: Bool[Tensor, "B L"]
    """The positions committed in this step."""
    columns: Int[Tensor, " K"]
    """The canvas columns of the three tensors below: the active block, or what is left of it."""
    logits: Float[Tensor, "B K V"]
    """The model's logits, guided, before bans, temperature and cuts."""
    proposals: Int[Tensor, "B K"]
    """The token proposed for each position that was masked; elsewhere the token that stands."""
    confidence: Float[Tensor, "B K"]
    """How the remasking rule rated the proposals; -inf where nothing was masked."""
    response_start: int
    mask_token_id: int

    @property
    def response(self) -> Int[Tensor, "B R"]:
        """The response columns of the canvas."""
        return self.tokens[:, self.response_start :]


Hook = Callable[[StepState], Tensor | None]
"""Called after every planned step, with all rows, and after any step that follows the plan.

Returns None, or the canvas [B, L] with free positions overwritten or masked again. What is masked
again is filled with the masks of the active block, or after the plan's last step in steps of their
own, so nothing stays masked. Prompts and pinned positions cannot be changed.
"""


@dataclass(frozen=True)
class SampleResult:
    """The responses of one call, in the order of its prompts."""

    tokens: Int[Tensor, "B R"]
    """The response ids of the whole canvas, what follows the first end token included."""
    text: list[str] | None
    """Each response up to its first end token; None for a model without a tokenizer."""
    full_text: list[str] | None
    """Each response whole: what follows the first end token is part of it."""
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
    row_seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> SampleResult:
    """Generates a response to every prompt, or fills a canvas.

    `prompts` are strings, dialogues, token ids [B, P] with an `attention_mask`, or a `Canvas`.
    `settings` override fields of `config`. `batch_size` bounds how many rows run together (those of
    similar length do); it changes neither the order nor the text. `hook`: see `Hook`. `row_seeds`
    gives each row a seed of its own in place of the config's. `progress` shows a bar. The model
    runs in evaluation mode and without gradients.

        result = sample(model, ["What is a kiln?"], max_new_tokens=64, steps=32, block_length=32)
        print(result.text[0], result.num_forward_passes)

    Raises UserError for settings that contradict each other, the canvas or the model.
    """
    names = [field.name for field in fields(DecoderConfig)]
    for name in settings:
        if name not in names:
            raise UserError(f"There is no setting {name!r}; the settings are {', '.join(names)}.")
    config = config or DecoderConfig()
    if isinstance(prompts, Canvas):
        width = prompts.response.shape[1]
        if attention_mask is not None or settings.get("max_new_tokens", width) != width:
            raise UserError(
                f"A canvas brings its attention mask and the length of its response ({width}); "
                "leave out attention_mask and max_new_tokens."
            )
        config = replace(config, **settings | {"max_new_tokens": width})
        canvas = prompts.to(model.device)
    else:
        config = replace(config, **settings)
        canvas = Canvas.from_prompts(
            model, prompts, max_new_tokens=config.max_new_tokens, attention_mask=attention_mask
        )
    _check_for_model(config, canvas, model)
    seeds_B = _seeds(row_seeds, config, canvas)
    keys_B = row_keys(canvas.tokens, canvas.attention_mask, canvas.response_start, seeds_B)
    order_B = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
    if batch_size is not None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}.")
        order_B = canvas.attention_mask.sum(dim=1).argsort(stable=True)

    parts = []
    with Progress(disable=not progress) as bar, evaluation_mode(model), torch.no_grad():
        task = bar.add_task("denoising", total=int(canvas.free.sum()))
        for rows in order_B.split(batch_size or len(order_B)):
            trace = denoise(
                model,
                canvas.select(rows),
                config,
                keys_B[rows],
                seeds_B[rows],
                rows=rows,
                hook=hook,
                on_filled=lambda count: bar.advance(task, count),
            )
            parts.append((rows, trace))
    trace = merge_traces(canvas.tokens, canvas.response_start, parts)
    canvas = replace(canvas, tokens=trace.tokens)
    text = full_text = None
    if model.tokenizer is not None:
        text = [model.decode(_before_end(ids, model)) for ids in canvas.response.tolist()]
        full_text = [model.decode(ids) for ids in canvas.response]
    return SampleResult(canvas.response, text, full_text, trace, canvas, config)


def denoise(
    model: DiffusionLM,
    canvas: Canvas,
    config: DecoderConfig,
    keys: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    *,
    rows: Int[Tensor, " B"],
    hook: Hook | None,
    on_filled: Callable[[int], object],
) -> DenoisingTrace:
    """Fills every mask of the canvas, step by step, and tells how; `sample` is the way in.

    `keys` and `seeds` are what each row's noise is drawn with, `rows` the numbers by which a hook
    knows them, `on_filled` is told how many positions have been filled since it was last called.
    """
    device = canvas.tokens.device
    free_BL = canvas.free
    attention_BL = None if bool(canvas.attention_mask.all()) else canvas.attention_mask
    record = TraceRecorder(canvas)
    turns = Turns(canvas, record.tokens, config, has_hook=hook is not None)
    special = SpecialTokens.of(config, model)
    num_left = turns.num_left

    for turn in turns:
        on_filled(num_left - turns.num_left)
        num_left = turns.num_left

        # 1. The rows that commit something now, and the columns where they have masks.
        rows_A = turn.host_rows.to(device, non_blocking=True)
        columns_K = turn.host_columns.to(device, non_blocking=True)
        counts_A1 = turn.host_counts.to(device, non_blocking=True).unsqueeze(1)
        is_open_AL = ((record.tokens == canvas.mask_token_id) & free_BL & turn.in_block)[rows_A]
        if len(rows_A) == 1 and hook is None:  # not one column more than the row still needs
            columns_K = is_open_AL[0].nonzero_static(size=int(turn.host_num_masked)).squeeze(1)
        is_open_AK = is_open_AL[:, columns_K]
        tokens_AL = record.tokens[rows_A]

        # 2. One forward pass of these rows, for the logits of these columns.
        if len(columns_K):
            record.num_forward_passes += 1
            record.row_forward_passes[turn.host_rows] += 1
        logits_AKV = guided_logits(
            model,
            tokens_AL,
            None if attention_BL is None else attention_BL[rows_A],
            columns_K,
            given=~free_BL[rows_A],
            cfg_scale=config.cfg_scale,
        )

        # 3. A token for each masked position, and how it is rated.
        masked_N = is_open_AK.flatten().nonzero_static(size=int(turn.host_num_masked.sum()))[:, 0]
        num_columns = max(len(columns_K), 1)
        row_N = rows_A[masked_N // num_columns]
        token_N, confidence_N, rating_N = _propose(
            config,
            special,
            logits_AKV.flatten(0, 1),
            masked_N,
            keys=keys[row_N],
            seeds=seeds[row_N],
            positions=columns_K[masked_N % num_columns] - canvas.response_start,
            step=turn.step,
        )
        proposals_AK = _placed(tokens_AL[:, columns_K], masked_N, token_N)
        nowhere_AK = torch.full(is_open_AK.shape, -torch.inf, device=device)
        confidence_AK = _placed(nowhere_AK, masked_N, confidence_N)
        rating_AK = _placed(nowhere_AK, masked_N, rating_N)

        # 4. Commit the best rated of each row, and all above the bound; the others stay masked.
        rank_AK = rating_AK.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        commits_AK = is_open_AK & ((rank_AK < counts_A1) | (rating_AK >= turn.bound))
        record.commit(
            turn.step, rows_A.unsqueeze(1), columns_K, commits_AK, proposals_AK, confidence_AK
        )

        # 5. Fill the rest of every row that has come to its end.
        if config.stop_when_finished:
            is_rest_BL = _rest_of_finished_rows(canvas, record.tokens, free_BL, special.ends)
            record.fill(turn.step, is_rest_BL, model.eos_token_id)

        # 6. Let the hook look and edit.
        if hook is not None:
            state = StepState(
                step=turn.step,
                rows=rows,
                tokens=record.tokens.clone(),
                committed=record.commit_step == turn.step,
                columns=columns_K,
                logits=logits_AKV,
                proposals=proposals_AK,
                confidence=confidence_AK,
                response_start=canvas.response_start,
                mask_token_id=canvas.mask_token_id,
            )
            edited_BL = hook(state)
            if edited_BL is not None:
                record.edit(turn.step, edited_BL, free_BL)

    on_filled(num_left)
    return record.trace()


def guided_logits(
    model: DiffusionLM,
    tokens: Int[Tensor, "A L"],
    attention_mask: Bool[Tensor, "A L"] | None,
    columns: Int[Tensor, " K"],
    *,
    given: Bool[Tensor, "A L"],
    cfg_scale: float,
) -> Float[Tensor, "A K V"]:
    """The logits of the columns, guided away from a canvas in which `given` is masked as well."""
    if len(columns) == 0:  # a hook's step in which nothing is left to fill
        return torch.empty(len(tokens), 0, model.vocab_size, device=tokens.device)
    if cfg_scale == 0:
        return model.logits(tokens, attention_mask, columns)
    blind_AL = tokens.masked_fill(given, model.mask_token_id)
    twice = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
    logits_2AKV = model.logits(torch.cat([tokens, blind_AL]), twice, columns)
    logits_AKV, blind_AKV = logits_2AKV.chunk(2)
    return blind_AKV + (cfg_scale + 1) * (logits_AKV - blind_AKV)


def _placed(grid: Tensor, where: Int[Tensor, " N"], values: Tensor) -> Tensor:
    """A copy of the grid [A, K] with values at some places, which are counted row after row."""
    return grid.flatten().scatter(0, where, values).view_as(grid)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a rule of their own, on the device."""

    mask: int
    ends: Int[Tensor, " n"]
    banned: Int[Tensor, " m"]

    @classmethod
    def of(cls, config: DecoderConfig, model: DiffusionLM) -> SpecialTokens:
        """The ids of a model, with what the config bans."""
        banned = [*config.banned_token_ids]
        if config.end_tokens == "forbid":
            banned += model.end_token_ids
        if config.temperature > 0:
            banned.append(model.mask_token_id)
        return cls(
            mask=model.mask_token_id,
            ends=torch.tensor(model.end_token_ids, device=model.device),
            banned=torch.tensor(banned, dtype=torch.long, device=model.device),
        )


def _propose(
    config: DecoderConfig,
    special: SpecialTokens,
    logits: Float[Tensor, "AK V"],
    masked: Int[Tensor, " N"],
    *,
    keys: Int[Tensor, " N"],
    seeds: Int[Tensor, " N"],
    positions: Int[Tensor, " N"],
    step: int,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """For each masked position a token, its confidence, and the rating by which it is chosen.

    The rating is the confidence, but for suppressed end tokens and for `alg_temp`. The work is done
    for a bounded number of logits at once.
    """

    def uniform(stream: int) -> Tensor:
        return counter_uniform(seeds, keys, positions, step, stream)

    unused_N = torch.zeros_like(masked, dtype=torch.float64)
    token_draw_N = uniform(TOKEN_DRAW) if config.temperature > 0 else unused_N
    position_draw_N = uniform(POSITION_DRAW) if config.is_by_chance else unused_N
    tokens, confidences = [], []
    for part in torch.arange(len(masked), device=logits.device).split(
        max(1, MAX_LOGITS_AT_ONCE // logits.shape[1])
    ):
        logits_NV = logits[masked[part]]  # a copy, written to below
        logits_NV[:, special.banned] = -torch.inf
        shaped_NV = shape_logits(logits_NV, config.temperature, config.top_p, config.top_k)
        if config.temperature > 0:
            token_N = draw(shaped_NV, token_draw_N[part])
        else:
            # The mask token is not chosen, but counts in the confidences as in the references.
            mask_logit_N = logits_NV[:, special.mask].clone()
            logits_NV[:, special.mask] = -torch.inf
            token_N = logits_NV.argmax(dim=-1)
            logits_NV[:, special.mask] = mask_logit_N
        if config.end_tokens == "suppress":  # confidence is about the other tokens
            logits_NV[:, special.ends] = -torch.inf
            shaped_NV[:, special.ends] = -torch.inf
        proposals = Proposals(logits_NV, shaped_NV, token_N, position_draw_N[part], positions[part])
        tokens.append(token_N)
        confidences.append(REMASKING[config.remasking](proposals).float())
    tokens_N, confidence_N = torch.cat(tokens), torch.cat(confidences)

    rating_N = confidence_N
    if config.alg_temp:  # Gumbel top-k: draws without replacement from softmax(c / alg_temp)
        gumbel_N = -(-uniform(ORDER_DRAW).log()).log()
        rating_N = (confidence_N / config.alg_temp + gumbel_N).float()
    if config.end_tokens == "suppress":
        is_end_N = torch.isin(tokens_N, special.ends)
        confidence_N = confidence_N.masked_fill(is_end_N, 0.0)
        rating_N = rating_N.masked_fill(is_end_N, torch.finfo(rating_N.dtype).min)
    return tokens_N, confidence_N, rating_N


def _seeds(
    row_seeds: Sequence[int] | None, config: DecoderConfig, canvas: Canvas
) -> Int[Tensor, " B"]:
    num_rows, device = len(canvas.tokens), canvas.tokens.device
    if row_seeds is None:
        return torch.full((num_rows,), config.seed, device=device)
    if len(row_seeds) != num_rows:
        raise UserError(
            f"{len(row_seeds)} row_seeds were given for {num_rows} rows; give one for each."
        )
    return torch.tensor(list(row_seeds), dtype=torch.long, device=device)


def _rest_of_finished_rows(
    canvas: Canvas,
    tokens: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    ends: Int[Tensor, " n"],
) -> Bool[Tensor, "B L"]:
    """The masks of every row in which all before the first generated end token is filled."""
    in_response_L = torch.arange(tokens.shape[1], device=tokens.device) >= canvas.response_start
    is_after_end_BL = (torch.isin(tokens, ends) & free & in_response_L).cumsum(dim=1) > 0
    is_masked_BL = (tokens == canvas.mask_token_id) & free
    is_waiting_B1 = (is_masked_BL & ~is_after_end_BL).any(dim=1, keepdim=True)
    return is_masked_BL & is_after_end_BL & ~is_waiting_B1


def _check_for_model(config: DecoderConfig, canvas: Canvas, model: DiffusionLM) -> None:
    if canvas.mask_token_id != model.mask_token_id:
        raise UserError(
            f"The canvas has mask token {canvas.mask_token_id} and the model {model.mask_token_id};"
            " make the canvas for this model."
        )
    lowest, highest = int(canvas.tokens.min()), int(canvas.tokens.max())
    if lowest < 0 or highest >= model.vocab_size:
        raise UserError(
            f"The canvas holds token id {lowest if lowest < 0 else highest}, outside the model's "
            f"vocabulary of {model.vocab_size}; encode the prompt with this model's tokenizer."
        )
    for token_id in config.banned_token_ids:
        if not 0 <= token_id < model.vocab_size:
            raise UserError(
                f"banned_token_ids names {token_id}, outside the model's vocabulary of "
                f"{model.vocab_size}; leave it out."
            )
    never = {model.mask_token_id, *config.banned_token_ids}
    if config.end_tokens == "forbid":
        never.update(model.end_token_ids)
    if len(never) >= model.vocab_size:
        raise UserError("All tokens are banned; leave at least one to generate.")


def _before_end(ids: list[int], model: DiffusionLM) -> list[int]:
    ends = [i for i, token_id in enumerate(ids) if token_id in model.end_token_ids]
    return ids[: ends[0]] if ends else ids


@contextmanager
def evaluation_mode(model: DiffusionLM) -> Iterator[None]:
    """The model without dropout, as it was before when left."""
    was_training = model.network.training
    model.network.eval()
    try:
        yield
    finally:
        model.network.train(was_training)
