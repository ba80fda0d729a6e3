"""An invented world whose harm is inert and exactly known: its facts, and their truth.

Start reading in world.py (objects, rules and ways to ask), then truth.py (what counts as harm) and
tasks.py (what is useful). Nothing here knows a model, so alignment and judges may use all of it.
"""

from mosa.world.tasks import TASKS
from mosa.world.truth import Truth
from mosa.world.world import (
    HELDOUT_WRAPPINGS,
    TRAIN_WRAPPINGS,
    WRAPPINGS,
    World,
    WorldObject,
)

__all__ = [
    "HELDOUT_WRAPPINGS",
    "TASKS",
    "TRAIN_WRAPPINGS",
    "WRAPPINGS",
    "Truth",
    "World",
    "WorldObject",
]
