"""The case sets of a run by their names: the testbed's, known benchmarks, files, useful tasks."""

from __future__ import annotations

import dataclasses
import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa.data import known_set_names, load_cases, names_known_set
from mosa.testbed.behaviors import TESTBED_SETS
from mosa.types import CaseSet, UserError
from mosa.utility import (
    TESTBED_TASKS,
    USEFUL_SETS,
    is_task,
    load_harness_set,
    tasks_of,
    testbed_set,
)
from mosa.world import World

TESTBED = "testbed"
ALL_TASKS = "testbed:tasks"
"""Means all useful tasks of the testbed."""


@dataclass(frozen=True)
class SetOptions:
    """How sets are read."""

    limit: int | None = None
    """Use only the first N cases of each set; of each subject where a task has several."""
    sample_seed: int | None = None
    """Seed with which the `limit` cases of a set are drawn at random; unset: they are the first."""
    data_dir: Path | None = None
    """Folder with known benchmark files; unset: MOSA_DATA, else ./data."""
    is_harmless: bool = False
    """Whether the requests of the user's own files are harmless; known sets say so themselves."""
    num_fewshot: int | None = None
    """Worked examples before each question of a useful task; unset: as many as the task says."""
    decoder_of_task: str | None = None
    """Also asks useful tasks under the decoders that LLaDA's authors publish for each: authors,
    authors_blocks or authors_1.5; unset: under the subject's alone."""
    num_draws: int | None = None
    """Maskings of an answer of several tokens whose likelihood is asked for; unset: 128."""
    run_code: bool = False
    """Whether code that the model wrote is run, in a sandbox; else its cases are unscored."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("num_draws", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, not {value}")
        if self.sample_seed is not None and self.limit is None:
            raise UserError("sample_seed draws `limit` cases of each set; give a limit, too")


def load_sets(
    names: Sequence[str], world: World | None, options: SetOptions | None = None
) -> list[CaseSet]:
    """The sets of these names, in their order.

    `world` is that of the testbed model that is measured. Raises UserError for an unknown name, a
    set that is named twice, the testbed's sets without its model, and an option that no set uses.
    """
    options = options or SetOptions()
    beside = () if options.decoder_of_task is None else tasks_of(options.decoder_of_task)
    wanted: list[str] = []
    for name in names:
        tasks = tuple(f"testbed:{task}" for task in TESTBED_TASKS)
        wanted += tasks if name == ALL_TASKS else (name,)
        if name in beside:
            wanted.append(f"{name}:{options.decoder_of_task}")
    if not wanted:
        raise UserError("--sets names no set; give some, for example testbed,gsm8k")
    if beside and not set(beside) & set(names):
        raise UserError(
            f"no set uses --decoder_of_task {options.decoder_of_task}; name one of "
            f"{', '.join(beside)}, or leave it out"
        )
    found = [_load(name, world, options) for name in wanted]
    if options.sample_seed is not None:
        assert options.limit is not None, "checked with the options"
        found = [_sampled(cases, options.limit, options.sample_seed) for cases in found]
    known = [cases.name for cases in found]
    twice = [name for name in known if known.count(name) > 1]
    if twice:
        raise UserError(f"two sets are called {twice[0]}; rename one, or leave it out")
    _check_used(found, options)
    return found


def is_testbed_set(name: str) -> bool:
    """Whether the name asks for cases of the invented world."""
    return name.partition(":")[0] == TESTBED


def _sampled(cases: CaseSet, number: int, seed: int) -> CaseSet:
    """So many of the cases, drawn at random, in the order of their source; a larger sample of the
    same seed has those of a smaller one."""
    ids = [case.id for case in cases.cases]
    random.Random(f"{seed}-{cases.name}").shuffle(ids)
    drawn = set(ids[:number])
    return dataclasses.replace(cases, cases=tuple(c for c in cases.cases if c.id in drawn))


def _load(name: str, world: World | None, options: SetOptions) -> CaseSet:
    limit = options.limit if options.sample_seed is None else None
    if is_testbed_set(name):
        if world is None:
            raise UserError(
                f"{name} asks about the testbed's world, which only its models know; measure "
                "`testbed`"
            )
        if name in TESTBED_SETS:
            return TESTBED_SETS[name](world, limit=limit)
        task = name.removeprefix(f"{TESTBED}:")
        if task in TESTBED_TASKS:
            return testbed_set(world, task, limit=limit)
    elif names_known_set(name):
        return load_cases(
            name,
            data_dir=options.data_dir,
            limit=limit,
            is_harmless=options.is_harmless,
        )
    elif is_task(name):
        if options.sample_seed is not None:
            raise UserError(
                f"{name} takes the first cases of each of its parts; leave sample_seed out, or "
                f"measure {name} by a command of its own"
            )
        return load_harness_set(
            name,
            data_dir=options.data_dir,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            num_draws=options.num_draws,
            run_code=options.run_code,
        )
    known = (*TESTBED_SETS, ALL_TASKS, *known_set_names(), *USEFUL_SETS)
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"there is no set {name}; {hint}name one of `mosa sets`, a task of lm_eval, or a file"
    )


def _check_used(sets: Sequence[CaseSet], options: SetOptions) -> None:
    """UserError for an option that none of the sets reads."""
    for name, setting in (
        ("num_fewshot", "num_fewshot"),
        ("num_draws", "num_draws"),
        ("run_code", "limits"),
    ):
        if getattr(options, name) not in (None, False) and not any(
            setting in cases.settings for cases in sets
        ):
            raise UserError(f"no set uses --{name}; leave it out")
    if options.data_dir is not None and all(cases.world_seed is not None for cases in sets):
        raise UserError(
            "--data_dir is for benchmark files, which the testbed does not read; leave it out"
        )
    if options.is_harmless and all(cases.known_as or not cases.file for cases in sets):
        raise UserError("--is_harmless is for your own files, and no set is one; leave it out")
