"""The one loop that fills canvases: a batch whose rows join and leave at any step.

Each row has its own decoder, length, step and noise, and what it becomes does not depend on the
rows beside it. So a row that is full makes room for the next at once, and rows of different
canvases, attacks and settings share a forward pass. `Denoiser.step` is the loop's body.

# S rows of the batch, A rows of one hook, B rows and L columns of a canvas, T tokens of all rows,
# N masked positions that may be filled in a step, K columns with one of them, D width, V vocabulary
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.profiler import record_function

from mosa.denoising.canvas import Canvas
from mosa.denoising.config import DecoderConfig
from mosa.denoising.noise import row_keys
from mosa.denoising.proposals import Draws, SpecialTokens, propose
from mosa.denoising.schedule import Pace, Turn, block_of
from mosa.denoising.trace import Filling
from mosa.families.base import DiffusionLM
from mosa.families.packed import KeyValueCache, Selection, places
from mosa.types import UserError


@dataclass(frozen=True)
class StepState:
    """What a hook sees of a step, after its commits; one entry for each of its rows."""

    step: int
    rows: Int[Tensor, " A"]
    """Which rows of the canvas these are; with a `batch_size` they come in parts."""
    tokens: Int[Tensor, "A L"]
    """A copy of the canvas; change it and return it to edit the canvas itself."""
    committed: Bool[Tensor, "A L"]
    """The positions committed in this step."""
    columns: Int[Tensor, " K"]
    """The canvas columns of the three tensors below: the active block, or what is left of it."""
    proposals: Int[Tensor, "A K"]
    """The token proposed for each position that was masked; elsewhere the token that stands."""
    confidence: Float[Tensor, "A K"]
    """How the remasking rule rated the proposals; -inf where nothing was masked."""
    response_start: int
    mask_token_id: int
    make_logits: Callable[[], Tensor] = field(repr=False)

    @property
    def response(self) -> Int[Tensor, "A R"]:
        """The response columns of the canvas."""
        return self.tokens[:, self.response_start :]

    @cached_property
    def logits(self) -> Float[Tensor, "A K V"]:
        """The model's logits, guided, before bans, temperature and cuts; computed when asked for.
        NaN where a column is padding."""
        return self.make_logits()


Hook = Callable[[StepState], Tensor | None]
"""Called after every planned step, with all rows, and after any step that follows the plan.

Returns None, or the canvas [A, L] with free positions overwritten or masked again. What is masked
again is filled with the masks of the active block, or after the plan's last step in steps of their
own, so nothing stays masked. Prompts and pinned positions cannot be changed.
"""

# What is kept of every token of the batch, a row of one integer tensor each.
_TOKEN, _COMMIT_STEP, _FREE, _BLOCK, _POSITION, _POSITION_ID, _KEY, _SEED = range(8)


@dataclass
class _Row:
    """One row of a canvas on its way through the batch."""

    filling: Filling
    number: int
    """Which row of its canvas it is."""
    config: DecoderConfig
    pace: Pace
    columns: Int[Tensor, " n"]
    """The canvas column of each token; padding has none."""
    fields: Int[Tensor, "8 n"]
    """What the batch keeps of every token, as it was when the row was added."""
    host_block: Int[Tensor, " n"]
    """The block of each token; -1 in the prompt, where it is never active."""
    hook: Hook | None
    turn: Turn | None = None
    begin: int = 0
    """Where the row's tokens begin in the batch."""
    cached_block: int | None = None
    """The block for which the row's keys and values are cached."""
    cached_steps: int = 0
    """Steps since everything was computed anew."""

    @property
    def length(self) -> int:
        return len(self.columns)

    @property
    def place(self) -> slice:
        return slice(self.begin, self.begin + self.length)


class Denoiser:
    """Fills canvases that are added at any time, at most `num_slots` rows of them at once.

        denoiser = Denoiser(model, num_slots=32)
        filling = denoiser.add(canvas, config)
        full = denoiser.step()  # as long as it has_work

    The model must be in evaluation mode (`evaluation_mode`).
    """

    def __init__(self, model: DiffusionLM, num_slots: int) -> None:
        if num_slots < 1:
            raise UserError(f"A batch needs at least one row, not {num_slots}.")
        self.model = model
        self.num_slots = num_slots
        self._waiting: deque[list[_Row]] = deque()  # rows that must join together
        self._rows: list[_Row] = []
        self._fields = torch.empty(8, 0, dtype=torch.long, device=model.device)
        self._confidence = torch.empty(0, device=model.device)
        self._special: dict[DecoderConfig, SpecialTokens] = {}
        self._cache: KeyValueCache | None = None

    @property
    def num_busy(self) -> int:
        """Rows in the batch, and rows that wait for a place in it."""
        return len(self._rows) + sum(map(len, self._waiting))

    @property
    def has_work(self) -> bool:
        """Whether any row is still to be filled."""
        return bool(self._rows or self._waiting)

    def add(
        self,
        canvas: Canvas,
        config: DecoderConfig,
        *,
        seeds: Sequence[int] | None = None,
        hook: Hook | None = None,
    ) -> Filling:
        """Fills the canvas from one of the next steps on; `seeds` are its rows' (or the config's).

        Rows with a hook join together, as many as there are slots, and take their steps together.
        UserError for settings that do not fit the canvas or the model.
        """
        _check_for_model(config, canvas, self.model)
        if hook is not None and config.cache != "none":
            raise UserError(
                "A hook that edits the canvas does not go with a cache; set cache to none."
            )
        num_rows = len(canvas.tokens)
        if seeds is None:
            seeds = [config.seed] * num_rows
        if len(seeds) != num_rows:
            raise UserError(
                f"{len(seeds)} row_seeds were given for {num_rows} rows; give one for each."
            )
        config = replace(config, seed=0)  # rows of different seeds are decoded alike
        positions_L = torch.arange(canvas.tokens.shape[1]) - canvas.response_start
        block_L = block_of(positions_L, config)
        is_wanted_L = (block_L <= config.last_block).to(canvas.tokens.device)
        filling = Filling(canvas, canvas.free & is_wanted_L)
        rows = self._rows_of(filling, config, list(seeds), hook, positions_L, block_L)
        rows.sort(key=lambda row: row.length)  # rows of one length share a call of attention
        size = 1 if hook is None else self.num_slots
        self._waiting.extend(rows[i : i + size] for i in range(0, num_rows, size))
        return filling

    def _rows_of(
        self,
        filling: Filling,
        config: DecoderConfig,
        seeds: list[int],
        hook: Hook | None,
        positions_L: Int[Tensor, " L"],
        block_L: Int[Tensor, " L"],
    ) -> list[_Row]:
        canvas = filling.canvas
        host, host_free_BL = canvas.to("cpu"), filling.free.cpu()
        seeds_B = torch.tensor(seeds, dtype=torch.long)
        keys_B = row_keys(host.tokens, host.attention_mask, host.response_start, seeds_B)
        rows = []
        for number, real_L in enumerate(host.attention_mask):
            columns = real_L.nonzero()[:, 0]
            tokens, free = host.tokens[number, columns], host_free_BL[number, columns]
            positions, block = positions_L[columns], block_L[columns]
            # Padding is no position, to a family that counts tokens; to others it is one.
            steps_right = columns - columns[0]
            if self.model.family.logits_shifted:
                steps_right = torch.arange(len(columns))
            fields = torch.stack(
                [
                    tokens,
                    torch.full_like(tokens, -1),
                    free.long(),
                    block,
                    positions,
                    steps_right,
                    keys_B[number].expand_as(tokens),
                    seeds_B[number].expand_as(tokens),
                ]
            )
            num_masked = torch.bincount(block[free], minlength=config.num_blocks).tolist()
            rows.append(
                _Row(
                    filling=filling,
                    number=number,
                    config=config,
                    pace=Pace(config, num_masked, has_hook=hook is not None),
                    columns=columns.to(canvas.tokens.device),
                    fields=fields,
                    host_block=block.masked_fill((positions < 0) & ~free, -1),
                    hook=hook,
                )
            )
        return rows

    # ------------------------------------------------------------------------------- one step

    @torch.no_grad()
    def step(self) -> list[Filling]:
        """Takes the next step of every row in the batch; returns the canvases that are full now."""
        with record_function("mosa.plan"):
            full = self._take_turns()
            if not self._rows:
                return full
            rows = self._rows
            turns = [row.turn for row in rows if row.turn is not None]
            assert len(turns) == len(rows), "a row without a turn has left the batch"
            device = self._fields.device
            tokens_T, commit_step_T = self._fields[_TOKEN], self._fields[_COMMIT_STEP]

            # 1. The masked positions that may be filled.
            limits = torch.tensor([[turn.block, turn.count, turn.step] for turn in turns])
            block_S, count_S, step_S = limits.to(device, non_blocking=True).unbind(1)
            num_open = [turn.num_open for turn in turns]
            is_open_T = self._is_masked() & (self._fields[_BLOCK] <= block_S[self._row_of_token])
            open_N = is_open_T.nonzero_static(size=sum(num_open))[:, 0]
            row_N = self._row_of_token[open_N]
        hooked = self._hooked_rows()
        states = None
        if len(open_N):
            # 2. A token for each, and how it is rated: rows that are decoded alike together.
            states = self._hidden_states(open_N, num_open)
            token_N, confidence_N, rating_N = self._propose(open_N, step_S[row_N], num_open, states)

            # 3. Commit the best rated of each row, and all above its bound; the rest stay masked.
            with record_function("mosa.commit"):
                rank_N = _ranks(rating_N, row_N, num_open)
                bounds = torch.tensor([turn.bound for turn in turns])
                is_committed_N = rank_N < count_S[row_N]
                is_committed_N |= rating_N >= bounds.to(device, non_blocking=True)[row_N]
                if any(row.config.factor is not None for row in rows):
                    factor_N = torch.tensor([row.config.factor or 0.0 for row in rows])
                    factor_N = factor_N.to(device, non_blocking=True)[row_N]
                    is_committed_N |= (factor_N > 0) & (rating_N >= 1 - factor_N / (rank_N + 2))
                for grid_T, values_N in (
                    (tokens_T, token_N),
                    (commit_step_T, step_S[row_N]),
                    (self._confidence, confidence_N),
                ):
                    grid_T[open_N] = torch.where(is_committed_N, values_N, grid_T[open_N])
                for row, turn in zip(rows, turns, strict=True):
                    if not row.pace.is_watched:
                        row.filling.num_masked -= turn.count

        # 4. Fill the rest of every row that has come to its end.
        if any(row.config.stop_when_finished for row in rows):
            is_rest_T = self._rest_of_finished_rows()
            tokens_T.masked_fill_(is_rest_T, self.model.eos_token_id)
            commit_step_T.copy_(torch.where(is_rest_T, step_S[self._row_of_token], commit_step_T))

        # 5. Let the hooks look and edit.
        if hooked:
            proposed_T, rated_T = tokens_T.clone(), torch.full_like(self._confidence, -torch.inf)
            if len(open_N):
                proposed_T[open_N], rated_T[open_N] = token_N, confidence_N
            for together in hooked:
                self._call_hook(together, is_open_T, proposed_T, rated_T, states)
        for row in rows:
            row.turn = None
        return full

    def _take_turns(self) -> list[Filling]:
        """Gives every row of the batch its next turn, and the place of those without one to others;
        returns the canvases that are full."""
        full = []
        while True:
            self._admit()
            undecided = [row for row in self._rows if row.turn is None]
            watched = [row for row in undecided if row.pace.is_watched]
            if watched:
                self._count_masks(watched)
            unfilled = {id(row.filling) for row in watched if any(row.pace.num_masked)}
            for row in undecided:
                # Rows with one hook go on until all of them are full.
                goes_on = row.hook is not None and id(row.filling) in unfilled
                row.turn = row.pace.next_turn(goes_on=goes_on)
            done = [row for row in undecided if row.turn is None]
            if not done:
                return full
            for row in done:
                self._write_back(row)
                row.filling.num_rows_left -= 1
                if row.filling.is_full:
                    row.filling.num_masked = 0
                    full.append(row.filling)
            self._repack([row for row in self._rows if row.turn is not None])

    def _admit(self) -> None:
        """Lets rows in where there is room for them."""
        rows = list(self._rows)
        while self._waiting and len(rows) + len(self._waiting[0]) <= self.num_slots:
            rows += self._waiting.popleft()
        if len(rows) > len(self._rows):
            self._repack(rows)

    def _repack(self, rows: list[_Row]) -> None:
        """Lays the tokens of the rows end to end, those that are in the batch as they stand."""
        device = self._fields.device
        kept = {id(row) for row in self._rows}
        rows = sorted(rows, key=lambda row: row.length)
        fields, confidences, index = [], [], []
        for row in rows:
            if id(row) in kept:
                fields.append(self._fields[:, row.place])
                confidences.append(self._confidence[row.place])
                index.append(torch.arange(row.begin, row.begin + row.length))
            else:
                fields.append(row.fields.to(device, non_blocking=True))
                confidences.append(torch.full((row.length,), torch.nan, device=device))
                index.append(torch.zeros(row.length, dtype=torch.long))
        is_cached = any(row.config.cache != "none" for row in rows)
        if not is_cached:
            self._cache = None
        elif self._cache is None:
            self._cache = KeyValueCache()
        elif kept:
            self._cache.repack(torch.cat(index).to(device, non_blocking=True))
        self._rows = rows
        self._lengths = tuple(row.length for row in rows)
        for row, begin in zip(rows, accumulate(self._lengths, initial=0), strict=False):
            row.begin = begin
        if rows:
            self._fields, self._confidence = torch.cat(fields, dim=1), torch.cat(confidences)
            self._row_of_token = torch.repeat_interleave(
                torch.arange(len(rows)), torch.tensor(self._lengths)
            ).to(device, non_blocking=True)
            self._rotary = self.model.rotary(self._fields[_POSITION_ID])
            begins = torch.tensor([row.begin for row in rows])
            self._begins_S = begins.to(device, non_blocking=True)
            # Where each token's prediction is read: one to the left in a shifted family.
            self._read_T = torch.arange(len(self._row_of_token), device=device)
            if self.model.family.logits_shifted:
                first_T = self._begins_S[self._row_of_token]
                self._read_T = torch.maximum(self._read_T - 1, first_T)

    def _is_masked(self) -> Bool[Tensor, " T"]:
        """The masks of all rows."""
        return (self._fields[_TOKEN] == self.model.mask_token_id) & (self._fields[_FREE] == 1)

    def _count_masks(self, rows: list[_Row]) -> None:
        """Tells the rows how many masks their blocks have: the step's only synchronisation."""
        is_masked = self._is_masked().cpu()
        before: dict[int, int] = {}
        for row in rows:
            before[id(row.filling)] = before.get(id(row.filling), 0) + sum(row.pace.num_masked)
            blocks = row.host_block[is_masked[row.place]]
            row.pace.num_masked = torch.bincount(blocks, minlength=row.config.num_blocks).tolist()
        fillings = {id(row.filling): row.filling for row in rows}
        for key, filling in fillings.items():
            now = sum(sum(row.pace.num_masked) for row in rows if row.filling is filling)
            filling.num_masked += now - before[key]

    def _write_back(self, row: _Row) -> None:
        """Copies the row to its canvas."""
        filling, number = row.filling, row.number
        filling.tokens[number, row.columns] = self._fields[_TOKEN, row.place]
        filling.commit_step[number, row.columns] = self._fields[_COMMIT_STEP, row.place]
        filling.confidence[number, row.columns] = self._confidence[row.place]

    # ---------------------------------------------------------------------- the model's part

    def _hidden_states(self, open_N: Int[Tensor, " N"], num_open: list[int]) -> _States:
        """One pass of the network for what the open positions' logits are made of; for those of all
        tokens where a hook may ask for others; and a second pass for rows that are guided."""
        model, tokens_T = self.model, self._fields[_TOKEN]
        self._count_pass()
        with record_function("mosa.network"):
            queries, read_T = self._queries(), self._read_T
            has_hook = any(row.hook is not None for row in self._rows)
            states_nD = model.packed_hidden_states(
                tokens_T,
                self._rotary,
                self._lengths,
                queries=queries,
                asked=None if has_hook else Selection(read_T[open_N], tuple(num_open)),
                cache=self._cache,
            )
            place_T = None
            if has_hook:
                place_T = read_T
                if queries is not None:
                    place_T = places(queries.index, len(read_T))[read_T]
            guided = [row for row in self._rows if row.config.cfg_scale > 0]
            if not guided:
                return _States(open_N, states_nD, place_T)
            tokens = [torch.arange(row.begin, row.begin + row.length) for row in guided]
            index = torch.cat(tokens).to(tokens_T.device, non_blocking=True)
            given = self._fields[_FREE, index] == 0
            blind = model.packed_hidden_states(
                tokens_T[index].masked_fill(given, model.mask_token_id),
                self._rotary[index],
                tuple(row.length for row in guided),
            )
            blind_place_T = places(index, len(read_T))[read_T]
            return _States(open_N, states_nD, place_T, blind, blind_place_T)

    def _count_pass(self) -> None:
        """Counts a forward pass for each row that would need it alone, and for its canvas."""
        has_open = [row for row in self._rows if row.turn is not None and row.turn.num_open]
        fillings = {id(row.filling): row.filling for row in has_open}
        for row in self._rows:  # without a hook every row has something open
            if id(row.filling) in fillings:
                row.filling.row_forward_passes[row.number] += 1
        for filling in fillings.values():
            filling.num_forward_passes += 1

    def _queries(self) -> Selection | None:
        """The tokens that are computed anew; None for all of them."""
        if self._cache is None:
            return None
        chosen = []
        for row in self._rows:
            config, turn = row.config, row.turn
            assert turn is not None
            row.cached_steps += 1
            is_stale = (
                config.cache == "none"
                or row.cached_block != turn.block
                or (config.cache_refresh is not None and row.cached_steps >= config.cache_refresh)
            )
            if is_stale:
                row.cached_block, row.cached_steps = turn.block, 0
                chosen.append(torch.arange(row.begin, row.begin + row.length))
                continue
            is_active = row.host_block == turn.block
            if config.cache == "prefix":
                is_active = row.host_block >= turn.block
                if self.model.attention.prefix_cache_is_exact:  # also where blocks begin elsewhere
                    is_active = self.model.attention.affected(is_active)
            if self.model.family.logits_shifted:  # the first of a block is read to its left
                is_active[:-1] |= is_active[1:].clone()
            chosen.append(row.begin + is_active.nonzero()[:, 0])
        counts = tuple(map(len, chosen))
        if counts == self._lengths:
            return None
        index = torch.cat(chosen).to(self._fields.device, non_blocking=True)
        return Selection(index, counts)

    def _propose(
        self,
        open_N: Int[Tensor, " N"],
        step_N: Int[Tensor, " N"],
        num_open: list[int],
        states: _States,
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Token, confidence and rating of each open position, by its own row's decoder."""
        draws = Draws(
            seeds=self._fields[_SEED, open_N],
            keys=self._fields[_KEY, open_N],
            positions=self._fields[_POSITION, open_N],
            steps=step_N,
        )
        begins = list(accumulate(num_open, initial=0))
        alike: dict[DecoderConfig, list[slice]] = {}
        for number, row in enumerate(self._rows):
            if num_open[number]:
                where = slice(begins[number], begins[number + 1])
                alike.setdefault(row.config, []).append(where)
        token_N = torch.empty_like(open_N)
        confidence_N = torch.empty(len(open_N), device=open_N.device)
        rating_N = torch.empty_like(confidence_N)
        for config, slices in alike.items():
            index = _positions(slices, len(open_N), open_N.device)
            logits_of = functools.partial(states.of_open, self.model, config.cfg_scale, index)
            with record_function("mosa.propose"):
                token_N[index], confidence_N[index], rating_N[index] = propose(
                    config,
                    self._special_of(config),
                    logits_of,
                    draws[index],
                    self.model.vocab_size,
                )
        return token_N, confidence_N, rating_N

    def _special_of(self, config: DecoderConfig) -> SpecialTokens:
        if config not in self._special:
            self._special[config] = SpecialTokens.of(config, self.model)
        return self._special[config]

    # -------------------------------------------------------------------- ends and hooks

    def _rest_of_finished_rows(self) -> Bool[Tensor, " T"]:
        """The masks of every row in which all before the first generated end token is filled."""
        tokens_T, device = self._fields[_TOKEN], self._fields.device
        stops_S = torch.tensor([row.config.stop_when_finished for row in self._rows], device=device)
        ends = self._special_of(self._rows[0].config).ends
        is_free_T, in_response_T = self._fields[_FREE] == 1, self._fields[_POSITION] >= 0
        num_ends_T = (torch.isin(tokens_T, ends) & is_free_T & in_response_T).cumsum(0)
        before_S = torch.cat([num_ends_T.new_zeros(1), num_ends_T])[self._begins_S]
        is_after_end_T = num_ends_T > before_S[self._row_of_token]
        is_masked_T = self._is_masked()
        num_waiting_S = torch.zeros_like(self._begins_S).index_add_(
            0, self._row_of_token, (is_masked_T & ~is_after_end_T).long()
        )
        is_finished_S = (num_waiting_S == 0) & stops_S
        return is_masked_T & is_after_end_T & is_finished_S[self._row_of_token]

    def _hooked_rows(self) -> list[list[_Row]]:
        """The rows of each hook that took this step."""
        hooked = sorted(
            (row for row in self._rows if row.hook is not None),
            key=lambda row: (id(row.filling), row.number),
        )
        return [list(rows) for _, rows in groupby(hooked, key=lambda row: id(row.filling))]

    def _call_hook(
        self,
        rows: list[_Row],
        is_open_T: Bool[Tensor, " T"],
        proposed_T: Int[Tensor, " T"],
        rated_T: Float[Tensor, " T"],
        states: _States | None,
    ) -> None:
        """Shows some rows of one canvas to their hook, and takes over what it edits."""
        filling, hook, turn = rows[0].filling, rows[0].hook, rows[0].turn
        assert hook is not None and turn is not None
        for row in rows:
            self._write_back(row)
        device = self._fields.device
        numbers = torch.tensor([row.number for row in rows], device=device)
        shape = (len(rows), filling.tokens.shape[1])

        def grid(packed_T: Tensor, elsewhere: Tensor) -> Tensor:
            for number, row in enumerate(rows):
                elsewhere[number, row.columns] = packed_T[row.place]
            return elsewhere

        is_open_AL = grid(is_open_T, torch.zeros(shape, dtype=torch.bool, device=device))
        columns_K = is_open_AL.any(dim=0).nonzero()[:, 0]
        nowhere_AL = torch.full(shape, -torch.inf, device=device)

        def make_logits() -> Tensor:
            index_AL = grid(
                torch.arange(len(proposed_T), device=device),
                torch.full(shape, -1, device=device),
            )
            index_AK = index_AL[:, columns_K]
            logits = torch.full((*index_AK.shape, self.model.vocab_size), torch.nan, device=device)
            is_token_AK = index_AK >= 0
            if states is not None:  # else no column is open
                with torch.no_grad():
                    logits[is_token_AK] = states.of_tokens(
                        self.model, rows[0].config.cfg_scale, index_AK[is_token_AK]
                    ).to(logits.dtype)
            return logits

        state = StepState(
            step=turn.step,
            rows=numbers,
            tokens=filling.tokens[numbers],
            committed=filling.commit_step[numbers] == turn.step,
            columns=columns_K,
            proposals=grid(proposed_T, filling.tokens[numbers])[:, columns_K],
            confidence=grid(rated_T, nowhere_AL)[:, columns_K],
            response_start=filling.canvas.response_start,
            mask_token_id=filling.canvas.mask_token_id,
            make_logits=make_logits,
        )
        edited_AL = hook(state)
        if edited_AL is not None:
            filling.edit(turn.step, numbers, edited_AL)
            for row in rows:
                number, place = row.number, row.place
                self._fields[_TOKEN, place] = filling.tokens[number, row.columns]
                self._fields[_COMMIT_STEP, place] = filling.commit_step[number, row.columns]
                self._confidence[place] = filling.confidence[number, row.columns]


@dataclass(frozen=True)
class _States:
    """What logits are made of after a pass of the network."""

    open: Int[Tensor, " N"]
    """The positions that may be filled, among all tokens."""
    states: Float[Tensor, "n D"]
    place: Int[Tensor, " T"] | None
    """Where among the states each token's prediction is read; None if they are the open ones'."""
    blind: Float[Tensor, "m D"] | None = None
    """Those of a canvas in which all that was given is masked, for rows that are guided."""
    blind_place: Int[Tensor, " T"] | None = None

    def of_open(
        self, model: DiffusionLM, cfg_scale: float, index: Int[Tensor, " n"] | slice, part: slice
    ) -> Float[Tensor, "n V"]:
        """The logits of a part of some open positions."""
        tokens_n = self.open[index][part]
        states_nD = self.states[index][part] if self.place is None else None
        return self._logits(model, cfg_scale, tokens_n, states_nD)

    def of_tokens(
        self, model: DiffusionLM, cfg_scale: float, tokens: Int[Tensor, " n"]
    ) -> Float[Tensor, "n V"]:
        """The logits of any tokens, where a hook asks for them."""
        return self._logits(model, cfg_scale, tokens, None)

    def _logits(
        self, model: DiffusionLM, cfg_scale: float, tokens: Tensor, states: Tensor | None
    ) -> Tensor:
        with record_function("mosa.head"):
            if states is None:
                assert self.place is not None, "made whenever a hook may ask"
                states = self.states[self.place[tokens]]
            logits_nV = model.head(states)
            if cfg_scale == 0:
                return logits_nV
            assert self.blind is not None and self.blind_place is not None, "a row is guided"
            return guide(logits_nV, model.head(self.blind[self.blind_place[tokens]]), cfg_scale)


def guide(logits: Tensor, blind: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance as in LLaDA's `generate.py`."""
    return blind + (cfg_scale + 1) * (logits - blind)


def _positions(slices: list[slice], total: int, device: torch.device) -> slice | Tensor:
    """The positions of some slices, as one slice if they are all there are."""
    if sum(part.stop - part.start for part in slices) == total:
        return slice(0, total)
    index = torch.cat([torch.arange(part.start, part.stop) for part in slices])
    return index.to(device, non_blocking=True)


def _ranks(
    rating_N: Float[Tensor, " N"], row_N: Int[Tensor, " N"], num_open: list[int]
) -> Int[Tensor, " N"]:
    """The rank of each position within its row, 0 for the best; ties go to the left."""
    order_N = rating_N.argsort(descending=True, stable=True)
    order_N = order_N[row_N[order_N].argsort(stable=True)]
    begins = torch.tensor(list(accumulate(num_open, initial=0))[:-1])
    places_N = torch.arange(len(row_N), device=row_N.device)
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = places_N - begins.to(row_N.device, non_blocking=True)[row_N]
    return rank_N


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
