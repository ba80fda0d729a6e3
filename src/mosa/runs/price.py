"""The most that an evaluation asks, from the settings of its attacks, before anything is loaded.

for row in most_asked(config, chats):
    row.attack, row.num_tasks, row.asked      # tap, 50, {"target": 17000, "attacker": ...}
seconds_of_a_pass(config, subject)            # times its forward passes: the time at most
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mosa.attacks import Query
from mosa.attacks.base import ChatRole
from mosa.chat.base import ChatModel
from mosa.denoising import check_decoder
from mosa.denoising.schedule import length_of_blocks
from mosa.families import attention_of, context_of, load_model, packaged_folder
from mosa.families.attention import FULL, AttentionPattern
from mosa.hub.folders import folder_of
from mosa.inputs import is_folder
from mosa.responder import answer_all
from mosa.runs.evaluate import EvaluateConfig, world_of_subjects
from mosa.runs.plan import Planned, choose_attacks, courses_of, plan
from mosa.runs.sets import load_sets
from mosa.runs.store import Run
from mosa.runs.subject import Subject
from mosa.types import Budget, UserError

PASSES, ANSWER_TOKENS = "forward_passes", "answer_tokens"


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens of served models, as the user states them."""

    asked: float
    answered: float

    def __post_init__(self) -> None:
        if not all(0 <= each < math.inf for each in (self.asked, self.answered)):
            raise UserError(
                "a price is two numbers from 0 on, US dollars for a million tokens asked and "
                f"answered, not {self.asked:g} and {self.answered:g}"
            )

    def of(self, asked: int, answered: int) -> str:
        """What so many tokens cost, in dollars.

        >>> Price(0.5, 2.0).of(1_000_000, 10_000)
        '$0.52'
        """
        dollars = (asked * self.asked + answered * self.answered) / 1e6
        return "under $0.01" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


@dataclass(frozen=True)
class AskedRow:
    """One attack on one set, against one subject."""

    subject: str
    case_set: str
    attack: str
    preset: str
    num_tasks: int
    """Cases and seeds; 0 where the pair is not applicable."""
    asked: Mapping[str, int] | None
    """The most of each kind: responses (`target`), replies by role, forward passes of a local
    model, tokens of a served model's responses. None where the attack states no bound, or its
    passes go by the context of a model that is not on this machine."""
    reason: str = ""
    """Why it is not applicable."""


def most_asked(
    config: EvaluateConfig, chats: Mapping[ChatRole, ChatModel] | None = None
) -> list[AskedRow]:
    """What each attack asks at most, as planned: judges, retries and what is on record apart.

    A useful task counts one response a case. Raises UserError for what `evaluate` would refuse.
    """
    world = world_of_subjects(config)
    sets = load_sets(config.sets, world, config.options)
    attacks = choose_attacks(config.attacks, config.preset, config.attack_options)
    courses = courses_of(sets, attacks, world, chats or {})
    rows = []
    for subject in config.subjects:
        attention, context = _attention(subject)
        planned, left_out = plan(
            subject, "", courses, config.seeds, block_length=attention.block_length
        )
        groups: dict[tuple[str, str, str], list[Planned]] = defaultdict(list)
        for each in planned:
            groups[each.task.case_set, each.task.attack, each.task.preset].append(each)
        for place, tasks in groups.items():
            rows.append(
                AskedRow(subject.name, *place, len(tasks), _asked_by(tasks, attention, context))
            )
        for pair in left_out:
            place = pair.case_set, pair.attack, pair.preset
            rows.append(AskedRow(subject.name, *place, 0, {}, pair.reason))
    return rows


def _attention(subject: Subject) -> tuple[AttentionPattern, int | None]:
    """Attention and context of a model on this machine; of any other neither is known before it is
    loaded."""
    is_here = packaged_folder(subject.model) or is_folder(folder_of(subject.model))
    if not is_here or subject.is_served:
        return FULL, None
    return attention_of(subject.model), context_of(subject.model)


def _asked_by(
    tasks: list[Planned], attention: AttentionPattern, context: int | None
) -> dict[str, int] | None:
    """What tasks of one attack ask at most, with the passes that a local model's responses take,
    and the tokens that a served model's have."""
    first = tasks[0]
    bound = first.chosen.attack.bound
    if bound is None:
        return None
    asked = {
        name: number * len(tasks)
        for name, number in bound(first.chosen.config, first.course.wording).asked.items()
    }
    attack = first.chosen.attack
    decoder = first.subject.decoder_for(attack, 0)
    if first.subject.is_served:
        asked[ANSWER_TOKENS] = asked.get("target", 0) * decoder.max_new_tokens
    else:
        passes = attack.passes(decoder, attention, context)
        if passes is None:
            return None
        asked[PASSES] = asked.get(PASSES, 0) + asked.get("target", 0) * passes
    return asked


def total(rows: Sequence[AskedRow]) -> Counter[str]:
    """The sum over rows."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update(row.asked or {})
    return found


def spent_on_served(run: Run) -> Budget:
    """What the tasks of a run have spent on served subjects."""
    served = {name for name, record in run.subjects().items() if record.server is not None}
    return sum(
        (found.budget for task, found in run.tasks() if found and task.subject in served), Budget()
    )


def seconds_of_a_pass(config: EvaluateConfig, subject: Subject) -> float:
    """Seconds that one response's forward pass takes in a full batch of plain requests, measured
    on the subject's weights; prompts that an attack makes longer take longer.

    Raises UserError where the weights cannot be loaded.
    """
    model = load_model(
        subject.model, adapter=subject.adapter, dtype=config.dtype, device=config.device
    )
    decoder = subject.full_decoder
    check_decoder(decoder, model)
    blocks = -(-decoder.max_new_tokens // length_of_blocks(decoder, model.attention))
    decoder = replace(decoder, steps=blocks)
    sets = load_sets(config.sets, world_of_subjects(config), config.options)
    requests = itertools.cycle(case.request for cases in sets for case in cases.cases)
    queries = [(Query(next(requests)), decoder) for _ in range(config.batch_size)]
    answer_all(model, "", queries, batch_size=config.batch_size)  # the first call sets things up
    start = time.perf_counter()
    responses = answer_all(model, "", queries, batch_size=config.batch_size)
    return (time.perf_counter() - start) / sum(each.num_forward_passes for each in responses)
