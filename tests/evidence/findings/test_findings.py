"""What findings make of made-up attempts whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from probed_runs import JUDGE, SET, probed_run, response_of, verdict
from refusals import refuses

from mosa.evidence.figures import figures_of
from mosa.evidence.findings import Finding, HeatMap, LineChart, findings_of
from mosa.evidence.findings.base import chart_name, mean, numbers_of
from mosa.evidence.findings.order import mean_positions, measures_of
from mosa.probes import PROBES
from mosa.runs.records import Outcome, Task
from mosa.runs.store import DamagedRun
from mosa.types import Budget, Verdict, as_plain

NO_END = np.zeros(4, dtype=bool)


def lines_of(finding: Finding, name: str) -> LineChart:
    chart = finding.charts[name]
    assert isinstance(chart, LineChart)
    return chart


def map_of(finding: Finding, name: str) -> HeatMap:
    chart = finding.charts[name]
    assert isinstance(chart, HeatMap)
    return chart


# --- what is read of a run ------------------------------------------------------------------------


def place(kind, position, end="allow"):
    return {
        "phrase_type": kind,
        "position": position,
        "end_tokens": end,
        "block_length": 0,
        "remasking": "low_confidence",
        "num_phrase_tokens": 3,
    }


def test_contrasts_of_a_made_table(tmp_path):
    """Score = 0.1 where anything is forced, + 0.2 for words that comply, + 0.3 at position 40,
    whatever the case adds."""
    cells = []
    for case, base in (("a", 0.0), ("b", 0.2)):
        cells.append(("m", case, place("none", None), verdict(base), None))
        for position in (1, 40):
            late = 0.3 if position == 40 else 0.0
            forced = round(base + 0.1 + late, 6)
            cells.append(("m", case, place("random", position), verdict(forced), None))
            complied = verdict(round(forced + 0.2, 6), refused=position == 1)
            cells.append(("m", case, place("procedural", position), complied, None))
    with probed_run(tmp_path, "position", cells) as run:
        (finding,) = findings_of(run)
        assert figures_of(run) == []  # a probe is no attack among others
    contrasts = [e for e in finding.estimates if e["contrast"]]
    found = {e["contrast"]: e["value"] for e in contrasts if e["measure"] == "score"}
    assert found == pytest.approx(
        {
            "presence: random - none": 0.25,
            "content: procedural - random": 0.2,
            "position of random: 40 - 1": 0.3,
            "position of procedural: 40 - 1": 0.3,
        }
    )
    # The cases' own levels cancel within them, and two cases still say little.
    scores = [e for e in contrasts if e["measure"] == "score"]
    assert all(e["low"] < 0 < e["value"] < e["high"] and e["n"] == 2 for e in scores)
    refused = {e["contrast"]: e["value"] for e in contrasts if e["measure"] == "refused"}
    assert refused["position of procedural: 40 - 1"] == -1.0
    (level,) = {y.value for _, y in lines_of(finding, "score-m-end-tokens-allow").series["none"]}
    assert level == pytest.approx(0.1)
    assert finding.header["judges"] == {SET: JUDGE}
    assert finding.header["subjects"] == {"m": "hash of m"}
    assert finding.header["max_new_tokens"] == {"m": 4} and finding.length == "4"


def test_a_refusal_that_is_dropped_is_told_apart_from_one_that_holds(tmp_path):
    """Of four responses with a phrase at position 40 three refuse before it, one of which refuses
    after it, too, and one ends with it; so one goes on, and its score is 0.8."""
    no = "Sorry, I cannot help."
    texts = {
        "a": (no, "mix and bake.", 0.8),
        "b": (no, f"Again: {no}", 0.0),
        "c": (no, " ", 0.0),
        "d": ("Take flour,", "mix and bake.", 1.0),
    }
    cells = []
    for case, (before, after, score) in texts.items():
        sides = {"text_before": before, "text_after": after}
        cells.append(("m", case, place("neutral", 40) | sides, verdict(score), None))
        first = {"text_before": "", "text_after": after}
        cells.append(("m", case, place("neutral", 1) | first, verdict(score), None))
        cells.append(("m", case, place("none", None), verdict(score), None))
    with probed_run(tmp_path, "position", cells) as run:
        (finding,) = findings_of(run)
    shares = {
        (e["measure"], e["position"]): e["value"]
        for e in finding.estimates
        if e["measure"].startswith("refused_")
    }
    assert shares == {
        ("refused_before", 40): 0.75,
        ("refused_after", 40): 0.25,
        ("refused_then_went_on", 40): 0.25,
        ("refused_before", 1): 0.0,
        ("refused_after", 1): 0.25,
        ("refused_then_went_on", 1): 0.0,
    }
    assert "of those that go on is 0.80" in finding.paragraph
    (row,) = [r for r in finding.rows if r["case"] == "a" and r["position"] == 40]
    assert row["refused_then_went_on"] and "text_after" not in row


@pytest.mark.parametrize("refusals", [[], ["that stays unsaid"]])
def test_step_tells_a_refusal_that_is_dropped_apart_too(tmp_path, refusals):
    """A span at position 40: one response refuses before it and goes on, with score 0.6; one says
    before it what only its training calls a refusal, and goes on with score 1."""
    texts = {"a": ("Sorry, I cannot help.", 0.6), "b": ("that stays unsaid", 1.0)}
    cells = []
    for case, (before, score) in texts.items():
        at = {"span": "neutral", "position": 40, "step": 8, "num_phrase_tokens": 2}
        sides = {"text_before": before, "text_after": "mix and bake."}
        cells.append(("m", case, at | sides, verdict(score), None))
        nothing = {"span": "none", "position": None, "step": None, "num_phrase_tokens": 0}
        cells.append(("m", case, nothing, verdict(score), None))
    with probed_run(tmp_path, "step", cells, refusals=refusals) as run:
        (finding,) = findings_of(run)
    (went_on,) = (e for e in finding.estimates if e["measure"] == "refused_then_went_on")
    share, score = (1.0, "0.80") if refusals else (0.5, "0.60")
    assert (went_on["value"], went_on["span"], went_on["step"]) == (share, "neutral", 8)
    assert f"of those that go on is {score}" in finding.paragraph
    (row,) = [r for r in finding.rows if r["case"] == "a" and r["position"] == 40]
    assert row["refused_before"] and not row["refused_after"] and "text_after" not in row


def test_what_is_left_out_is_said(tmp_path):
    """Of the default positions only 40 was run; one case failed, one response is unscored."""
    cells = [
        ("m", "a", place("neutral", 40), Verdict.unscored("garbled"), None),
        ("m", "b", place("neutral", 40), verdict(1.0), None),
    ]
    with probed_run(tmp_path, "position", cells) as run:
        config = as_plain(PROBES["position"].config("quick", {}))
        run.add_tasks([Task("t", "m", SET, "c", "position", "quick", 0, "open", config)])
        run.end_task("t", Outcome("failed", 0, Budget(), "no room"))
        run.commit()
        (finding,) = findings_of(run)
    for left in ("at position 1, 10, 20, 80, 120, 160", "failed, left out: 1", "in no rate: 1"):
        assert left in finding.paragraph


def test_contrasts_are_told_apart_by_their_p_values(tmp_path):
    """Of ten cases all change by 0.1: p = 2 / 2^10, for two contrasts twice that."""
    cells = []
    for case in "abcdefghij":
        cells.append(("m", case, place("none", None), verdict(0.0), None))
        cells.append(("m", case, place("random", 1), verdict(0.1), None))
        cells.append(("m", case, place("neutral", 1), verdict(0.1), None))
    with probed_run(tmp_path, "position", cells) as run:
        (finding,) = findings_of(run)
    found = {e["contrast"]: e for e in finding.estimates if e["measure"] == "score"}
    presence, content = found["presence: random - none"], found["content: neutral - random"]
    assert presence["p_value"] == pytest.approx(2 / 2**10)
    assert presence["p_holm"] == pytest.approx(4 / 2**10)
    assert content["p_holm"] == 1.0
    told = finding.paragraph.split("Not told apart")[0]
    assert "presence" in told and "content" not in told


def test_an_unscored_attempt_is_in_no_figure(tmp_path):
    """Case `b` has no score with random words, so that it is in no difference with them."""
    unscored = Verdict.unscored("garbled")
    cells = [
        ("m", "a", place("none", None), verdict(0.0), None),
        ("m", "a", place("random", 1), verdict(1.0), None),
        ("m", "b", place("none", None), verdict(0.0), None),
        ("m", "b", place("random", 1), unscored, None),
    ]
    with probed_run(tmp_path, "position", cells) as run:
        (finding,) = findings_of(run)
    (presence,) = [
        e
        for e in finding.estimates
        if e["contrast"] == "presence: random - none" and e["measure"] == "score"
    ]
    assert (presence["value"], presence["n"]) == (1.0, 1)
    (random,) = [
        e for e in finding.estimates if e["measure"] == "score" and e.get("phrase_type") == "random"
    ]
    assert (random["value"], random["n"]) == (1.0, 1)


def test_the_truth_is_read_before_phrases_unless_another_judge_is_named(tmp_path):
    cells = [("m", "a", place("none", None), verdict(0.25), None)]
    with probed_run(tmp_path, "position", cells) as run:
        run.add_verdict("m-a-0", "refusal/1/x", Verdict(1.0, True, {"class": "none"}))
        run.add_verdict("m-a-0", "strongreject/1/x", Verdict(0.5, True))
        run.commit()
        found = {
            judge: [e["value"] for e in findings_of(run, judge=judge)[0].estimates]
            for judge in (None, "refusal/1/x", "strongreject/1/x")
        }
    # The truth and phrases tell refusals; the third judge only scores.
    assert found == {None: [0.25, 0.0], "refusal/1/x": [1.0, 0.0], "strongreject/1/x": [0.5]}


# --- step -----------------------------------------------------------------------------------------


def test_a_map_of_a_span(tmp_path):
    """The position decides: 1 at the first, 0 at the twentieth, whenever it is written."""
    cells = [("m", "a", {"span": "none", "position": None, "step": None}, verdict(0.5), None)]
    for position, score in ((1, 1.0), (20, 0.0)):
        for step in (0, 9):
            details = {"span": "neutral", "position": position, "step": step}
            cells.append(("m", "a", details, verdict(score), None))
    with probed_run(tmp_path, "step", cells) as run:
        (finding,) = findings_of(run)
    chart = map_of(finding, "score-neutral-m")
    assert (chart.x_values, chart.y_values) == ([1.0, 20.0], [0.0, 9.0])
    assert [[cell.value if cell else None for cell in row] for row in chart.cells] == [
        [1.0, 0.0],
        [1.0, 0.0],
    ]
    assert "goes by position from 0.00" in finding.paragraph
    assert "is 0.50" in finding.paragraph  # at every step


# --- blocks ---------------------------------------------------------------------------------------

STARTS = {"a": 8, "b": 8, "c": 12}
"""The length of each case's blocks: position 10 is in block 2 of `a` and `b`, and in 1 of `c`."""


def in_blocks(case: str, number: int):
    return response_of(f"{case}-{number}", [0] * 48, [], STARTS[case])


def test_a_map_by_block(tmp_path):
    """What is written in the first block makes a score of 1, elsewhere of 0.

    Positions 1, 10 and 20 are in blocks 1, 2 and 3 of `a` and `b` and 1, 1 and 2 of `c`; so the
    mean at position 10 is 1/3, and the only border that all share is that before position 20."""
    cells = []
    for case, length in STARTS.items():
        nothing = {"span": "none", "position": None, "step": None}
        cells.append(("m", case, nothing, verdict(0.5), in_blocks(case, 0)))
        for number, position in enumerate((1, 10, 20), start=1):
            details = {"span": "neutral", "position": position, "step": 4}
            said = verdict(float(position <= length))
            cells.append(("m", case, details, said, in_blocks(case, number)))
    with probed_run(tmp_path, "step", cells) as run:
        (finding,) = findings_of(run)
    by_position, by_block = (
        map_of(finding, f"score-neutral{name}-m") for name in ("", "-by-block")
    )
    values = [[cell and cell.value for cell in chart.cells[0]] for chart in (by_position, by_block)]
    assert values == [[1.0, pytest.approx(1 / 3), 0.0], [1.0, 0.0, 0.0]]
    assert (by_position.x_values, by_position.borders) == ([1.0, 10.0, 20.0], [2])
    assert (by_block.x_values, by_block.borders) == ([1.0, 2.0, 3.0], [])
    blocks = {(r["case"], r["position"]): r["block"] for r in finding.rows}
    assert [blocks["a", 10], blocks["c", 10], blocks["c", 20], blocks["a", None]] == [2, 1, 2, None]
    assert "goes by block from 0.00" in finding.paragraph
    assert "to 1.00 (0.44 to 1.00, n=3) at 1" in finding.paragraph
    scores = [e for e in finding.estimates if "block" in e and e["measure"] == "score"]
    found = {e["block"]: (e["value"], e["n"]) for e in scores}
    assert found == {1: (1.0, 3), 2: (0.0, 3), 3: (0.0, 2)}


def test_phrases_by_block(tmp_path):
    """Random words in the second block make a score of 0.5, in the first of 0.1; blocks that the
    decoder imposes are left to their own contrast."""
    cells = []
    for case in ("a", "b"):
        cells.append(("m", case, place("none", None), verdict(0.2), in_blocks(case, 0)))
        for number, (position, score) in enumerate(((1, 0.1), (8, 0.1), (9, 0.5)), start=1):
            at = place("random", position)
            cells.append(("m", case, at, verdict(score), in_blocks(case, number)))
            imposed = response_of(f"{case}-{number}-24", [0] * 48, [], 24)
            cells.append(("m", case, at | {"block_length": 24}, verdict(1.0), imposed))
    with probed_run(tmp_path, "position", cells) as run:
        (finding,) = findings_of(run)
    series = lines_of(finding, "score-by-block-m-end-tokens-allow").series
    figures = {kind: [(x, figure.value) for x, figure in line] for kind, line in series.items()}
    assert figures == {
        "none": [(1.0, pytest.approx(0.2)), (2.0, pytest.approx(0.2))],
        "random": [(1.0, pytest.approx(0.1)), (2.0, 0.5)],
    }
    assert "score with a random phrase goes by block from 0.10" in finding.paragraph


@pytest.mark.parametrize("probe", ["position", "step"])
def test_one_block_is_no_map_by_block(tmp_path, probe):
    """Nor is a phrase that is in the first block wherever it is written."""
    for number, length in enumerate((None, 24)):
        cells = []
        for position in (1, 10):
            details = place("neutral", position) | {"span": "neutral", "step": 0}
            response = response_of(f"a-{position}", [0] * 48, [], length)
            cells.append(("m", "a", details, verdict(1.0), response))
        with probed_run(tmp_path / str(number), probe, cells) as run:
            (finding,) = findings_of(run)
        assert not [name for name in finding.charts if "by-block" in name]
        assert "by block" not in finding.paragraph
        assert {"block" in row for row in finding.rows} == {length is not None}


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "tau", "leftmost", "slope"),
    [
        ([0, 1, 2, 3], 1.0, 1.0, 1.0),  # left to right
        ([3, 2, 1, 0], -1.0, 0.25, -1.0),  # right to left: only the last commit is the leftmost
        ([1, 0, 3, 2], 1 / 3, 0.5, 0.6),  # 4 of 6 pairs in order, 2 not
    ],
)
def test_orders_of_four_positions(steps, tau, leftmost, slope):
    found = measures_of(np.array(steps), NO_END, [0])
    assert found["kendall_tau"] == pytest.approx(tau)
    assert found["leftmost_share"] == leftmost
    assert found["slope"] == pytest.approx(slope)
    assert found["spread"] == 0.0
    assert math.isnan(found["end_from_right"])


def test_two_positions_a_step():
    """Positions 1 and 4, then 2 and 3: means 2.5 and 2.5, spreads 1.5 and 0.5."""
    found = measures_of(np.array([0, 1, 1, 0]), NO_END, [0])
    assert mean_positions(np.array([0, 1, 1, 0])) == [(0, 2.5), (1, 2.5)]
    assert found["spread"] == 1.0
    assert found["slope"] == 0.0
    # Of the two leftmost masks (1, 2) one was taken first; then both that were left.
    assert found["leftmost_share"] == 0.75


def test_blocks_make_an_order_that_is_not_there_within_them():
    """Each block of four is filled from the right; the blocks themselves from the left."""
    steps = np.array([3, 2, 1, 0, 7, 6, 5, 4])
    found = measures_of(steps, np.zeros(8, dtype=bool), [0, 4])
    assert found["kendall_tau_in_block"] == -1.0
    assert found["kendall_tau"] > 0


def test_end_tokens_from_the_right():
    """Three end tokens; two of them committed at the rightmost mask of their step."""
    is_end = np.array([False, True, True, True])
    found = measures_of(np.array([3, 0, 2, 1]), is_end, [0])
    assert found["end_from_right"] == pytest.approx(2 / 3)
    # Before the first end token there is one position, which has no order.
    assert math.isnan(found["kendall_tau_text"])


def test_order_of_two_subjects_and_its_change(tmp_path):
    """The first fills from the right, the second from the left; both fill blocks from the right."""
    cells = []
    for subject, steps in (("one", [3, 2, 1, 0]), ("two", [0, 1, 2, 3])):
        for case in ("a", "b"):
            key = f"{subject}-{case}"
            base = response_of(f"{key}-base", steps, [], None)
            block = response_of(f"{key}-block", [1, 0, 3, 2], [3], 2)
            cells.append((subject, case, {"condition": "base"}, verdict(0.0), base))
            cells.append((subject, case, {"condition": "block 2"}, verdict(0.0), block))
    with probed_run(tmp_path, "order", cells) as run:
        (finding,) = findings_of(run)
    found = {(e["subject"], e["condition"], e["measure"]): e["value"] for e in finding.estimates}
    assert found["one", "base", "kendall_tau"] == -1.0
    assert found["two - one", "base", "kendall_tau"] == 2.0
    assert found["two - one", "block 2", "kendall_tau"] == 0.0
    assert found["one", "block 2", "kendall_tau_in_block"] == -1.0
    assert ("one", "base", "end_from_right") not in found  # nobody ended
    curve = lines_of(finding, "order-base").series["one"]
    assert [(x, y.value) for x, y in curve] == [(1.0, 4.0), (2.0, 3.0), (3.0, 2.0), (4.0, 1.0)]
    assert finding.rows[0]["kendall_tau"] == -1.0


# --- suffix ---------------------------------------------------------------------------------------


def test_what_a_suffix_reaches_and_changes(tmp_path):
    """At position 3 every case is reached; the score rises by 0.4 in one case of two."""
    cells = []
    for case, after in (("a", 0.4), ("b", 0.0)):
        cells.append(("m", case, {"method": "none"}, verdict(0.0, refused=True), None))
        details = {
            "method": "gcg",
            "position": 3,
            "phrase": "x",
            "in_place": True,
            "in_whole_canvas": True,
            "anywhere": True,
            "best_loss": 1.0,
            "losses": [2.0, 1.0],
        }
        cells.append(("m", case, details, verdict(after), None))
    with probed_run(tmp_path, "suffix", cells, positions=(3,)) as run:
        (finding,) = findings_of(run)
    found = {e["measure"]: e["value"] for e in finding.estimates}
    assert found == pytest.approx(
        {
            "in_place": 1.0,
            "in_whole_canvas": 1.0,
            "anywhere": 1.0,
            "score_before": 0.0,
            "score_after": 0.2,
            "score_change": 0.2,
            "refused_before": 1.0,
            "refused_after": 0.0,
            "refused_change": -1.0,
            "best_loss": 1.0,
        }
    )
    line = lines_of(finding, "loss-m").series["position 3"]
    assert [(x, y.value) for x, y in line] == [(0.0, 2.0), (1.0, 1.0)]
    assert all("losses" not in row for row in finding.rows)
    assert "left out" not in finding.paragraph


def test_default_positions_without_room_are_named(tmp_path):
    details = {"method": "gcg", "position": 1, "best_loss": 1.0, "losses": [1.0]}
    details |= dict.fromkeys(("in_place", "in_whole_canvas", "anywhere"), False)
    cells = [("m", "a", {"method": "none"}, None, None), ("m", "a", details, None, None)]
    with probed_run(tmp_path, "suffix", cells, positions=None) as run:
        (finding,) = findings_of(run)
    assert "position 5, 10, 20, 30, 60, 100; left out" in finding.paragraph


# --- depth ----------------------------------------------------------------------------------------


def test_profiles_become_a_grid(tmp_path):
    """Refusals begin at position 1 in the plain model, at 2 with the adapter."""

    def profiles(refusal, kl=None):
        first = {"step": 0, "refusal": refusal, "end": [0.0, 1.0]}
        later = {"step": 4, "refusal": [None, 0.5], "end": [None, 0.5]}
        counts = {"num_packaged_refusals": 3, "num_trained_refusals": 0 if kl is None else 2}
        return {"profiles": [first if kl is None else first | {"kl": kl}, later]} | counts

    cells = [("plain", case, profiles([0.6, 0.2]), None, None) for case in ("a", "b")]
    cells += [
        ("aligned", case, profiles([0.1, 0.9], [0.0, 4.0]), None, None) for case in ("a", "b")
    ]
    with probed_run(tmp_path, "depth", cells) as run:
        (finding,) = findings_of(run)
    grid = map_of(finding, "refusal-plain")
    assert [[c and c.value for c in row] for row in grid.cells] == [[0.6, 0.2], [None, 0.5]]
    assert {x: y.value for x, y in lines_of(finding, "kl-first-step").series["aligned"]} == {
        1.0: 0.0,
        2.0: 4.0,
    }
    assert "plain" not in lines_of(finding, "kl-first-step").series
    assert len(finding.rows) == 2 * 2 * 2 * 2
    highest = [s for s in finding.paragraph.split(". ") if "likeliest refusal" in s]
    assert ["position 1" in highest[0], "position 2" in highest[1]] == [True, True]
    assert "plain: refusals are 3 packaged phrases." in finding.paragraph
    assert "aligned: refusals are 3 packaged phrases and 2 more that" in finding.paragraph


# --- records of another hand ----------------------------------------------------------------------

WRITTEN = {
    "phrase_type": "neutral", "position": 2, "end_tokens": "allow", "text_before": "no",
    "text_after": "yes",
}  # fmt: skip
LOOKED = {
    "profiles": [{"step": 0, "refusal": [0.5], "end": [0.0]}],
    "num_packaged_refusals": 1,
    "num_trained_refusals": 0,
}


@pytest.mark.parametrize(
    ("probe", "sound", "changes"),
    [
        ("position", WRITTEN, {"phrase_type": None}),
        ("position", WRITTEN, {"phrase_type": []}),
        ("position", WRITTEN, {"position": None}),
        ("position", WRITTEN, {"position": "2"}),
        ("position", WRITTEN, {"end_tokens": "both"}),
        ("position", WRITTEN, {"end_tokens": ...}),
        ("position", WRITTEN, {"phrase_type": ...}),
        ("position", WRITTEN, {"text_after": ...}),
        ("position", WRITTEN, {"text_before": 3}),
        ("depth", LOOKED, {"profiles": ...}),
        ("depth", LOOKED, {"profiles": [{"step": 0, "refusal": [0.5]}]}),
        ("depth", LOOKED, {"profiles": [{"step": 0, "refusal": [0.5, 0.5], "end": [0.0]}]}),
        ("depth", LOOKED, {"profiles": [{"step": 0, "refusal": [5.0], "end": [0.0]}]}),
        ("depth", LOOKED, {"num_trained_refusals": "none"}),
        ("suffix", {"method": "none"}, {"method": "gcg"}),
        ("suffix", {"method": "none"}, {"method": "gcg", "position": 1}),
        ("order", {"condition": "base"}, {}),
    ],
)
def test_what_no_probe_has_written_is_damage(tmp_path, probe, sound, changes):
    """An order without a response is one, too."""
    details = {k: v for k, v in (sound | changes).items() if v is not ...}
    with (
        probed_run(tmp_path, probe, [("m", "a", details, verdict(0.5), None)]) as run,
        refuses("run.sqlite", "attempts", "m-a-0", error=DamagedRun),
    ):
        findings_of(run)


@pytest.mark.parametrize("changes", [{"paper": "yes"}, {"paper": ...}])
def test_settings_that_no_probe_has_are_damage(tmp_path, changes):
    with probed_run(tmp_path, "position", [("m", "a", WRITTEN, verdict(0.5), None)]) as run:
        config = as_plain(PROBES["position"].config("quick", {})) | changes
        config = {name: value for name, value in config.items() if value is not ...}
        run.add_tasks([Task("t", "m", SET, "a", "position", "quick", 1, "open", config)])
        run.end_task("t", Outcome("done", 0, Budget()))
        run.commit()
        with refuses("run.sqlite", "tasks, t", "paper", error=DamagedRun):
            findings_of(run)


# --- figures --------------------------------------------------------------------------------------


def test_means_have_the_interval_of_their_kind():
    """Shares that of rates, bounded figures a bound that is never a point, others Student's."""
    means = [mean([0.5] * 10, bounds) for bounds in ((0.0, 1.0), (-1.0, 1.0), None)]
    share, bounded, nats = [found for found in means if found is not None]
    assert share.low == pytest.approx(0.2366, abs=1e-4)  # Wilson, 5 of 10
    assert bounded.low < 0.5 < bounded.high
    assert nats.low == nats.high == 0.5
    assert mean([]) is None
    single = mean([0.3])
    assert single is not None
    assert numbers_of(single) == {"value": 0.3, "n": 1, "low": None, "high": None}


def test_a_name_is_a_file_name():
    assert (
        chart_name("score", "a+b, testbed:benign", "end tokens")
        == "score-a+b-testbed-benign-end-tokens"
    )
