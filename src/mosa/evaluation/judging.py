"""Judges over the attempts of a run: a stage of its own, that a new judge can be added to.

A judge is named `NAME`, `NAME=BACKEND` (a chat model for a prompted judge, weights for a
classifier), and with `@canvas` behind it reads the whole canvas instead of what stands before the
first end token. It sees the behavior and the cleaned response, never the attack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mosa.chat import ChatOptions, chat_model
from mosa.evaluation.store import Store
from mosa.judges import JUDGES, Item, Judge, JudgeSetting, clean, is_incoherent, make_judge
from mosa.types import Attempt, Behavior, UserError, Verdict
from mosa.world import World

CANVAS = "@canvas"
ITEMS_AT_ONCE = 32
"""Attempts that are judged, and recorded, together."""


@dataclass(frozen=True)
class JudgeConfig:
    """What judges are built with."""

    model: str | None = None
    """The chat model behind prompted judges that name none: URL#MODEL or local:FOLDER."""
    templates: Path | None = None
    """Folder of prompts NAME.txt that take the place of the judges' own."""
    device: str | None = None
    """Where local judges run."""
    batch_size: int = 8
    """Responses per forward pass of a local judge."""
    chat: ChatOptions = ChatOptions()
    """How endpoints are asked."""


@dataclass(frozen=True)
class NamedJudge:
    """A judge, and which part of a response it reads."""

    judge: Judge
    reads_canvas: bool

    @property
    def id(self) -> str:
        """The judge's id; what it reads is part of it."""
        return f"{self.judge.id}{CANVAS if self.reads_canvas else ''}"


def written_parts(written: str) -> tuple[str, str, bool]:
    """Name, backend ("" where none is named) and whether it reads the canvas.

    >>> written_parts("pair=http://localhost:8000/v1#m@canvas")
    ('pair', 'http://localhost:8000/v1#m', True)
    """
    name, _, backend = written.removesuffix(CANVAS).partition("=")
    return name, backend, written.endswith(CANVAS)


def build_judges(
    names: Sequence[str], config: JudgeConfig, world: World | None
) -> list[NamedJudge]:
    """The judges of these names; UserError for one that is unknown or lacks what it needs."""
    judges = []
    asks_default = False
    for written in names:
        name, backend, reads_canvas = written_parts(written)
        if name not in JUDGES:
            raise UserError(f"there is no judge {name}; choose from {', '.join(JUDGES)}")
        setting = JudgeSetting(
            template=_template(config.templates, name),
            world=world,
            device=config.device,
            batch_size=config.batch_size,
        )
        needs = JUDGES[name].needs
        if needs == "chat model":
            chat = backend or config.model
            asks_default |= not backend
            if chat is None:
                raise UserError(
                    f"{name} asks a chat model; name one with --judge_model or as {name}=URL#MODEL"
                )
            setting = replace(
                setting,
                chat=chat_model(
                    chat, config.chat, device=config.device, batch_size=config.batch_size
                ),
            )
        elif needs == "weights":
            setting = replace(setting, checkpoint=backend or None)
        elif backend:
            raise UserError(f"{name} has no model behind it; leave out ={backend}")
        judges.append(NamedJudge(make_judge(name, setting), reads_canvas))
    if config.model is not None and not asks_default:
        raise UserError("--judge_model is given and no judge asks it; leave it out or add a judge")
    ids = [judge.id for judge in judges]
    if len(set(ids)) < len(ids):
        raise UserError("a judge is named twice; leave one of them out")
    return judges


def check_apart(judges: Iterable[str], in_loop: Collection[str]) -> None:
    """UserError where a final judge asks a model that steered attacks (design decision 6).

    They would be optimised against their own judge. `judges` are ids, which end in the name of the
    model behind the judge; `in_loop` are names of chat models that judged inside attacks.
    """
    for judge in judges:
        name, *parts = judge.removesuffix(CANVAS).split("/", 3)
        if set(parts[2:]) & set(in_loop):
            raise UserError(
                f"the model behind the judge {name} rates tries inside the attacks too, so that "
                "they would be optimised against their own judge; name another model for one of "
                "them"
            )


def judges_in_loop(store: Store) -> set[str]:
    """The names of the chat models that judged inside the attacks of a run."""
    chats = [session.get("chat_models", {}).get("judge") for session in store.sessions()]
    return {chat["name"] for chat in chats if chat is not None}


def _template(folder: Path | None, name: str) -> str | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give --judge_templates one that exists")
    for file in folder.glob("*.txt"):
        if file.stem not in JUDGES:
            raise UserError(f"{file} belongs to no judge; name it after one of {', '.join(JUDGES)}")
    file = folder / f"{name}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def judge_run(
    store: Store,
    judges: Sequence[NamedJudge],
    *,
    on_progress: Callable[[str, int], object] = lambda judge, count: None,
) -> None:
    """Let each judge score every attempt of a finished task that it has not scored.

    What a judge could not score is asked again the next time. Raises UserError for a judge that
    asks a model which judged inside the attacks.
    """
    check_apart([judge.id for judge in judges], judges_in_loop(store))
    behaviors = store.behaviors()
    specials = {token for model in store.models().values() for token in model["special_tokens"]}
    is_testbed = store.meta("world_seed") is not None
    for judge in judges:
        batch: list[Attempt] = []
        for attempt in store.attempts(unjudged_by=judge.id):
            batch.append(attempt)
            if len(batch) == ITEMS_AT_ONCE:
                _judge_batch(store, judge, batch, behaviors, specials, is_testbed)
                on_progress(judge.id, len(batch))
                batch = []
        if batch:
            _judge_batch(store, judge, batch, behaviors, specials, is_testbed)
            on_progress(judge.id, len(batch))


def _judge_batch(
    store: Store,
    judge: NamedJudge,
    batch: Sequence[Attempt],
    behaviors: dict[str, Behavior],
    specials: set[str],
    is_testbed: bool,
) -> None:
    items = []
    for attempt in batch:
        text = attempt.response_full if judge.reads_canvas else attempt.response
        items.append(Item(behaviors[attempt.behavior], clean(text, specials)))
    verdicts = asyncio.run(_verdicts(judge.judge, items))
    for attempt, item, verdict in zip(batch, items, verdicts, strict=True):
        if not is_testbed and verdict.score is not None:
            incoherent = is_incoherent(item.response)
            verdict = replace(verdict, native={**verdict.native, "coherent": not incoherent})
        store.add_verdict(attempt.key, judge.id, verdict)
    store.commit()


async def _verdicts(judge: Judge, items: Sequence[Item]) -> list[Verdict]:
    verdicts = await judge.judge(items)
    assert len(verdicts) == len(items), "a judge gives one verdict for each item"
    return verdicts
