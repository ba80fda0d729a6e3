"""Tasks of lm-evaluation-harness as sets of useful cases, one for each row.

The requests of a row and the scores of its answers are the harness's own: its requests with
their worked examples, its filters and its metrics, row by row. Prompts are dialogues where the
model has a chat template, with each worked example as a turn of the user and one of the assistant,
as the harness lays them out by default. The model answers through the target of an attack, so that
rows of many sets share batches, and scores are read only from the record.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mosa.attacks import Query, Target
from mosa.types import Attempt, Behavior, CaseSet, Ids, Response, UserError, Verdict
from mosa.utility.authors_decoders import task_and_decoder
from mosa.utility.code_sandbox import best_isolation
from mosa.utility.harness_task import HarnessTask, find_task, quiet
from mosa.utility.likelihoods import NUM_DRAWS, compared, comparisons
from mosa.utility.prompts import (
    SAME_TOKENS,
    Dialogue,
    check_draws,
    cut,
    pair_of,
    prompt_ids,
    stop_strings,
    too_long,
)

DECODER = "decoder"
"""The setting of a set that holds the settings of its own decoder, over the subject's."""
FEWSHOT_SEED = 1234
"""Which worked examples are drawn; the harness's own."""
MOST_TOGETHER = 1024
"""Likelihoods of rows that may be computed together; the responder's batch bounds them further."""


@dataclass(frozen=True)
class _Row:
    """A row of one of a task's parts."""

    part: Any
    number: int
    content: Mapping[str, Any]


_Answers = Annotated[list[str | tuple[float, bool]], msgspec.Meta(min_length=1)]
"""To one request: texts, or the log-likelihood and whether it is the greedy answer."""


@dataclass(frozen=True)
class _Details:
    """The details of an attempt: the answers to its requests, or why they were not asked."""

    answers: Annotated[list[_Answers], msgspec.Meta(min_length=1)] | None = None
    not_asked: str = ""
    requests: list[str] = field(default_factory=list[str])
    """The kinds of the requests that were not asked."""


BEGINS_ANSWER = "the task begins the answer itself, which a server does not take"


class _CannotAskError(Exception):
    """Why a row cannot be asked of a model."""


def load_harness_set(
    name: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    num_draws: int | None = None,
    run_code: bool = False,
) -> CaseSet:
    """The rows of a task by its name, at most `limit` of each of its parts.

    A name such as "gsm8k:authors" is the task under a decoder that LLaDA's authors publish for it.
    `num_fewshot` worked examples precede each question (None: as many as the task says);
    `num_draws` maskings make the likelihood of an answer of several tokens (None: 128). Only with
    `run_code` does a sandbox run code that a model wrote. Raises UserError for a task that does not
    exist, data that cannot be loaded, or a setting that does not fit the task.
    """
    task_name, own = task_and_decoder(name)
    task = find_task(task_name, data_dir=data_dir, num_fewshot=num_fewshot, run_code=run_code)
    if run_code and "limits" in task.settings:
        best_isolation()  # raises at once where no code can be run
    rows = _Rows(task, limit, num_draws or NUM_DRAWS, {} if own is None else own.settings)
    settings = dict(task.settings)
    if rows.decoder:
        settings[DECODER] = rows.decoder
    if task.asks_likelihoods and not rows.reads_letter:
        settings["num_draws"] = rows.num_draws
    return CaseSet(
        name=name,
        kind="useful",
        cases=tuple(_case(id, row) for id, row in rows.by_id.items()),
        content_hash=task.content_hash(),
        settings=settings,
        headline=task.headline,
        needs_likelihoods=task.asks_likelihoods and not rows.reads_letter,
        ask=rows.ask,
        score=rows.score,
        **task.source,
    )


def _case(id: str, row: _Row) -> Behavior:
    text = row.part.doc_to_text(row.content)
    # A task that compares prompts has only the number of the right one here.
    return Behavior(id, text if isinstance(text, str) else str(dict(row.content)))


@dataclass(eq=False)
class _Rows:
    """The rows of a task by the ids of their cases: how each is asked, and scored."""

    task: HarnessTask
    limit: int | None
    num_draws: int
    decoder: Mapping[str, Any]
    """The settings of the task's own decoder, over the subject's; empty where it has none."""

    def __post_init__(self) -> None:
        self.reads_letter = self.task.asks_likelihoods and bool(self.decoder)
        """Whether a choice is read from a generated answer, and not from likelihoods."""
        self.by_id = {
            self.task.case_id(part, row, number): _Row(part, number, row)
            for part in self.task.parts
            for number, row in part.doc_iterator(limit=self.limit)
        }
        self._built: dict[tuple[str, bool], dict[int, list[Any]]] = {}

    def requests(self, row: _Row, *, with_turns: bool) -> list[Any]:
        """The harness's requests of a row, in their order.

        Those of all rows of its part are built at once, because worked examples are drawn row by
        row from one stream.
        """
        part = row.part
        key = part.task_name, with_turns
        if key not in self._built:
            part.set_fewshot_seed(FEWSHOT_SEED)
            with quiet():
                part.build_all_requests(
                    limit=self.limit,
                    apply_chat_template=with_turns,
                    fewshot_as_multiturn=True,
                    chat_template=Dialogue.of if with_turns else None,
                )
            built = self._built[key] = defaultdict(list)
            for request in sorted(part.instances, key=lambda request: request.idx):
                built[request.doc_id].append(request)
        return self._built[key][row.number]

    # --- asking -----------------------------------------------------------------------------------

    async def ask(self, case: Behavior, target: Target) -> AsyncIterator[Attempt]:
        """One attempt, with the answers to each of the row's requests among its details."""
        with_turns = not target.has_tokens or target.model.has_turns
        if target.system_prompt is not None and not with_turns:
            raise UserError(
                f"{target.model.source} has no chat template, so that it takes no system prompt; "
                "leave the system prompt out"
            )
        requests = self.requests(self.by_id[case.id], with_turns=with_turns)
        if self.reads_letter:
            requests = requests[:1]  # one for each choice, on the same prompt
        try:
            queries = [self._queries(request, target) for request in requests]
            pairs = self._pairs(requests, target)
        except _CannotAskError as error:
            kinds = [request.request_type for request in requests]
            yield target.attempt([], details={"not_asked": str(error), "requests": kinds})
            return
        works = comparisons(
            filter(None, pairs),
            target.decoder,
            num_draws=self.num_draws,
            greedy=self.task.checks_greedy,
            together=MOST_TOGETHER,
        )
        outcomes = await asyncio.gather(*(target.compute("likelihood", work) for work in works))
        likelihoods = compared(works, outcomes)
        responses = iter(await target.ask_all([query for group in queries for query in group]))
        answers: list[list[Any]] = []
        used: list[Response] = []
        for request, group, pair in zip(requests, queries, pairs, strict=True):
            if pair is not None:
                answers.append([[*likelihoods[pair]]])
                continue
            own = [next(responses) for _ in group]
            used += own
            stops = [] if _is_choice(request) else stop_strings(request.args[1])
            answers.append([cut(response.text, stops) for response in own])
        yield target.attempt(
            used,
            text="\n".join(text for group in answers for text in group if isinstance(text, str)),
            details={"answers": answers},
        )

    def _queries(self, request: Any, target: Target) -> list[Query]:
        """What is asked for a request to generate; a repeated one asks with other seeds."""
        if _is_choice(request) and not self.reads_letter:
            return []
        context, settings = request.args
        temperature = self.decoder.get("temperature", target.decoder.temperature)
        check_draws(self.task.name, {} if _is_choice(request) else settings, temperature)
        seeds = [{"seed": target.decoder.seed + k} if k else {} for k in range(request.repeats)]
        ids = None
        if target.has_tokens:
            ids, words = prompt_ids(target.model, context, target.system_prompt)
            length = self.decoder.get("max_new_tokens", target.length)
            if reason := too_long(target.model, len(ids), length):
                raise _CannotAskError(reason)
        elif context.beginning:
            raise _CannotAskError(BEGINS_ANSWER)
        else:
            words = context.turns
        return [Query(words, prompt_ids=ids, decoder={**self.decoder, **s}) for s in seeds]

    def _pairs(self, requests: Sequence[Any], target: Target) -> list[tuple[Ids, Ids] | None]:
        """Prompt and answer of each request to compare; None for the others."""
        pairs: list[tuple[Ids, Ids] | None] = []
        words: dict[tuple[Ids, Ids], tuple[str, str]] = {}
        for request in requests:
            if not _is_choice(request) or self.reads_letter:
                pairs.append(None)
                continue
            pair = pair_of(target.model, *request.args, system_prompt=target.system_prompt)
            if reason := too_long(target.model, *map(len, pair)):
                raise _CannotAskError(reason)
            if words.setdefault(pair, request.args) != request.args:
                raise _CannotAskError(SAME_TOKENS)
            pairs.append(pair)
        return pairs

    # --- scoring ----------------------------------------------------------------------------------

    def score(self, case: Behavior, attempt: Attempt) -> dict[str, Verdict]:
        """A verdict for each metric under each filter that is a share: a number from 0 to 1, of
        which more is better. Raises msgspec.ValidationError for an attempt that `ask` did not make.
        """
        row, details = self.by_id[case.id], msgspec.convert(attempt.details, _Details)
        if details.answers is None:
            unscored = Verdict.unscored(details.not_asked or "it has no answers")
            headline = [self.task.headline]
            metrics = headline if self.reads_letter else self._metrics(row, details.requests)
            return dict.fromkeys(metrics, unscored)
        if self.reads_letter:
            # One request, one answer: a text.
            return {self.task.headline: _choice_verdict(row, str(details.answers[0][0]))}
        verdicts: dict[str, Verdict] = {}
        for name, answers in _filtered(row, details.answers):
            for metric, verdict in self._verdicts(row, answers).items():
                verdicts[f"{metric},{name}"] = verdict
        return verdicts

    def _verdicts(self, row: _Row, answers: list[Any]) -> Mapping[str, Verdict]:
        if self.task.scorer is not None:
            return self.task.scorer(row.content, answers)
        values = row.part.process_results(row.content, answers)
        more_is_better = row.part.higher_is_better()
        native = {"read": answers} if row.part.OUTPUT_TYPE == "generate_until" else {}
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, Real)}
        return {
            metric: Verdict(value, value == 1, native)
            for metric, value in numbers.items()
            if 0 <= value <= 1 and more_is_better.get(metric, True)
        }

    def _metrics(self, row: _Row, requests: Sequence[str]) -> list[str]:
        """The metrics of a row that was not asked: those that empty answers get."""
        empty = [[""] if kind == "generate_until" else [[0.0, False]] for kind in requests]
        return [
            f"{metric},{name}"
            for name, answers in _filtered(row, empty)
            for metric in (
                self._verdicts(row, answers) if self.task.scorer is None else row.part.aggregation()
            )
        ]


def _is_choice(request: Any) -> bool:
    return request.request_type == "loglikelihood"


def _choice_verdict(row: _Row, text: str) -> Verdict:
    """Whether the first letter of a choice that stands by itself in the answer is the right one, as
    in the authors' evaluation (OpenCompass, `first_option_postprocess`)."""
    found = re.search(r"\b([A-D])\b", text)
    is_right = found is not None and "ABCD".index(found[1]) == row.part.doc_to_target(row.content)
    return Verdict(float(is_right), is_right, {"read": "" if found is None else found[1]})


def _filtered(row: _Row, answers: Sequence[Sequence[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """What each of the task's filters leaves of the answers to a row's requests, with its name."""
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

    for ensemble in row.part._filters:
        instances = [
            Instance(
                request_type="generate_until" if isinstance(group[0], str) else "loglikelihood",
                doc=dict(row.content),
                arguments=(),
                idx=idx,
                resps=[answer if isinstance(answer, str) else tuple(answer) for answer in group],
            )
            for idx, group in enumerate(answers)
        ]
        ensemble.apply(instances)
        yield ensemble.name, [instance.filtered_resps[ensemble.name] for instance in instances]
