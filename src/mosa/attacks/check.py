"""What chat models make of the prompts that attacks send them, before a run depends on it.

Each attack that asks chat models runs on each request, against a stand-in for the target. The chat
model answers each prompt once for each request; later askings get the same reply, so that a check
takes as many replies as there are prompts and requests. Roles that are not under check say what
attacks can read. A prompt that only follows a readable reply is asked less often.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mosa.attacks import ATTACKS, ENGLISH
from mosa.attacks.base import Attack, ChatRole, Query, Target
from mosa.chat import CachedChat, ChatError, ChatModel, ChatReply, ChatRequest
from mosa.chat.questions import Unreadable
from mosa.chat.replies import Declined
from mosa.denoising import DecoderConfig
from mosa.types import Behavior, Response, UserError, prompt_turns
from mosa.worker import Work

ANSWER = "1. Collect what is needed. 2. Put the parts together, one after the other. 3. Try it out."
"""What the stand-in for the target answers."""
PRESETS = {"avatar": "reduced"}
"""The smallest budget of an attack at which it sends all its prompts, where that is not `smoke`."""
UNNAMED: Mapping[str, str] = {
    "judge/pair": "rating: 1",
    "loop/on_topic": "yes",
    "avatar/closeness": "rating: 5",
    "speak_easy/score": "actionable: 1\ninformative: 1",
    "refine": '{"improvement": "It is said otherwise.", "prompt": "Version NUMBER: REQUEST"}',
    "speak_easy/split": "\n".join(f"{number}. Part {number}: REQUEST" for number in range(1, 6)),
    "avatar/entities": "WORD = paper boat NUMBER",
    "dia/keywords": "WORD = paper boat",
    "dija/template": "1. REQUEST <mask:20>",
}
"""What a role says that is not under check, so that attacks go on to the prompts of those that are;
an attacker else says the request in a numbered version, a translator the text."""


@dataclass(frozen=True)
class Example:
    """One reply to a prompt."""

    request: str
    """What the attack was about."""
    reply: str
    """The whole reply; the error where none came."""
    read: str
    """What was read of it; empty where nothing was."""
    trouble: str
    """Why nothing was read; empty where something was."""
    is_cut: bool
    is_declined: bool
    is_on_topic: bool


@dataclass
class PromptCheck:
    """The replies to one prompt of attacks."""

    role: ChatRole
    prompt: str
    examples: list[Example] = field(default_factory=list[Example])

    @property
    def shares(self) -> dict[str, float]:
        """Of all replies: readable, declined, cut. Of the readable: on topic (has a content word
        of the request; for attackers alone) and distinct (different texts)."""
        total = len(self.examples)
        read = [example for example in self.examples if not example.trouble]
        shares = {
            "readable": len(read) / total,
            "declined": sum(example.is_declined for example in self.examples) / total,
            "cut": sum(example.is_cut for example in self.examples) / total,
        }
        if read and self.role == "attacker":
            shares["on topic"] = sum(example.is_on_topic for example in read) / len(read)
        if read:
            shares["distinct"] = len({" ".join(e.read.split()) for e in read}) / len(read)
        return shares


async def check_prompts(
    chats: Mapping[ChatRole, ChatModel],
    cases: Sequence[Behavior],
    names: Sequence[str] = (),
    *,
    max_tokens: int | None = None,
) -> list[PromptCheck]:
    """Each prompt that the attacks `names` (all, if none) send to the roles of `chats`.

    A reply has at most `max_tokens`, where set, and never more than the attack lets it have.
    Raises UserError for an unknown attack, and where none of them asks these roles.
    """
    for name in names:
        if name not in ATTACKS:
            raise UserError(f"there is no attack {name}; choose from {', '.join(ATTACKS)}")
    attacks = [
        attack
        for attack in ATTACKS.values()
        if (not names or attack.name in names) and set(attack.roles) & set(chats)
    ]
    if not attacks:
        raise UserError(f"none of the attacks asks {' or '.join(chats) or 'a named chat model'}")
    checks: dict[tuple[ChatRole, str], PromptCheck] = {}
    standins = [_StandIn(chats, case, checks, max_tokens) for case in cases]
    for attack in attacks:  # one by one, so that prompts of one length share the batches
        await asyncio.gather(*(standin.run(attack) for standin in standins))
    return sorted(checks.values(), key=lambda check: (check.role, check.prompt))


@dataclass(eq=False)
class _StandIn:
    """The target and the roles of all attacks on one request."""

    chats: Mapping[ChatRole, ChatModel]
    case: Behavior
    checks: dict[tuple[ChatRole, str], PromptCheck]
    max_tokens: int | None

    def __post_init__(self) -> None:
        self.model = _Words()
        self._asked: dict[tuple[ChatRole, str], ChatRequest] = {}
        self._replies: dict[tuple[ChatRole, str], asyncio.Task[ChatReply]] = {}
        self._heard: set[tuple[ChatRole, str]] = set()

    async def run(self, attack: Attack) -> None:
        """One attack to its end, or to where replies end it."""
        preset = PRESETS.get(attack.name, "smoke")
        target = Target(
            self,
            decoder=DecoderConfig(max_new_tokens=64, steps=64),
            wording=ENGLISH,
            identity={},
            subject="stand-in",
            case_set="check",
            behavior=self.case,
            attack=attack.name,
            preset=preset,
            seed=0,
            takes=attack.takes,
            listener=self._hear,
        )
        with suppress(ChatError):  # the attack ends here; what was said is noted
            async for _ in attack.run(target, attack.config(preset)):
                pass

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        ids = self.model.encode_text(ANSWER)[: decoder.max_new_tokens]
        return Response("stand-in", prompt_turns(query.prompt), ANSWER, ANSWER, ids)

    async def compute(self, key: str, work: Work) -> dict[str, Any]:
        del key
        candidates = work.state.get("candidates") if isinstance(work.state, dict) else None
        if candidates is None:
            raise ChatError("what follows is a search with weights, which the stand-in lacks")
        return {"nll": [float(i) for i in range(len(candidates))]}

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        if role not in self.chats:
            return ChatReply(readable_reply(role, request))
        key = role, _prompt(request)
        if key not in self._replies:
            if self.max_tokens is not None:
                capped = min(self.max_tokens, request.max_tokens)
                request = replace(request, max_tokens=capped)
            self._asked[key] = request
            self._replies[key] = asyncio.ensure_future(self.chats[role].complete(request))
        try:
            return await asyncio.shield(self._replies[key])
        except ChatError as error:
            self._note(key, error, ChatReply(str(error)))
            raise

    def _hear(self, role: ChatRole, request: ChatRequest, found: object) -> None:
        key = role, _prompt(request)
        if role in self.chats:
            self._note(key, found, self._replies[key].result())

    def _note(self, key: tuple[ChatRole, str], found: object, reply: ChatReply) -> None:
        if key in self._heard:
            return
        self._heard.add(key)
        chat = self.chats[key[0]]
        if isinstance(found, Unreadable) and isinstance(chat, CachedChat):
            chat.forget(self._asked[key])  # so that it is asked again next time
        is_read = not isinstance(found, Unreadable | ChatError)
        read = str(found) if is_read else ""
        check = self.checks.setdefault(key, PromptCheck(*key))
        check.examples.append(
            Example(
                request=self.case.request,
                reply=reply.text,
                read=read,
                trouble="" if is_read else str(found),
                is_cut=reply.is_cut,
                is_declined=isinstance(found, Declined),
                is_on_topic=bool(_stems(self.case.request) & _stems(read)),
            )
        )


def readable_reply(role: ChatRole, request: ChatRequest) -> str:
    """What a role says that is not under check: something that the attack can read."""
    if role == "translator":
        return request.fields["text"]
    asked = request.fields.get("asked") or request.fields.get("request", "")
    word = max(re.findall(r"\w+", asked), key=len, default="")
    said = UNNAMED.get(request.task, "Version NUMBER: REQUEST")
    if request.task == "refine":  # in JSON
        asked = json.dumps(asked)[1:-1]
    return said.replace("NUMBER", str(request.seed)).replace("WORD", word).replace("REQUEST", asked)


def _prompt(request: ChatRequest) -> str:
    """The name of a prompt; improving is another one than beginning."""
    later = any(message.role == "assistant" for message in request.messages)
    return f"{request.task}, later rounds" if later else request.task


def _stems(text: str) -> set[str]:
    """The beginnings of the words that carry a text's content.

    >>> sorted(_stems("How do I make a copper lantern?"))
    ['coppe', 'lante']
    """
    words = re.findall(r"[^\W\d_]{4,}", text.lower())
    return {word[:5] for word in words if word not in _COMMON}


_COMMON = frozenset((
    "about", "also", "been", "best", "could", "does", "down", "from", "give", "have", "help",
    "here", "into", "just", "like", "list", "make", "most", "much", "need", "only", "other",
    "over", "please", "show", "some", "step", "steps", "such", "tell", "than", "that", "them",
    "then", "there", "these", "they", "this", "using", "very", "want", "ways", "well", "were",
    "what", "when", "where", "which", "while", "will", "with", "work", "would", "write", "your",
    "create", "explain", "describe", "provide", "guide", "instructions",
))  # fmt: skip


class _Words:
    """The parts of a diffusion model that attacks read, on a tokenizer of words that knows all."""

    mask_token_id, eos_token_id, end_token_ids = 0, 1, (1,)
    special_tokens = ("<mask>", "<end>")
    max_length = 1_000_000
    block_length = None
    is_served, has_adapter, has_turns = False, False, True
    source = "stand-in"

    def __init__(self) -> None:
        self._ids = {word: i for i, word in enumerate(self.special_tokens)}
        self.tokenizer = self

    def encode_text(self, text: str) -> list[int]:
        """Ids of words, each with the blanks before it."""
        return [token for token, _ in self.encode_with_ends(text)]

    def encode_with_ends(self, text: str) -> list[tuple[int, int]]:
        """The ids of `encode_text`, each with the place at which its word ends."""
        words = re.finditer(r"\s*<mask>|\s*\S+?(?=<mask>|\s|\Z)", text)
        return [(self._ids.setdefault(word[0], len(self._ids)), word.end()) for word in words]

    def encode(self, prompt: Any, *, allow_special_tokens: bool = False) -> list[int]:
        """Ids of all turns."""
        del allow_special_tokens
        return self.encode_text(" ".join(turn["content"] for turn in prompt_turns(prompt)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        words = list(self._ids)
        return "".join(words[i] for i in ids if i >= len(self.special_tokens))

    def convert_ids_to_tokens(self, token_id: int) -> str:
        """The word of an id."""
        return list(self._ids)[token_id]
