"""Useful sets within a run: one record, resumed, extended and scored again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import Alone, solve
from chat.stub_endpoint import Answer, completion, stub_endpoint
from refusals import refuses
from utility_files import register, write_files

from mosa.families import load_model
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.sets import SetOptions
from mosa.runs.store import Run
from mosa.runs.subject import Subject, subjects_of
from mosa.utility import likelihoods as likelihoods_module
from mosa.utility import load_harness_set
from mosa.utility.scoring import NOT_RUN

pytest.importorskip("lm_eval")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    return write_files(tmp_path / "data", monkeypatch)


@pytest.fixture(scope="module")
def subject(new_tiny_llada, tmp_path_factory) -> Subject:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_tiny_llada(max_sequence_length=4096).save(folder)
    (subject,) = subjects_of(str(folder), decoder={"max_new_tokens": 8, "steps": 2})
    return subject


def run_of(out: Path, subject: Subject, files: Path, *sets: str, **options: Any) -> Run:
    """A run, in batches of two."""
    settings = SetOptions(data_dir=files, **options)
    run = run_evaluation(out, EvaluateConfig((subject,), sets=sets, options=settings, batch_size=2))
    assert run is not None
    return run


def scores_in(run: Run, metric: str, case_set: str) -> dict[str, tuple[float | None, str]]:
    return {
        attempt.case: (verdict.score, verdict.reason)
        for attempt, verdict in run.judged(f"metric:{metric}", case_set)
        if verdict is not None
    }


def test_a_run_has_the_scores_of_its_cases_and_asks_nothing_twice(
    subject, files, tmp_path, monkeypatch
):
    """Both kinds of requests; no call of the model holds more rows than the batch."""
    sizes = []
    compare = likelihoods_module.likelihoods

    def noted(model: Any, states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes.append(len(states))
        return compare(model, states)

    monkeypatch.setattr("mosa.utility.likelihoods.likelihoods", noted)
    with run_of(tmp_path / "run", subject, files, "gsm8k", "mmlu", limit=1, num_fewshot=0) as run:
        found = {
            "gsm8k": scores_in(run, "exact_match,flexible-extract", "gsm8k"),
            "mmlu": scores_in(run, "acc,none", "mmlu"),
        }
        assert run.sets()["mmlu"].settings["num_draws"] == 128
        assert {outcome and outcome.status for _, outcome in run.tasks()} == {"done"}
    assert len(found["gsm8k"]) == 1 and len(found["mmlu"]) == 57
    assert sum(sizes) == 57 and max(sizes) == 2
    model = load_model(subject.model)
    for name, metric in (("gsm8k", "exact_match,flexible-extract"), ("mmlu", "acc,none")):
        alone = solve(
            Alone(model),
            load_harness_set(name, data_dir=files, limit=1, num_fewshot=0),
            subject.full_decoder,
        )
        assert found[name] == {
            case: (verdicts[metric].score, "") for case, (_, verdicts) in alone.items()
        }
    sizes.clear()
    with run_of(tmp_path / "run", subject, files, "mmlu", limit=2, num_fewshot=0) as run:
        more = scores_in(run, "acc,none", "mmlu")
    assert sum(sizes) == 57, "only the second rows are new"
    assert len(more) == 2 * 57 and found["mmlu"].items() <= more.items()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="code is run on Linux alone")
def test_code_is_run_later_without_asking_again(subject, files, tmp_path, monkeypatch):
    with run_of(tmp_path / "run", subject, files, "humaneval") as run:
        assert set(scores_in(run, "pass@1,none", "humaneval").values()) == {(None, NOT_RUN)}

    def refuse(self: Any, prepared: Any, *, on_step: Any = None) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr("mosa.responder.LocalResponder.submit", refuse)
    with run_of(tmp_path / "run", subject, files, "humaneval", run_code=True) as run:
        assert set(scores_in(run, "pass@1,none", "humaneval").values()) == {(0.0, "")}


@pytest.mark.parametrize(
    ("known", "file", "before", "after"),
    [
        ("gsm8k_test", "b.jsonl", "#### 2", "#### 3"),  # a target
        ("gsm8k_train", "a.jsonl", "7 + 2", "2 + 7"),  # a worked example
    ],
)
def test_a_file_that_changed_in_place_is_refused_on_resume(
    subject, files, tmp_path, monkeypatch, known, file, before, after
):
    """No question changes, so that only the hash of the set's texts tells."""
    with run_of(tmp_path / "run", subject, files, "gsm8k", limit=1) as run:
        recorded = run.sets()["gsm8k"].content_hash
    text = (files / file).read_text(encoding="utf-8")
    assert before in text
    (files / file).write_text(text.replace(before, after), encoding="utf-8")
    register(known, files / file, monkeypatch)
    with refuses("content_hash", recorded):
        run_of(tmp_path / "run", subject, files, "gsm8k", limit=1)
    (files / file).write_text(text, encoding="utf-8")
    register(known, files / file, monkeypatch)
    run_of(tmp_path / "run", subject, files, "gsm8k", limit=2).close()


def test_a_served_subject_is_asked_what_needs_no_likelihoods(files, tmp_path, monkeypatch):
    """gsm8k as turns, with its worked example; mmlu asks for likelihoods and authors' decoders set
    what is the server's to set, so that neither is applicable."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    row = next(iter(load_harness_set("gsm8k", data_dir=files, limit=1, num_fewshot=1).cases))
    with stub_endpoint(Answer(completion("So it is #### 18"))) as stub:
        (served,) = subjects_of(
            f"{stub.url}#m", decoder={"max_new_tokens": 24}, i_am_authorized=True
        )
        sets = ("gsm8k", "gsm8k:authors", "mmlu")
        with run_of(tmp_path / "run", served, files, *sets, limit=1, num_fewshot=1) as run:
            (attempt,) = run.attempts()
            left_out = {pair.case_set: pair.reason for pair in run.not_applicable()}
            assert scores_in(run, "exact_match,flexible-extract", "gsm8k").keys() == {row.id}
        asked = stub.requests[-1]["messages"]
    assert [turn["role"] for turn in asked] == ["user", "assistant", "user"]
    assert asked[-1]["content"].endswith(row.text)
    assert attempt.details["answers"] == [["So it is #### 18"]]
    assert left_out.keys() == {"gsm8k:authors", "mmlu"}
    assert "likely" in left_out["mmlu"] and "block_length" in left_out["gsm8k:authors"]
