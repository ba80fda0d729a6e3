"""Judges over a run: who reads which set, what they see, and what is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_runs import begun, made_set, record, response, session
from refusals import refuses
from run_stand_ins import DOWN, PowerCutError, ScriptedChat

from mosa.judges import JudgeSetting, make_judge
from mosa.runs.evaluate import judges_for
from mosa.runs.judging import (
    JudgeConfig,
    NamedJudge,
    build_judges,
    check_apart,
    default_judges,
    judge_run,
    written_parts,
)
from mosa.runs.store import Run
from mosa.types import CaseSet, Verdict
from mosa.world import World

WORLD = World(0)
TESTBED = made_set("testbed", "harmful", ["a"], world_seed=0)
BENIGN = made_set("testbed:benign", "harmless", ["a"], world_seed=0)
OWN = made_set("own.csv", "harmful", ["k"])
OWN_HARMLESS = made_set("tea.csv", "harmless", ["t"])
SUMS = made_set("sums", "useful", ["s"], headline="accuracy")
ALL = (TESTBED, BENIGN, OWN, OWN_HARMLESS, SUMS)


class Listening:
    """A judge that remembers what it was shown."""

    id = "listening"

    def __init__(self, breaks_after: int | None = None) -> None:
        self.shown: list[Any] = []
        self.breaks_after = breaks_after

    async def judge(self, items: Any) -> list[Verdict]:
        if self.breaks_after is not None and len(self.shown) >= self.breaks_after:
            raise PowerCutError
        self.shown += items
        return [Verdict(0.0, False) for _ in items]


def listening(judge: Listening, *, reads_canvas: bool = False) -> list[NamedJudge]:
    """It takes the place of the judge `refusal`, which reads every set of requests."""
    return [NamedJudge("refusal", judge, reads_canvas)]


def filled(folder: Path, *sets: CaseSet, num_cases: int = 1) -> Run:
    """A run with one attempt at each case of some sets, open."""
    run = begun(folder, ["m"])
    for cases in sets:
        ids = [f"{cases.cases[0].id}{i}" for i in range(num_cases)]
        run.add_set(made_set(cases.name, cases.kind, ids, world_seed=cases.world_seed))
        for id in ids:
            key = f"{cases.name}-{id}"
            record(
                run,
                key,
                cases.name,
                id,
                subject="m",
                attack="tap" if cases.kind == "harmful" else "direct",
                answers=[response(key, prompt="SCENE ONE")],
            )
    run.commit()
    return run


def reading(judges: Sequence[NamedJudge]) -> dict[str, list[str]]:
    return {cases.name: [j.name for j in judges if j.reads(cases)] for cases in ALL}


def test_which_sets_a_judge_reads():
    """The truth knows its own world; harmless requests need a judge that tells refusals."""
    chat = JudgeSetting(chat=ScriptedChat("rating: 1"), world=WORLD)
    names = ("truth", "refusal", "pair", "xstest")
    judges = [NamedJudge(name, make_judge(name, chat), False) for name in names]
    assert reading(judges) == {
        "testbed": ["truth", "refusal", "pair", "xstest"],
        "testbed:benign": ["truth", "refusal", "xstest"],
        "own.csv": ["refusal", "pair", "xstest"],
        "tea.csv": ["refusal", "xstest"],
        "sums": [],
    }


def test_default_judges():
    assert default_judges((TESTBED, BENIGN, SUMS)) == ("truth",)
    assert default_judges((OWN, SUMS)) == ("refusal",)
    assert default_judges((OWN, BENIGN)) == ("truth", "refusal")
    assert default_judges((SUMS,)) == ()


def test_a_set_that_no_named_judge_reads_gets_its_default():
    def names(sets: tuple[CaseSet, ...], *named: str) -> list[str]:
        return [j.name for j in judges_for(sets, named, JudgeConfig(), WORLD)]

    assert names((TESTBED, OWN), "truth") == ["truth", "refusal"]
    assert names((TESTBED, BENIGN), "refusal") == ["refusal"]
    assert names((SUMS, TESTBED), "truth") == ["truth"]
    with refuses("judge"):
        judges_for((TESTBED,), (), JudgeConfig(), WORLD)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("truth", ("truth", "", False)),
        ("truth@canvas", ("truth", "", True)),
        ("pair=http://a/v1#m", ("pair", "http://a/v1#m", False)),
        ("pair=local:a=b@canvas", ("pair", "local:a=b", True)),
    ],
)
def test_how_a_judge_is_written(written, parts):
    assert written_parts(written) == parts


@pytest.mark.parametrize(
    ("judges", "config", "names"),
    [
        (("oracle",), JudgeConfig(), ("oracle", "refusal")),
        (("truth", "truth"), JudgeConfig(), ("judge", "truth")),
        (("truth=x",), JudgeConfig(), ("truth", "=x")),
        (("strongreject",), JudgeConfig(), ("strongreject", "--judge_model")),
        (("truth",), JudgeConfig(model="http://a/v1#m"), ("--judge_model",)),
        (
            ("truth",),
            JudgeConfig(templates=Path("no/such/folder")),
            ("no/such/folder", "--judge_templates"),
        ),
    ],
)
def test_judges_that_cannot_be_built(judges, config, names):
    with refuses(*names):
        build_judges(judges, config, WORLD)


def test_the_canvas_is_another_judge():
    plain, canvas = build_judges(("truth", "truth@canvas"), JudgeConfig(), WORLD)
    assert canvas.id == f"{plain.id}@canvas" != plain.id


def test_judges_see_the_case_and_the_response_and_nothing_of_the_attack(tmp_path):
    judge = Listening()
    with filled(tmp_path, OWN, SUMS) as run:
        judge_run(run, listening(judge))
        (case,) = run.cases("own.csv").values()
        assert run.judges("sums") == []
    (item,) = judge.shown
    assert vars(item).keys() == {"behavior", "response"}
    assert item.behavior == case and item.response == "sure here you are"


def test_text_that_is_no_language_is_told_outside_the_testbed_alone(tmp_path):
    """There the truth says it."""
    with filled(tmp_path, OWN, TESTBED) as run:
        judge_run(run, listening(Listening()))
        for attempt, verdict in run.judged("listening"):
            assert verdict is not None
            assert ("coherent" in verdict.native) == (attempt.case_set == "own.csv")


def test_judging_that_is_cut_off_goes_on(tmp_path):
    """The second batch fails; what was judged before is not judged again."""
    heard: list[tuple[str, int, int]] = []
    with filled(tmp_path, OWN, num_cases=40) as run:
        with pytest.raises(PowerCutError):
            judge_run(run, listening(Listening(breaks_after=32)))
        assert run.num_unjudged("listening") == 8
        judge = Listening()
        judge_run(run, listening(judge), on_progress=lambda *now: heard.append(now))
        assert len(judge.shown) == 8 and run.num_unjudged("listening") == 0
    assert heard == [("listening", 8, 8)]


def test_what_has_no_score_is_asked_again_and_a_score_stays(tmp_path):
    """Of three replies one is nonsense, one a score, and one never comes."""
    first = ScriptedChat("a banana", "5", DOWN)
    with filled(tmp_path, OWN, num_cases=3) as run:
        judge = NamedJudge("mosa_scale", make_judge("mosa_scale", JudgeSetting(chat=first)), False)
        judge_run(run, [judge])
        before = run.verdicts(judge.id)
        unscored = {key: v for key, v in before.items() if v.score is None}
        assert len(unscored) == 2 and all(v.reason for v in unscored.values())
        assert "a banana" in {v.raw for v in unscored.values()}
        again = ScriptedChat("2")
        judge_run(
            run,
            [NamedJudge("mosa_scale", make_judge("mosa_scale", JudgeSetting(chat=again)), False)],
        )
        after = run.verdicts(judge.id)
        assert len(again.asked) == 2 and run.num_unjudged(judge.id) == 0
        (scored,) = before.keys() - unscored.keys()
        assert after[scored] == before[scored]


def test_the_model_that_rated_inside_the_attacks_is_never_a_final_judge(tmp_path):
    """From Python too, under any template; another model may judge."""
    steered, other = ScriptedChat("rating: 1", name="rater"), ScriptedChat("rating: 1", name="b")
    with filled(tmp_path, OWN) as run:
        run.begin_session(session(chat_models={"judge": {"name": "rater", "place": "here"}}))
        for name in ("pair", "mosa_scale"):
            judge = NamedJudge(name, make_judge(name, JudgeSetting(chat=steered)), True)
            with refuses(name):
                judge_run(run, [judge])
            with refuses(name):
                check_apart([judge], {"rater"})
            assert not run.verdicts(judge.id)
        assert not steered.asked
        apart = NamedJudge("pair", make_judge("pair", JudgeSetting(chat=other)), True)
        judge_run(run, [apart])
        assert run.verdicts(apart.id)


def test_a_judge_that_reads_nothing_of_a_run_is_a_mistake(tmp_path):
    truth = build_judges(("truth",), JudgeConfig(), WORLD)
    with filled(tmp_path / "own", OWN) as run, refuses("truth", "own.csv"):
        judge_run(run, truth)
    with filled(tmp_path / "sums", SUMS) as run, refuses("refusal", "sums"):
        judge_run(run, listening(Listening()))
    pair = NamedJudge("pair", make_judge("pair", JudgeSetting(chat=ScriptedChat("x"))), False)
    with filled(tmp_path / "tea", OWN_HARMLESS) as run, refuses("pair", "tea.csv"):
        judge_run(run, [pair])
