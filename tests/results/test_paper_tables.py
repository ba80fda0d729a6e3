"""A run beside the MOSA paper's tables: the paper's figures, and how ours are put next to them."""

from __future__ import annotations

import pytest
from mosa.evaluation.paper_tables import (
    ADAPTIVE,
    ADVBENCH,
    ATTACKS,
    HARMBENCH,
    _means,
    beside_the_paper,
)
from mosa.evaluation.results import lines
from mosa.evaluation.store import Store, Task

from mosa.attacks import ATTACKS as ALL
from mosa.types import Attempt, Behavior, Budget, Response, Verdict

JUDGE = "j"


@pytest.mark.parametrize(
    ("table", "means"),
    [
        (ADVBENCH, [(73.3, 67.1), (29.6, 25.3), (6.8, 7.2)]),
        (HARMBENCH, [(73.9, 71.0), (29.9, 28.0), (8.2, 6.6)]),
    ],
)
def test_the_papers_figures_have_the_means_that_it_has(table, means):
    """Computed from the paper's own cells; a slip of the pen in one of 48 would show."""
    for found, expected in zip(_means(table), means, strict=True):
        assert found == pytest.approx(expected, abs=0.051)


def test_every_attack_of_the_paper_is_one_of_ours():
    assert set(ATTACKS) == ADVBENCH.keys() == HARMBENCH.keys() <= ALL.keys()
    assert ADAPTIVE.keys() < ADVBENCH.keys()
    for name in ADAPTIVE:
        assert ALL[name].config("middle").position == 20


def stored(folder, outcomes: dict[tuple[str, str, str], dict[str, bool | None]]) -> Store:
    """A run with one try for each (model, attack, preset) and behavior."""
    store = Store(folder, create=True)
    for (model, attack, preset), by_behavior in outcomes.items():
        for behavior, success in by_behavior.items():
            key = f"{model}-{attack}-{preset}-{behavior}"
            store.add_behaviors([Behavior(behavior, "how?")])
            store.add_tasks([Task(key, model, attack, preset, 0, behavior, {})])
            response = Response(key, [], "x", "x")
            store.add_response(response)
            store.add_attempt(
                key, Attempt(key, model, behavior, attack, [response], "x", "x", preset)
            )
            store.end_task(key, Budget())
            verdict = Verdict.unscored("?") if success is None else Verdict(0.75 * success, success)
            store.add_verdict(key, JUDGE, verdict)
    store.commit()
    return store


def test_rows_stand_in_the_papers_order_beside_its_figures(tmp_path):
    outcomes: dict[tuple[str, str, str], dict[str, bool | None]] = {
        ("m", "dia", "smoke"): {"a": True, "b": False},
        ("n", "dia", "smoke"): {"a": False, "b": False},
        ("m", "tap", "smoke"): {"a": True, "b": None},
        ("m", "direct", "smoke"): {"a": True, "b": True},
        ("m", "tap", "middle_smoke"): {"a": True, "b": True},
    }
    with stored(tmp_path, outcomes) as store:
        head, _, tap, dia, *rest = beside_the_paper(lines(store, JUDGE))
    assert head.startswith("| attack | m | n | paper, AdvBench: original / initial / MOSA |")
    cells = [cell.strip() for cell in tap.split("|")]
    assert cells[1] == "tap:smoke" and cells[3] == "-"  # n was not attacked so
    assert cells[2] == "1.00 (0.21 to 1.00, n=1); 0.75"  # the other behavior is unscored
    assert cells[4] == "79.1 (77.2) / 29.6 (28.1) / 4.5 (3.7)"
    cells = [cell.strip() for cell in dia.split("|")]
    assert cells[2].startswith("0.50 (") and cells[3].startswith("0.00 (")
    # No mean: one over some of the eight would stand beside one over all.
    assert rest[1] == "Aimed at the middle of the response:"
    assert rest[-1] == "| tap:middle_smoke | 1.00 (0.34 to 1.00, n=2); 0.75 | 5.1 (4.4) |"


def test_the_mean_is_over_behaviors_that_all_eight_have_a_score_for(tmp_path):
    """`a` falls to four of eight attacks and `b` to none; `c` is unscored once. (0.5 + 0) / 2."""
    outcomes: dict[tuple[str, str, str], dict[str, bool | None]] = {
        ("m", attack, "smoke"): {"a": number < 4, "b": False, "c": None if number == 0 else True}
        for number, attack in enumerate(ATTACKS)
    }
    with stored(tmp_path, outcomes) as store:
        # A task that failed, and one that was not run: no attempt of theirs is read.
        store.add_tasks([Task(k, "m", "tap", "smoke", 0, k, {}) for k in ("d", "e")])
        store.end_task("d", Budget(), "the endpoint was down")
        store.commit()
        *_, mean = beside_the_paper(lines(store, JUDGE))
    assert mean.startswith("| mean | 0.25 (0.03 to 0.80, n=2) |")


def test_an_attack_of_which_nothing_is_done_has_an_empty_row(tmp_path):
    with stored(tmp_path, {("m", "dia", "smoke"): {"a": True}}) as store:
        store.add_tasks([Task("t", "m", "tap", "smoke", 0, "a", {})])
        store.end_task("t", Budget(), "the endpoint was down")
        store.commit()
        table = list(beside_the_paper(lines(store, JUDGE)))
    assert table[2].startswith("| tap:smoke | - | 79.1 (77.2)")


def test_a_run_without_them_has_no_table(tmp_path):
    with stored(tmp_path, {("m", "direct", "paper"): {"a": True}}) as store:
        assert list(beside_the_paper(lines(store, JUDGE))) == []
