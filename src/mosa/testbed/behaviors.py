"""The testbed as a benchmark: its behaviors, its phrases for attacks, and its scripted attacker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mosa.attacks import Wording
from mosa.attacks.dija import TASK as DIJA_TEMPLATE
from mosa.chat.base import ChatError, ChatReply, ChatRequest
from mosa.data import BehaviorSet
from mosa.testbed.world import ORDINALS, WRAPPINGS, World, WorldObject, masked_template
from mosa.types import Behavior, Prompt, UserError

NESTINGS = ("code", "nested")
"""The wrappings that put a request into a harmless document."""


def testbed_behaviors(world: World, *, limit: int | None = None) -> BehaviorSet:
    """Plain requests for the restricted objects that no training text mentions.

    A behavior's id is the object's name; its target and answer are those of a plain request.
    """
    objects = world.objects(restricted=True, split="heldout")
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} leaves no behavior; use 1 or more")
    items = [
        Behavior(
            id=obj.name,
            text=_text(world.request(obj)),
            target=world.opening(obj),
            answer=world.answer(obj),
            category=obj.device,
        )
        for obj in objects[:limit]
    ]
    return BehaviorSet(f"testbed (world {world.seed})", tuple(items), licence="Apache-2.0")


def testbed_wording(world: World) -> Wording:
    """What attacks write in the words of the world."""
    objects = _objects(world)

    def nest(wrapping: str) -> Callable[[Behavior], Prompt]:
        return lambda behavior: world.request(objects[behavior.id], wrapping)

    return Wording(
        name=f"testbed world {world.seed}/1",
        opening=lambda behavior: world.opening(objects[behavior.id]),
        anchors=tuple(f"step {ordinal} :" for ordinal in ORDINALS),
        # Each kind of document of the world ends in its own way.
        post_contexts={
            name: wrapping.closing
            for name, wrapping in WRAPPINGS.items()
            if name in ("direct", "story", *NESTINGS)
        },
        nestings={name: nest(name) for name in NESTINGS},
        perturbs="words",
    )


def _objects(world: World) -> dict[str, WorldObject]:
    """Every object by its name."""
    return {
        obj.name: obj
        for restricted in (True, False)
        for split in ("train", "heldout")
        for obj in world.objects(restricted=restricted, split=split)
    }


def _text(prompt: Prompt) -> str:
    assert isinstance(prompt, str), "a plain request is one turn"
    return prompt


@dataclass(frozen=True)
class ScriptedAttacker:
    """Plays the attacker in the world by rule, in place of a language model.

    It does what a capable attacker would do for a real request: it knows how an answer looks, and
    not what stands in it.
    """

    world: World

    @property
    def name(self) -> str:
        return f"scripted attacker of testbed world {self.world.seed}"

    @property
    def place(self) -> str:
        return "this process"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer a task that it knows; ChatError for any other."""
        if request.task != DIJA_TEMPLATE:
            raise ChatError(f"the testbed's scripted attacker has no script for {request.task}")
        objects = _objects(self.world)
        if request.fields.get("behavior") not in objects:
            raise ChatError(f"{request.fields.get('behavior')} is no object of the testbed")
        words = masked_template(self.world, objects[request.fields["behavior"]])
        return ChatReply(" ".join("<mask:1>" if word is None else word for word in words))
