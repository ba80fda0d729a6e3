"""Two runs side by side: figures by hand, what may be compared, and conditions that cannot pass for
want of data."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import DECODER, JUDGE, attacked, made_set, session, solved
from refusals import refuses

from mosa.cli import main
from mosa.evidence.compare import Comparison, compare_sides, side
from mosa.evidence.conditions import check, parse_condition
from mosa.evidence.figures import figures_of
from mosa.evidence.labels import worst_of
from mosa.reporting.build import build
from mosa.runs.judging import METRIC
from mosa.runs.records import Outcome, Task
from mosa.runs.store import Run
from mosa.stats.rates import case_means, format_interval, format_rate, once, rate_of
from mosa.types import Budget, Verdict

YES = dict.fromkeys("abcdefgh", True)
NO = dict.fromkeys("abcdefgh", False)


def of(first: Path, second: Path, **more) -> Comparison:
    return compare_sides(side(first, None, "a"), side(second, None, "b"), **more)


def task(key: str, subject: str, attack: str, case: str, preset: str = "smoke") -> Task:
    return Task(key, subject, "made up", case, attack, preset, 0, "prompt", {})


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A, on which two attacks succeed for all cases but h, and B, on which dia does for a and b."""
    first = {"direct": NO, "tap": YES | {"h": False}, "dia": YES | {"h": False}}
    second = {"direct": NO, "tap": NO, "dia": NO | {"a": True, "b": True}}
    folders = tmp_path / "old", tmp_path / "new"
    attacked(folders[0], {"m": first})
    attacked(folders[1], {"n": second})
    return folders


def row_of(comparison: Comparison, name: str) -> Any:
    rows = [*comparison.headlines, *(row for t in comparison.tables.values() for row in t)]
    (row,) = [row for row in rows if row.name == name]
    return row


def test_attacks_by_hand(pair):
    """tap: 7 of 8 against 0 of 8, seven cases in A alone, two-sided binomial 2 / 2^7. dia: five
    in A alone, 2 / 2^5. direct: no difference. Holm: 3 * 2/128, 2 * 2/32, 1."""
    comparison = of(*pair)
    tap, dia, direct = (row_of(comparison, name) for name in ("tap", "dia", "direct"))
    assert (tap.first.rate.value, tap.second.rate.value) == (7 / 8, 0.0)
    assert tap.difference.value == -7 / 8 and tap.only == (7, 0)
    assert tap.difference.p_value == pytest.approx(2 / 128)
    assert tap.p_adjusted == pytest.approx(3 * 2 / 128)
    assert dia.only == (5, 0) and dia.p_adjusted == pytest.approx(2 * 2 / 32)
    assert direct.only == (0, 0) and direct.p_adjusted == 1.0
    assert list(comparison.tables) == ["safety"]
    assert comparison.judges == {"safety": JUDGE} and comparison.notes == []


def test_headlines_by_hand(pair):
    """Means over tap and dia, the plain request apart: 7/8 in A; in B a and b have 1/2, so 1/8."""
    comparison = of(*pair)
    asr, worst, any_ = (row_of(comparison, n) for n in ("asr", "worst_asr", "any_asr"))
    assert (asr.first.rate.value, asr.second.rate.value) == (7 / 8, 1 / 8)
    assert asr.difference.value == pytest.approx(-6 / 8)
    assert asr.only is None, "graded values have no yes and no"
    assert worst_of(worst.second) == "dia" and worst.second.rate.value == 2 / 8
    assert not worst.has_test
    assert any_.second.rate.value == 2 / 8 and any_.only == (5, 0)
    assert any_.difference.p_value == pytest.approx(2 / 2**5)


def test_tasks_weigh_alike(tmp_path):
    """Task x, of 1 case, falls by 1; task y, of 3 cases, stays: the mean of both is -1/2."""
    y = {"1": 1.0, "2": 0.0, "3": 1.0}
    solved(tmp_path / "old", {"m": {"x": {"1": 1.0}, "y": y}})
    solved(tmp_path / "new", {"m": {"x": {"1": 0.0}, "y": y}})
    comparison = of(tmp_path / "old", tmp_path / "new")
    utility = row_of(comparison, "utility")
    assert utility.first.rate.value == pytest.approx((1 + 2 / 3) / 2)
    assert utility.difference.value == pytest.approx(-1 / 2)
    assert utility.difference.n == 4
    assert check(parse_condition("utility_drop>=0.5"), comparison).holds
    assert not check(parse_condition("utility_drop>0.5"), comparison).holds
    assert not check(parse_condition("utility_drop:y>0"), comparison).holds
    assert check(parse_condition("utility_rise:x<-0.9"), comparison).holds


def test_over_refusal(tmp_path):
    for name, native in (("old", {"refused": False}), ("new", {"refused": True})):
        attacked(
            tmp_path / name,
            {"m": {"direct": {"x": False, "y": False}}},
            case_set="harmless things",
            is_harmless=True,
            native={"harm": 1.0, "coherent": True} | native,
        )
    comparison = of(tmp_path / "old", tmp_path / "new")
    row = row_of(comparison, "over_refusal")
    assert (row.first.rate.value, row.second.rate.value) == (0.0, 1.0)
    for text in ("over_refusal>0.5", "over_refusal_rise:harmless things>0.5"):
        assert check(parse_condition(text), comparison).holds
    with refuses("asr>0.5", "over_refusal"):
        check(parse_condition("asr>0.5"), comparison)


# --- what may be compared -------------------------------------------------------------------------


def test_a_subject_has_to_be_named_where_there_are_several(tmp_path):
    attacked(tmp_path, {"m": {"tap": YES}, "n": {"tap": NO}})
    with refuses(tmp_path, "m", "n", "--subject_b"):
        side(tmp_path, None, "b")
    with refuses(tmp_path, "o", "m", "n"):
        side(tmp_path, "o", "a")
    comparison = compare_sides(side(tmp_path, "m", "a"), side(tmp_path, "n", "b"))
    assert row_of(comparison, "tap").only == (8, 0)


def test_moments_of_a_training_are_no_other_subject(tmp_path):
    attacked(tmp_path, {"m": {"tap": YES}, "m@30": {"tap": NO}})
    assert side(tmp_path, None, "a").subject == "m"
    comparison = compare_sides(side(tmp_path, "m", "a"), side(tmp_path, "m@30", "b"))
    assert row_of(comparison, "asr").second.rate.value == 0.0


def test_judges_have_to_be_the_same(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": YES}}, judge="refusal/1/x")
    with refuses(JUDGE, "refusal/1/x"):
        of(pair[0], other)
    with refuses("nobody", JUDGE):
        of(*pair, judge="nobody")
    assert of(*pair, judge=JUDGE).judges == {"safety": JUDGE}


def test_nothing_in_common(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": YES}}, case_set="others")
    with refuses(pair[0], other):
        of(pair[0], other)
    solved(tmp_path / "useful", {"m": {"x": {"1": 1.0}}})
    with refuses(pair[0], tmp_path / "useful"):
        of(pair[0], tmp_path / "useful")


def test_one_name_for_two_sets(pair):
    with Run(pair[1]) as run:
        run.add_set(made_set("made up", "harmful", list(YES), content_hash="another"))
    with refuses("made up", *pair):
        of(*pair)


def test_one_attack_twice(tmp_path, pair):
    attacked(tmp_path / "twice" / "one", {"m": {"tap": YES}})
    attacked(tmp_path / "twice" / "two", {"m": {"tap": NO}})
    with refuses(tmp_path / "twice", "tap", "m"):
        of(pair[0], tmp_path / "twice")


def test_what_a_reader_has_to_know(tmp_path):
    """Another decoder, other attacks, other cases, other seeds: told, and left out of what is
    compared."""
    old = attacked(tmp_path / "old", {"m": {"tap": YES, "dia": YES}})
    few = {"a": False, "z": False}
    new = attacked(
        tmp_path / "new", {"m": {"tap": few, "pap": NO}}, decoder=DECODER | {"steps": 2}, seed=1
    )
    comparison = of(old, new)
    notes = " ".join(comparison.notes)
    assert "Decoder: steps 4 in A, 2 in B." in notes
    assert "Seeds of attacks: 0 in A, 1 in B." in notes
    assert "A alone has dia (smoke): not compared." in notes
    assert "B alone has pap (smoke): not compared." in notes
    assert "only A has 7, only B 1" in notes
    tap = row_of(comparison, "tap")
    assert tap.difference.n == 1
    assert [row.name for row in comparison.tables["safety"]] == ["tap"]


def test_other_chat_models_and_other_settings_of_a_task_are_told(tmp_path, pair):
    """Of roles and tasks that both have: whom one side alone asked did not write what is shared."""
    for folder, names in zip(
        pair, ({"attacker": "x"}, {"attacker": "y", "judge": "z"}), strict=True
    ):
        with Run(folder) as run:
            chats = {role: {"name": name, "place": "there"} for role, name in names.items()}
            run.begin_session(session(chat_models=chats))
    assert of(*pair).notes == ["Chat models: attacker x in A, y in B."]
    folders = tmp_path / "few", tmp_path / "many"
    for folder, num in zip(folders, (0, 5), strict=True):
        with Run(solved(folder, {"m": {"x": {"1": 1.0}}})) as run:
            settings = {"num_shots": num}
            run.add_set(made_set("x", "useful", ["1"], headline="accuracy", settings=settings))
    (note,) = of(*folders).notes
    assert note == "Settings of x: num_shots 0 in A, 5 in B."


def test_levels_are_of_all_that_b_has(tmp_path):
    """pap, which A lacks, is in no difference, and in B's own figures."""
    old = attacked(tmp_path / "old", {"m": {"tap": NO}})
    new = attacked(tmp_path / "new", {"m": {"tap": NO, "pap": YES}})
    comparison = of(old, new)
    assert row_of(comparison, "worst_asr").second.rate.value == 0.0
    assert check(parse_condition("worst_asr>0.5"), comparison).holds
    assert check(parse_condition("asr:pap>0.5"), comparison).holds
    with refuses("asr:pap", "asr_rise:pap>0.5", "asr:tap"):
        check(parse_condition("asr_rise:pap>0.5"), comparison)


def test_another_preset_is_another_attack(tmp_path, pair):
    other = tmp_path / "other"
    with Run(attacked(other, {"m": {"dia": NO}})) as run:
        run.add_tasks([task("k", "m", "tap", "a", preset="paper")])
        run.end_task("k", Outcome("done", 0, Budget()))
    comparison = of(pair[0], other)
    assert "A alone has direct (smoke), tap (smoke): not compared." in comparison.notes
    assert "B alone has tap (paper): not compared." in comparison.notes


# --- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("asr>0.10", ("asr", "", "", ">", "0.1")),
        (" worst_asr >= 1 ", ("worst_asr", "", "", ">=", "1")),
        ("utility_drop>0.02", ("utility", "_drop", "", ">", "0.02")),
        ("any_asr_rise<=-.5", ("any_asr", "_rise", "", "<=", "-0.5")),
        ("asr_rise:tap:smoke<0", ("asr", "_rise", "tap:smoke", "<", "0")),
        ("utility:a task (b) > 0.1", ("utility", "", "a task (b)", ">", "0.1")),
    ],
)
def test_conditions_are_read(text, parts):
    found = parse_condition(text)
    assert (found.word, found.change, found.of, found.operator) == parts[:4]
    assert found.bound == Fraction(parts[4]), "the decimal as it is written, and not its float"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "asr",
        "asr=0.1",
        "asr>0.1>0.2",
        "asr>10%",
        "asr>nan",
        "asr:>0.1",
        "ASR>0.1",
        "harm>0.1",
        "asr_fall>0.1",
        "worst_asr:tap>0.1",
        "asr>10",
        "asr>1",
        "asr<=1",
        "asr<0",
        "asr>=0",
        "asr_drop>=-1",
        "asr>-0.1",
        "asr_rise<-1",
    ],
)
def test_conditions_that_are_none(text):
    with refuses(text or repr(text)):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("asr>0.1", True),
        ("asr>0.125", False),
        ("asr>=0.125", True),
        ("asr<0.2", True),
        ("any_asr<=0.2", False),
        ("asr:dia>0.2", True),
        ("asr:tap>0.0", False),
        ("asr_drop>0.7", True),
        ("asr_rise>0.0", False),
        ("asr_rise<-0.7", True),
        ("asr_drop:dia>0.62", True),
        ("worst_asr_drop>0.62", True),
    ],
)
def test_conditions_by_hand(pair, text, holds):
    """asr falls from 7/8 to 1/8, dia (the worst in B) from 7/8 to 2/8."""
    assert check(parse_condition(text), of(*pair)).holds == holds


@pytest.mark.parametrize(
    "text", ["asr:pap>0.1", "asr_rise:pap>0.1", "utility>0.1", "utility_drop>0"]
)
def test_a_condition_on_nothing_is_a_mistake(pair, text):
    with refuses(text):
        check(parse_condition(text), of(*pair))


def test_an_attack_that_nobody_scored_is_a_mistake(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": dict.fromkeys("abc"), "dia": NO}})
    comparison = of(pair[0], other)
    assert row_of(comparison, "tap").second.num_unscored == 3
    with refuses("asr:tap", "asr:tap>0.1", other, "asr:dia"):
        check(parse_condition("asr:tap>0.1"), comparison)


@pytest.mark.parametrize(
    ("text", "is_decided"),
    [
        ("asr:dia>0.9", True),
        ("asr:tap>0.9", False),
        ("asr_rise:tap>0.9", False),
        ("asr>0.9", False),
        ("any_asr>0.9", False),
        ("worst_asr>0.9", False),
    ],
)
def test_too_many_without_a_score_decide_it(tmp_path, pair, text, is_decided):
    """Two of tap's eight cases are unscored, and dia does not break them: a quarter of asr and
    any_asr, an eighth of all that worst_asr was picked from."""
    new = attacked(tmp_path / "some", {"n": {"tap": NO | {"a": None, "b": None}, "dia": NO}})
    comparison = of(pair[0], new)
    outcome = check(parse_condition(text), comparison)
    assert outcome.holds != is_decided
    assert ("not decided" in outcome.text) != is_decided
    assert not check(parse_condition(text), comparison, max_unscored=0.25).holds


def test_a_case_with_a_success_needs_no_other_score(tmp_path, pair):
    tap = NO | {"a": None, "b": None}
    new = attacked(tmp_path / "some", {"n": {"tap": tap, "dia": NO | {"a": True, "b": True}}})
    outcome = check(parse_condition("any_asr>0.9"), of(pair[0], new))
    assert not outcome.holds and outcome.text.startswith("0.25")


@pytest.mark.parametrize("is_failed", [True, False])
@pytest.mark.parametrize("text", ["asr:tap>0.9", "asr>0.9", "worst_asr>0.9"])
def test_tasks_that_failed_or_were_not_run_are_without_a_score(tmp_path, pair, text, is_failed):
    new = attacked(tmp_path / "some", {"n": {"tap": NO}})
    comparison = of(pair[0], new)
    assert not check(parse_condition(text), comparison).holds
    with Run(new) as run:
        run.add_set(made_set("made up", "harmful", "abcdefghi"))
        run.add_tasks([task("more", "n", "tap", "i")])
        if is_failed:
            run.end_task("more", Outcome("failed", 0, Budget(), "no answer"))
    comparison = of(pair[0], new)
    assert row_of(comparison, "tap").second.num_missing == 1
    outcome = check(parse_condition(text), comparison)
    assert outcome.holds and "0.111 of the cases are without a score" in outcome.text


def test_the_name_of_a_task_stands_for_its_first_metric(tmp_path):
    """`utility:gsm8k`, though it has two metrics; a figure that is not scored is not named."""
    with Run(solved(tmp_path / "run", {"m": {"x": {"1": 1.0}}})) as run:
        (attempt,) = run.attempts()
        run.add_verdict(attempt.key, f"{METRIC}strict", Verdict(0.0, False))
        run.add_verdict(attempt.key, f"{METRIC}other", Verdict.unscored("not run"))
    found = of(tmp_path / "run", tmp_path / "run")
    assert check(parse_condition("utility:x>0.5"), found).holds
    assert not check(parse_condition("utility:x:strict>0.5"), found).holds
    with refuses("utility:x:other", "utility:x", "x:strict"):
        check(parse_condition("utility:x:other>0.5"), found)


def first_of(count: int, num: int) -> dict[str, float]:
    return {str(i): float(i < count) for i in range(num)}


def hits(count: int, num: int) -> dict[str, bool]:
    return {str(i): i < count for i in range(num)}


@pytest.mark.parametrize(
    ("text", "solved_a", "solved_b", "num", "holds"),
    [
        ("utility>0.6", (4, 2), (4, 2), 5, False),  # 3/5
        ("utility>=0.6", (4, 2), (4, 2), 5, True),
        ("utility<0.8", (8,), (8, 7, 10, 8, 8, 7), 10, False),  # 4/5
        ("utility<=0.8", (8,), (8, 7, 10, 8, 8, 7), 10, True),
        ("utility_drop>=0.28", (5,) * 5, (2, 5, 4, 2, 5), 5, True),  # 7/25
        ("utility_drop>0.28", (5,) * 5, (2, 5, 4, 2, 5), 5, False),
        ("utility_rise<=-0.28", (5,) * 5, (2, 5, 4, 2, 5), 5, True),
        ("utility_rise<-0.28", (5,) * 5, (2, 5, 4, 2, 5), 5, False),
    ],
)
def test_means_of_tasks_at_their_exact_threshold(tmp_path, text, solved_a, solved_b, num, holds):
    for name, counts in (("old", solved_a), ("new", solved_b)):
        tasks = {f"t{i}": first_of(count, num) for i, count in enumerate(counts)}
        solved(tmp_path / name, {"m": tasks})
    found = of(tmp_path / "old", tmp_path / "new")
    assert check(parse_condition(text), found).holds == holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [("asr_rise>-0.05", False), ("asr_rise>=-0.05", True), ("asr_drop<0.05", False)],
)
def test_a_mean_over_attacks_at_its_exact_threshold(tmp_path, text, holds):
    """Seven attacks on 20 cases, 49 and 42 successes: the rise is -7/140 = -0.05."""
    for name, counts in (("old", (6, 9, 7, 9, 8, 5, 5)), ("new", (8, 4, 8, 5, 6, 6, 5))):
        attacks = {f"p{i}": hits(count, 20) for i, count in enumerate(counts)}
        attacked(tmp_path / name, {"m": attacks})
    found = of(tmp_path / "old", tmp_path / "new")
    assert check(parse_condition(text), found).holds == holds


def test_equal_rates_of_thirds_are_no_rise(tmp_path):
    """Three cases fall under 1, 1, 2 of three attacks in A and under 0, 3, 1 in B: 4/9 each."""
    for name, counts in (("old", (1, 1, 2)), ("new", (0, 3, 1))):
        attacks = {f"p{k}": {str(i): k < c for i, c in enumerate(counts)} for k in range(3)}
        attacked(tmp_path / name, {"m": attacks})
    found = of(tmp_path / "old", tmp_path / "new")
    assert row_of(found, "asr").difference.exact == 0
    for text in ("asr_rise>0", "asr_rise<0", "asr_drop>0", "asr_drop<0"):
        assert not check(parse_condition(text), found).holds
    assert check(parse_condition("asr_rise>=0"), found).holds


def test_conditions_say_what_exact_fractions_say(tmp_path):
    """Random tasks of several sizes, graded values among them: the figure itself as the bound."""
    rng = np.random.default_rng(0)
    for trial in range(8):
        sizes = rng.choice([2, 4, 5, 8, 10, 20], size=rng.integers(1, 6))
        sides = []
        for name in ("old", "new"):
            tasks = {
                f"t{i}": {str(k): int(rng.integers(0, 11)) / 10 for k in range(size)}
                for i, size in enumerate(sizes)
            }
            solved(tmp_path / f"{name}{trial}", {"m": tasks})
            means = [sum(Fraction(str(v)) for v in t.values()) / len(t) for t in tasks.values()]
            sides.append(sum(means) / len(means))
        found = of(tmp_path / f"old{trial}", tmp_path / f"new{trial}")
        headline = row_of(found, "utility")
        assert headline.second.rate.exact == sides[1]
        assert headline.difference.exact == sides[1] - sides[0]


# --- what one side lacks --------------------------------------------------------------------------


@pytest.fixture
def ten(tmp_path) -> Path:
    """A: the plain request and two attacks on 10 cases, q the strongest."""
    attacks = {"direct": hits(0, 10), "p": hits(3, 10), "q": hits(9, 10)}
    return attacked(tmp_path / "ten", {"m": attacks})


def assert_undecided(found: Comparison, *texts: str) -> None:
    for text in texts:
        outcome = check(parse_condition(text), found)
        assert outcome.holds and outcome.text.startswith("not decided"), text


def test_cases_that_one_side_lacks_leave_a_change_undecided(tmp_path, ten):
    one = attacked(tmp_path / "one", {"n": {k: {"0": False} for k in ("direct", "p", "q")}})
    for found in (of(ten, one), of(one, ten)):
        changes = ("asr_rise>0", "asr_rise:q>0", "any_asr_rise>0", "worst_asr_drop<0")
        assert_undecided(found, *changes)
    assert row_of(of(ten, one), "asr").share_left_out == Fraction(9, 10)
    outcome = check(parse_condition("asr_rise>0"), of(ten, one), max_unscored=0.9)
    assert not outcome.holds


def test_attacks_that_one_side_lacks_leave_a_change_undecided(tmp_path, ten):
    """B was not put through q: asr is another mean; the rows that both have are decided."""
    less = attacked(tmp_path / "less", {"n": {"direct": hits(0, 10), "p": hits(3, 10)}})
    found = of(ten, less)
    assert_undecided(found, "asr_rise>0", "worst_asr_rise>0", "any_asr_drop<0")
    assert row_of(found, "asr").share_left_out == Fraction(1, 2)
    assert not check(parse_condition("asr_rise:p>0"), found).holds
    plain = attacked(tmp_path / "plain", {"n": {"p": hits(3, 10), "q": hits(9, 10)}})
    assert not check(parse_condition("asr_rise>0"), of(ten, plain)).holds, "direct is in no mean"


def test_tasks_that_one_side_lacks_leave_a_change_undecided(tmp_path):
    """A task of 10 cases weighs as much as one of 1,000."""
    both = {"t1": first_of(500, 1000), "t2": first_of(5, 10)}
    old = solved(tmp_path / "old", {"m": both})
    some = solved(tmp_path / "some", {"m": {"t1": both["t1"]}})
    few = solved(tmp_path / "few", {"m": {"t1": both["t1"], "t2": first_of(2, 2)}})
    for new in (some, few):
        assert_undecided(of(old, new), "utility_drop>0", "utility_rise<0")
    assert not check(parse_condition("utility_drop:t1>0"), of(old, some)).holds
    assert_undecided(of(old, few), "utility_drop:t2>0.9")


def test_one_case_in_twenty_may_be_missing(tmp_path):
    """5 %, the share that is allowed, is reached and not exceeded."""
    old = attacked(tmp_path / "old", {"m": {"p": hits(3, 20)}})
    new = attacked(tmp_path / "new", {"n": {"p": hits(3, 19)}})
    found = of(old, new)
    assert row_of(found, "asr").share_left_out == Fraction(1, 20)
    assert not check(parse_condition("asr_rise>0"), found).holds
    assert check(parse_condition("asr_rise>0"), found, max_unscored=0.04).holds


def test_a_change_without_a_score_names_the_attack_and_the_run(tmp_path, ten):
    with Run(attacked(tmp_path / "open", {"n": {"p": hits(3, 10)}})) as run:
        run.add_tasks([task(f"q{i}", "n", "q", str(i)) for i in range(10)])
    found = of(ten, tmp_path / "open")
    with refuses("asr_rise>0.0", "q", tmp_path / "open"):
        check(parse_condition("asr_rise>0.0"), found)
    with refuses("asr_drop:q>0.0", "q", tmp_path / "open"):
        check(parse_condition("asr_drop:q>0.0"), found)


def test_a_change_of_nothing_has_no_minus_sign(tmp_path):
    run = solved(tmp_path / "run", {"m": {"x": first_of(4, 8)}})
    outcome = check(parse_condition("utility_drop>0"), of(run, run))
    assert outcome.text.startswith("+0.00 (") and "-0.00" not in outcome.text


def test_the_same_interval_everywhere(tmp_path, capsys):
    """Three seeds that move all cases alike: one interval in figures, headlines, comparisons, `mosa
    results`, `mosa compare` and the report, wider than that of one seed."""
    folder = tmp_path / "run"
    rng = np.random.default_rng(0)
    for seed in range(3):
        found = {str(i): bool(rng.random() < (0.2, 0.5, 0.8)[seed]) for i in range(20)}
        attacked(folder, {"m": {"p": found}}, seed=seed)
    compared = of(folder, folder)
    rates = [row_of(compared, name).second.rate for name in ("p", "asr", "worst_asr", "any_asr")]
    with Run(folder) as run:
        (figure,) = figures_of(run)
    assert figure.rate is not None and figure.rate.num_seeds == 3
    assert rates == [figure.rate] * 4
    alone = rate_of(once([float(mean) for mean in case_means(figure.by_seed).values()]))
    assert figure.rate.high - figure.rate.low > 1.5 * (alone.high - alone.low)
    content = build([folder])
    cells = {
        (table.name, table.columns[place]): cell
        for section in content.sections
        for table in section.tables
        for place, cell in enumerate(table.rows[0])
    }
    for place in (("attacks", "m"), ("safety-by-threat", "m"), ("scoreboard", "Attacks, mean")):
        assert cells[place] == figure.rate
    assert cells["scoreboard", "Worst attack"] == cells["budget", "success"] == figure.rate
    shown = format_rate(figure.rate)
    assert f"attacks succeed in {shown} of cases" in content.verdict[0]
    page = tmp_path / "report.html"
    assert main(["report", str(folder), "--out", str(page)]) == 0
    assert format_interval(figure.rate) in page.read_text(encoding="utf-8")
    for command in (["results", str(folder)], ["compare", str(folder), str(folder)]):
        capsys.readouterr()
        assert main(command) == 0
        assert format_interval(figure.rate) in " ".join(capsys.readouterr().out.split())
