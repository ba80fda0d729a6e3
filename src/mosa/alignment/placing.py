"""Where phrases are scored: which rows a batch has, and in which window of which row.

A fully masked model sees one state of the response, in which every start of the window competes
(arXiv 2508.12398, Eq. 3). A block-causal model never meets it after the first block: when a block
opens, the blocks before it are written. So the window is mapped to the blocks that it touches, of
which each prompt draws one in each epoch, behind the beginning of a harmful answer or of an answer
to something harmless:

    window 6..13, blocks of 4 from token 1    blocks 5..8, 9..12, 13..16

A phrase that fits into the block is scored at its best start there, as in the paper. One that does
not begins with the block's first token and runs over: it is written into the row, so that its later
tokens are scored behind its earlier ones. A harmful phrase that runs over has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mosa.alignment.phrases import Phrase
from mosa.alignment.scoring import PhraseScorer, Window
from mosa.alignment.states import ResponseState
from mosa.families.attention import AttentionPattern

# B prompts, N rows, R response positions.


@dataclass(frozen=True)
class Placed:
    """The rows of a batch of B prompts: one for each, then those that only harmful phrases need."""

    states: list[ResponseState]
    harmful_rows: list[int]
    """The row on which each prompt's harmful phrases are scored."""
    safe: list[list[Phrase]]
    harmful: list[list[Phrase]]
    safe_windows: list[Window]
    harmful_windows: list[Window]
    kept: Bool[Tensor, "N R"]
    """The masked positions that a sampler would meet in these states, where the KL counts."""

    @property
    def prompt_of_row(self) -> list[int]:
        """The prompt of each row."""
        extra = [
            prompt for prompt, row in enumerate(self.harmful_rows) if row >= len(self.safe_windows)
        ]
        return [*range(len(self.safe_windows)), *extra]


def placed_anywhere(
    scorer: PhraseScorer,
    states: list[ResponseState],
    safe: list[list[Phrase]],
    harmful: list[list[Phrase]],
) -> Placed:
    """Of a model with full attention: every prompt's row, and the settings' window."""
    windows = [scorer.window_of_state(state) for state in states]
    kept = torch.stack([state.masked for state in states])
    return Placed(states, [*range(len(states))], safe, harmful, windows, windows, kept)


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


def placed_in_blocks(
    states: Sequence[ResponseState],
    blocks: Sequence[Window],
    safe: Sequence[list[Phrase]],
    harmful: Sequence[list[Phrase]],
) -> Placed:
    """Of a block-causal model: each prompt's open block, with phrases that run over written."""
    rows, extra, harmful_rows = [], [], []
    safe_found: list[tuple[list[Phrase], Window]] = []
    harmful_found: list[tuple[list[Phrase], Window]] = []
    for number, (state, block) in enumerate(zip(states, blocks, strict=True)):
        safe_phrases, safe_window, safe_state = _in_block(state, block, safe[number])
        phrases, window, harmful_state = _in_block(state, block, harmful[number])
        safe_found.append((safe_phrases, safe_window))
        harmful_found.append((phrases, window))
        rows.append(safe_state)
        if harmful_state is state:
            harmful_rows.append(number)
        else:
            harmful_rows.append(len(states) + len(extra))
            extra.append(harmful_state)
    masked = torch.stack([state.masked for state in [*rows, *extra]])
    kept = torch.zeros_like(masked)
    for number, block in enumerate(blocks):
        kept[number, : block.end] = masked[number, : block.end]
    return Placed(
        [*rows, *extra],
        harmful_rows,
        [phrases for phrases, _ in safe_found],
        [phrases for phrases, _ in harmful_found],
        [window for _, window in safe_found],
        [window for _, window in harmful_found],
        kept,
    )


def _in_block(
    state: ResponseState, block: Window, phrases: list[Phrase]
) -> tuple[list[Phrase], Window, ResponseState]:
    """The phrases as they are scored in an open block, where, and in which state: a phrase that
    runs over is written into it, in its first variant."""
    longest = max(phrase.max_length for phrase in phrases)
    if longest <= block.end - block.first:
        return phrases, block, state
    (phrase,) = phrases
    ids = phrase.variants[0]
    one = replace(phrase, words=phrase.words[:1], variants=phrase.variants[:1])
    tokens, masked = state.tokens.clone(), state.masked.clone()
    end = block.first + len(ids)
    tokens[block.first : end] = torch.tensor(ids)
    masked[block.first : end] = True
    window = Window(block.first, block.first, end)
    return [one], window, replace(state, tokens=tokens, masked=masked)
