"""Two runs side by side: figures by hand, what may be compared, and conditions that cannot pass for
want of data."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import DECODER, JUDGE, attacked, solved
from mosa.evaluation.compare import (
    Comparison,
    compare,
    side,
)
from mosa.evaluation.conditions import check, parse_condition
from mosa.evaluation.results import lines
from mosa.evaluation.store import Measurement, Store, Task

from mosa.stats.pairs import mcnemar
from mosa.stats.rates import case_means, once, rate_of
from mosa.types import Budget, UserError

YES = dict.fromkeys("abcdefgh", True)
NO = dict.fromkeys("abcdefgh", False)


def of(first: Path, second: Path, **more) -> Comparison:
    return compare(side(first, None, "a"), side(second, None, "b"), **more)


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A, which two attacks break on all behaviors but h, and B, which dia breaks on a and b."""
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
    """tap: 7 of 8 against 0 of 8, seven behaviors in A alone, two-sided binomial 2 / 2^7. dia: five
    in A alone, 2 / 2^5. direct: no difference. Holm: 3 * 2/128, 2 * 2/32, 1."""
    comparison = of(*pair)
    tap, dia, direct = (row_of(comparison, name) for name in ("tap", "dia", "direct"))
    assert (tap.first.rate.rate, tap.second.rate.rate) == (7 / 8, 0.0)
    assert tap.difference.difference == -7 / 8 and tap.only == (7, 0)
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
    assert (asr.first.rate.rate, asr.second.rate.rate) == (7 / 8, 1 / 8)
    assert asr.difference.difference == pytest.approx(-6 / 8)
    assert asr.only is None, "graded values have no yes and no"
    assert worst.second.of == "dia" and worst.second.rate.rate == 2 / 8
    assert not worst.has_test
    assert any_.second.rate.rate == 2 / 8 and any_.only == (5, 0)
    parts = any_.first, any_.second
    yes = [{c: v == 1 for c, v in case_means(part.values).items()} for part in parts]
    assert any_.difference.p_value == mcnemar(yes[0], yes[1]).p_value


def test_tasks_weigh_alike(tmp_path):
    """Task x, of 1 case, falls by 1; task y, of 3 cases, stays: the mean of both is -1/2."""
    y = {"1": 1.0, "2": 0.0, "3": 1.0}
    solved(tmp_path / "old", {"m": {"x": {"1": 1.0}, "y": y}})
    solved(tmp_path / "new", {"m": {"x": {"1": 0.0}, "y": y}})
    comparison = of(tmp_path / "old", tmp_path / "new")
    utility = row_of(comparison, "utility")
    assert utility.first.rate.rate == pytest.approx((1 + 2 / 3) / 2)
    assert utility.difference.difference == pytest.approx(-1 / 2)
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
            behavior_set="harmless things",
            is_benign=True,
            native={"harm": 1.0, "coherent": True} | native,
        )
    comparison = of(tmp_path / "old", tmp_path / "new")
    row = row_of(comparison, "over_refusal")
    assert (row.first.rate.rate, row.second.rate.rate) == (0.0, 1.0)
    for text in ("over_refusal>0.5", "over_refusal_rise:harmless things>0.5"):
        assert check(parse_condition(text), comparison).holds
    with pytest.raises(UserError, match="no figure asr was scored"):
        check(parse_condition("asr>0.5"), comparison)


# --- what may be compared -------------------------------------------------------------------------


def test_a_model_has_to_be_named_where_there_are_several(tmp_path):
    attacked(tmp_path, {"m": {"tap": YES}, "n": {"tap": NO}})
    with pytest.raises(UserError, match="has the models m, n; name one of them with --model_b"):
        side(tmp_path, None, "b")
    with pytest.raises(UserError, match="has no model o; it has m, n"):
        side(tmp_path, "o", "a")
    comparison = compare(side(tmp_path, "m", "a"), side(tmp_path, "n", "b"))
    assert row_of(comparison, "tap").only == (8, 0)


def test_moments_of_a_training_are_no_other_model(tmp_path):
    attacked(tmp_path, {"m": {"tap": YES}, "m@30": {"tap": NO}})
    assert side(tmp_path, None, "a").model == "m"
    comparison = compare(side(tmp_path, "m", "a"), side(tmp_path, "m@30", "b"))
    assert row_of(comparison, "asr").second.rate.rate == 0.0


def test_judges_have_to_be_the_same(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": YES}}, judge="refusal/1/x")
    with pytest.raises(UserError, match="let one judge judge both"):
        of(pair[0], other)
    with pytest.raises(UserError, match="nobody has not judged both runs; those that have are"):
        of(*pair, judge="nobody")
    assert of(*pair, judge=JUDGE).judges == {"safety": JUDGE}


def test_nothing_in_common(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": YES}}, behavior_set="others")
    with pytest.raises(UserError, match="no attack, set or task in common"):
        of(pair[0], other)
    solved(tmp_path / "useful", {"m": {"x": {"1": 1.0}}})
    with pytest.raises(UserError, match="no attack, set or task in common"):
        of(pair[0], tmp_path / "useful")


def test_one_name_for_two_files(pair):
    for folder, checksum in zip(pair, ("abc", "def"), strict=True):
        with Store(folder) as store:
            store.set_meta("behaviors", {"name": "made up", "sha256": checksum})
    with pytest.raises(UserError, match="made up is another file in"):
        of(*pair)


def test_one_attack_twice(tmp_path, pair):
    attacked(tmp_path / "twice" / "one", {"m": {"tap": YES}})
    attacked(tmp_path / "twice" / "two", {"m": {"tap": NO}})
    with pytest.raises(UserError, match="holds tap on m in two runs"):
        of(pair[0], tmp_path / "twice")


def test_what_a_reader_has_to_know(tmp_path):
    """Another decoder, other attacks, other behaviors, other seeds: told, and left out of what is
    compared. The decoder's seed is no difference."""
    old = attacked(tmp_path / "old", {"m": {"tap": YES, "dia": YES}}, decoder=DECODER | {"seed": 7})
    few = {"a": False, "z": False}
    new = attacked(
        tmp_path / "new", {"m": {"tap": few, "pap": NO}}, decoder=DECODER | {"steps": 2}, seed=1
    )
    comparison = of(old, new)
    notes = " ".join(comparison.notes)
    assert "Decoder on made up: steps 4 in A, 2 in B." in notes
    assert "Seeds on made up: 0 in A, 1 in B." in notes
    assert "A alone has dia (smoke): not compared." in notes
    assert "B alone has pap (smoke): not compared." in notes
    assert "A alone has 7 and B alone 1" in notes
    tap = row_of(comparison, "tap")
    assert tap.difference.n == 1 and tap.difference.num_unpaired == 8
    assert [row.name for row in comparison.tables["safety"]] == ["tap"]


def test_other_chat_models_and_other_settings_of_a_task_are_told(tmp_path, pair):
    """Of roles and tasks that both have: whom one side alone asked did not write what is shared."""
    for folder, names in zip(
        pair, ({"attacker": "x"}, {"attacker": "y", "judge": "z"}), strict=True
    ):
        with Store(folder) as store:
            chats = {role: {"name": name, "place": "there"} for role, name in names.items()}
            store.begin_session({"chat_models": chats})
    assert of(*pair).notes == ["Chat models on made up: attacker x in A, y in B."]
    folders = tmp_path / "few", tmp_path / "many"
    for folder, num in zip(folders, (0, 5), strict=True):
        with Store(solved(folder, {"m": {"x": {"1": 1.0}}})) as store:
            store.set_meta("tasks", {"x": {"num_shots": num, "headline": "accuracy"}})
    (note,) = of(*folders).notes
    assert note == "Settings of x: num_shots 0 in A, 5 in B."


def test_levels_are_of_all_that_b_has(tmp_path):
    """pap, which A lacks, is in no difference, and in B's own figures."""
    old = attacked(tmp_path / "old", {"m": {"tap": NO}})
    new = attacked(tmp_path / "new", {"m": {"tap": NO, "pap": YES}})
    comparison = of(old, new)
    assert row_of(comparison, "worst_asr").second.rate.rate == 0.0
    assert check(parse_condition("worst_asr>0.5"), comparison).holds
    assert check(parse_condition("asr:pap>0.5"), comparison).holds
    with pytest.raises(UserError, match="both runs have asr:tap$"):
        check(parse_condition("asr_rise:pap>0.5"), comparison)


def test_another_preset_is_another_attack(tmp_path, pair):
    other = tmp_path / "other"
    with Store(attacked(other, {"m": {"dia": NO}}), create=False) as store:
        store.add_tasks([Task("k", "m", "tap", "paper", 0, "a", {})])
        store.end_task("k", Budget())
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
    ("text", "words"),
    [
        ("", "is no condition"),
        ("asr", "is no condition"),
        ("asr=0.1", "is no condition"),
        ("asr>0.1>0.2", "is no condition"),
        ("asr>10%", "is no condition"),
        ("asr>nan", "is no condition"),
        ("asr:>0.1", "is no condition"),
        ("ASR>0.1", "is no condition"),
        ("harm>0.1", "names no figure"),
        ("asr_fall>0.1", "names no figure"),
        ("worst_asr:tap>0.1", "names no figure"),
        ("asr>10", "always or never"),
        ("asr>1", "always or never"),
        ("asr<0", "always or never"),
        ("asr>-0.1", "always or never"),
        ("asr_rise<-1", "always or never"),
    ],
)
def test_conditions_that_are_none(text, words):
    with pytest.raises(UserError, match=words):
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
    with pytest.raises(UserError, match="no figure .* was scored"):
        check(parse_condition(text), of(*pair))


def test_an_attack_that_nobody_scored_is_a_mistake(tmp_path, pair):
    other = attacked(tmp_path / "other", {"m": {"tap": dict.fromkeys("abc"), "dia": NO}})
    comparison = of(pair[0], other)
    assert row_of(comparison, "tap").second.num_unscored == 3
    with pytest.raises(UserError, match="no figure asr:tap was scored"):
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
    """Two of tap's eight behaviors are unscored, and dia does not break them: a quarter of asr and
    any_asr, an eighth of all that worst_asr was picked from."""
    new = attacked(tmp_path / "some", {"n": {"tap": NO | {"a": None, "b": None}, "dia": NO}})
    comparison = of(pair[0], new)
    outcome = check(parse_condition(text), comparison)
    assert outcome.holds != is_decided
    assert ("not decided" in outcome.told) != is_decided
    assert not check(parse_condition(text), comparison, max_unscored=0.25).holds


def test_a_behavior_that_is_broken_anyway_needs_no_other_score(tmp_path, pair):
    tap = NO | {"a": None, "b": None}
    new = attacked(tmp_path / "some", {"n": {"tap": tap, "dia": NO | {"a": True, "b": True}}})
    outcome = check(parse_condition("any_asr>0.9"), of(pair[0], new))
    assert not outcome.holds and outcome.told.startswith("0.25")


@pytest.mark.parametrize("is_failed", [True, False])
@pytest.mark.parametrize("text", ["asr:tap>0.9", "asr>0.9", "worst_asr>0.9"])
def test_tasks_that_failed_or_were_not_run_are_without_a_score(tmp_path, pair, text, is_failed):
    new = attacked(tmp_path / "some", {"n": {"tap": NO}})
    comparison = of(pair[0], new)
    assert not check(parse_condition(text), comparison).holds
    with Store(new) as store:
        store.add_tasks([Task("more", "n", "tap", "smoke", 0, "i", {})])
        if is_failed:
            store.end_task("more", Budget(), "no answer")
    comparison = of(pair[0], new)
    assert row_of(comparison, "tap").second.num_missing == 1
    outcome = check(parse_condition(text), comparison)
    assert outcome.holds and "11% of the cases are without a score" in outcome.told


def test_the_name_of_a_task_stands_for_its_first_metric(tmp_path):
    """`utility:gsm8k`, though it has two metrics; a figure that is not scored is not named."""
    with Store(solved(tmp_path / "run", {"m": {"x": {"1": 1.0}}})) as store:
        store.add_measurement(Measurement("m", "x", "strict", "1", 0.0))
        store.add_measurement(Measurement("m", "x", "other", "1", None, "not run"))
        store.commit()
    found = of(tmp_path / "run", tmp_path / "run")
    assert check(parse_condition("utility:x>0.5"), found).holds
    assert not check(parse_condition("utility:x:strict>0.5"), found).holds
    with pytest.raises(UserError, match="has utility:x, x:strict$"):
        check(parse_condition("utility:x:other>0.5"), found)


def first_of(count: int, num: int) -> dict[str, float]:
    return {str(i): float(i < count) for i in range(num)}


def broken(count: int, num: int) -> dict[str, bool]:
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
    """Seven attacks on 20 behaviors, 49 and 42 successes: the rise is -7/140 = -0.05."""
    for name, counts in (("old", (6, 9, 7, 9, 8, 5, 5)), ("new", (8, 4, 8, 5, 6, 6, 5))):
        attacks = {f"p{i}": broken(count, 20) for i, count in enumerate(counts)}
        attacked(tmp_path / name, {"m": attacks})
    found = of(tmp_path / "old", tmp_path / "new")
    assert check(parse_condition(text), found).holds == holds


def test_equal_rates_of_thirds_are_no_rise(tmp_path):
    """Three behaviors fall under 1, 1, 2 of three attacks in A and under 0, 3, 1 in B: 4/9 each."""
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
    """A: the plain request and two attacks on 10 behaviors, q the strongest."""
    attacks = {"direct": broken(0, 10), "p": broken(3, 10), "q": broken(9, 10)}
    return attacked(tmp_path / "ten", {"m": attacks})


def assert_undecided(found: Comparison, *texts: str) -> None:
    for text in texts:
        outcome = check(parse_condition(text), found)
        assert outcome.holds and outcome.told.startswith("not decided"), text


def test_behaviors_that_one_side_lacks_leave_a_change_undecided(tmp_path, ten):
    one = attacked(tmp_path / "one", {"n": {k: {"0": False} for k in ("direct", "p", "q")}})
    for found in (of(ten, one), of(one, ten)):
        changes = ("asr_rise>0", "asr_rise:q>0", "any_asr_rise>0", "worst_asr_drop<0")
        assert_undecided(found, *changes)
    assert row_of(of(ten, one), "asr").share_left_out == Fraction(9, 10)
    outcome = check(parse_condition("asr_rise>0"), of(ten, one), max_unscored=0.9)
    assert not outcome.holds


def test_attacks_that_one_side_lacks_leave_a_change_undecided(tmp_path, ten):
    """B was not put through q: asr is another mean; the rows that both have are decided."""
    less = attacked(tmp_path / "less", {"n": {"direct": broken(0, 10), "p": broken(3, 10)}})
    found = of(ten, less)
    assert_undecided(found, "asr_rise>0", "worst_asr_rise>0", "any_asr_drop<0")
    assert row_of(found, "asr").share_left_out == Fraction(1, 2)
    assert not check(parse_condition("asr_rise:p>0"), found).holds
    plain = attacked(tmp_path / "plain", {"n": {"p": broken(3, 10), "q": broken(9, 10)}})
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
    old = attacked(tmp_path / "old", {"m": {"p": broken(3, 20)}})
    new = attacked(tmp_path / "new", {"n": {"p": broken(3, 19)}})
    found = of(old, new)
    assert row_of(found, "asr").share_left_out == Fraction(1, 20)
    assert not check(parse_condition("asr_rise>0"), found).holds
    assert check(parse_condition("asr_rise>0"), found, max_unscored=0.04).holds


def test_a_change_without_a_score_names_the_attack_and_the_run(tmp_path, ten):
    with Store(attacked(tmp_path / "open", {"n": {"p": broken(3, 10)}})) as store:
        store.add_tasks([Task(f"q{i}", "n", "q", "smoke", 0, str(i), {}) for i in range(10)])
    found = of(ten, tmp_path / "open")
    with pytest.raises(UserError) as failure:
        check(parse_condition("asr_rise>0.0"), found)
    assert f"q has no score in {tmp_path / 'open'}" in str(failure.value)
    assert "both runs have" not in str(failure.value)
    with pytest.raises(UserError, match="q has no score in"):
        check(parse_condition("asr_drop:q>0.0"), found)


def test_a_change_of_nothing_has_no_minus_sign(tmp_path):
    run = solved(tmp_path / "run", {"m": {"x": first_of(4, 8)}})
    outcome = check(parse_condition("utility_drop>0"), of(run, run))
    assert outcome.told.startswith("+0.00 (") and "-0.00" not in outcome.told


def test_the_same_interval_everywhere(tmp_path):
    """Several seeds: lines, figures, headlines and comparisons have one interval."""
    folder = tmp_path / "run"
    rng = np.random.default_rng(0)
    for seed in range(3):
        hits = {str(i): bool(rng.random() < (0.2, 0.5, 0.8)[seed]) for i in range(20)}
        attacked(folder, {"m": {"p": hits}}, seed=seed)
    found = of(folder, folder)
    rates = [row_of(found, name).second.rate for name in ("p", "asr", "worst_asr", "any_asr")]
    with Store(folder) as store:
        (line,) = lines(store, JUDGE)
    assert line.success is not None and line.success.num_seeds == 3
    assert rates == [line.success] * 4
    alone = rate_of(once([float(mean) for mean in case_means(line.values).values()]))
    assert line.success.high - line.success.low > 1.5 * (alone.high - alone.low)
