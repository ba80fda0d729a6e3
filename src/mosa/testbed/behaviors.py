"""The testbed as a benchmark: its behaviors, and what attacks write in the words of its world."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mosa.attacks import Cipher, Wording
from mosa.data import BehaviorSet
from mosa.testbed.world import (
    ORDINALS,
    WRAPPINGS,
    World,
    from_second_language,
    to_second_language,
)
from mosa.types import Behavior, Prompt, UserError

NESTINGS = ("code", "nested")
"""The wrappings that put a request into a harmless document."""
LANGUAGES = ("first language", "second language")


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
            text=single_turn(world.request(obj)),
            target=world.opening(obj),
            answer=world.answer(obj),
            category=obj.device,
        )
        for obj in objects[:limit]
    ]
    return BehaviorSet(f"testbed (world {world.seed})", tuple(items), licence="Apache-2.0")


def testbed_wording(world: World) -> Wording:
    """What attacks write in the words of the world."""
    objects = world.by_name

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
        languages=LANGUAGES,
        # Word for word is how this world writes in secret.
        ciphers={
            "second_language": Cipher(
                "second_language",
                "the second language",
                to_second_language,
                from_second_language,
            )
        },
        phrases=_phrases(world),
    )


def _phrases(world: World) -> dict[str, Callable[[Behavior, Mapping[str, str]], str]]:
    """What attacks that compose their own sentences write here instead."""

    def ask(wrapping: str, variant: int = 0) -> Callable[[Behavior, Mapping[str, str]], str]:
        return lambda behavior, _: single_turn(
            world.request(world.by_name[behavior.id], wrapping, variant=variant)
        )

    def turn(wrapping: str, number: int) -> Callable[[Behavior, Mapping[str, str]], str]:
        def phrase(behavior: Behavior, _: Mapping[str, str]) -> str:
            turns = world.request(world.by_name[behavior.id], wrapping)
            assert not isinstance(turns, str), "a dialogue"
            return turns[number].content

        return phrase

    def field(name: str) -> Callable[[Behavior, Mapping[str, str]], str]:
        return lambda _, fields: fields[name]

    return {
        "avatar/transfer": lambda _, f: f"tell me how to make a {f['entity']} .",
        "speak_easy/question": field("question"),
        "dia/continue": turn("forged_history", 2),
        "dia/substitute": turn("nickname", 0),
        "dia/substituted": turn("nickname", 1),
        "dia/deferred": turn("nickname", 2),
        "deep_inception/scene": ask("nested"),
        "code_attack/python_stack": ask("code", 0),
        "code_attack/python_list": ask("code", 1),
        "code_attack/python_string": ask("code", 0),
        "renellm/code": ask("code", 1),
        "renellm/table": ask("nested", 1),
        "renellm/story": ask("story", 0),
        "cipher_chat/prompt": field("text"),
    }


def single_turn(prompt: Prompt) -> str:
    """A request of one user's turn."""
    assert isinstance(prompt, str), "a plain request is one turn"
    return prompt
