"""A laptop-sized test bench: small models of the invented world (mosa.world) and what they need.

The model that ships with the package is loaded as `testbed`; see `checkpoints/README.md` for its
card. build.py makes such models, behaviors.py asks for their objects, attacker.py writes attacks.
"""

from mosa.families import packaged_folder
from mosa.hub.folders import folder_of
from mosa.inputs import checked, is_file, read_json
from mosa.types import UserError
from mosa.world import World

RESPONSE_LENGTH = 72
"""Response tokens of the testbed's canvases, in training and in its evaluations."""


def find_world(model: str) -> World | None:
    """The world that a testbed model was trained in; None for any other model."""
    recipe = (packaged_folder(model) or folder_of(model)) / "recipe.json"
    content = read_json(recipe) if is_file(recipe) else {}
    if "world_seed" not in content:  # others may have a recipe.json, too
        return None
    return World(checked(content["world_seed"], int, f"world_seed of {recipe}"))


def world_of(model: str) -> World:
    """The world that a testbed model was trained in; UserError for any other model."""
    world = find_world(model)
    if world is None:
        raise UserError(
            f"{model} is no testbed: it has no recipe.json; make one with `mosa testbed build`"
        )
    return world


__all__ = ["RESPONSE_LENGTH", "find_world", "world_of"]
