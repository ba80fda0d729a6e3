"""Which training prompts are near-duplicates of requests in an evaluation set.

Two texts are near-duplicates if the Jaccard similarity of their sets of words reaches a threshold:

    "How do I bake bread?"         {how, do, i, bake, bread}
    "How do I bake rye bread?"     {how, do, i, bake, rye, bread}      5 shared of 6: 0.83

A paraphrase in other words is not found: 0 pairs do not prove that a set is unseen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mosa.data.behaviors import load_cases
from mosa.data.prompts import load_prompts
from mosa.types import CaseSet, UserError, dialogue

THRESHOLD = 0.7
MOST_PAIRS = 1_000_000
"""More near-duplicates than that are not listed: two files of one template have as many as the
product of their lengths."""
MOST_SHARED = 30_000_000_000
"""Times that a word of one side is found in a text of the other: some minutes. Two files of 10,000
lines of one template, ten words each, come to a thirtieth."""


@dataclass(frozen=True)
class Overlap:
    """A training text and an evaluation text that are near-duplicates."""

    train_index: int
    """Its place among the training texts, from 0."""
    eval_index: int
    """Its place among the evaluation texts, from 0."""
    similarity: float
    """Shared words / all words of the two, from the threshold to 1."""


@dataclass(frozen=True)
class OverlapReport:
    """How far a file of training prompts and a set of behaviors coincide."""

    num_train: int
    evaluation: CaseSet
    threshold: float
    pairs: tuple[Overlap, ...]
    """Every pair that reaches the threshold; `eval_index` counts in `evaluation.cases`, where the
    first of several with the same words stands for all."""

    @property
    def train_indices(self) -> tuple[int, ...]:
        """The training examples (from 0) with a near-duplicate: those to drop."""
        return tuple(sorted({pair.train_index for pair in self.pairs}))


def describe_overlap(
    train_path: str | Path,
    eval_source: str,
    *,
    threshold: float = THRESHOLD,
    data_dir: Path | None = None,
) -> OverlapReport:
    """The near-duplicates between a file of training prompts and a set of behaviors.

    The file is read by `load_prompts`, the set by `load_cases`. Of a dialogue its last turn is
    compared. A behavior with a context is compared both with and without it, since a training file
    may have either; the higher similarity counts.
    """
    train = [dialogue(example.prompt)[-1].content for example in load_prompts(train_path)]
    evaluation = load_cases(eval_source, data_dir=data_dir)
    texts = [(number, item.text) for number, item in enumerate(evaluation.cases)]
    texts += [(n, item.request) for n, item in enumerate(evaluation.cases) if item.context]
    best: dict[tuple[int, int], float] = {}
    for pair in overlap(train, [text for _, text in texts], threshold):
        place = pair.train_index, texts[pair.eval_index][0]
        best[place] = max(best.get(place, 0.0), pair.similarity)
    pairs = tuple(Overlap(*place, similarity) for place, similarity in sorted(best.items()))
    return OverlapReport(len(train), evaluation, threshold, pairs)


def overlap(
    train: Sequence[str], evaluation: Sequence[str], threshold: float = THRESHOLD
) -> list[Overlap]:
    """Every pair of texts whose sets of lowercased words have a Jaccard similarity >= threshold.

    In the order of the training texts, then of the evaluation texts. Of evaluation texts with the
    same words the first stands for all. A text without a word has no near-duplicate. Raises
    UserError for more than `MOST_PAIRS`.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"The threshold is {threshold}; choose one above 0 and at most 1.")
    train_places, eval_places = _places(train), _places(evaluation)
    places, sizes = [*train_places.values()], np.array([*map(len, train_places)])
    held: defaultdict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(train_places):
        for word in words:
            held[word].append(number)
    holders = {word: np.array(numbers) for word, numbers in held.items()}
    cost = sum(len(holders.get(word, ())) for words in eval_places for word in words)
    if cost > MOST_SHARED:
        raise UserError(
            f"The two sides share words {cost:,} times, more than {MOST_SHARED:,}; compare fewer "
            "texts."
        )

    found: list[Overlap] = []
    for words, (eval_index, *_) in eval_places.items():
        # How many of these words each training text has; one pass over their holders, since texts
        # of one template share most words with all others.
        known = [holders[word] for word in words if word in holders]
        if not known:
            continue
        shared = np.bincount(np.concatenate(known), minlength=len(sizes))
        near = np.flatnonzero(shared >= threshold * len(words) - 1e-9)  # fewer are too few
        similarity = shared[near] / (sizes[near] + len(words) - shared[near])
        is_alike = similarity >= threshold
        for number, alike in zip(near[is_alike], similarity[is_alike], strict=True):
            found += [Overlap(place, eval_index, float(alike)) for place in places[int(number)]]
        if len(found) > MOST_PAIRS:
            raise UserError(
                f"More than {MOST_PAIRS:,} pairs are near-duplicates at the threshold {threshold}: "
                "most texts of both sides are alike; raise the threshold, or compare fewer texts."
            )
    return sorted(found, key=lambda pair: (pair.train_index, pair.eval_index))


def _places(texts: Sequence[str]) -> dict[frozenset[str], list[int]]:
    """Where each set of words stands."""
    places: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        places[frozenset(re.findall(r"\w+", text.lower()))].append(place)
    return places
