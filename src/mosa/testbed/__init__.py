"""A laptop-sized test bench: small models of the invented world (mosa.world) and what they need.

The model that ships with the package is loaded as `testbed`, its block-causal twin as
`testbed:block`; see `checkpoints/README.md` and `checkpoints/block/README.md` for their cards.
build.py makes such models, behaviors.py asks for their objects, attacker.py writes attacks.
"""

from mosa.denoising import TESTBED_DECODER, DecoderConfig, testbed_decoder
from mosa.families import attention_of, world_seed_of
from mosa.types import UserError
from mosa.world import World

RESPONSE_LENGTH = TESTBED_DECODER.max_new_tokens
"""Response tokens of the testbed's canvases, in training and in its evaluations."""


def find_world(model: str) -> World | None:
    """The world that a testbed model was trained in; None for any other model."""
    seed = world_seed_of(model)
    return None if seed is None else World(seed)


def find_decoder(model: str) -> DecoderConfig | None:
    """How a testbed model decodes unless told otherwise; None for any other model."""
    return None if world_seed_of(model) is None else testbed_decoder(attention_of(model))


def world_of(model: str) -> World:
    """The world that a testbed model was trained in; UserError for any other model."""
    world = find_world(model)
    if world is None:
        raise UserError(
            f"{model} is no testbed: it has no recipe.json; make one with `mosa testbed build`"
        )
    return world


__all__ = ["RESPONSE_LENGTH", "find_decoder", "find_world", "world_of"]
