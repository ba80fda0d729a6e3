"""Which block of a response the words stand in that a probe writes, where responses have several.

A block is filled when those before it are, so that the block of a word decides what it can steer.
Blocks that are counted from the prompt begin elsewhere in each case: token 10 is in block 2 behind
one prompt and in block 3 behind another.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mosa.evidence.findings.base import Group, Observation, Probed


def with_blocks(probed: Probed, group: Group) -> Group:
    """The group with the `block` (from 1) of each observation's position, None where it has none;
    as it is where every response is one block."""
    starts = {o.key: probed.response(o).block_starts for o in group.observations}
    if max(map(len, starts.values())) < 2:
        return group
    observations = [
        replace(o, details=o.details | {"block": block_of(o["position"], starts[o.key])})
        for o in group.observations
    ]
    return replace(group, observations=observations)


def block_of(position: int | None, starts: Sequence[int]) -> int | None:
    """The block (from 1) of a position (from 1), by the places (from 0) where blocks begin.

    >>> block_of(8, [0, 8, 16]), block_of(9, [0, 8, 16])
    (1, 2)
    """
    return None if position is None else bisect_left(starts, position)


def in_several_blocks(observations: Iterable[Observation]) -> bool:
    """Whether the written words stand in more than one block, so that blocks can be compared."""
    return len({o.details.get("block") for o in observations} - {None}) > 1


def borders_of(observations: Sequence[Observation], positions: Sequence[int]) -> list[int]:
    """The columns of a map over the observations' positions before which a block begins in every
    case."""
    if not in_several_blocks(observations):
        return []
    blocks: dict[int, dict[str, int]] = {position: {} for position in positions}
    for o in observations:
        blocks[o["position"]][o.case] = o["block"]
    pairs = itertools.pairwise(blocks[position] for position in positions)
    return [
        column
        for column, (left, right) in enumerate(pairs, start=1)
        if {left[case] < right[case] for case in left.keys() & right.keys()} == {True}
    ]
