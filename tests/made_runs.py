"""Run folders with made-up outcomes, for tests of what is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosa.attacks.base import Threat
from mosa.denoising import DecoderConfig
from mosa.families.attention import FULL
from mosa.runs.judging import METRIC
from mosa.runs.records import Outcome, SubjectRecord, Task
from mosa.runs.store import Run
from mosa.types import Attempt, Behavior, Budget, CaseSet, Response, SetKind, Verdict

JUDGE = "truth/1/made-up"
DECODER = {"max_new_tokens": 4, "steps": 4, "block_length": None, "seed": 0}
WORDS = ("sure", "here", "you", "are")

Outcomes = Mapping[str, Mapping[str, Mapping[str, bool | None]]]
"""By subject, attack and case: whether the attack succeeds; None: unscored."""


def subject(name: str, **changes: Any) -> SubjectRecord:
    """A subject of that name, with weights of its own."""
    record: dict[str, Any] = {
        "source": "base",
        "adapter": None,
        "weights": f"hash of {name}",
        "system_prompt": None,
        "decoder": dict(DECODER),
        "grants": ["prompt", "history", "canvas", "sampler", "likelihood", "gradients"],
        "offers": ["temperature", "seed"],
        "special_tokens": [],
    } | changes
    decoder = DecoderConfig.from_dict(record["decoder"])
    return SubjectRecord(name=name, approximations=list(decoder.approximations(FULL)), **record)


def session(**changes: Any) -> dict[str, Any]:
    """What a session records."""
    return {
        "started": "2026-01-01T00:00:00+00:00",
        "settings": {"seeds": [0], "subjects": []},
        "versions": {"mosa-dllm": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "seconds": 12.0,
    } | changes


def response(key: str, words: tuple[str, ...] = WORDS, prompt: str = "how?") -> Response:
    """A response whose tokens were committed from left to right."""
    text = " ".join(words)
    return Response(
        key,
        [{"role": "user", "content": prompt}],
        text,
        text,
        list(range(len(words))),
        list(words),
        list(range(len(words))),
        block_starts=[0],
        decoder=dict(DECODER),
        num_forward_passes=len(words),
    )


def begun(folder: Path, subjects: Sequence[str], decoder: Mapping[str, Any] = DECODER) -> Run:
    """A run with subjects and a session, open."""
    run = Run(folder, create=True)
    known = run.subjects()
    for name in subjects:
        if name not in known:
            run.add_subject(subject(name, decoder=dict(decoder)))
    run.begin_session(session())
    return run


def record(
    run: Run,
    key: str,
    case_set: str,
    case: str,
    *,
    subject: str,
    attack: str = "direct",
    preset: str = "smoke",
    seed: int = 0,
    threat: Threat = "prompt",
    answers: Sequence[Response] = (),
    verdicts: Mapping[str, Verdict] | None = None,
    number: int = 0,
    variant: str = "",
    num_queries: int = 1,
    selected: int | None = None,
    config: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    reason: str = "",
) -> Attempt:
    """One task with one attempt and its verdicts, done (or failed for a reason)."""
    settings = dict(config or {})
    run.add_tasks([Task(key, subject, case_set, case, attack, preset, seed, threat, settings)])
    for answer in answers:
        run.add_response(answer)
    attempt = Attempt(
        key=f"{key}-{number}",
        subject=subject,
        case_set=case_set,
        case=case,
        attack=attack,
        responses=list(answers),
        response=" ".join(a.text for a in answers),
        response_full=" ".join(a.full_text for a in answers),
        preset=preset,
        seed=seed,
        variant=variant,
        number=number,
        budget=Budget(
            target_queries=num_queries,
            target_tokens=DECODER["max_new_tokens"] * num_queries,
            forward_passes=4 * num_queries,
        ),
        selected=selected,
        details=dict(details or {}),
    )
    run.add_attempt(key, attempt)
    run.end_task(key, Outcome("failed" if reason else "done", number + 1, attempt.budget, reason))
    for judge, verdict in (verdicts or {}).items():
        run.add_verdict(attempt.key, judge, verdict)
    return attempt


def made_set(
    name: str, kind: SetKind, cases: Sequence[str], *, headline: str = "", **facts: Any
) -> CaseSet:
    """A set of cases that all ask "how?"; the first letter of a case is its category."""
    items = tuple(Behavior(case, "how?", category=case[:1]) for case in cases)
    facts = {"origin": "us", "content_hash": f"hash of {name}"} | facts
    return CaseSet(name, kind, items, headline=headline, **facts)


def attacked(
    folder: Path,
    outcomes: Outcomes,
    *,
    judge: str = JUDGE,
    case_set: str = "made up",
    is_harmless: bool = False,
    native: Mapping[str, Any] | None = None,
    seed: int = 0,
    decoder: Mapping[str, Any] = DECODER,
    words: tuple[str, ...] = WORDS,
    prompt: str = "how?",
    threats: Mapping[str, Threat] | None = None,
    **facts: Any,
) -> Path:
    """A run with one try for each subject, attack and case; the folder."""
    cases = dict.fromkeys(c for attacks in outcomes.values() for of in attacks.values() for c in of)
    kind: SetKind = "harmless" if is_harmless else "harmful"
    with begun(folder, list(outcomes), decoder) as run:
        run.add_set(made_set(case_set, kind, list(cases), **facts))
        for name, attacks in outcomes.items():
            for attack, by_case in attacks.items():
                for case, success in by_case.items():
                    key = f"{name}-{case_set}-{attack}-{case}-{seed}"
                    verdict = (
                        Verdict.unscored("?")
                        if success is None
                        else Verdict(float(success), success, dict(native or {}))
                    )
                    record(
                        run,
                        key,
                        case_set,
                        case,
                        subject=name,
                        attack=attack,
                        seed=seed,
                        threat=(threats or {}).get(attack, "prompt"),
                        answers=[response(key, words, prompt)],
                        verdicts={judge: verdict},
                    )
    return folder


def solved(
    folder: Path,
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    *,
    decoder: Mapping[str, Any] = DECODER,
    metric: str = "accuracy",
) -> Path:
    """A run of useful tasks: values by subject, task and case; the folder."""
    with begun(folder, list(values), decoder) as run:
        tasks: dict[str, dict[str, None]] = {}
        for of_subject in values.values():
            for task, cases in of_subject.items():
                tasks.setdefault(task, {}).update(dict.fromkeys(cases))
        for task, cases in tasks.items():
            run.add_set(made_set(task, "useful", list(cases), headline=metric))
        for name, of_subject in values.items():
            for task, cases in of_subject.items():
                for case, value in cases.items():
                    key = f"{name}-{task}-{case}"
                    verdict = Verdict.unscored("?") if value is None else Verdict(value, value == 1)
                    record(
                        run,
                        key,
                        task,
                        case,
                        subject=name,
                        preset="paper",
                        answers=[response(key)],
                        verdicts={f"{METRIC}{metric}": verdict},
                    )
    return folder
