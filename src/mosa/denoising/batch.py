"""The one loop that fills canvases: a batch whose rows join and leave at any step.

Each row has its own decoder, length, step and noise, and what it becomes does not depend on the
rows beside it. So a row that is full makes room for the next at once, and rows of different
canvases, attacks and settings share a forward pass. `Denoiser.step` is the loop's body; `reference`
has the same loop as it was published.

# S rows of the batch, T tokens of all rows, N masked positions that may be filled in a step
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.profiler import record_function

from mosa.denoising.canvas import Canvas, check_fits
from mosa.denoising.config import DecoderConfig
from mosa.denoising.editing import show_to_watchers
from mosa.denoising.passes import Opened, PassStates, run_pass
from mosa.denoising.proposals import SpecialTokens, banned_ids, propose
from mosa.denoising.rows import (
    BLOCK,
    KEY,
    POSITION,
    SEED,
    BatchRow,
    Hook,
    OnStep,
    PackedRows,
    rows_of,
)
from mosa.denoising.schedule import PlannedStep, fillable, stages_of, wanted_blocks
from mosa.denoising.trace import Filling
from mosa.draws import Draws
from mosa.families.base import DiffusionLM
from mosa.types import UserError


class Denoiser:
    """Fills canvases that are added at any time, at most `num_slots` rows of them at once.

        denoiser = Denoiser(model, num_slots=32)
        filling = denoiser.add(canvas, config)
        full = denoiser.step()  # as long as it has_work

    The model must be in evaluation mode (`evaluation_mode`).
    """

    def __init__(self, model: DiffusionLM, num_slots: int) -> None:
        if num_slots < 1:
            raise UserError(f"num_slots must be at least 1, not {num_slots}.")
        self.model = model
        self.num_slots = num_slots
        self._waiting: deque[BatchRow] = deque()
        self._packed = PackedRows(model)
        self._special: dict[DecoderConfig, SpecialTokens] = {}

    @property
    def has_work(self) -> bool:
        """Whether any row is still to be filled."""
        return bool(self._packed.rows or self._waiting)

    def add(
        self,
        canvas: Canvas,
        config: DecoderConfig,
        *,
        seeds: Sequence[int] | None = None,
        hook: Hook | None = None,
        on_step: OnStep | None = None,
    ) -> Filling:
        """Fills the canvas from one of the next steps on; `seeds` are its rows' (or the config's).

        `hook` is shown each row after each of its steps. `on_step` receives the steps as they
        happen, which costs the batch a synchronization each.
        UserError for settings that do not fit the canvas or the model.
        """
        if self.model.is_noise:
            raise UserError(f"{self.model.source} has no masks to fill; use `denoiser_of`.")
        check_canvas(config, canvas, self.model)
        if hook is not None and config.cache != "none" and self.model.attention.is_full:
            raise UserError(
                "A hook does not work beside a cache, as it may edit what the cache holds; set "
                "cache to none."
            )
        seeds = check_seeds(seeds, config, len(canvas.tokens))
        config = replace(config, seed=0)  # rows of different seeds are decoded alike
        block_BL = stages_of(canvas, config, self.model.attention)
        is_wanted_BL = wanted_blocks(block_BL, canvas.response_start, config.stop_after)
        filling = Filling(canvas, fillable(canvas, self.model.attention) & is_wanted_BL)
        host_block_BL, is_last_wanted_B = block_BL.cpu(), is_wanted_BL[:, -1].cpu()
        self._waiting += rows_of(
            self.model, filling, config, host_block_BL, is_last_wanted_B, seeds, hook, on_step
        )
        return filling

    def remove(self, filling: Filling) -> None:
        """Drops a canvas that is no longer wanted, its rows in the batch and those that wait.

        Their places are free for the next step, and the rows beside them are not affected.
        What was filled so far is on the canvas; a canvas that is full stays as it is.
        """
        self._waiting = deque(row for row in self._waiting if row.filling is not filling)
        for row in self._packed.rows:
            if row.filling is filling:
                self._packed.write_back(row)
        self._packed.replace([row for row in self._packed.rows if row.filling is not filling])

    @torch.no_grad()
    def step(self) -> list[Filling]:
        """Takes the next step of every row in the batch; returns the canvases that are full now."""
        packed = self._packed
        with record_function("mosa.plan"):
            full = self._plan()
            if not packed.rows:
                return full
            # 1. Open the masked positions that may be filled.
            planned = [row.planned for row in packed.rows if row.planned is not None]
            assert len(planned) == len(packed.rows), "a row without a step has left the batch"
            opened = self._open(planned)
        heard = [row for row in packed.rows if row.on_step is not None]
        before_T = packed.tokens_T.clone() if heard else packed.tokens_T

        states = None
        if len(opened.index):
            # 2. Run the network, and propose a token for each, with a rating.
            states = run_pass(self.model, packed, opened)
            token_N, confidence_N, rating_N, unusable_N = self._propose(opened, states)
            packed.note_unusable(opened.index, opened.step, unusable_N)
            for row, step in zip(packed.rows, planned, strict=True):
                row.has_begun |= step.num_rated > 0

            # 3. Commit the best rated of each row, and all above its bound; the rest stay masked.
            with record_function("mosa.commit"):
                self._commit(opened, token_N, confidence_N, rating_N, planned)

        # 4. Fill the rest of every row that has ended.
        if any(row.config.stop_when_finished for row in packed.rows):
            is_rest_T = packed.rest_of_finished_rows(self._special_of(packed.rows[0].config).ends)
            step_S = torch.tensor([step.step for step in planned], device=is_rest_T.device)
            step_T = step_S[packed.row_of_token_T]
            packed.tokens_T.masked_fill_(is_rest_T, self.model.eos_token_id)
            packed.commit_step_T.copy_(torch.where(is_rest_T, step_T, packed.commit_step_T))

        # 5. Let monitors and hooks look, take back, write, stop and note.
        packed.look_at([row for row in packed.rows if row.is_watched])
        for row, step in zip(packed.rows, planned, strict=True):
            if row.unusable_step is None and (row.monitors or row.hook is not None):
                show_to_watchers(packed, row, states if step.num_rated else None)

        # 6. Report what has changed.
        heard = [row for row in heard if row.unusable_step is None]
        changes = [(row.on_step, packed.changes_of(row, before_T)) for row in heard]
        for row in packed.rows:
            row.planned = None
        for on_step, change in changes:
            if on_step is not None and change.positions:
                on_step(change)
        return full

    # ------------------------------------------------------------------------- the parts of a step

    def _plan(self) -> list[Filling]:
        """Plans the next step of every row, and gives free places and those of rows without a step
        to rows that wait; returns the canvases that are full."""
        full, packed = [], self._packed
        while True:
            rows = [*packed.rows]
            while self._waiting and len(rows) < self.num_slots:
                rows.append(self._waiting.popleft())
            if len(rows) > len(packed.rows):
                packed.replace(rows)
            undecided = [row for row in packed.rows if row.planned is None]
            watched = [row for row in undecided if row.pace.is_watched]
            if watched:
                packed.count_masks(watched)
            for row in undecided:
                row.planned = None if row.is_stopped else row.pace.next_step()
                if row.has_ended:
                    packed.finish(row)
                    row.planned = None
            # A row whose logits choose no token gives its place up after its first step, or, where
            # they break later, when it would be full: all rows wait for each look.
            new = [row for row in undecided if row.has_begun and not row.is_looked_at]
            packed.look_at([*new, *(row for row in undecided if row.planned is None)])
            for row in undecided:
                if row.unusable_step is not None:
                    row.planned, row.filling.unusable_step = None, row.unusable_step
            done = [row for row in undecided if row.planned is None]
            if not done:
                return full
            for row in done:
                packed.write_back(row)
                row.filling.num_rows_left -= 1
                if row.filling.is_full:
                    row.filling.num_masked = 0
                    full.append(row.filling)
            packed.replace([row for row in packed.rows if row.planned is not None])

    def _open(self, planned: Sequence[PlannedStep]) -> Opened:
        packed = self._packed
        limits = torch.tensor(
            [[step.block, step.count, step.step, step.num_editable > 0] for step in planned]
        )
        limits = limits.to(packed.fields.device, non_blocking=True)
        block_S, count_S, step_S, is_edited_S = limits.unbind(1)
        num = tuple(step.num_rated for step in planned)
        block_T, active_T = packed.fields[BLOCK], block_S[packed.row_of_token_T]
        is_open_T = packed.is_masked_T & (block_T <= active_T)
        if any(step.num_editable for step in planned):
            is_written_T = packed.is_free_T & (packed.fields[POSITION] >= 0) & ~packed.is_masked_T
            is_edited_T = is_edited_S[packed.row_of_token_T] == 1
            is_open_T |= is_written_T & (block_T == active_T) & is_edited_T
        index_N = is_open_T.nonzero_static(size=sum(num))[:, 0]
        row_N = packed.row_of_token_T[index_N]
        return Opened(index_N, row_N, step_S[row_N], num, count_S)

    def _propose(
        self, opened: Opened, states: PassStates
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """What each row's own decoder proposes, as `propose` has it: rows that are decoded alike
        together."""
        fields = self._packed.fields
        draws = Draws(
            seeds=fields[SEED, opened.index],
            keys=fields[KEY, opened.index],
            positions=fields[POSITION, opened.index],
            steps=opened.step,
        )
        alike: dict[DecoderConfig, list[slice]] = {}
        for row, begin, num in zip(self._packed.rows, opened.begins, opened.num, strict=True):
            if num:
                alike.setdefault(row.config, []).append(slice(begin, begin + num))
        token_N = torch.empty_like(opened.index)
        confidence_N = torch.empty(len(token_N), device=token_N.device)
        rating_N = torch.empty_like(confidence_N)
        unusable_N = torch.empty_like(confidence_N, dtype=torch.bool)
        for config, slices in alike.items():
            index = _positions(slices, len(token_N), token_N.device)
            with record_function("mosa.propose"):
                token_N[index], confidence_N[index], rating_N[index], unusable_N[index] = propose(
                    config,
                    self._special_of(config),
                    functools.partial(states.of_open, config.guidance, index),
                    draws[index],
                    self.model.vocab_size,
                )
        return token_N, confidence_N, rating_N, unusable_N

    def _special_of(self, config: DecoderConfig) -> SpecialTokens:
        if config not in self._special:
            self._special[config] = SpecialTokens.of(config, self.model)
        return self._special[config]

    def _commit(
        self,
        opened: Opened,
        token_N: Int[Tensor, " N"],
        confidence_N: Float[Tensor, " N"],
        rating_N: Float[Tensor, " N"],
        planned: Sequence[PlannedStep],
    ) -> None:
        packed = self._packed
        is_written_N = None
        if any(step.num_editable for step in planned):
            is_written_N = ~packed.is_masked_T[opened.index]
            rating_N = rating_N.masked_fill(is_written_N, -torch.inf)
        rank_N = _ranks(rating_N, opened)
        is_committed_N = rank_N < opened.count[opened.row]
        is_committed_N |= rating_N >= opened.of_rows(step.bound for step in planned)
        if any(row.config.factor is not None for row in packed.rows):
            factor_N = opened.of_rows(row.config.factor or 0.0 for row in packed.rows)
            is_committed_N |= (factor_N > 0) & (rating_N >= 1 - factor_N / (rank_N + 2))
        if any(row.config.entropy_bound is not None for row in packed.rows):
            limits = [row.config.entropy_bound for row in packed.rows]
            bound_N = opened.of_rows(-torch.inf if limit is None else limit for limit in limits)
            is_committed_N |= _cumulative(-rating_N, rank_N, opened) < bound_N
        if is_written_N is not None:
            is_committed_N |= self._edits(opened, is_written_N, token_N, confidence_N)
        for grid_T, values_N in (
            (packed.tokens_T, token_N),
            (packed.commit_step_T, opened.step),
            (packed.confidence_T, confidence_N),
        ):
            grid_T[opened.index] = torch.where(is_committed_N, values_N, grid_T[opened.index])
        for row, step in zip(packed.rows, planned, strict=True):
            if not row.pace.is_watched:
                row.filling.num_masked -= step.count

    def _edits(
        self,
        opened: Opened,
        is_written_N: Bool[Tensor, " N"],
        token_N: Int[Tensor, " N"],
        confidence_N: Float[Tensor, " N"],
    ) -> Bool[Tensor, " N"]:
        """Which written tokens are replaced: the model is surer of another token than the
        threshold; what stood there is kept in the trace."""
        packed = self._packed
        limits = [row.config.edit_threshold for row in packed.rows]
        limit_N = opened.of_rows(torch.inf if limit is None else limit for limit in limits)
        is_edited_N = is_written_N & (token_N != packed.tokens_T[opened.index])
        is_edited_N &= confidence_N > limit_N
        is_edited_T = torch.zeros_like(packed.is_free_T)
        is_edited_T[opened.index] = is_edited_N
        host_T = is_edited_T.cpu()
        for row in packed.rows:
            row.pace.has_edited = bool(host_T[row.place].any())
            if row.pace.has_edited:
                packed.note_undone(row, is_edited_T[row.shown])
        return is_edited_N


def _positions(slices: list[slice], total: int, device: torch.device) -> slice | Tensor:
    """The positions of some slices, as one slice if they are all there are."""
    if sum(part.stop - part.start for part in slices) == total:
        return slice(0, total)
    index = torch.cat([torch.arange(part.start, part.stop) for part in slices])
    return index.to(device, non_blocking=True)


def _ranks(rating_N: Float[Tensor, " N"], opened: Opened) -> Int[Tensor, " N"]:
    """The rank of each position within its row, 0 for the best; ties go to the left."""
    order_N = rating_N.argsort(descending=True, stable=True)
    order_N = order_N[opened.row[order_N].argsort(stable=True)]
    places_N = torch.arange(len(order_N), device=order_N.device)
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = places_N - opened.of_rows(opened.begins)
    return rank_N


def _cumulative(
    values_N: Float[Tensor, " N"], rank_N: Int[Tensor, " N"], opened: Opened
) -> Float[Tensor, " N"]:
    """Each value with those of a better rank in its row added."""
    place_N = rank_N + opened.of_rows(opened.begins)  # within its row's places, by rank
    sorted_N = torch.empty_like(values_N)
    sorted_N[place_N] = values_N
    sums = [part.cumsum(0) for part in sorted_N.split(list(opened.num))]
    return torch.cat(sums)[place_N]


def check_seeds(seeds: Sequence[int] | None, config: DecoderConfig, num_rows: int) -> Sequence[int]:
    """The seed of each row; UserError where some are given and others are not."""
    if seeds is None:
        return [config.seed] * num_rows
    if len(seeds) != num_rows:
        raise UserError(
            f"{len(seeds)} row_seeds were given for {num_rows} rows; give one for each."
        )
    return seeds


def check_canvas(config: DecoderConfig, canvas: Canvas, model: DiffusionLM) -> None:
    """UserError where a canvas or a decoder does not fit the model."""
    width = canvas.response.shape[1]
    if canvas.mask_token_id != model.mask_token_id:
        raise UserError(
            f"The canvas has mask token {canvas.mask_token_id}, but the model has "
            f"{model.mask_token_id}; make the canvas for this model."
        )
    check_fits(model, int(canvas.attention_mask.sum(dim=1).max()) - width, width)
    tokens = torch.where(canvas.free, 0, canvas.tokens)
    lowest, highest = int(tokens.min()), int(tokens.max())
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
    never = {model.mask_token_id, *banned_ids(config, model)}
    if len(never) >= model.vocab_size:
        raise UserError("banned_token_ids bans all tokens; leave at least one to generate.")
    for rule in config.rules:
        rule.check_model(model)
