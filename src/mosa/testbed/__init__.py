"""A laptop-sized test bench: an invented world whose harm is inert and exactly known.

Start reading in world.py (what there is to know), then judge.py (what counts as harm). The model
that ships with the package is loaded as `testbed`; see `checkpoints/README.md` for its card.
"""

from mosa.testbed.judge import Judge
from mosa.testbed.world import (
    HELDOUT_WRAPPINGS,
    TRAIN_WRAPPINGS,
    WRAPPINGS,
    World,
    WorldObject,
    world_of,
)

RESPONSE_LENGTH = 72
"""Response tokens of the testbed's canvases, in training and in its evaluations."""

__all__ = [
    "HELDOUT_WRAPPINGS",
    "RESPONSE_LENGTH",
    "TRAIN_WRAPPINGS",
    "WRAPPINGS",
    "Judge",
    "World",
    "WorldObject",
    "world_of",
]
