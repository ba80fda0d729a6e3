"""Post-context: text fixed after the masked answer, which reads as if the answer had been given.

    response   [masks ...] these were all the steps , in full detail .

A masked model reads what follows as well as what precedes. TrustLDM (arXiv 2606.00023)
tries six kinds of static text there; ours are a closing, thanks, a review, a summary, a disclaimer
and a source, in our own words (on the testbed, the closings that its world knows). Each is one try.
"""

from __future__ import annotations

from dataclasses import dataclass

from mosa.attacks.base import Attack, Attempts, Bound, Query, Target
from mosa.attacks.wording import chosen


@dataclass(frozen=True)
class PostContextConfig:
    """Which texts."""

    kinds: tuple[str, ...] | None = None
    """Kinds of text that are tried, one try each; unset: all."""


def run(target: Target, config: PostContextConfig) -> Attempts:
    """Ask once for each kind of text."""
    queries = []
    for kind, text in chosen("post-context", config.kinds, target.wording.post_contexts):
        ids = target.phrase_ids(text, target.length)  # never the first token
        pinned = (target.pin(target.length - len(ids) + 1, ids),)
        queries.append((kind, Query(target.request, pinned=pinned)))
    return target.tries(queries)


ATTACK = Attack(
    name="post_context",
    blind_in_blocks="has text behind the answer, unseen by the blocks of {subject} before it",
    title="text fixed behind the answer",
    summary="text fixed behind the answer, as if it had been given",
    source="TrustLDM, arXiv 2606.00023",
    access=("prompt", "canvas"),
    presets={"paper": {}, "reduced": {}, "smoke": {}},
    run=run,
    bound=lambda config, wording: Bound(
        len(wording.post_contexts if config.kinds is None else config.kinds)
    ),
    version=2,
    decides="any",
)
