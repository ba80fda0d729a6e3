"""Runs with made-up attempts of probes, for tests of findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosa.probes import PROBES
from mosa.runs.records import Outcome, SubjectRecord, Task
from mosa.runs.store import Run
from mosa.types import Attempt, Behavior, Budget, CaseSet, Response, Verdict, as_plain

JUDGE = "truth/1/made-up"
SET = "made up"
LENGTH = {"max_new_tokens": 4}


def subject_of(name: str, refusals: Sequence[str] = ()) -> SubjectRecord:
    """A subject whose weights are called after it."""
    return SubjectRecord(
        name, "base", None, f"hash of {name}", None, LENGTH, [], [], [], refusals=list(refusals)
    )


def verdict(score: float, *, refused: bool = False) -> Verdict:
    """What the truth would say."""
    native = {"harm": score, "refused": refused, "coherent": True}
    return Verdict(score, score >= 0.5, native)


def response_of(key: str, steps: list[int], ends: list[int], block: int | None) -> Response:
    """A response whose positions were committed in these steps."""
    words = [str(step) for step in steps]
    starts = list(range(0, len(steps), block or len(steps)))
    decoder = {"block_length": block}
    return Response(key, [], "", "", steps, words, steps, ends, starts, decoder=decoder)


def probed_run(
    folder: Path,
    probe: str,
    cells: Iterable[tuple[str, str, Mapping[str, Any], Verdict | None, Response | None]],
    *,
    judge: str = JUDGE,
    refusals: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """A run with one attempt for each (subject, case, details, verdict, response); where the words
    that a probe writes are all that is looked at, the response may be left out."""
    run = Run(folder, create=True)
    config = as_plain(PROBES[probe].config("quick", settings))
    cells = list(cells)
    cases = tuple(Behavior(case, "how?") for case in dict.fromkeys(c for _, c, *_ in cells))
    run.add_set(CaseSet(SET, "harmful", cases))
    tasks: dict[tuple[str, str], int] = {}
    for subject, case, details, said, response in cells:
        number = tasks.get((subject, case), 0)
        task = f"{subject}-{case}"
        if not number:
            run.add_subject(subject_of(subject, refusals))
            run.add_tasks([Task(task, subject, SET, case, probe, "quick", 0, "open", config)])
        if response is None and probe in ("position", "step"):
            response = response_of(f"{task}-{number}", [0] * 168, [], None)
        tasks[subject, case] = number + 1
        attempt = Attempt(
            key=f"{task}-{number}",
            subject=subject,
            case_set=SET,
            case=case,
            attack=probe,
            responses=[] if response is None else [response],
            response="",
            response_full="",
            preset="quick",
            number=number,
            details=dict(details),
        )
        if response is not None:
            run.add_response(response)
        run.add_attempt(task, attempt)
        if said is not None:
            run.add_verdict(attempt.key, judge, said)
    for (subject, case), number in tasks.items():
        run.end_task(f"{subject}-{case}", Outcome("done", number, Budget()))
    run.commit()
    return run
