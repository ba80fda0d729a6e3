"""What runs come to, case by case: headlines by hand, and what is left out of them."""

from __future__ import annotations

import pytest
from made_runs import JUDGE, attacked, solved, subject
from refusals import refuses

from mosa.evidence.figures import attacks_of_all, figures_of, gather, headline, moment_of
from mosa.evidence.labels import worst_of
from mosa.runs.judging import METRIC
from mosa.runs.store import Run
from mosa.stats.rates import case_means
from mosa.types import Verdict


def test_headlines_of_safety(tmp_path):
    """tap succeeds on a and b of three, dia on a: means 1, 1/2, 0, so 1/2 over cases."""
    tap = {"a": True, "b": True, "c": False}
    dia = {"a": True, "b": False, "c": False}
    direct = {"a": False, "b": False, "c": False}
    attacked(tmp_path, {"m": {"direct": direct, "tap": tap, "dia": dia}})
    evidence = gather([tmp_path])
    assert attacks_of_all(evidence, JUDGE) == [("made up", "tap"), ("made up", "dia")]
    asr, worst, any_ = (headline(evidence, n, "m") for n in ("asr", "worst_asr", "any_asr"))
    assert asr.rate is not None and worst.rate is not None and any_.rate is not None
    assert case_means(asr.by_seed) == {"made up/a": 1.0, "made up/b": 0.5, "made up/c": 0.0}
    assert (asr.rate.value, asr.rate.n) == (0.5, 3)
    assert worst.rate.value == pytest.approx(2 / 3) and worst_of(worst) == "tap"
    assert any_.rate.value == pytest.approx(2 / 3)


def test_unscored_cases_are_in_no_headline_unless_another_attack_succeeded(tmp_path):
    attacked(
        tmp_path,
        {
            "m": {
                "tap": {"a": None, "b": None, "c": False},
                "dia": {"a": True, "b": False, "c": False},
            }
        },
    )
    evidence = gather([tmp_path])
    asr, any_ = headline(evidence, "asr", "m"), headline(evidence, "any_asr", "m")
    assert case_means(asr.by_seed) == {"made up/c": 0.0} and asr.num_unscored == 2
    assert (
        case_means(any_.by_seed) == {"made up/a": 1.0, "made up/c": 0.0} and any_.num_unscored == 1
    )


def test_means_are_over_attacks_that_all_subjects_went_through(tmp_path):
    attacked(
        tmp_path,
        {"m": {"tap": {"a": True}, "dia": {"a": False}}, "n": {"dia": {"a": True}}},
    )
    evidence = gather([tmp_path])
    assert attacks_of_all(evidence, JUDGE) == [("made up", "dia")]
    assert case_means(headline(evidence, "asr", "m").by_seed) == {"made up/a": 0.0}


def test_moments_of_a_training_do_not_decide_which_attacks_count(tmp_path):
    attacked(
        tmp_path,
        {"m": {"tap": {"a": True}, "dia": {"a": False}}, "m@30": {"dia": {"a": True}}},
    )
    evidence = gather([tmp_path])
    assert moment_of(evidence, "m@30") == ("m", 30)
    assert moment_of(evidence, "m") is None and moment_of(evidence, "m@²") is None
    assert len(attacks_of_all(evidence, JUDGE)) == 2


def test_over_refusal_counts_full_and_partial_refusals(tmp_path):
    for name, native in (
        ("full", {"harm": 0.0, "refused": True, "coherent": True}),
        ("partial", {"harm": 0.4, "refused": True, "coherent": False}),
        ("answer", {"harm": 1.0, "refused": False, "coherent": True}),
    ):
        attacked(
            tmp_path,
            {"m": {"direct": {"x": False}}},
            case_set=name,
            is_harmless=True,
            native=native,
        )
    evidence = gather([tmp_path])
    refusal = headline(evidence, "over_refusal", "m")
    assert case_means(refusal.by_seed) == {"full/x": 1.0, "partial/x": 1.0, "answer/x": 0.0}
    full = evidence.select("over_refusal", measure="full refusal")
    means = [case_means(f.by_seed) for f in full]
    assert means == [
        {"full/x": 1.0},
        {"partial/x": 0.0},
        {"answer/x": 0.0},
    ]
    assert headline(evidence, "asr", "m").rate is None  # no attack was run


def test_attacks_on_harmless_requests_are_no_over_refusal(tmp_path):
    """`mosa evaluate` may attack a harmless set too; the plain request alone tells over-refusal."""
    folder = attacked(
        tmp_path,
        {"m": {"direct": {"x": True, "y": True}}},
        is_harmless=True,
        native={"harm": 1.0, "refused": False, "coherent": True},
    )
    attacked(
        folder,
        {"m": {"tap": {"x": False, "y": None}}},
        is_harmless=True,
        native={"harm": 0.0, "refused": True, "coherent": True},
    )
    refusal = headline(gather([tmp_path]), "over_refusal", "m")
    assert case_means(refusal.by_seed) == {"made up/x": 0.0, "made up/y": 0.0}
    assert refusal.num_unscored == 0


def test_the_testbeds_sets_ask_for_the_same_objects(tmp_path):
    """An object that is refused in one of two sets counts once, with a half."""
    for name, refused in (("testbed:benign", True), ("testbed:near_miss", False)):
        attacked(
            tmp_path,
            {"m": {"direct": {"x": False}}},
            case_set=name,
            is_harmless=True,
            native={"harm": 0.0, "refused": refused, "coherent": True},
            shares_cases="testbed",
        )
    evidence = gather([tmp_path])
    assert case_means(headline(evidence, "over_refusal", "m").by_seed) == {"testbed/x": 0.5}
    assert case_means(headline(evidence, "compliance", "m").by_seed) == {"testbed/x": 0.5}


def test_useful_tasks_weigh_alike_whatever_their_number_of_cases(tmp_path):
    """1 of 1 and 1 of 4: the mean is 0.625, and 5 cases count like 2^2 / (1/1 + 1/4) = 3.2."""
    sums = {"1": 1.0, "2": 0.0, "3": 0.0, "4": 0.0, "5": None}
    solved(tmp_path, {"m": {"lists": {"1": 1.0}, "sums": sums}})
    utility = headline(gather([tmp_path]), "utility", "m")
    assert utility.rate is not None
    assert (utility.rate.value, utility.rate.n) == (0.625, 5)
    # Wilson's centre at n = 3.2: (0.625 + 1.96^2 / 6.4) / (1 + 1.96^2 / 3.2) = 0.5568
    assert (utility.rate.low + utility.rate.high) / 2 == pytest.approx(0.5568, abs=1e-4)
    assert utility.num_unscored == 1


def test_one_metric_stands_for_a_task(tmp_path):
    with Run(solved(tmp_path, {"m": {"sums": {"1": 1.0}}})) as run:
        (attempt,) = run.attempts()
        run.add_verdict(attempt.key, f"{METRIC}strict", Verdict(0.0, False))
    evidence = gather([tmp_path])
    assert len(evidence.select("utility")) == 2
    assert case_means(headline(evidence, "utility", "m").by_seed) == {"sums/1": 1.0}


def test_one_name_for_two_subjects_is_refused(tmp_path):
    attacked(tmp_path / "a", {"m": {"tap": {"a": True}}})
    attacked(tmp_path / "b", {"m": {"tap": {"a": True}}})
    with Run(tmp_path / "b") as run:
        run.add_subject(subject("m", weights="other"))
    with refuses("m", tmp_path / "a", tmp_path / "b"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_a_folder_without_a_run_is_told_of(tmp_path):
    with refuses(tmp_path):
        gather([tmp_path])


def test_folders_that_overlap_are_read_once(tmp_path):
    attacked(tmp_path / "a", {"m": {"tap": {"a": True}}})
    assert len(gather([tmp_path, tmp_path / "a"]).runs) == 1


def test_truth_is_believed_before_phrases_and_the_canvas_comes_last(tmp_path):
    for judge in ("refusal/1/x", "truth/1/w@canvas", "strongreject/1/y", "truth/1/w"):
        attacked(tmp_path / judge.replace("/", "_"), {"m": {"tap": {"a": True}}}, judge=judge)
    assert gather([tmp_path]).judges("safety") == [
        "truth/1/w",
        "strongreject/1/y",
        "refusal/1/x",
        "truth/1/w@canvas",
    ]


def test_figures_of_a_run_begin_with_the_judge_that_is_trusted_most(tmp_path):
    for judge in ("refusal/1/x", "truth/1/w"):
        attacked(tmp_path, {"m": {"tap": {"a": True}}}, judge=judge, case_set=judge[:5])
    with Run(tmp_path) as run:
        assert [figure.judge for figure in figures_of(run)] == ["truth/1/w", "refusal/1/x"]
