"""The model's part of a step: one pass of the network over all rows, and what is read from it.

# S rows of the batch, T tokens of all rows, N masked positions that may be filled, D width,
# V vocabulary, n and m some of the tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.profiler import record_function

from mosa.denoising.rows import FREE, BatchRow, PackedRows
from mosa.denoising.rules import Guidance
from mosa.families.base import DiffusionLM
from mosa.families.packed import Selection, Visible, places_among


@dataclass(frozen=True)
class Opened:
    """The masked positions that may be filled in a step, row after row."""

    index: Int[Tensor, " N"]
    """Where they are among the tokens of all rows."""
    row: Int[Tensor, " N"]
    """The row of each."""
    step: Int[Tensor, " N"]
    """The step of each one's row."""
    num: tuple[int, ...]
    """How many each row has."""
    count: Int[Tensor, " S"]
    """How many each row commits at least."""

    def of_rows(self, numbers: Iterable[int | float]) -> Num[Tensor, " N"]:
        """A number for each row, at each position of it."""
        numbers_S = torch.tensor(list(numbers)).to(self.row.device, non_blocking=True)
        return numbers_S[self.row]

    @property
    def begins(self) -> list[int]:
        """The first place of each row among the positions."""
        return list(accumulate(self.num, initial=0))[:-1]


@dataclass(frozen=True)
class PassStates:
    """What logits are made of after a pass of the network."""

    model: DiffusionLM
    open: Int[Tensor, " N"]
    """The positions that may be filled, among all tokens."""
    states: Float[Tensor, "n D"]
    place: Int[Tensor, " T"] | None
    """Where among the states each token's prediction is read; None if they are the open ones'."""
    computed: Int[Tensor, " q"] | None
    """The tokens that the pass computed; None if all."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """What the layers that monitors read (from 1) put out at the computed tokens."""
    other: Float[Tensor, "m D"] | None = None
    """The states of the second pass, for rows that are guided."""
    other_place: Int[Tensor, " T"] | None = None

    def of_open(
        self, guidance: Guidance | None, index: Int[Tensor, " n"] | slice, part: slice
    ) -> Float[Tensor, "n V"]:
        """The logits of a part of some open positions."""
        states_nD = self.states[index][part] if self.place is None else None
        return self.of_tokens(guidance, self.open[index][part], states_nD)

    def of_tokens(
        self,
        guidance: Guidance | None,
        tokens: Int[Tensor, " n"],
        states: Float[Tensor, "n D"] | None = None,
    ) -> Float[Tensor, "n V"]:
        """The logits of any tokens; their states are found where a hook or a monitor may ask."""
        with record_function("mosa.head"):
            if states is None:
                assert self.place is not None, "made whenever a hook or a monitor may ask"
                states = self.states[self.place[tokens]]
            logits_nV = self.model.head(states)
            if guidance is None:
                return logits_nV
            assert self.other is not None and self.other_place is not None, "a row is guided"
            return guidance.combine(
                logits_nV, self.model.head(self.other[self.other_place[tokens]])
            )


def run_pass(model: DiffusionLM, packed: PackedRows, opened: Opened) -> PassStates:
    """One pass of the network for what the open positions' logits are made of; for those of all
    tokens where a hook or a monitor may ask for others; and a second pass for rows that are guided.
    """
    packed.count_pass()
    with record_function("mosa.network"):
        read_T, visible = packed.read_T, None
        if model.attention.is_full:
            queries = _queries(packed, shifted=model.family.logits_shifted)
        else:
            queries, visible = _block_causal_queries(model, packed)
        monitors = [monitor for row in packed.rows for monitor, _ in row.monitors]
        hidden = {layer: torch.empty(0) for monitor in monitors for layer in monitor.layers}
        reads_all = bool(hidden) or any(monitor.reads_logits for monitor in monitors)
        reads_all |= any(row.hook is not None for row in packed.rows)
        asked = None if reads_all else Selection(read_T[opened.index], opened.num)
        states_nD = model.packed_hidden_states(
            packed.tokens_T,
            packed.rotary,
            packed.lengths,
            queries=queries,
            asked=asked,
            cache=packed.cache,
            visible=visible,
            hidden=hidden,
        )
        computed = None if queries is None else queries.index
        place_T = None
        if reads_all:
            place_T = read_T if computed is None else places_among(computed, len(read_T))[read_T]
        other = other_place_T = None
        guided = [row for row in packed.rows if row.config.guidance is not None]
        if guided:
            other, other_place_T = _second_pass(model, packed, guided)
        return PassStates(
            model, opened.index, states_nD, place_T, computed, hidden, other, other_place_T
        )


def _second_pass(
    model: DiffusionLM, packed: PackedRows, guided: list[BatchRow]
) -> tuple[Float[Tensor, "m D"], Int[Tensor, " T"]]:
    """The states of the tokens that the rows' guidance asks for, and where each token's are."""
    device = packed.fields.device
    index, tokens = [], []
    for guidance, alike in groupby(guided, key=lambda row: row.config.guidance):
        assert guidance is not None
        ranges = [torch.arange(row.begin, row.begin + row.length) for row in alike]
        index.append(torch.cat(ranges).to(device, non_blocking=True))
        given = packed.fields[FREE, index[-1]] == 0
        tokens.append(guidance.other_tokens(packed.tokens_T[index[-1]], given, model.mask_token_id))
    index = torch.cat(index)
    lengths, shifts = zip(*((row.length, row.shift) for row in guided), strict=True)
    states = model.packed_hidden_states(
        torch.cat(tokens),
        packed.rotary[index],
        lengths,
        visible=Visible(lengths, shifts, to_all=model.attention.is_full),
    )
    return states, places_among(index, len(packed.read_T))[packed.read_T]


def _block_causal_queries(model: DiffusionLM, packed: PackedRows) -> tuple[Selection, Visible]:
    """What is computed in block-causal attention, and what of each row is there for it.

    The blocks to come are invisible. The blocks before the first with a mask have their keys and
    values since the pass after their last change, so nothing is computed twice and nothing is
    approximated.
    """
    chosen, counts, to_all = [], [], True
    for row in packed.rows:
        planned = row.planned
        assert planned is not None
        if not planned.num_rated:
            chosen.append(torch.arange(0))
            counts.append(row.length)
            continue
        opened = (row.host_block >= 0) & (row.host_block <= planned.block)
        last = int(opened.nonzero()[-1, 0])
        end = min(model.attention.end_of_block(last, row.shift), row.length)
        begin = row.num_settled
        if model.family.logits_shifted:  # the first of a block is read to its left
            begin = max(0, begin - 1)
        to_all &= begin >= model.attention.begin_of_block(end - 1, row.shift)
        chosen.append(torch.arange(row.begin + begin, row.begin + end))
        counts.append(end)
        # What this step writes changes the keys of its block, and of those that follow.
        first = int((row.host_block >= planned.first_open).nonzero()[0, 0])
        row.num_settled = model.attention.begin_of_block(first, row.shift)
    index = torch.cat(chosen).to(packed.fields.device, non_blocking=True)
    visible = Visible(tuple(counts), tuple(row.shift for row in packed.rows), to_all)
    return Selection(index, tuple(map(len, chosen))), visible


def _queries(packed: PackedRows, *, shifted: bool) -> Selection | None:
    """The tokens that are recomputed in full attention; None for all of them."""
    if packed.cache is None:
        return None
    chosen = []
    for row in packed.rows:
        config, planned = row.config, row.planned
        assert planned is not None
        row.cached_steps += 1
        is_stale = (
            config.cache == "none"
            or row.cached_block != planned.block
            or (config.cache_refresh is not None and row.cached_steps >= config.cache_refresh)
        )
        if is_stale:
            row.cached_block, row.cached_steps = planned.block, 0
            chosen.append(torch.arange(row.begin, row.begin + row.length))
            continue
        is_active = row.host_block == planned.block
        if config.cache == "prefix":
            is_active = row.host_block >= planned.block
        if shifted:  # the first of a block is read to its left
            is_active[:-1] |= is_active[1:].clone()
        chosen.append(row.begin + is_active.nonzero()[:, 0])
    counts = tuple(map(len, chosen))
    if counts == packed.lengths:
        return None
    index = torch.cat(chosen).to(packed.fields.device, non_blocking=True)
    return Selection(index, counts)
