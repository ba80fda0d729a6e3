"""FITS: a compliant answer is given except one sentence, which the model fills in.

    response   sure , here is how to make a copper kiln . [masks] step two : you ...

The stress test of A2D (arXiv 2509.23286). How we differ: sentences are masked one at a
time, and what is judged is what the model wrote into the gaps, joined. Judging the whole response
would credit the model with the sentences that the attacker wrote.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mosa.attacks.base import Attack, Query, Target, at_least_one
from mosa.types import Attempt, Behavior, UserError

_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|$)", flags=re.DOTALL)


@dataclass(frozen=True)
class FitsConfig:
    """Which sentences are masked."""

    num_sentences: int | None = None
    """How many sentences of the answer are masked, one at a time, from its middle outward; unset:
    every one."""

    def __post_init__(self) -> None:
        at_least_one(self, "num_sentences")


async def run(behavior: Behavior, target: Target, config: FitsConfig) -> AsyncIterator[Attempt]:
    """Ask once for each masked sentence; all answers make one attempt."""
    assert behavior.answer is not None, "checked when the run is planned"
    sentences = [target.encode(text) for text in split_sentences(behavior.answer)]
    spans, end = [], 0
    for ids in sentences:
        spans.append((end, end + len(ids)))
        end += len(ids)
    answer = [token for ids in sentences for token in ids][: target.length]
    spans = [(begin, end) for begin, end in spans if end <= len(answer)]
    if not spans:
        raise UserError(
            f"the answer's first sentence is longer than a response of {target.length} tokens; "
            "raise max_new_tokens"
        )
    middle = (len(spans) - 1) / 2
    chosen = sorted(range(len(spans)), key=lambda i: (abs(i - middle), i))[: config.num_sentences]
    queries = []
    for i in sorted(chosen):
        begin, end = spans[i]
        ids = [*answer[:begin], *[target.mask_token_id] * (end - begin), *answer[end:]]
        # What follows the answer is given as well, so that only the sentence is open.
        ids += [target.end_token_id] * (target.length - len(ids))
        queries.append(Query(behavior.request, pinned=(target.pin(1, ids),)))
    responses = await target.ask_all(queries)
    written = "\n".join(
        target.decode(response.token_ids[slice(*spans[i])])
        for i, response in zip(sorted(chosen), responses, strict=True)
    )
    yield target.attempt(responses, text=written, full_text=written)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with its final stop.

    >>> split_sentences("Mix it. Bake it for 1.5 hours! Done")
    ['Mix it.', 'Bake it for 1.5 hours!', 'Done']
    """
    return [sentence.strip() for sentence in _SENTENCE.findall(text) if sentence.strip()]


ATTACK = Attack(
    name="fits",
    summary="a compliant answer is given but for one sentence",
    source="FITS, A2D, arXiv 2509.23286",
    access=("prompt", "canvas"),
    config_class=FitsConfig,
    presets={"paper": {"num_sentences": 1}, "smoke": {}},
    run=run,
    decides="only",
    cost="1 response",
    needs_answer=True,
)
