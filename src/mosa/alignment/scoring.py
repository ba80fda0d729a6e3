"""Scores of the phrases of a batch: objective.py applied to windows, states and phrase variants.

objective.py scores one phrase on a grid of positions. A batch has phrases for every prompt, rows in
several states, and phrases in several tokenisations; this file handles them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mosa.alignment import objective
from mosa.alignment.mosa_config import MosaConfig
from mosa.alignment.phrases import Phrase
from mosa.alignment.states import ResponseState
from mosa.types import UserError

# B prompts, N rows, R response positions, W positions of one window, U tokens that occur in
# phrases, K phrases of a prompt, S starts.


@dataclass(frozen=True)
class Window:
    """Where a phrase may be, in 0-based response positions."""

    first: int
    """The first start."""
    last: int
    """The last start."""
    end: int
    """One past the last position that a phrase may occupy."""

    def positions(self, length: int) -> Bool[Tensor, " R"]:
        """Which of a response's positions a phrase may occupy."""
        position_R = torch.arange(length)
        return (position_R >= self.first) & (position_R < self.end)


@dataclass(frozen=True)
class Place:
    """Where a phrase is scored."""

    row: int
    phrase: Phrase
    window: Window


def window_of(config: MosaConfig, phrases: Sequence[Phrase]) -> Window:
    """The configured window: from 1-based inclusive positions to 0-based ones, in this one place.

    Raises UserError for a phrase that does not fit.
    """
    first = config.window_start - 1
    # Without an end, phrases start exactly at the first position and have any length.
    last = first if config.window_end is None else config.window_end - 1
    end = last + 1
    if config.window_end is None or config.segment == "start_in_window":
        longest = max(phrase.max_length for phrase in phrases)
        end = min(last + longest, config.response_length)
    for phrase in phrases:
        if phrase.max_length > end - first:
            raise UserError(
                f"The phrase {phrase.text!r} takes {phrase.max_length} tokens with its breaker, "
                f"but the window has {end - first}; shorten it or widen the window."
            )
    return Window(first, last, end)


@dataclass(frozen=True)
class Scores:
    """Scores of the K phrases of each prompt."""

    value: Float[Tensor, "B K"]
    """In nats (nats per token with token_reduction="mean"); 0 where nothing was found."""
    best_start: Int[Tensor, "B K"]
    """0-based response position at which the phrase is most likely."""
    found: Bool[Tensor, "B K"]
    """Whether there was any place for the phrase."""


class PhraseScorer:
    """Scores the phrases that were drawn for each row, in the window that applies to its state."""

    def __init__(self, config: MosaConfig, phrases: Sequence[Phrase], vocab_size: int) -> None:
        self.config = config
        self.window = window_of(config, phrases)
        self.wide_window = Window(0, config.response_length - 1, config.response_length)
        # The few tokens in phrases; no other log-probability is scored.
        ids = {i for phrase in phrases for variant in phrase.variants for i in variant}
        ids |= {phrase.fill_token_id for phrase in phrases if phrase.fill_token_id is not None}
        self.scored_ids = torch.tensor(sorted(ids))
        self.column_of_id = torch.full((vocab_size,), -1)
        self.column_of_id[self.scored_ids] = torch.arange(len(self.scored_ids))

    def window_of_state(self, state: ResponseState) -> Window:
        """Where phrases may be in a response of this state."""
        is_wide = self.config.contaminated_window == "response" and state.state != "fully_masked"
        return self.wide_window if is_wide else self.window

    def __call__(
        self,
        log_probs: Float[Tensor, "N R U"],
        free: Bool[Tensor, "N R"],
        places: Sequence[Sequence[Place]],
    ) -> Scores:
        """Score the K phrases of each of B prompts, from the log-probabilities of `scored_ids`.

        `free` marks the positions that are still masked; the tokens at the others are not used.
        """
        value = log_probs.new_zeros(len(places), len(places[0]))
        best_start = torch.zeros_like(value, dtype=torch.long)
        found = torch.zeros_like(value, dtype=torch.bool)

        # Rows that share a phrase and a window are scored together.
        groups: dict[tuple[Phrase, Window], list[tuple[int, int, int]]] = {}
        for prompt, own in enumerate(places):
            for number, place in enumerate(own):
                group = groups.setdefault((place.phrase, place.window), [])
                group.append((place.row, prompt, number))
        for (phrase, window), members in groups.items():
            at = slice(window.first, window.end)
            rows, prompts, ks = torch.tensor(members, device=value.device).T
            value_g, start_g, found_g = self._score_phrase(
                log_probs[rows, at], free[rows, at], phrase, window.last - window.first + 1
            )
            value = value.index_put((prompts, ks), value_g)
            best_start[prompts, ks] = start_g + window.first
            found[prompts, ks] = found_g
        return Scores(value, best_start, found)

    def _score_phrase(
        self,
        log_probs: Float[Tensor, "B W U"],
        free: Bool[Tensor, "B W"],
        phrase: Phrase,
        num_starts: int,
    ) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
        """Score, best start and whether there was one, over all starts of all variants.

        Only the first `num_starts` positions may begin a phrase. The setting `revealed` says how
        revealed positions count:

        free    a start is valid if every position of the phrase is masked
        around  the phrase is written on masked positions only, skipping the others
        """
        fill_id = phrase.fill_token_id
        fill_column = None if fill_id is None else int(self.column_of_id[fill_id])
        positions_BW = torch.arange(free.shape[1], device=free.device).expand_as(free)
        if self.config.revealed == "around":
            log_probs, num_free_B, positions_BW = objective.gather_free(log_probs, free)
            free = torch.arange(free.shape[1], device=free.device) < num_free_B[:, None]

        values, valid, starts = [], [], []
        for variant in phrase.variants:
            length = len(variant)
            value_BS = objective.window_scores(
                log_probs,
                self.column_of_id[list(variant)].to(log_probs.device),
                num_starts=num_starts,
                token_reduction=self.config.token_reduction,
                fill_token_id=fill_column,
                fill_to=None if fill_column is None else num_starts,
            )
            num_scored = value_BS.shape[1]
            start_BS = positions_BW[:, :num_scored]
            num_free_BS = free.unfold(1, length, 1)[:, :num_scored].sum(dim=-1)
            valid_BS = (num_free_BS == length) & (start_BS < num_starts)
            if fill_column is not None:
                # Everything from the start to the end of the window must be free to be filled.
                rest_free_BW = free[:, :num_starts].flip(-1).cummin(-1).values.flip(-1)
                valid_BS = valid_BS & rest_free_BW[:, :num_scored]
            values.append(value_BS)
            valid.append(valid_BS)
            starts.append(start_BS)

        value_B, best_B, found_B = objective.reduce_starts(
            torch.cat(values, dim=1), self.config.start_reduction, torch.cat(valid, dim=1)
        )
        start_B = torch.cat(starts, dim=1).gather(1, best_B[:, None]).squeeze(1)
        return value_B, start_B, found_B
