"""Where phrases are scored: which rows a batch has, and in which window of which row.

A fully masked model sees one state of the response, in which every start of the window competes
(arXiv 2508.12398, Eq. 3). A block-causal model never meets it after the first block: when a block
opens, the blocks before it are written. So the window is mapped to the blocks that it touches, of
which each prompt draws one in each epoch, behind the beginning of a harmful answer or of an answer
to something harmless:

    window 6..13, blocks of 4 from token 1    blocks 5..8, 9..12, 13..16

A phrase that fits into the block is scored at its best start there, as in the paper. One that does
not begins with the block's first token and runs over: it is written into a row, so that its later
tokens are scored behind its earlier ones. The first refusal that runs over is written into the
prompt's own row, each further phrase into a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mosa.alignment.phrases import Phrase
from mosa.alignment.scoring import Place, Window
from mosa.alignment.states import ResponseState
from mosa.families.attention import AttentionPattern

# B prompts, N rows, R response positions.


@dataclass(frozen=True)
class Placed:
    """The rows of a batch of B prompts: one for each, then those that only single phrases need."""

    states: list[ResponseState]
    prompt_of_row: list[int]
    safe: list[list[Place]]
    """The places of each prompt's safe phrases, with those of its harmful ones below."""
    harmful: list[list[Place]]
    windows: list[Window]
    """Of each prompt: the open block, or the settings' window."""
    targets: Int[Tensor, "N R"]
    """The answer's tokens in each row, whatever phrase is written over them."""
    kept: Bool[Tensor, "N R"]
    """The masked positions that a sampler would meet in these states, where the KL counts."""


def blocks_of_window(
    attention: AttentionPattern, num_prompt: int, window: Window, longest: int
) -> list[Window]:
    """The blocks of a response that a window touches, each as the window that is left of it.

    A block is one of them where a phrase of `longest` tokens fits into what is left, or may run
    over its end without leaving the window.
    """
    shift = attention.shift(num_prompt)
    found: list[Window] = []
    first = window.first
    while first <= window.last:
        end = attention.end_of_block(num_prompt + first, shift) - num_prompt
        if first + longest <= window.end:
            found.append(Window(first, min(end - 1, window.last), min(end, window.end)))
        first = end
    return found


def open_block(
    blocks: Sequence[Window], state: ResponseState, beginning: int, random: np.random.Generator
) -> Window:
    """The block that is open: that of the first mask behind a revealed prefix, else one by chance,
    of those that a beginning of so many tokens reaches, else the first."""
    reached = [block for block in blocks if block.first <= beginning] or list(blocks[:1])
    if state.state == "prefix":
        num_revealed = int((~state.masked).sum())
        at_prefix = [block for block in reached if block.first <= num_revealed < block.end]
        reached = at_prefix or reached
    return reached[int(random.integers(len(reached)))]


def place_phrases(
    states: Sequence[ResponseState],
    windows: Sequence[Window],
    safe: Sequence[Sequence[Phrase]],
    harmful: Sequence[Sequence[Phrase]],
    *,
    in_blocks: bool,
) -> Placed:
    """The rows and places of phrases in each prompt's window: its open block if `in_blocks`, where
    those that run over are written; else the settings' window, into which every phrase fits."""
    rows, prompt_of_row = [*states], [*range(len(states))]
    safe_places: list[list[Place]] = []
    harmful_places: list[list[Place]] = []
    for number, (state, own) in enumerate(zip(states, windows, strict=True)):
        for phrases, found in ((safe[number], safe_places), (harmful[number], harmful_places)):
            places = []
            for phrase in phrases:
                row, window = number, own
                if phrase.max_length > own.end - own.first:
                    phrase, window, written = _running_over(state, own, phrase)
                    if found is safe_places and rows[number] is state:
                        rows[number] = written
                    else:
                        row = len(rows)
                        rows.append(written)
                        prompt_of_row.append(number)
                places.append(Place(row, phrase, window))
            found.append(places)
    length = len(states[0].tokens)
    kept = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, own in enumerate(windows):
        end = own.end if in_blocks else length
        kept[number, :end] = rows[number].masked[:end]
    targets = torch.stack([states[prompt].tokens for prompt in prompt_of_row])
    return Placed(rows, prompt_of_row, safe_places, harmful_places, [*windows], targets, kept)


def _running_over(
    state: ResponseState, block: Window, phrase: Phrase
) -> tuple[Phrase, Window, ResponseState]:
    """A phrase that runs over an open block, in its first variant; where it stands; and the state
    with it written there."""
    ids = phrase.variants[0]
    one = replace(phrase, words=phrase.words[:1], variants=phrase.variants[:1])
    tokens, masked = state.tokens.clone(), state.masked.clone()
    end = block.first + len(ids)
    tokens[block.first : end] = torch.tensor(ids)
    masked[block.first : end] = True
    return one, Window(block.first, block.first, end), replace(state, tokens=tokens, masked=masked)
