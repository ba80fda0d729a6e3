"""The network on rows of different lengths laid end to end: no padding, and only what is asked for.

A forward pass of the sampler needs hidden states at a few positions of each row and no gradients.
This walks over the layers of the transformers library, with its modules and weights (adapters
included), and computes what `DiffusionLM.hidden_states` computes, but

1. rows are packed, so that linear maps and norms never see padding, and attention is taken row by
   row, rows of equal length in one call;
2. the last layer has queries only where hidden states are asked for;
3. with a cache, all layers have queries only where something may have changed, and take the keys
   and values of the other positions from earlier passes (an approximation in full attention,
   where every key depends on every token; arXiv:2505.22618, Section 3.2); in block-causal
   attention nothing is computed for the blocks to come;
4. elementwise work is done in place.

What a layer consists of is read once, in `walk.py`, which refuses what is not computed here.

# T tokens of all rows, Q queries among them, N asked positions among those, S rows, H heads,
# G heads of keys and values, D width, E width of a head
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from mosa.families.attention import AttentionPattern
from mosa.families.walk import Walk


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of the rotary embedding of some positions, [T, 1, F] each.

    The first F numbers of a head are turned with the F after them; the rest of a head, in a
    network that turns only a part of each, stays as it is.
    """

    cos: Float[Tensor, "T 1 F"]
    sin: Float[Tensor, "T 1 F"]

    @classmethod
    def of(cls, network: PreTrainedModel, position_ids: Int[Tensor, " T"]) -> Rotary:
        """As the network's own module makes them, which repeats them for both halves of a head."""
        like = next(network.parameters())
        cos_1TE, sin_1TE = network.model.rotary_emb(like, position_ids=position_ids[None])
        half = cos_1TE.shape[-1] // 2
        return cls(cos_1TE[0, :, None, :half].contiguous(), sin_1TE[0, :, None, :half].contiguous())

    def __getitem__(self, index: Int[Tensor, " n"]) -> Rotary:
        return Rotary(self.cos[index], self.sin[index])

    def __call__(self, heads: Float[Tensor, "T H E"]) -> Float[Tensor, "T H E"]:
        """The heads turned by the angles of their positions, in the format of the angles."""
        if heads.dtype != self.cos.dtype:
            return self(heads.to(self.cos.dtype)).to(heads.dtype)
        half = self.cos.shape[-1]
        sizes = (half, half, heads.shape[-1] - 2 * half)
        first, second, rest = heads.split(sizes, dim=-1)
        turned = torch.empty_like(heads)
        turned_first, turned_second, turned_rest = turned.split(sizes, dim=-1)
        torch.mul(first, self.cos, out=turned_first).addcmul_(second, self.sin, value=-1)
        torch.mul(second, self.cos, out=turned_second).addcmul_(first, self.sin)
        if sizes[2]:
            turned_rest.copy_(rest)
        return turned


@dataclass(frozen=True)
class Selection:
    """Some positions of the packed rows, in the order of the rows."""

    index: Int[Tensor, " n"]
    counts: tuple[int, ...]
    """How many of them each row has."""


def places_among(index: Int[Tensor, " n"], num_tokens: int) -> Int[Tensor, " T"]:
    """The index of each token among the chosen ones; without meaning for the others."""
    place_T = torch.zeros(num_tokens, dtype=torch.long, device=index.device)
    place_T[index] = torch.arange(len(index), device=index.device)
    return place_T


@dataclass(frozen=True)
class Visible:
    """What is there of each row in block-causal attention: the blocks up to the open one."""

    counts: tuple[int, ...]
    """How many tokens of each row, from its first on, are keys."""
    shifts: tuple[int, ...]
    """How many places of its first block come before each row's first token."""
    to_all: bool
    """Whether every query sees all keys of its row."""


@dataclass
class KeyValueCache:
    """Keys and values of every token at the latest pass in which it was a query, by layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def update(
        self, layer: int, keys: Tensor, values: Tensor, queries: Tensor | None, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Takes over those of the queries (None: of all tokens), and returns those of all."""
        if queries is None:
            self.layers[layer : layer + 1] = [(keys, values)]
        else:
            if layer == len(self.layers):
                empty = [new.new_empty(num_tokens, *new.shape[1:]) for new in (keys, values)]
                self.layers.append((empty[0], empty[1]))
            for stored, new in zip(self.layers[layer], (keys, values), strict=True):
                stored.index_copy_(0, queries, new)
        return self.layers[layer]

    def repack(self, index: Int[Tensor, " T"]) -> None:
        """Rearranges the tokens: the one at i comes from `index[i]`."""
        self.layers = [(keys[index], values[index]) for keys, values in self.layers]


def packed_hidden_states(
    walk: Walk,
    tokens: Int[Tensor, " T"],
    rotary: Rotary,
    lengths: tuple[int, ...],
    *,
    queries: Selection | None = None,
    asked: Selection | None = None,
    cache: KeyValueCache | None = None,
    visible: Visible | None = None,
    hidden: dict[int, Tensor] | None = None,
) -> Float[Tensor, "N D"]:
    """What goes into the LM head, at the `asked` positions (None: at all queries).

    `lengths` are those of the rows, in order; equal ones should be adjacent. `queries` (None:
    all tokens) are the positions whose states are recomputed; others need a `cache` that has
    seen them. `visible` (None: all) says which keys the rows have. `asked` positions index the
    packed tokens and must be among the queries. What the layers that are keys of `hidden` (from 1)
    put out at the queries is written there, at the `asked` positions in the last. Runs without
    gradients, which the caller turns off.
    """
    body = walk.body
    device = tokens.device
    num_tokens = len(tokens)
    num_queries = lengths if queries is None else queries.counts
    query_index = None if queries is None else queries.index
    if visible is None:
        visible = Visible(lengths, (0,) * len(lengths), to_all=walk.attention.is_full)
    place_Q = None
    if not visible.to_all:  # places of the packed tokens, counted from the begin of the first block
        ranges = [torch.arange(s, s + n) for n, s in zip(lengths, visible.shifts, strict=True)]
        place_Q = torch.cat(ranges).to(device, non_blocking=True)
    if queries is not None:
        tokens, rotary = tokens[queries.index], rotary[queries.index]
        place_Q = None if place_Q is None else place_Q[queries.index]
        if asked is not None:
            asked = Selection(places_among(queries.index, sum(lengths))[asked.index], asked.counts)
    calls = attention_calls(num_queries, lengths, visible.counts, device)
    masks = calls.masks(walk.attention, place_Q, visible.shifts)
    last = len(walk.layers) - 1

    states = body.embed_tokens(tokens)
    for number, layer in enumerate(walk.layers):
        attention = layer.module.self_attn
        normed = _norm(layer.module.input_layernorm, states)
        keys = _heads(attention.k_proj, normed, attention.head_dim)
        if layer.has_head_norms:
            keys = _norm(attention.k_norm, keys)
        keys = rotary(keys)
        values = _heads(attention.v_proj, normed, attention.head_dim)
        if cache is not None:
            keys, values = cache.update(number, keys, values, query_index, num_tokens)
        if number == last and asked is not None:
            normed, states, rotary = normed[asked.index], states[asked.index], rotary[asked.index]
            calls = attention_calls(asked.counts, lengths, visible.counts, device)
            place_N = None if place_Q is None else place_Q[asked.index]
            masks = calls.masks(walk.attention, place_N, visible.shifts)
        heads = _heads(attention.q_proj, normed, attention.head_dim)
        if layer.has_head_norms:
            heads = _norm(attention.q_norm, heads)
        mixed = calls(rotary(heads), keys, values, attention.scaling, masks)
        states = attention.o_proj(mixed).add_(states)
        mlp = layer.module.mlp
        normed = _norm(layer.module.post_attention_layernorm, states)
        if layer.is_mixture:
            added = mlp(normed[None])[0]
        else:
            gated = functional.silu(mlp.gate_proj(normed), inplace=True).mul_(mlp.up_proj(normed))
            added = mlp.down_proj(gated)
        states = added.add_(states)
        if hidden is not None and number + 1 in hidden:
            hidden[number + 1] = states
    return _norm(body.norm, states)


def _heads(projection: nn.Module, states: Tensor, head_dim: int) -> Tensor:
    return projection(states).unflatten(-1, (-1, head_dim))


def _norm(module: Any, states: Tensor) -> Tensor:
    return functional.rms_norm(states, (states.shape[-1],), module.weight, module.variance_epsilon)


@dataclass(frozen=True)
class _Call:
    """One call of the attention kernel: rows with the same number of keys."""

    rows: tuple[int, ...]
    num_keys: int
    """How many keys each row has."""
    queries: slice | Tensor
    """The places of the rows' queries, [num_rows * most]; rows with fewer repeat their last."""
    keys: slice | Tensor
    """The places of the rows' keys, as many for each row; what is behind the first `num_keys` of
    them is not seen."""
    kept: Tensor | None
    """Which of the outputs are not repetitions; None if all are kept."""

    def in_rows(self, packed: Float[Tensor, "n H E"]) -> Float[Tensor, "rows H each E"]:
        """The heads of packed tokens, row by row."""
        return packed.unflatten(0, (len(self.rows), -1)).transpose(1, 2)

    def seen(self, packed: Float[Tensor, "T G E"]) -> Float[Tensor, "rows G num_keys E"]:
        """The heads of the rows' keys or values, which are not copied if `keys` is a slice."""
        return self.in_rows(packed[self.keys])[:, :, : self.num_keys]


@dataclass(frozen=True)
class AttentionCalls:
    """How the attention of packed rows is taken in as few calls as can be without padding keys."""

    calls: Sequence[_Call]
    order: Tensor | None
    """The index of each query's output among those of all calls; None if they are in order."""

    def __call__(
        self,
        queries: Float[Tensor, "Q H E"],
        keys: Float[Tensor, "T G E"],
        values: Float[Tensor, "T G E"],
        scaling: float,
        masks: Sequence[Bool[Tensor, "_ 1 _ _"] | None],
    ) -> Float[Tensor, "Q HE"]:
        """The heads' outputs side by side, for every query in its own row."""
        is_grouped = queries.shape[1] != keys.shape[1]
        outputs = []
        for call, mask in zip(self.calls, masks, strict=True):
            mixed = functional.scaled_dot_product_attention(
                call.in_rows(queries[call.queries]),
                call.seen(keys),
                call.seen(values),
                attn_mask=mask,
                scale=scaling,
                enable_gqa=is_grouped,
            )
            mixed = mixed.transpose(1, 2).flatten(0, 1).flatten(1)
            outputs.append(mixed if call.kept is None else mixed[call.kept])
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return together if self.order is None else together[self.order]

    def masks(
        self,
        attention: AttentionPattern,
        place_Q: Int[Tensor, " Q"] | None,
        shifts: tuple[int, ...],
    ) -> Sequence[Bool[Tensor, "_ 1 _ _"] | None]:
        """For each call, which keys its queries see; `place_Q` holds their places in their rows,
        and is None where all see all, which needs no masks."""
        if place_Q is None:
            return [None] * len(self.calls)
        found = []
        for call in self.calls:
            query_places = place_Q[call.queries].unflatten(0, (len(call.rows), -1))
            begins = torch.tensor([shifts[row] for row in call.rows])[:, None]
            key_places = begins + torch.arange(call.num_keys)
            sees = attention.sees(query_places, key_places.to(place_Q.device, non_blocking=True))
            found.append(sees[:, None])
        return found


@functools.lru_cache(maxsize=64)
def attention_calls(
    num_queries: tuple[int, ...],
    lengths: tuple[int, ...],
    num_keys: tuple[int, ...],
    device: torch.device,
) -> AttentionCalls:
    """One call per number of keys; rows with all their queries are separate from those with few.

    A row of `lengths` tokens has the first `num_keys` of them as keys.
    """
    query_begin = list(accumulate(num_queries, initial=0))
    key_begin = list(accumulate(lengths, initial=0))
    rows = [row for row in range(len(num_keys)) if num_queries[row]]

    def kind(row: int) -> tuple[int, bool]:
        return num_keys[row], num_queries[row] == num_keys[row]

    calls, sequence = [], []
    for _, group in groupby(sorted(rows, key=kind), key=kind):
        chosen = list(group)
        most = max(num_queries[row] for row in chosen)
        is_equal = all(num_queries[row] == most for row in chosen)
        is_together = chosen == list(range(chosen[0], chosen[-1] + 1))
        are_alike = all(lengths[row] == lengths[chosen[0]] for row in chosen)
        if is_together and are_alike:
            keys = slice(key_begin[chosen[0]], key_begin[chosen[-1] + 1])
        else:
            keys = _ranges([key_begin[r] for r in chosen], num_keys[chosen[0]], device)
        kept = None
        if is_equal and is_together:
            query_at = slice(query_begin[chosen[0]], query_begin[chosen[-1] + 1])
        elif is_equal:
            query_at = _ranges([query_begin[r] for r in chosen], most, device)
        else:
            counts = torch.tensor([num_queries[r] for r in chosen])[:, None]
            offsets = torch.arange(most)
            kept = (offsets < counts).flatten().nonzero()[:, 0].to(device, non_blocking=True)
            begins = torch.tensor([query_begin[r] for r in chosen])[:, None]
            query_at = (
                (begins + offsets.minimum(counts - 1)).flatten().to(device, non_blocking=True)
            )
        calls.append(_Call(tuple(chosen), num_keys[chosen[0]], query_at, keys, kept))
        sequence += chosen
    order = None
    if sequence != rows:
        places = [torch.arange(query_begin[r], query_begin[r + 1]) for r in sequence]
        order = torch.cat(places).argsort().to(device, non_blocking=True)
    return AttentionCalls(calls, order)


def _ranges(begins: Sequence[int], length: int, device: torch.device) -> Tensor:
    """`length` consecutive numbers from each begin."""
    grid = torch.tensor(begins)[:, None] + torch.arange(length)
    return grid.flatten().to(device, non_blocking=True)
