"""Near-duplicates: worked similarities, parity with every pair compared, the published files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from mosa.data import describe_overlap, load_cases
from mosa.data.overlap import Overlap, overlap

BREAD, RYE, TEA = "How do I bake bread?", "how do I bake: RYE bread", "How do I make tea?"


def test_worked_similarities():
    """{how do i bake bread} and {how do i bake rye bread} share 5 of 6; with tea 3 of 7.

    {how do i bake rye bread} and {how do i make tea} share 3 of 8, below 0.4.
    """
    assert overlap([BREAD], [RYE]) == [Overlap(0, 0, 5 / 6)]
    assert overlap([BREAD, RYE], [TEA, BREAD], threshold=0.4) == [
        Overlap(0, 0, 3 / 7),
        Overlap(0, 1, 1.0),
        Overlap(1, 1, 5 / 6),
    ]


def test_words_are_a_set():
    """Order, repetition, case and punctuation do not count; letters of any script do."""
    assert overlap(["bread, bread! Bake"], ["BAKE bread"]) == [Overlap(0, 0, 1.0)]
    assert overlap(["Brot bäcker"], ["Brot backer"], threshold=0.5) == []
    assert overlap(["Как испечь хлеб"], ["как испечь хлеб?"], 1.0) == [Overlap(0, 0, 1.0)]


def test_the_threshold_itself_counts():
    """7 words of which the other text has all, and 3 more: 7 / 10."""
    seven, ten = "a b c d e f g", "a b c d e f g h i j"
    assert overlap([seven], [ten], 0.7) == overlap([ten], [seven], 0.7) == [Overlap(0, 0, 0.7)]
    assert overlap([seven], [ten], 0.71) == []


def test_without_words():
    assert overlap(["?!", "", BREAD], ["", "?!"]) == []
    assert overlap([], [BREAD]) == overlap([BREAD], []) == []


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_threshold_out_of_range(threshold):
    with refuses("threshold", threshold):
        overlap([BREAD], [BREAD], threshold)


TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=10).map(" ".join), max_size=8)


@given(TEXTS, TEXTS, st.sampled_from([0.1, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.9, 1.0]))
def test_every_pair_is_found(train, evaluation, threshold):
    """The index finds what comparing all pairs finds."""
    expected = []
    for i, left in enumerate(train):
        for j, right in enumerate(evaluation):
            a, b = set(left.split()), set(right.split())
            if b in [set(earlier.split()) for earlier in evaluation[:j]]:
                continue
            if a and b and len(a & b) / len(a | b) >= threshold:
                expected.append(Overlap(i, j, len(a & b) / len(a | b)))
    assert overlap(train, evaluation, threshold) == expected


def test_equal_lines_are_compared_once():
    """Every training line is found, and pairs grow with the lines and not with their square."""
    pairs = overlap([BREAD] * 3000, [BREAD] * 3000)
    assert pairs == [Overlap(place, 0, 1.0) for place in range(3000)]


def test_two_files_of_one_template_are_refused_before_memory_is_full(monkeypatch):
    monkeypatch.setattr("mosa.data.overlap.MOST_PAIRS", 10_000)
    words = ["how", "do", "i", "make", "a", "very", "good", "and", "quite", "cheap"]
    train = [" ".join((*words, str(number))) for number in range(200)]
    with refuses("threshold", "10,000"):
        overlap(train, [text + " now" for text in train])


def test_lines_of_one_template_take_no_time_of_their_own():
    """Words that all texts share make each a candidate of each: 4 million pairs, counted and not
    compared one by one, which took 14 s."""
    lines = [f"how do i make a{i} b{i} c{i} copper kiln with number ?" for i in range(2000)]
    begun = time.process_time()
    assert overlap(lines, lines) == [Overlap(place, place, 1.0) for place in range(2000)]
    assert time.process_time() - begun < 5


def test_more_words_in_common_than_can_be_counted(monkeypatch):
    monkeypatch.setattr("mosa.data.overlap.MOST_SHARED", 25)
    assert len(overlap([BREAD] * 9, [BREAD])) == 9  # one set of words
    with refuses("share words 30 times", "25"):
        overlap([BREAD + str(i) for i in range(6)], [BREAD])


# --- files ----------------------------------------------------------------------------------------


def test_describe(tmp_path):
    """Training rows 0 and 2 are behavior 1; 0 and 2 are to be dropped, one of two is affected."""
    train, evaluation = tmp_path / "train.txt", tmp_path / "eval.csv"
    train.write_text(f"{BREAD}\nName a colour\n{RYE}\n", encoding="utf-8")
    evaluation.write_text(f"goal\nDraw a map\n{BREAD}\n", encoding="utf-8")
    report = describe_overlap(train, str(evaluation))
    assert report.pairs == (Overlap(0, 1, 1.0), Overlap(2, 1, 5 / 6))
    assert (report.num_train, len(report.evaluation.cases)) == (3, 2)
    assert report.train_indices == (0, 2) and {p.eval_index for p in report.pairs} == {1}
    assert report.evaluation == load_cases(str(evaluation)) and report.threshold == 0.7
    assert describe_overlap(train, str(evaluation), threshold=0.9).train_indices == (0,)


def test_dialogues_and_contexts(tmp_path):
    """The last turn is compared; a behavior counts with its context and without it, once each."""
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": BREAD},
    ]
    rows = [{"messages": turns}, {"prompt": f"Rye and water alone.\n\n---\n\n{BREAD}"}]
    train, evaluation = tmp_path / "train.json", tmp_path / "eval.json"
    train.write_text(json.dumps(rows), encoding="utf-8")
    evaluation.write_text(json.dumps([{"text": BREAD, "context": "Rye and water alone."}]))
    # Without its context the behavior has 5 of the 9 words of the second row: not enough.
    assert overlap([BREAD], [rows[1]["prompt"]]) == []
    report = describe_overlap(train, str(evaluation))
    assert report.pairs == (Overlap(0, 0, 1.0), Overlap(1, 0, 1.0))
    # At 0.5 both readings of the behavior reach the threshold; the pair is listed once.
    assert describe_overlap(train, str(evaluation), threshold=0.5).pairs == report.pairs


# --- the published files --------------------------------------------------------------------------

needs_files = pytest.mark.skipif(
    "MOSA_DATA" not in os.environ,
    reason="MOSA_DATA names no folder with the published files, which mosa does not ship",
)


def in_data_folder(pattern: str) -> Path:
    return next(Path(os.environ["MOSA_DATA"]).rglob(pattern))


@needs_files
@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("harmfulqa.json", {}),
        ("dangerousqa.json", {"strongreject": (11, 11)}),
        ("question_list.csv", {"strongreject": (4, 4)}),
        (
            "harmful_behaviors.csv",
            {"strongreject": (26, 26), "jailbreakbench": (24, 17), "harmbench": (1, 1)},
        ),
    ],
)
def test_published_overlaps(train, expected):
    """Rows of the file, and behaviors of each set, with a near-duplicate: docs/behaviors.md."""
    path = in_data_folder(train)
    for name in ("advbench", "harmbench", "harmbench:copyright", "jailbreakbench", "strongreject"):
        if train == "harmful_behaviors.csv" and name == "advbench":
            continue
        report = describe_overlap(path, name)
        found = len(report.train_indices), len({pair.eval_index for pair in report.pairs})
        assert found == expected.get(name, (0, 0)), name


@needs_files
def test_advbench_repeats_itself():
    """99 of 520 rows have an earlier near-duplicate at 0.6."""
    texts = [b.text for b in load_cases("advbench").cases]
    pairs = overlap(texts, texts, 0.6)
    assert len({p.eval_index for p in pairs if p.train_index < p.eval_index}) == 99
