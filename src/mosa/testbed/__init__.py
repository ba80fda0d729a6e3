"""A laptop-sized test bench: small models of the invented world (mosa.world) and what they need.

The model that ships with the package is loaded as `testbed`; see `checkpoints/README.md` for its
card. build.py makes such models, behaviors.py asks for their objects, attacker.py writes attacks.
"""

import json
from pathlib import Path

from mosa.families import packaged_folder
from mosa.types import UserError
from mosa.world import World

RESPONSE_LENGTH = 72
"""Response tokens of the testbed's canvases, in training and in its evaluations."""


def find_world(model: str) -> World | None:
    """The world that a testbed model was trained in; None for any other model."""
    recipe = (packaged_folder(model) or Path(model)) / "recipe.json"
    if not recipe.is_file():
        return None
    return World(json.loads(recipe.read_text(encoding="utf-8"))["world_seed"])


def world_of(model: str) -> World:
    """The world that a testbed model was trained in; UserError for any other model."""
    world = find_world(model)
    if world is None:
        raise UserError(
            f"{model} is no testbed: it has no recipe.json; make one with `mosa testbed build`"
        )
    return world


__all__ = ["RESPONSE_LENGTH", "find_world", "world_of"]
