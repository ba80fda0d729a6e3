"""Judges over the attempts of a run: a separate stage, so a new judge needs no new generation.

A judge is named `NAME`, `NAME=BACKEND` (a chat model for a prompted judge, weights for a
classifier), and with `@canvas` after it reads the whole canvas instead of the text before the
first end token. It sees the behavior and the cleaned response, never the attack. A useful task
brings its scorer, whose verdicts are those of the judges `metric:NAME`.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from mosa.chat import ChatModel, ChatOptions, chat_model
from mosa.chat.weights import LocalModel
from mosa.inputs import did_you_mean, is_file, is_folder, read_text
from mosa.judges import JUDGES, Item, Judge, JudgeSetting, clean, is_garbled, make_judge
from mosa.judges.base import AskingJudge
from mosa.judges.prompted import PromptedJudge
from mosa.runs.pool import serving
from mosa.runs.processes import ALONE, Processes
from mosa.runs.store import Run
from mosa.types import Attempt, Behavior, CaseSet, SetRecord, UserError, Verdict
from mosa.worker import run_coroutine
from mosa.world import World

CANVAS = "@canvas"
METRIC = "metric:"
"""What the judge of a useful task's metric is called, before the metric's name."""
CONTEXT = "_context"
"""What ends the name of a template for behaviors with a context; harmbench alone has one."""
ITEMS_AT_ONCE = 32
"""Attempts that are judged, and recorded, together."""


@dataclass(frozen=True)
class JudgeConfig:
    """What judges are built with."""

    model: str | None = None
    """The chat model of prompted judges that name none: URL#MODEL or local:FOLDER."""
    templates: Path | None = None
    """Folder of prompts NAME.txt that replace the judges' own."""
    device: str | None = None
    """Where local judges run."""
    refusal_phrases: tuple[str, ...] = ()
    """Refusals that the subjects were trained to say (`SubjectRecord.refusals`)."""
    chat: ChatOptions = ChatOptions()
    """How endpoints are asked."""


@dataclass(frozen=True)
class NamedJudge:
    """A judge, and which part of a response it reads."""

    name: str
    """Its name in the table of judges."""
    judge: Judge
    reads_canvas: bool

    @property
    def id(self) -> str:
        """The judge's id; what it reads is part of it."""
        return f"{self.judge.id}{CANVAS if self.reads_canvas else ''}"

    @property
    def local_model(self) -> LocalModel | None:
        """The language model on this machine that it asks, if it asks one."""
        return self.judge.local_model if isinstance(self.judge, AskingJudge) else None

    def reads(self, cases: SetRecord) -> bool:
        """Whether it judges the set: the truth knows its own world, and harmless requests need a
        judge that tells refusals from answers."""
        info = JUDGES[self.name]
        if cases.kind == "useful" or (info.needs == "testbed" and cases.world_seed is None):
            return False
        return cases.kind == "harmful" or info.tells_refusals


def written_parts(written: str) -> tuple[str, str, bool]:
    """Name, backend ("" where none is named) and whether it reads the canvas.

    >>> written_parts("pair=http://localhost:8000/v1#m@canvas")
    ('pair', 'http://localhost:8000/v1#m', True)
    """
    name, _, backend = written.removesuffix(CANVAS).partition("=")
    return name, backend, written.endswith(CANVAS)


def short_name(judge: str) -> str:
    """The name of a judge by its id, with what it reads.

    >>> short_name("truth/2/world-0@canvas")
    'truth@canvas'
    """
    reads = CANVAS if judge.endswith(CANVAS) else ""
    return judge.removesuffix(CANVAS).split("/")[0] + reads


def judge_meant(wanted: str, known: Collection[str], where: object) -> str:
    """Which of the known ids is meant by an id, or by a name that one of them alone has.

    Raises UserError where none or several are.
    """
    if wanted in known:
        return wanted
    found = [judge for judge in known if short_name(judge) == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{wanted} is the name of several judges; name one: {', '.join(found)}")
    others = ", ".join(known) or "none yet (`mosa judge RUN` adds one)"
    raise UserError(f"no judge {wanted} has judged {where}; there are: {others}")


def default_judges(sets: Sequence[SetRecord]) -> tuple[str, ...]:
    """The default judges: the truth on the testbed, phrases of refusal elsewhere."""
    requests = [cases for cases in sets if cases.kind != "useful"]
    names = ["truth"] if any(cases.world_seed is not None for cases in requests) else []
    names += ["refusal"] if any(cases.world_seed is None for cases in requests) else []
    return tuple(names)


def tells_refusals(judge: str) -> bool:
    """Whether the judge of this name or id tells refusals from answers."""
    name = judge.split("/")[0]
    return name in JUDGES and JUDGES[name].tells_refusals


def build_judges(
    names: Sequence[str], config: JudgeConfig, world: World | None
) -> list[NamedJudge]:
    """The judges of these names; UserError for one that is unknown or lacks what it needs."""
    judges = []
    asks_default = False
    for written in names:
        name, backend, reads_canvas = written_parts(written)
        if name not in JUDGES:
            raise UserError(
                f"there is no judge {name}{did_you_mean(name, JUDGES)}; choose from "
                f"{', '.join(JUDGES)}"
            )
        chat, needs = None, JUDGES[name].needs
        if needs == "chat model":
            asks_default |= not backend
            asked = backend or config.model
            if asked is None:
                raise UserError(
                    f"{name} asks a chat model; name one with --judge_model or as {name}=URL#MODEL"
                )
            chat = chat_model(asked, config.chat, role="judge", device=config.device)
        elif backend and needs != "weights":
            raise UserError(f"{name} has no model behind it; leave out ={backend}")
        setting = JudgeSetting(
            chat=chat,
            checkpoint=backend if needs == "weights" and backend else None,
            template=_template(config.templates, name),
            context_template=_template(config.templates, name, CONTEXT),
            refusal_phrases=config.refusal_phrases,
            world=world,
            device=config.device,
        )
        judges.append(NamedJudge(name, make_judge(name, setting), reads_canvas))
    if config.model is not None and not asks_default:
        raise UserError("--judge_model is given and no judge asks it; leave it out or add a judge")
    for name, count in Counter(judge.id for judge in judges).items():
        if count > 1:
            raise UserError(f"the judge {name} is named twice; leave one of them out")
    return judges


def _template(folder: Path | None, name: str, kind: str = "") -> str | None:
    if folder is None:
        return None
    if not is_folder(folder):
        raise UserError(f"there is no folder {folder}; give --judge_templates one that exists")
    for file in folder.glob("*.txt"):
        if file.stem not in (*JUDGES, f"harmbench{CONTEXT}"):
            raise UserError(f"{file} belongs to no judge; name it after one of {', '.join(JUDGES)}")
    file = folder / f"{name}{kind}.txt"
    return read_text(file) if is_file(file) else None


def chats_of(judges: Sequence[NamedJudge]) -> list[ChatModel]:
    """The chat models behind judges."""
    return [each.judge.chat for each in judges if isinstance(each.judge, PromptedJudge)]


def check_apart(judges: Sequence[NamedJudge], in_loop: set[str]) -> None:
    """UserError where a final judge asks a model that steered attacks: they would be optimised
    against their own judge. Models are known by their names, which end a judge's id."""
    for judge in judges:
        if JUDGES[judge.name].needs != "chat model":
            continue
        for name in in_loop:
            if judge.judge.id.endswith(f"/{name}"):
                raise UserError(
                    f"the model behind the judge {judge.name} rates tries inside the attacks too, "
                    "so that they would be optimised against their own judge; name another model "
                    "for one of them"
                )


def loop_judges(run: Run) -> set[str]:
    """The names of the chat models that have judged inside attacks of a run."""
    return _played("judge", run.sessions())


def examiners_of_themselves(
    judges: Iterable[str], sessions: Iterable[Mapping[str, Any]]
) -> list[str]:
    """The final judges, by their ids, whose chat model also wrote the attacks of these sessions."""
    writers = tuple(f"/{name}" for name in _played("attacker", sessions))
    asking = (judge for judge in judges if needs_of(judge) == "chat model")
    return [judge for judge in asking if judge.removesuffix(CANVAS).endswith(writers)]


def needs_of(judge: str) -> str | None:
    """What the judge of this id needs; None where it is none of the table."""
    known = JUDGES.get(judge.split("/")[0])
    return None if known is None else known.needs


def _played(role: str, sessions: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of the chat models that have played a role."""
    found = (session.get("chat_models", {}).get(role) for session in sessions)
    return {chat["name"] for chat in found if chat}


def judge_run(
    run: Run,
    judges: Sequence[NamedJudge],
    *,
    sets: Sequence[CaseSet] = (),
    on_progress: Callable[[str, int, int], object] = lambda judge, done, total: None,
    processes: Processes = ALONE,
) -> None:
    """Let each judge score every attempt of a finished task that it has not scored.

    Useful tasks among `sets` are scored by their own scorers. What could not be scored is
    retried next time. `on_progress` receives the judge, attempts done, and their total. The
    others of several `processes` call `help_judges` meanwhile. Raises
    UserError for a judge that reads none of the run's sets, and for one that steered its attacks.
    """
    check_apart(judges, loop_judges(run))
    recorded = run.sets()
    readers = {
        judge.id: [name for name, record in recorded.items() if judge.reads(record)]
        for judge in judges
    }
    for judge in judges:
        if recorded and not readers[judge.id]:
            raise UserError(
                f"the judge {judge.name} reads none of the sets {', '.join(recorded)}; useful "
                "tasks bring their own scores, and harmless requests need a judge that tells "
                "refusals"
            )
    specials = {token for record in run.subjects().values() for token in record.special_tokens}
    for judge in judges:
        counts = {name: run.num_unjudged(judge.id, name) for name in readers[judge.id]}
        done, total = 0, sum(counts.values())
        with _helped(judge.local_model if total else None, processes) as num_at_once:
            for name in (name for name, count in counts.items() if count):
                is_testbed = recorded[name].world_seed is not None
                cases = run.cases(name)
                attempts = run.attempts(unjudged_by=judge.id, case_set=name)
                for batch in _batches(attempts, num_at_once):
                    _judge_batch(run, judge, batch, cases, specials, is_testbed)
                    done += len(batch)
                    on_progress(judge.id, done, total)
    processes.gather(None)  # there is no more to help with
    for cases in sets:
        if cases.score is not None:
            _score(run, cases, cases.score, on_progress)


@contextmanager
def _helped(model: LocalModel | None, processes: Processes) -> Iterator[int]:
    """Let all processes work for a judge's model, if it has one; yields how many attempts to judge
    at once."""
    if model is None or processes.count == 1:
        yield ITEMS_AT_ONCE
        return
    processes.gather((str(model.checkpoint), model.worker.capacity))
    processes.agree(lambda: None)
    with serving(model.worker, processes) as pool:
        assert pool is not None
        with model.helped(pool):
            yield max(ITEMS_AT_ONCE, 2 * pool.capacity)


def help_judges(device: str | None, processes: Processes) -> None:
    """Work for the judges of the main process, until it has judged all."""
    while True:
        asked: list[tuple[str, int] | None] = processes.gather(None)
        if asked[0] is None:
            return
        checkpoint, capacity = asked[0]
        load = functools.partial(LocalModel, checkpoint, device=device, batch_size=capacity)
        model = processes.agree(load)
        with serving(model.worker, processes):
            pass


def _batches(attempts: Iterator[Attempt], size: int = ITEMS_AT_ONCE) -> Iterator[list[Attempt]]:
    while batch := list(itertools.islice(attempts, size)):
        yield batch


def _judge_batch(
    run: Run,
    judge: NamedJudge,
    batch: Sequence[Attempt],
    cases: dict[str, Behavior],
    specials: set[str],
    is_testbed: bool,
) -> None:
    items = []
    for attempt in batch:
        text = attempt.response_full if judge.reads_canvas else attempt.response
        items.append(Item(cases[attempt.case], clean(text, specials)))
    verdicts = run_coroutine(judge.judge.judge(items))
    assert len(verdicts) == len(items), "a judge gives one verdict for each item"
    for attempt, item, verdict in zip(batch, items, verdicts, strict=True):
        if not is_testbed and verdict.score is not None:
            garbled = is_garbled(item.response)
            verdict = replace(verdict, native={**verdict.native, "coherent": not garbled})
        run.add_verdict(attempt.key, judge.id, verdict)
    run.commit()


def _score(
    run: Run,
    cases: CaseSet,
    score: Callable[[Behavior, Attempt], Mapping[str, Verdict]],
    on_progress: Callable[[str, int, int], object],
) -> None:
    """The metrics of a useful task, attempt by attempt."""
    by_id = {case.id: case for case in cases.cases}
    headline = f"{METRIC}{cases.headline}"
    done, total = 0, run.num_unjudged(headline, cases.name)
    for batch in _batches(run.attempts(unjudged_by=headline, case_set=cases.name)):
        for attempt in batch:
            if attempt.case in by_id:  # a smaller limit leaves cases of earlier sessions out
                try:
                    verdicts = score(by_id[attempt.case], attempt)
                except msgspec.ValidationError as error:
                    raise run.damage(f"attempts, {attempt.key}", error) from error
                for metric, verdict in verdicts.items():
                    run.add_verdict(attempt.key, f"{METRIC}{metric}", verdict)
        run.commit()
        done += len(batch)
        on_progress(cases.name, done, total)
