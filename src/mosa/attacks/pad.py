"""PAD: headings of a list spread over the response, so that parallel decoding fills between them.

    response   step one : [masks ...] step two : [masks ...]

"Jailbreaking Large Language Diffusion Models" (arXiv 2507.19227) places anchors at several points
at once. No code was published; two re-implementations say where they put them, and both are tries:

    2 anchors  at position 1 and at half of the response (priming vulnerability, arXiv 2510.00565)
    3 anchors  a gap of length / (m + 1) / 1.5 apart (DiffuGuard, arXiv 2509.24296)
"""

from __future__ import annotations

from dataclasses import dataclass

from mosa.attacks.base import Attack, Attempts, Bound, Query, Target
from mosa.types import UserError


@dataclass(frozen=True)
class PadConfig:
    """How many anchors."""

    num_anchors: tuple[int, ...] = (2, 3)
    """Numbers of headings, at most 5; one try each."""


def run(target: Target, config: PadConfig) -> Attempts:
    """Ask once for each number of anchors."""
    queries = []
    for number in config.num_anchors:
        if not 2 <= number <= len(target.wording.anchors):
            raise UserError(
                f"num_anchors={number}: there are headings for 2 to {len(target.wording.anchors)}"
            )
        positions = anchor_positions(number, target.length)
        texts = target.wording.anchors[:number]
        runs = [
            target.pin(position, target.phrase_ids(text, position))
            for position, text in zip(positions, texts, strict=True)
        ]
        queries.append((f"{number} anchors", Query(target.request, pinned=tuple(runs))))
    return target.tries(queries)


def anchor_positions(number: int, length: int) -> list[int]:
    """The 1-based positions of the anchors in a response of `length` tokens.

    2 in 128: 1 and 65. 3 in 128: 128 / 4 / 1.5 = 21 apart, so 1, 22 and 43.
    """
    if number == 2:
        return [1, 1 + length // 2]
    gap = int(length / (number + 1) / 1.5)
    return [1 + i * gap for i in range(number)]


ATTACK = Attack(
    name="pad",
    title="given list headings",
    summary="headings of a list spread over the response",
    source="PAD, arXiv 2507.19227; positions from arXiv 2510.00565 and 2509.24296",
    access=("prompt", "canvas"),
    presets={"paper": {}, "reduced": {}, "smoke": {}},
    run=run,
    bound=lambda config, _: Bound(len(config.num_anchors)),
    version=2,
    decides="any",
)
