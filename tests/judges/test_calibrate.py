"""Calibration against numbers worked out by hand, and the labelled rows it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from judges.fake_chat import FakeChat
from refusals import refuses

import mosa.judges.calibrate as judges
from mosa.chat import ChatReply
from mosa.judges import Item, JudgeSetting, make_judge
from mosa.judges.calibrate import Labelled, calibrate, load_labelled
from mosa.types import Behavior, Verdict
from mosa.world import World

WORLD = World(0)


@dataclass
class FixedJudge:
    """Says what it is given: y yes, n no, anything else unscored."""

    id: str
    says: str

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        assert len(items) == len(self.says)
        known = {"y": Verdict(1.0, True), "n": Verdict(0.0, False)}
        return [known.get(letter) or Verdict.unscored("not said") for letter in self.says]


def labelled(labels: str, kinds: str) -> list[Labelled]:
    return [
        Labelled(Behavior(str(i), "b"), "r", label == "y", kind)
        for i, (label, kind) in enumerate(zip(labels, kinds, strict=True))
    ]


def test_rates_by_hand():
    """Labels y y y y n n n n n n, the judge says y y n ? n n n n y y.

    Nine are scored: 2 true and 2 false positives, 4 true negatives, 1 false negative. Agreement
    6/9, false positives 2/6, false negatives 1/3. Chance: the judge says yes 4/9, the labels 3/9,
    so 4/9 * 3/9 + 5/9 * 6/9 = 42/81, and kappa = (54 - 42) / (81 - 42) = 12/39.
    """
    rows = labelled("yyyynnnnnn", "aaaabbbbcc")
    result = asyncio.run(calibrate([FixedJudge("j", "yyn?nnnnyy")], rows))
    (quality,) = result.qualities
    assert (result.num_rows, quality.num_scored, quality.num_unscored) == (10, 9, 1)
    assert (quality.num_positives, quality.num_negatives, quality.num_agreed) == (3, 6, 6)
    assert (quality.num_true_positives, quality.num_true_negatives) == (2, 4)
    assert (quality.num_false_positives, quality.num_false_negatives) == (2, 1)
    assert quality.kappa == pytest.approx(12 / 39)
    assert quality.num_errors_by_kind == {"a": (1, 4), "b": (0, 4), "c": (2, 2)}
    assert result.pairs == []
    assert quality.unread == {"not said": [""]}


def test_judges_against_each_other():
    """Of four rows both score three, and agree on two of these."""
    rows = labelled("ynyn", "    ")
    judged = [FixedJudge("a", "yny?"), FixedJudge("b", "ynnn"), FixedJudge("c", "????")]
    result = asyncio.run(calibrate(judged, rows))
    counts = {pair.judges: (pair.num_scored, pair.num_agreed) for pair in result.pairs}
    assert counts == {("a", "b"): (3, 2), ("a", "c"): (0, 0), ("b", "c"): (0, 0)}


def test_kappa_without_cases_is_none():
    nothing, constant = asyncio.run(
        calibrate([FixedJudge("a", "??"), FixedJudge("b", "yy")], labelled("yy", "  "))
    ).qualities
    assert nothing.num_scored == 0 and nothing.kappa is None
    assert constant.num_agreed == constant.num_scored == 2
    assert constant.kappa is None, "two raters who always say yes agree by chance"


def test_what_a_judge_said_is_shown_by_reason():
    """Five rows: one reply is cut, one gives no grade, one declines, one is right, one differs."""
    said = {
        "e": "I'm sorry, but I cannot rate this.",
        "a": ChatReply("score: 5", is_cut=True),
        "b": "I would call it safe.",
        "c": "score: 5",
        "d": "It helps.\nscore: 5",
    }
    rows = [Labelled(Behavior(r, "b"), r, r == "c") for r in said]
    judge = make_judge("mosa_scale", JudgeSetting(chat=FakeChat(lambda r: said[r])))
    (quality,) = asyncio.run(calibrate([judge], rows)).qualities
    assert sorted(quality.unread.values()) == [
        ["I would call it safe."],
        ["I'm sorry, but I cannot rate this."],
        ["score: 5"],
    ]
    assert (quality.num_declined, quality.num_scored) == (1, 2)
    assert any("cut off" in reason for reason in quality.unread)
    assert quality.misjudged == ["It helps.\nscore: 5"]


def test_no_rows_and_one_judge_twice():
    with refuses("row"):
        asyncio.run(calibrate([FixedJudge("a", "")], []))
    with refuses("strict"):
        asyncio.run(calibrate([FixedJudge("strict", "y")] * 2, labelled("y", " ")))


# ------------------------------------------------------------------------------- what was measured


def test_what_was_measured_is_kept(tmp_path):
    """Two judges from one set, then one of them again from another; the other stays as it was."""
    file = tmp_path / "judges.json"
    rows = labelled("yyyynnnnnn", "aaaabbbbcc")
    first, second = asyncio.run(
        calibrate([FixedJudge("a", "yyn?nnnnyy"), FixedJudge("b", "yyyynnnnny")], rows)
    ).qualities
    kept = {q.judge: judges.measured_errors(q, "rows.csv", "abc") for q in (first, second)}
    judges.write_calibration(file, kept)
    assert judges.read_calibration(file) == kept
    assert (kept["a"].sensitivity, kept["a"].specificity) == ((2, 3), (4, 6))
    assert (kept["a"].num_unscored, kept["a"].data, kept["a"].sha256) == (1, "rows.csv", "abc")
    (again,) = asyncio.run(calibrate([FixedJudge("a", "yn")], labelled("yn", "  "))).qualities
    judges.write_calibration(file, {"a": judges.measured_errors(again, "two.csv", "def")})
    found = judges.read_calibration(file)
    assert found["b"] == kept["b"]
    assert (found["a"].sensitivity, found["a"].data) == ((1, 1), "two.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["judges.json"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", ()),
        ("[]", ()),
        ('{"made_by": "x", "mosa_calibration": 2, "judges": {}}', ("mosa_calibration",)),
        (
            '{"made_by": "", "mosa_calibration": 1, "judges": {"strict": {"num_positives": 1}}}',
            ("num_true_positives",),
        ),
        ('{"made_by": "x", "mosa_calibration": 1, "judges": {"strict": 1}}', ()),
        ('{"made_by": "x", "mosa_calibration": 1}', ("judges",)),
        ('{"mosa_calibration": 1, "judges": {}}', ("made_by",)),
        ('{"made_by": "x", "mosa_calibration": 1, "judges": []}', ()),
    ],
)
def test_other_files_are_no_calibration(tmp_path, text, names):
    file = tmp_path / "a.json"
    file.write_text(text)
    with refuses(file, *names):
        judges.read_calibration(file)
    with refuses(file):
        judges.write_calibration(file, {})
    assert file.read_text() == text


@pytest.mark.parametrize("count", ["4.5", "true", "1e30", "Infinity", "-1", "null", '"4"'])
@pytest.mark.parametrize("name", ["num_positives", "num_true_positives", "num_unscored"])
def test_counts_are_whole_numbers_from_0(tmp_path, name, count):
    file = tmp_path / "a.json"
    judges.write_calibration(file, {"strict": judges.MeasuredErrors(3, 4, 1, 2, 5, "r", "abc")})
    before = {"num_positives": 4, "num_true_positives": 3, "num_unscored": 5}[name]
    file.write_text(file.read_text().replace(f'"{name}": {before}', f'"{name}": {count}'))
    with refuses(file):
        judges.read_calibration(file)


def test_counts_that_cannot_be(tmp_path):
    file = tmp_path / "a.json"
    errors = judges.MeasuredErrors(5, 4, 1, 2, 0, "rows.csv", "abc")
    judges.write_calibration(file, {"strict": errors})
    with refuses(file, "strict"):
        judges.read_calibration(file)
    with refuses(tmp_path / "absent.json"):
        judges.read_calibration(tmp_path / "absent.json")
    with refuses(file / "a.json"):
        judges.write_calibration(file / "a.json", {})


def test_a_hash_of_rows_that_no_file_holds():
    rows = judges.testbed_rows(WORLD, 10)
    assert judges.sha256_of(rows) == judges.sha256_of(judges.testbed_rows(WORLD, 10))
    assert judges.sha256_of(rows) != judges.sha256_of(judges.testbed_rows(WORLD, 10, seed=1))
    assert judges.sha256_of(rows) != judges.sha256_of(rows[:-1])


# ------------------------------------------------------------------------------------ labelled rows


def test_csv_and_jsonl_give_the_same_rows(tmp_path):
    rows = [
        {"behavior": "bake, please", "response": 'with "two"\nlines', "label": "harmful"},
        {"behavior": "b", "response": "", "label": "0"},
        {"behavior": "c", "response": "d", "label": "TRUE"},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text(
        'label,behavior,response\nharmful,"bake, please","with ""two""\nlines"\n0,b,\nTRUE,c,d\n'
    )
    loaded = load_labelled(tmp_path / "a.csv")
    assert loaded == load_labelled(tmp_path / "a.jsonl")
    assert [row.label for row in loaded] == [True, False, True]
    assert [row.behavior.id for row in loaded] == ["0", "1", "2"]
    assert loaded[0].response == 'with "two"\nlines'


def test_labels_and_optional_columns(tmp_path):
    file = tmp_path / "a.jsonl"
    row = {"id": "copper kiln", "kind": "late", "behavior": "b", "response": "r", "label": True}
    file.write_text(json.dumps(row))
    assert load_labelled(file) == [Labelled(Behavior("copper kiln", "b"), "r", True, "late")]
    file.write_text(json.dumps({**row, "label": 0}))
    assert load_labelled(file)[0].label is False


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        (
            "a.jsonl",
            '{"behavior": "b", "response": "r", "label": 1}\n{"behavior"',
            ("line 2", "JSON"),
        ),
        ("a.jsonl", '{"behavior": "b", "response": "r"}', ("line 1", "label")),
        ("a.jsonl", '{"behavior": "b", "response": "r", "label": 2}', ("line 1", "label", "2")),
        ("a.jsonl", '{"behavior": "b", "response": 3, "label": 1}', ("line 1", "text")),
        ("a.jsonl", '{"behavior": " ", "response": "r", "label": 1}', ("line 1", "text")),
        ("a.jsonl", "[1]", ("line 1", "object")),
        ("a.csv", "behavior,response,label\nb,r,1\nb,r\n", ("row 2", "label")),
        ("a.csv", "behavior,answer,label\nb,r,1\n", ("row 1", "response")),
        ("a.csv", "behavior,response,label\nb,r,maybe\n", ("row 1", "label", "maybe")),
        ("a.txt", "", (".csv", ".jsonl")),
    ],
)
def test_mistakes_in_a_file(tmp_path, name, text, names):
    (tmp_path / name).write_text(text)
    with refuses(tmp_path / name, *names):
        load_labelled(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with refuses(tmp_path / "absent.csv"):
        load_labelled(tmp_path / "absent.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with refuses(tmp_path / "a.csv", "UTF-8"):
        load_labelled(tmp_path / "a.csv")


def test_the_testbeds_rows_and_what_judges_make_of_them():
    """By construction 2 of 5 kinds disclose. The truth judge agrees with its own labels; the
    phrase judge is wrong on late refusals, garbled text and answers for another object."""
    rows = judges.testbed_rows(WORLD, 50)
    assert [row.label for row in rows[:5]] == [True, False, True, False, False]
    assert len({row.behavior.id for row in rows}) == 10
    assert rows == judges.testbed_rows(WORLD, 50)
    assert rows != judges.testbed_rows(WORLD, 50, seed=1)
    truth = make_judge("truth", JudgeSetting(world=WORLD))
    of_truth, of_phrases = asyncio.run(calibrate([truth, make_judge("refusal")], rows)).qualities
    assert of_truth.num_agreed == of_truth.num_scored == 50 and of_truth.kappa == 1.0
    assert of_phrases.num_errors_by_kind == {
        "answer": (0, 10),
        "refusal": (0, 10),
        "late refusal": (10, 10),
        "garbled": (10, 10),
        "other object": (10, 10),
    }


@pytest.mark.parametrize("num", [0, 401])
def test_more_rows_than_the_testbed_has(num):
    with refuses(num):
        judges.testbed_rows(WORLD, num)


def test_the_figures_on_the_page_of_the_phrase_judge():
    """docs/judges/refusal.md states these; the file is what they were measured on."""
    rows = load_labelled(judges.REFUSAL_ROWS)
    assert len(rows) == 60 and len({row.kind for row in rows}) == 5
    (quality,) = asyncio.run(calibrate([make_judge("refusal")], rows)).qualities
    counts = (
        quality.num_true_positives,
        quality.num_false_positives,
        quality.num_true_negatives,
        quality.num_false_negatives,
    )
    assert counts == (24, 8, 24, 4)
    assert quality.kappa == pytest.approx(0.602, abs=5e-4)
