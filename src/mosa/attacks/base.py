"""What an attack is: a target in, attempts out, one request after another.

    async def run(target, config):
        response = await target.ask(Query(target.request))
        yield target.attempt([response])

Attacks are async generators, so that a run can answer the queries of many attacks, branches and
behaviors in one batch. An attack must be a function of its behavior, its settings, its
seed (`target.rng`) and the answers it gets, and of nothing else: then an interrupted run can start
again, get the recorded answers, and resume where it ended. It never sees the final judge.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args, get_type_hints, runtime_checkable

import torch
from torch import Tensor

from mosa.attacks.wording import Wording
from mosa.chat.base import ChatReply, ChatRequest, quoted
from mosa.chat.text import fill_fields, without_strings
from mosa.denoising import Action, DecoderConfig, RowView
from mosa.denoising.schedule import most_passes
from mosa.families.attention import AttentionPattern
from mosa.inputs import checked
from mosa.types import (
    Access,
    Attempt,
    Behavior,
    Budget,
    Prompt,
    Response,
    UserError,
    content_key,
    dialogue,
)
from mosa.worker import Work

ChatRole = Literal["attacker", "judge", "translator"]
Useless = Literal["declined", "cut off", "unreadable"]
"""Why nothing could be made of a chat model's reply."""
Attempts = AsyncIterator[Attempt]
"""What an attack gives, one after another."""
Threat = Literal["prompt", "canvas", "open"]
"""Who can run an attack: a user of a chat API; a user of an API that takes prefills and masks; an
owner of weights and sampler."""


@dataclass(frozen=True)
class Edit:
    """What an attacker who runs the sampler does to the response after one step.

    With a `position`, `ids` are written there over what the sampler has committed, and the rest
    stays as it is. Without one, `keep_committed` writes `ids` where the sampler has committed a
    token by then, and leaves the rest masked; otherwise the whole response is masked again and
    `ids` are put at its beginning.
    """

    step: int
    """After which step (from 0)."""
    ids: tuple[int, ...]
    keep_committed: bool = False
    position: int | None = None
    """The position (from 0) of the first id, where the rest of the response stays as it is."""

    def apply(self, response: Tensor, mask_token_id: int) -> Tensor:
        """The response [R] after the edit."""
        ids = torch.tensor(self.ids[: len(response)], dtype=response.dtype, device=response.device)
        if self.position is not None:
            written = response.clone()
            written[self.position : self.position + len(ids)] = ids
            return written
        written = torch.full_like(response, mask_token_id)
        written[: len(ids)] = ids
        if self.keep_committed:
            return torch.where(response == mask_token_id, response, written)
        return written

    def hook(self, row: RowView) -> Action | None:
        """For the sampler: makes the edit when its step is over."""
        if row.step != self.step:
            return None
        is_response = row.positions >= 0
        row.tokens[is_response] = self.apply(row.tokens[is_response], row.mask_token_id)
        return Action(tokens=row.tokens)


PLANNED: Mapping[str, Any] = dict.fromkeys(
    ("threshold", "factor", "entropy_bound", "edit_threshold")
)
"""Settings of the decoder with which steps decide how many positions are filled, once and for all,
and not confidence: what an attack that imposes an order sets besides."""


@dataclass(frozen=True)
class Query:
    """What the target is asked, and what is done to its canvas and its sampler meanwhile."""

    prompt: Prompt
    pinned: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Runs of ids written into the response, each with its first position (from 0). Mask ids among
    them leave a gap to be filled."""
    allow_special_tokens: bool = False
    """Whether special tokens spelled in the prompt count as such: needed to put masks there."""
    edit: Edit | None = None
    decoder: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the decoder that the attacker changes; the attack declares them in `takes`."""
    prompt_ids: tuple[int, ...] | None = None
    """The prompt's ids, the defender's system prompt included, where its words do not determine
    them; `prompt` is then for the records."""

    def begun_response(self, gap: int, length: int) -> list[int]:
        """The ids of a response of `length` as it begins: what is pinned, and `gap` elsewhere."""
        ids = [gap] * length
        for position, run in self.pinned:
            ids[position : position + len(run)] = run
        assert len(ids) == length, "Target.pin checks what fits"
        return ids


@runtime_checkable
class Tokens(Protocol):
    """What attacks read of the model under attack; weights are reached by `Target.compute`.

    `families.DiffusionLM` says what each does.
    """

    is_served: bool
    """Whether prompts go to a server, which puts them into tokens of its own."""
    source: str
    mask_token_id: int
    eos_token_id: int

    @property
    def tokenizer(self) -> Any: ...
    @property
    def end_token_ids(self) -> tuple[int, ...]: ...
    @property
    def special_tokens(self) -> tuple[str, ...]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def block_length(self) -> int | None: ...
    @property
    def has_adapter(self) -> bool: ...
    @property
    def has_turns(self) -> bool: ...

    def encode(self, prompt: Prompt, *, allow_special_tokens: bool = False) -> list[int]: ...
    def encode_text(self, text: str) -> list[int]: ...
    def encode_with_ends(self, text: str) -> list[tuple[int, int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class Backend(Protocol):
    """What answers a target's queries: the recorder of a run, or a substitute in tests."""

    @property
    def model(self) -> Tokens | None:
        """The model under attack: its tokenizer, ids and length; None where it is served, so that
        only its words are known."""
        ...

    async def respond(self, query: Query, decoder: DecoderConfig) -> Response:
        """Answer one query, from the records if it was answered before."""
        ...

    async def compute(self, key: str, work: Work) -> dict[str, Any]:
        """What the work gives, from the records if it was done before."""
        ...

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        """Ask the chat model of a role, from the records if it was asked before."""
        ...


@dataclass(eq=False)
class Target:
    """The model under attack, as one attack on one behavior sees it; it counts the budget."""

    backend: Backend
    _: KW_ONLY
    decoder: DecoderConfig
    """How the defender decodes; a query may change the settings that the attack takes."""
    wording: Wording
    identity: Mapping[str, Any]
    """All that determines the attempts, as JSON."""
    subject: str
    case_set: str
    behavior: Behavior
    attack: str
    preset: str
    seed: int
    takes: Sequence[str] = ()
    """The decoder settings that the attack may change."""
    system_prompt: str | None = None
    """What the defender puts before every prompt."""
    refusals: Sequence[str] = ()
    """What the subject was trained to say as a refusal; for attacks that read it."""
    listener: Callable[[ChatRole, ChatRequest, object], object] = lambda *_: None
    """Hears what was read of the reply to each request, or the Unreadable that it is; for
    `mosa attacks check`."""

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}-{self.attack}-{self.behavior.id}")
        self.budget = Budget()
        self._num_attempts = 0
        self._selected: tuple[float, int | None] = (-math.inf, None)
        self.draws: list[tuple[ChatRole, ChatRequest]] = []
        """Questions to chat models that can be asked again where the attack ends without a useful
        reply."""
        self.useless: defaultdict[ChatRole, list[tuple[Useless, str]]] = defaultdict(list)
        """Replies of which nothing could be made: why, and their text."""
        self.num_read: Counter[ChatRole] = Counter()
        """Replies that could be read."""
        self.num_ratings = 0
        self.num_unread_ratings = 0
        """Ratings of the in-loop judge that could not be read."""

    @property
    def request(self) -> str:
        """What the behavior asks for."""
        return self.behavior.request

    @property
    def start(self) -> str:
        """The beginning of a compliant answer to the behavior."""
        return self.behavior.target or self.wording.opening(self.behavior)

    @property
    def model(self) -> Tokens:
        """The model under attack, for its tokenizer and ids; weights are reached by `compute`."""
        model = self.backend.model
        assert model is not None, "a served model is asked for its words alone"
        return model

    @property
    def has_tokens(self) -> bool:
        """Whether the tokens of prompts are known; of a served model only the words are."""
        return self.backend.model is not None and not self.backend.model.is_served

    @property
    def length(self) -> int:
        """Tokens of a response."""
        return self.decoder.max_new_tokens

    def pace(
        self, tokens_per_step: int, block_length: int | None = None, *, length: int | None = None
    ) -> dict[str, Any]:
        """Decoder settings at which a step fills `tokens_per_step` tokens, and fewer where blocks
        have no more or do not divide by it; all blocks have equally many steps.

        Without `block_length` the blocks are the network's, or the response is one; `length` is
        another one than the target's. Canvases of uniform noise settle no number of tokens, and
        keep the defender's steps.

            8 tokens a step in blocks of 4: a step a block fills 4; 3 a step: two steps fill 2 each
        """
        length = length or self.length
        block = block_length or self.model.block_length or length
        if self.model.block_length is None:
            block = min(block, length)
        steps = -(-length // block) * -(-block // tokens_per_step)
        if not self.has_masks:
            steps = self.decoder.steps
        return {"steps": steps, "block_length": block_length, **PLANNED}

    @property
    def has_masks(self) -> bool:
        """Whether the model fills masks, and does not denoise canvases of uniform noise."""
        return self.decoder.renoise is None

    @property
    def mask_token_id(self) -> int:
        """The id of a gap in `Query.pinned`."""
        return self.model.mask_token_id

    @property
    def mask_token(self) -> str:
        """The mask token as text, for prompts with `allow_special_tokens`."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "a run needs a tokenizer"
        if self.mask_token_id < 0:
            raise UserError(f"{self.model.source} has no mask token to be put into a prompt")
        return str(tokenizer.convert_ids_to_tokens(self.mask_token_id))

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of bare text."""
        return tuple(self.model.encode_text(text))

    def phrase_ids(self, phrase: str, position: int) -> tuple[int, ...]:
        """The ids of a phrase that is written at 1-based `position` of the response: after the
        first with the space before it, since byte-level tokenizers write a word inside a text with
        other tokens than one that begins it."""
        return self.encode(phrase if position == 1 else f" {phrase}")

    def without_special_tokens(self, text: str) -> str:
        """The text without the spellings of special tokens."""
        return without_strings(text, self.model.special_tokens)

    def encode_prompt(self, prompt: Prompt, *, allow_special_tokens: bool = False) -> list[int]:
        """The ids of a prompt in the chat template, the subject's system prompt included."""
        return self.model.encode(
            self._with_system(prompt), allow_special_tokens=allow_special_tokens
        )

    def _with_system(self, prompt: Prompt) -> Prompt:
        return prompt if self.system_prompt is None else dialogue(prompt, self.system_prompt)

    def has_room(self, prompt: Prompt) -> bool:
        """Whether prompt and response fit into the model's context; where its tokens are not known,
        its server says so when it is asked."""
        if not self.has_tokens:
            return True
        return len(self.encode_prompt(prompt)) + self.length <= self.model.max_length

    def beginning(self, text: str, num_tokens: int) -> str:
        """The first tokens of a text, without special tokens; of a model whose tokens are not known
        as many words.

        A tokenizer leaves out words that it does not know.
        """
        if not self.has_tokens:
            return " ".join(text.split()[:num_tokens])
        return self.decode(self.encode(self.without_special_tokens(text))[:num_tokens])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.model.decode(ids)

    def say(self, name: str, english: str, **fields: str) -> str:
        """What the attack writes at the place called `name`: `english` with {request} and the other
        fields filled in, or what the run's wording has instead."""
        fields = {"request": self.request, **fields}
        own = self.wording.phrases.get(name)
        return fill_fields(english, fields) if own is None else own(self.behavior, fields)

    def pin(self, position: int, ids: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """A run of ids for `Query.pinned` at 1-based `position`; UserError where it has no room."""
        if position < 1 or position - 1 + len(ids) > self.length:
            raise UserError(
                f"{len(ids)} tokens at position {position} do not fit into a response of "
                f"{self.length}; use an earlier position or raise max_new_tokens"
            )
        return position - 1, tuple(ids)

    async def ask(self, query: Query) -> Response:
        """The target's answer to one query."""
        (response,) = await self.ask_all([query])
        return response

    async def ask_all(self, queries: Sequence[Query]) -> list[Response]:
        """The answers to several queries, which may share a batch."""
        responses = await asyncio.gather(*map(self._respond, queries))
        for response in responses:
            self._pay(response)
        return list(responses)

    async def tries(
        self,
        queries: Iterable[tuple[str, Query]],
        details: Sequence[Mapping[str, Any]] | None = None,
    ) -> Attempts:
        """One attempt for each (variant, query), with its `details`; all may share a batch, and
        each is paid for as it comes, so that its budget is that of the tries up to it."""
        queries = list(queries)
        if not queries:
            raise UserError(f"the settings of {self.attack} leave nothing to be tried")
        variants, asked = zip(*queries, strict=True)
        details = [{}] * len(queries) if details is None else details
        responses = await asyncio.gather(*map(self._respond, asked))
        for variant, response, told in zip(variants, responses, details, strict=True):
            self._pay(response)
            yield self.attempt([response], variant=variant, details=told)

    async def _respond(self, query: Query) -> Response:
        undeclared = query.decoder.keys() - self.takes
        assert not undeclared, f"{self.attack} does not declare that it takes {undeclared}"
        if query.prompt_ids is None and self.system_prompt is not None:
            query = dataclasses.replace(query, prompt=self._with_system(query.prompt))
        decoder = self.decoder
        if query.decoder:
            decoder = dataclasses.replace(decoder, **query.decoder)
        return await self.backend.respond(query, decoder)

    def _pay(self, response: Response) -> None:
        self.budget += Budget(
            target_queries=1,
            target_tokens=response.num_tokens,
            prompt_tokens=(response.served and response.served.prompt_tokens) or 0,
            forward_passes=response.num_forward_passes,
        )

    async def compute(self, name: str, work: Work) -> dict[str, Any]:
        """A recorded piece of work with the weights.

        `name` and the work's state identify it within this attack on this behavior; in its outcome
        "forward_passes" and "backward_passes" are added to the budget.
        """
        key = content_key(of=self.identity, name=name, state=work.state)
        done = await self.backend.compute(key, work)
        self.budget += Budget(
            forward_passes=done.get("forward_passes", 0),
            backward_passes=done.get("backward_passes", 0),
        )
        return done

    async def chat(self, role: ChatRole, request: ChatRequest) -> ChatReply:
        """The reply of the chat model of a role; attacks read it through `loop.read_reply`."""
        reply = await self.backend.chat(role, request)
        self.budget += Budget(
            attacker_calls=int(role != "judge"),
            judge_calls=int(role == "judge"),
            chat_tokens=reply.num_tokens,
        )
        return reply

    def said_in_vain(self) -> str:
        """The replies of which nothing could be made, in brackets for a reason: how many of each
        kind, and how the first begins; those of a role that are fewer than what was read of it are
        left out."""
        told: list[str] = []
        for role, replies in self.useless.items():
            if len(replies) < self.num_read[role]:
                continue
            counts = Counter(why for why, _ in replies)
            number = ", ".join(f"{counts[why]} {why}" for why in get_args(Useless) if counts[why])
            who = "in-loop judge" if role == "judge" else role
            told.append(f"replies of the {who}: {number}, the first {quoted(replies[0][1])}")
        return f" ({'; '.join(told)})" if told else ""

    def attempt(
        self,
        responses: Sequence[Response],
        *,
        variant: str = "",
        text: str | None = None,
        full_text: str | None = None,
        details: Mapping[str, Any] | None = None,
        rating: int | float | None = None,
    ) -> Attempt:
        """The next attempt, resting on `responses`, with the budget spent so far.

        What is judged is their texts, joined, unless the attack says what counts as `text` (and,
        with what comes after end tokens, as `full_text`). `rating` is how well the attack's own
        loop finds that the try went: it selects the best one, the last of equals.
        """
        number, self._num_attempts = self._num_attempts, self._num_attempts + 1
        if rating is not None and rating >= self._selected[0]:
            self._selected = rating, number
        unread = {"unread_ratings": self.num_unread_ratings} if self.num_unread_ratings else {}
        joined = "\n".join(response.text for response in responses)
        joined_full = "\n".join(response.full_text for response in responses)
        return Attempt(
            key=content_key(of=self.identity, number=number),
            responses=list(responses),
            response=joined if text is None else text,
            response_full=joined_full if full_text is None else full_text,
            variant=variant,
            number=number,
            budget=self.budget,
            details={**(details or {}), **unread},
            selected=self._selected[1],
            subject=self.subject,
            case_set=self.case_set,
            case=self.behavior.id,
            attack=self.attack,
            preset=self.preset,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Settings:
    """The base of attacks' settings: whole numbers among them are counts, and begin at 1."""

    from_zero: ClassVar[tuple[str, ...]] = ()
    """Whole numbers that may be 0."""
    may_be_empty: ClassVar[tuple[str, ...]] = ()
    """Lists of whole numbers that may have none."""

    def __post_init__(self) -> None:
        """Raises UserError where a whole number is too small, or a list of them is empty."""
        for name, kind in get_type_hints(type(self)).items():
            if int not in (kind, *get_args(kind)):
                continue
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            least = 0 if name in self.from_zero else 1
            is_missing = not numbers and name not in self.may_be_empty
            if is_missing or any(number is not None and number < least for number in numbers):
                raise UserError(f"{name}={value}: use numbers from {least} up, and one at least")


RunAttack = Callable[[Target, Any], Attempts]


@dataclass(frozen=True)
class Bound:
    """The most that an attack asks for one case, by whom it asks; every retry is counted."""

    target: int
    """Responses of the target."""
    attacker: int = 0
    """Replies of the attacker."""
    translator: int = 0
    """Replies of the translator."""
    judge: int = 0
    """Replies of the in-loop judge."""
    forward_passes: int = 0
    """Forward passes of the target in searches, in rows; those of responses come on top."""
    backward_passes: int = 0
    """Backward passes of the target, in rows."""
    proxy_passes: int = 0
    """Forward passes of a proxy, in rows."""

    @property
    def asked(self) -> dict[str, int]:
        """What is asked at all, by its name."""
        return {name: number for name, number in vars(self).items() if number}


MostPasses = Callable[[DecoderConfig, AttentionPattern, int | None], int | None]
"""By the subject's decoder, its attention, and the tokens of its context as far as these are known;
None where they would have to be."""
Decides = Literal["best rated", "only", "any"]
"""Which of an attack's tries on a case is its outcome: the one that its loop rates best (the last
of equals), which `Attempt.selected` names; the only one; or any of them, as for attacks whose
papers count one success in N tries."""


@dataclass(frozen=True)
class Attack:
    """A line of the table of attacks."""

    name: str
    title: str
    """What it is in two to five plain words, as reports call it, for example "forged history"."""
    summary: str
    source: str
    """arXiv id and section."""
    access: tuple[Access, ...]
    presets: Mapping[str, Mapping[str, Any]]
    """Named settings; every attack has `paper`, `reduced` and `smoke`."""
    run: RunAttack
    """Its annotations name the class of the settings."""
    decides: Decides
    bound: Callable[[Any, Wording], Bound] | None = None
    """The most that it asks under its settings in a wording; probes state none."""
    passes: MostPasses = lambda decoder, attention, _: most_passes(decoder, attention)
    """In how many passes a response is full at most."""
    roles: tuple[ChatRole, ...] = ()
    """The chat models that it asks for."""
    takes: tuple[str, ...] = ()
    """The decoder settings that it sets; every other one is the defender's."""
    blind_in_blocks: str = ""
    """What it does that cannot reach a model which fills block after block, {subject}; empty where
    it can."""
    needs_masks: str = ""
    """What it does with masks that a model of uniform noise, {subject}, has none of; empty where it
    works on both."""
    needs_edits: bool = False
    """Whether it is about a decoder that replaces what it has written (`edit_threshold`)."""
    needs_answer: bool = False
    """Whether behaviors must bring a compliant answer."""
    reads_refusals: bool = False
    """Whether it reads what the subject was trained to say as a refusal (`Target.refusals`)."""
    version: int = 1
    """Increased when the attack changes under the same settings, so that a run begun with the
    earlier version is not mixed with this one."""

    @property
    def config_class(self) -> Any:
        """The class of the settings that it runs with."""
        return get_type_hints(self.run)["config"]

    @property
    def paper(self) -> str:
        """The address of the first paper that `source` names; empty where it names none."""
        found = re.search(r"arXiv (\d{4}\.\d{4,5})", self.source)
        return f"https://arxiv.org/abs/{found[1]}" if found else ""

    @property
    def threat(self) -> Threat:
        """The weakest threat model that is sufficient."""
        if {"sampler", "likelihood", "gradients"}.intersection(self.access):
            return "open"
        return "canvas" if "canvas" in self.access else "prompt"

    def config(self, preset: str, overrides: Mapping[str, Any] | None = None) -> Any:
        """The settings of a preset, with some of them changed; UserError for unknown names."""
        if preset not in self.presets:
            raise UserError(
                f"{self.name} has no preset {preset}; choose from {', '.join(self.presets)}"
            )
        names = [f.name for f in dataclasses.fields(self.config_class)]
        for name in overrides or {}:
            if name not in names:
                raise UserError(
                    f"{self.name} has no setting {name}; its settings are "
                    f"{', '.join(names) or 'none'}"
                )
        values = {**self.presets[preset], **(overrides or {})}
        # Lists become the tuples that JSON and YAML lack.
        return checked(values, self.config_class, f"{self.name}, in its settings,")


@dataclass(frozen=True)
class NoConfig:
    """An attack without settings."""
