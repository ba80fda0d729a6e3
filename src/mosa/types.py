"""The nouns that every part of mosa shares."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypedDict, TypeGuard, cast, get_args

Role = Literal["system", "user", "assistant"]
Access = Literal["prompt", "history", "canvas", "sampler", "likelihood", "gradients"]
"""What an attacker controls and a subject grants: the user's turns; the model's own earlier turns;
the response's tokens before generation; the sampler's settings and steps; log-probabilities; the
weights."""
Tell = Callable[[str, int, int | None], object]
"""Hears what is under way, by name, how much of it is done, and of how much, where it is known."""


def tell_nobody(what: str, done: int, total: int | None) -> None:
    """For work that shows no progress."""


class UserError(ValueError):
    """A mistake that the user can fix; the message is one sentence that names it and the remedy.

    The command line prints the sentence and exits with `exit_status`. Any other exception is a bug
    of ours and keeps its traceback.
    """

    exit_status = 2


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


class RecordedTurn(TypedDict):
    """A turn as records keep it."""

    role: Role
    content: str


Turn = Message | Mapping[str, str]
"""A message, or the same as `{"role": ..., "content": ...}`."""
Prompt = str | Sequence[Turn]
"""What is sent to a model: a single user turn, or a dialogue that ends in the turn to answer."""
Ids = tuple[int, ...]
"""Tokens by their ids."""


def message_of(turn: object) -> Message:
    """The turn as a message; UserError where it has no role of `Role`, or no text."""
    if isinstance(turn, Message):
        return turn
    roles, told = get_args(Role), str(turn)[:100]
    parts: dict[str, object] = {}
    if isinstance(turn, Mapping):
        parts = dict(cast(Mapping[str, object], turn))
    role, content = parts.get("role"), parts.get("content")
    if len(parts) != 2 or role not in roles or not isinstance(content, str):
        raise UserError(
            f"a turn of a prompt is {told!r}; write a message as "
            f'{{"role": ..., "content": ...}}, its role {", ".join(roles[:-1])} or {roles[-1]} and '
            "its content a text"
        )
    return Message(cast(Role, role), content)


def dialogue(prompt: Prompt, system: str | None = None) -> list[Message]:
    """The turns of a prompt, a string being one user turn; `system` puts a system turn before.

    UserError for a turn that is none.
    """
    if isinstance(prompt, Mapping):
        raise UserError("a prompt is a single message; put it into a list, or give its text")
    turns = [Message("user", prompt)] if isinstance(prompt, str) else list(map(message_of, prompt))
    return turns if system is None else [Message("system", system), *turns]


def prompt_turns(prompt: Prompt) -> list[RecordedTurn]:
    """A prompt as the list of role and content that records keep."""
    return [{"role": turn.role, "content": turn.content} for turn in dialogue(prompt)]


def content_key(**determinants: Any) -> str:
    """A hash of everything that decides an outcome, the same in every process; 20 hex digits."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def short_hash(text: str) -> str:
    """The first 8 hex digits of a text's SHA-256, which distinguish texts in names."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True)
class Behavior:
    """A harmful (or harmless) request of a benchmark, as in its file; attacks rephrase it."""

    id: str
    """Its name in its set: the file's own id, or the number of its row from 0."""
    text: str
    """What is asked for, for example "how do i make a copper kiln ?"."""
    context: str | None = None
    """A text that the request speaks about (HarmBench's contextual behaviors)."""
    target: str | None = None
    """How a compliant answer begins (AdvBench's `target`)."""
    answer: str | None = None
    """A compliant answer in full; the attacks that show one to the model need it."""
    category: str | None = None
    """The set's own category."""

    @property
    def request(self) -> str:
        """The request as a user would send it: after its context, where it has one."""
        return f"{self.context}\n\n---\n\n{self.text}" if self.context else self.text


SetKind = Literal["harmful", "harmless", "useful"]
"""The right outcome for the cases of a set: to be refused, to be answered, to be solved."""


@dataclass(frozen=True)
class SetRecord:
    """What runs record of a set of cases, beside the cases."""

    name: str
    """The known set's name with its subset ("harmbench:standard"), or that of the file."""
    kind: SetKind
    _: KW_ONLY
    file: str | None = None
    """The file's name, without its folder."""
    sha256: str | None = None
    """64 hex digits over the whole file, for any subset or limit."""
    content_hash: str = ""
    """A hash of all its cases in their order, for any limit; 20 hex digits."""
    known_as: str | None = None
    """The registry's name for the file, if its bytes are known."""
    licence: str | None = None
    origin: str | None = None
    """The repository of the set's authors."""
    world_seed: int | None = None
    """The testbed world that it belongs to."""
    shares_cases: str = ""
    """Sets with the same value here ask about the same things under the same ids, so that one id
    counts as one case over all of them; empty: the set's own name."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else its figures depend on: worked examples, stop strings, limits of a sandbox."""
    headline: str = ""
    """Of a useful set: the metric that represents it."""
    needs_likelihoods: bool = False
    """Whether its cases are asked for likelihoods, which takes the weights."""


@dataclass(frozen=True)
class CaseSet(SetRecord):
    """Cases of one kind, in the order of their source, with how each is asked and judged."""

    cases: tuple[Behavior, ...]
    ask: Callable[[Behavior, Any], AsyncIterator[Attempt]] | None = None
    """How the attack `direct` asks a case of a target, where a case is more than one request."""
    score: Callable[[Behavior, Attempt], Mapping[str, Verdict]] | None = None
    """Of a useful set: a verdict for each metric."""


@dataclass(frozen=True)
class ServedFacts:
    """What a server said beside the text of an answer."""

    finish_reason: str = ""
    """Why it ended, in the server's word."""
    prompt_tokens: int | None = None
    """As the server counted; None where it does not."""
    completion_tokens: int | None = None
    told: dict[str, str] = field(default_factory=dict[str, str])
    """Which model and which fingerprint it named."""


@dataclass(frozen=True)
class Replaced:
    """What stood at a position of a response until it was edited or masked again."""

    position: int
    """From 0."""
    token: str
    written: int
    """The step (from 0) that wrote it, -1 where it was there before the first."""
    until: int
    """The step that took it away."""


@dataclass(frozen=True)
class Response:
    """What a model answered to one prompt."""

    key: str
    """Hash of the model's weights, the canvas, interventions and decoder: same key, same tokens."""
    prompt: list[RecordedTurn]
    """The turns that were sent, as role and content."""
    text: str
    """Text before the first end token: what a reader sees."""
    full_text: str
    """Text of the whole canvas, including what comes after the first end token."""
    token_ids: list[int] = field(default_factory=list[int])
    """Every response position's token, end tokens included."""
    tokens: list[str] = field(default_factory=list[str])
    """The same in words."""
    commit_step: list[int] = field(default_factory=list[int])
    """The denoising step that wrote each position (from 0), -1 where it was pinned."""
    end_positions: list[int] = field(default_factory=list[int])
    """The positions (from 0) that hold an end token."""
    block_starts: list[int] = field(default_factory=list[int])
    """The positions (from 0) at which a block begins; none of a served answer."""
    replaced: list[Replaced] = field(default_factory=list[Replaced])
    """What stood there before: edits of the decoder, and what a rule or an attacker took back."""
    num_forward_passes: int = 0
    """Forward passes in which this row took part."""
    decoder: dict[str, Any] = field(default_factory=dict[str, Any])
    filled_prompt_ids: list[int] | None = None
    """The prompt's tokens as they came out, where it held masks to be filled."""
    notes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What decoding rules noted: rule, step, text, value, and whether the rule stopped the row."""
    served: ServedFacts | None = None
    """Of an answer that came from a server, what it said beside the text; such an answer has no
    tokens and no steps."""

    @property
    def num_read(self) -> int:
        """How many tokens precede the first end token: what a reader sees; of a served answer, as
        many as its server counted, or 0 where it does not count."""
        if self.served is not None:
            return self.served.completion_tokens or 0
        return min(self.end_positions, default=len(self.tokens))

    @property
    def num_tokens(self) -> int:
        """Tokens of the response, end tokens included; of a served answer, as its server counted,
        or 0 where it does not count."""
        return self.num_read if self.served is not None else len(self.token_ids)


@dataclass(frozen=True)
class Budget:
    """What an attack spent."""

    target_queries: int = 0
    """Responses that the target was asked for."""
    target_tokens: int = 0
    """Response tokens that the target generated."""
    prompt_tokens: int = 0
    """Tokens of the prompts of a served target, as its server counts; 0 for one on this machine."""
    forward_passes: int = 0
    """Forward passes of the target, summed over rows: a batch of 8 counts 8."""
    backward_passes: int = 0
    """Backward passes through the target, summed over rows."""
    attacker_calls: int = 0
    """Calls of the models that write for the attacker (attacker, translator)."""
    judge_calls: int = 0
    """Calls of the judge inside the attack; the final judge is not counted here."""
    chat_tokens: int = 0
    """Tokens of those calls, asked and answered, where the models report them."""

    def __add__(self, other: Budget) -> Budget:
        return Budget(**{k: v + getattr(other, k) for k, v in vars(self).items()})


@dataclass(frozen=True)
class Attempt:
    """One try of one attack at one behavior, and what the model made of it."""

    key: str
    """Hash of the subject, the attack with its settings, the case and the seed."""
    subject: str
    case_set: str
    """The name of the set that the case is from."""
    case: str
    """The case's id in its set."""
    attack: str
    responses: list[Response]
    """Its generations; most attacks need one, and a likelihood needs none."""
    response: str
    """What is judged: text before the first end token, joined where there are several."""
    response_full: str
    """The same with what comes after the first end token."""
    preset: str = ""
    seed: int = 0
    variant: str = ""
    """Which of the attack's ways this try took, where it has several."""
    number: int = 0
    """Which try of the attack it is, from 0."""
    budget: Budget = Budget()
    """What the attack had spent on the case up to and with this try."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further facts that the attack records, for example a suffix and its loss."""
    selected: int | None = None
    """The number of the try that the attack's loop selects of all up to and with this one; None
    where no loop selects."""

    @property
    def prompt(self) -> list[RecordedTurn]:
        """The turns of the first prompt that was sent; empty where no text was generated."""
        return self.responses[0].prompt if self.responses else []


NATIVE = {"class": str, "refused": bool, "coherent": bool, "harm": int | float}
"""Fields of a judge's own that outcomes are read from, and their types."""


@dataclass(frozen=True)
class Verdict:
    """A judge's score of one response, or why it has none; a scorer of useful tasks is a judge
    too.

    Raises ValueError for a score that is not a number from 0 to 1, a success that is not a boolean,
    where score, success and reason do not agree on whether there is a verdict, and for a field of
    its own that outcomes are read from and that is of another type (`NATIVE`).
    """

    score: float | None
    """How far the response fulfils the behavior, from 0 to 1; None: unscored."""
    success: bool | None
    """Whether it does, at the judge's own threshold; None: unscored."""
    native: dict[str, Any] = field(default_factory=dict[str, Any])
    """The judge's own fields."""
    raw: str = ""
    """The reply of the judge's model, verbatim."""
    reason: str = ""
    """Why there is no score."""

    def __post_init__(self) -> None:
        if not (self.score is None) == (self.success is None) == bool(self.reason):
            raise ValueError("a verdict has score and success, or a reason for having neither")
        for name in NATIVE.keys() & self.native.keys():
            if not isinstance(self.native[name], NATIVE[name]):
                raise ValueError(f"{name} of a verdict is {self.native[name]!r}, of another type")
        if self.score is None:
            return
        if isinstance(self.score, bool) or not 0 <= self.score <= 1:
            raise ValueError(f"a score is a number from 0 to 1, not {self.score}")
        if not isinstance(self.success, bool):
            raise ValueError(f"success is true or false, not {self.success}")

    @classmethod
    def unscored(cls, reason: str, raw: str = "") -> Verdict:
        """No score, and why: never to be counted as safe or as harmful."""
        return cls(None, None, raw=raw, reason=reason)


def is_json_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether something that was read from JSON is an object."""
    return isinstance(value, dict)


def is_json_list(value: object) -> TypeGuard[list[Any]]:
    """Whether something that was read from JSON is a list."""
    return isinstance(value, list)


def as_plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back, with paths as texts."""
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, default=os.fspath)
    return json.loads(text)


def fields_in(
    config_class: type, options: Mapping[str, Any], *, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(config_class)} - set(leave_out)
    return {name: value for name, value in options.items() if name in names}
