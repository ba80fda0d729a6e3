"""A run beside the MOSA paper's tables: the paper's figures, and how ours are put next to them."""

from __future__ import annotations

import pytest

from mosa.attacks import ATTACKS as ALL
from mosa.evaluation.paper_tables import (
    ADAPTIVE,
    ADVBENCH,
    ATTACKS,
    HARMBENCH,
    _means,
    beside_the_paper,
)
from mosa.evaluation.store import Store, Task
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
        head, _, tap, dia, mean, *rest = beside_the_paper(store, JUDGE)
    assert head.startswith("| attack | m | n | paper, AdvBench: original / initial / MOSA |")
    cells = [cell.strip() for cell in tap.split("|")]
    assert cells[1] == "tap:smoke" and cells[3] == "-"  # n was not attacked so
    assert cells[2] == "1.00 (0.21 to 1.00); 0.75"  # one of one; the other is unscored
    assert cells[4] == "79.1 (77.2) / 29.6 (28.1) / 4.5 (3.7)"
    cells = [cell.strip() for cell in dia.split("|")]
    assert cells[2].startswith("0.50 (") and cells[3].startswith("0.00 (")
    # Only `a` has a score under both attacks on m: one behavior, with the mean 1.
    assert mean.startswith("| mean | 1.00 (0.21 to 1.00) | 0.00 (0.00 to 0.66) | 73.2 (67.1)")
    assert rest[1] == "Aimed at the middle of the response:"
    assert rest[-1] == "| tap:middle_smoke | 1.00 (0.34 to 1.00); 0.75 | 5.1 (4.4) |"


def test_a_run_without_them_has_no_table(tmp_path):
    with stored(tmp_path, {("m", "direct", "paper"): {"a": True}}) as store:
        assert list(beside_the_paper(store, JUDGE)) == []
