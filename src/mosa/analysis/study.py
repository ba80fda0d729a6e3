"""What all analyses share: models, behaviors with their judge, and a folder that can be gone on
with.

    study = Study(out, "order")
    for batch in study.each(items, key, batch_size=32):     # what no earlier run has recorded
        study.record(...)
    study.finish(result, rows)
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mosa.analysis import figures
from mosa.analysis.result import AnalysisResult, result_json, write_csv
from mosa.data import load_prompts
from mosa.denoising import Canvas, DecoderConfig, Hook, SampleResult, sample
from mosa.evaluation.records import JsonLines
from mosa.families import DiffusionLM
from mosa.files import write_json, write_text
from mosa.judges import is_refusal
from mosa.provenance import versions
from mosa.testbed import RESPONSE_LENGTH, world_of
from mosa.types import Prompt, UserError, content_key, prompt_turns
from mosa.world import WRAPPINGS, Truth, World, WorldObject

TESTBED = "testbed"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Subject:
    """A model under study and what it is called in tables and charts."""

    name: str
    model: DiffusionLM

    @cached_property
    def version(self) -> str:
        """A hash of everything that decides its answers, adapter included."""
        return self.model.content_hash()


@dataclass(frozen=True)
class Case:
    """One request, however it is wrapped."""

    id: str
    prompt: Prompt
    about: WorldObject | None = None
    """What the truth is known of; none outside the testbed."""


@dataclass(frozen=True)
class Cases:
    """Requests and their judge: the world's truth on the testbed, words of refusal elsewhere."""

    source: str
    items: list[Case]
    world: World | None
    model: str
    """The model whose world they belong to, for further behaviors of the same kind."""

    @property
    def measures(self) -> tuple[str, ...]:
        """What is known of a response: `harm` on the testbed only, `refused` everywhere."""
        return ("refused",) if self.world is None else ("harm", "refused")

    def judge(self, behavior: Case, text: str) -> dict[str, float]:
        """Each measure of one response, in [0, 1]."""
        if self.world is None or behavior.about is None:
            return {"refused": float(is_refusal(text))}
        return {
            "harm": self._truth.harm(behavior.about, text),
            "refused": float(self._truth.refused(text)),
        }

    @cached_property
    def _truth(self) -> Truth:
        assert self.world is not None, "only the testbed has a truth"
        return Truth(self.world)


def load_cases(source: str, model: str, *, limit: int | None = None) -> Cases:
    """The requests of a file, or held-out ones of the testbed's world.

    `testbed` are plain requests for restricted objects, `testbed:benign` for unrestricted ones,
    `testbed:<wrapping>` wrapped requests for restricted ones; `model` names the testbed model whose
    world is meant. Raises UserError for an unknown name or file.
    """
    if source.split(":")[0] != TESTBED:
        examples = load_prompts(source)[:limit]
        items = [Case(str(i), example.prompt) for i, example in enumerate(examples)]
        return Cases(source, items, None, model)
    kind = source.partition(":")[2] or "direct"
    restricted = kind != "benign"
    wrapping = kind if restricted else "direct"
    if wrapping not in WRAPPINGS or WRAPPINGS[wrapping].one_step:
        names = [name for name, w in WRAPPINGS.items() if not w.one_step]
        raise UserError(
            f"There are no behaviors {source}; choose a file, testbed, testbed:benign, or testbed: "
            f"with one of {', '.join(names)}."
        )
    world = world_of(model)
    objects = world.objects(restricted=restricted, split="heldout")[:limit]
    items = [
        Case(obj.name, world.request(obj, wrapping, variant=i), obj)
        for i, obj in enumerate(objects)
    ]
    return Cases(source, items, world, model)


@dataclass(frozen=True)
class Study:
    """The folder of one analysis: rows as they come, then the finished result.

    `rows.jsonl` is append-only and keyed by all that determines a row, so that a run which was cut
    off goes on where it ended, and settings may be changed in the same folder.
    """

    out: Path
    analysis: str
    show_progress: bool = True

    def each(
        self,
        items: Sequence[Item],
        key: Callable[[Item], str],
        *,
        batch_size: int,
        group: Callable[[Item], Any] = lambda item: None,
    ) -> Iterator[list[Item]]:
        """The items whose row is not on file yet, in batches, with a progress bar.

        A batch holds neighbours of one `group` only.
        """
        known = {row["key"] for row in self._rows}
        todo = [item for item in items if key(item) not in known]
        columns = (
            TextColumn(self.analysis),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, disable=not self.show_progress) as bar:
            task = bar.add_task("", total=len(items), completed=len(items) - len(todo))
            for _, members in itertools.groupby(todo, group):
                alike = list(members)
                for start in range(0, len(alike), batch_size):
                    batch = alike[start : start + batch_size]
                    yield batch
                    bar.advance(task, len(batch))

    def record(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; each has its `key`."""
        for row in rows:
            self._rows.append(row)

    def rows(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """The recorded rows of these keys, in their order, without the key."""
        known = {row["key"]: row for row in self._rows}
        return [
            {name: value for name, value in known[key].items() if name != "key"} for key in keys
        ]

    @property
    def _rows(self) -> JsonLines:
        return JsonLines(self.out / "rows.jsonl")

    def finish(self, result: AnalysisResult, rows: Sequence[dict[str, Any]]) -> None:
        """Write data.csv, estimates.csv, header.json, result.json, finding.md and the figures."""
        write_csv(self.out / "data.csv", rows)
        write_csv(self.out / "estimates.csv", result.estimates)
        write_json(self.out / "header.json", result.header)
        write_text(self.out / "result.json", result_json(result) + "\n")
        write_text(self.out / "finding.md", result.paragraph + "\n")
        for name, chart in result.charts.items():
            figures.draw(chart, self.out / name)


def default_length(behaviors: Cases) -> int:
    """Response tokens where nothing else is asked for: the testbed's, or 128 as in the paper."""
    return 128 if behaviors.world is None else RESPONSE_LENGTH


def decoder_of(
    length: int, tokens_per_step: int, block_length: int | None = None, **settings: Any
) -> DecoderConfig:
    """A decoder that commits so many tokens a step, or fewer where its blocks need more steps."""
    num_blocks = -(-length // block_length) if block_length else 1
    return DecoderConfig(
        max_new_tokens=length,
        steps=max(num_blocks, -(-length // tokens_per_step)),
        block_length=block_length,
        **settings,
    )


def fitting_positions(
    given: tuple[int, ...] | None, defaults: tuple[int, ...], longest: int, length: int
) -> tuple[int, ...]:
    """The given positions (from 1), or those of the defaults where `longest` tokens have room.

    Raises UserError for a given position that leaves none.
    """
    last = length - longest + 1
    for position in given or ():
        if not 1 <= position <= last:
            raise UserError(
                f"Position {position} leaves no room for a phrase of {longest} tokens in a "
                f"response of {length}; use positions from 1 to {last} or raise max_new_tokens."
            )
    return given or tuple(position for position in defaults if position <= last)


def header(
    analysis: str, subjects: Sequence[Subject], behaviors: Cases, config: Any
) -> dict[str, Any]:
    """Every setting of an analysis, its models and behaviors, and the versions it ran with."""
    return {
        "analysis": analysis,
        "settings": json.loads(json.dumps(dataclasses.asdict(config))),
        "models": {subject.name: subject.version for subject in subjects},
        "behaviors": {"source": behaviors.source, "n": len(behaviors.items)},
        "versions": versions(),
    }


def row_key(analysis: str, subject: Subject, behavior: Case, **of: Any) -> str:
    """The key of one row: everything that determines it, and what its model is called in it."""
    return content_key(
        analysis=analysis,
        model=subject.name,
        model_version=subject.version,
        case=behavior.id,
        prompt=prompt_turns(behavior.prompt),
        **of,
    )


def judged_sample(
    subject: Subject,
    behaviors: Cases,
    items: Sequence[Case],
    canvas: Canvas,
    decoder: DecoderConfig,
    *,
    hook: Hook | None = None,
) -> tuple[SampleResult, list[dict[str, float]]]:
    """Fill the canvas, a row for each item, and judge what stands before the first end token."""
    result = sample(subject.model, canvas, decoder, hook=hook)
    if result.text is None:
        raise UserError(
            f"{subject.name} has no tokenizer, so its responses cannot be judged; use a checkpoint "
            "with a tokenizer.json."
        )
    return result, [
        behaviors.judge(item, text) for item, text in zip(items, result.text, strict=True)
    ]
