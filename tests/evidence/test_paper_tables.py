"""A run beside the MOSA paper's tables: the paper's figures, and how ours are put next to them."""

from __future__ import annotations

import pytest
from made_runs import begun, made_set, record, response

from mosa.attacks import ATTACKS
from mosa.evidence.figures import figures_of
from mosa.evidence.paper_tables import (
    ADAPTIVE,
    ADVBENCH,
    HARMBENCH,
    PAPER_ATTACKS,
    _means,
    beside_the_paper,
)
from mosa.runs.records import Outcome, Task
from mosa.runs.store import Run
from mosa.types import Budget, Verdict

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
    assert set(PAPER_ATTACKS) == ADVBENCH.keys() == HARMBENCH.keys() <= ATTACKS.keys()
    assert ADAPTIVE.keys() < ADVBENCH.keys()
    for name in ADAPTIVE:
        assert ATTACKS[name].config("middle").position == 20


def stored(folder, outcomes: dict[tuple[str, str, str], dict[str, bool | None]]) -> Run:
    """A run with one try for each (subject, attack, preset) and case."""
    run = begun(folder, list(dict.fromkeys(subject for subject, _, _ in outcomes)))
    run.add_set(made_set("s", "harmful", ["a", "b", "c", "d", "e"]))
    for (subject, attack, preset), by_case in outcomes.items():
        for case, success in by_case.items():
            key = f"{subject}-{attack}-{preset}-{case}"
            verdict = Verdict.unscored("?") if success is None else Verdict(0.75 * success, success)
            record(
                run,
                key,
                "s",
                case,
                subject=subject,
                attack=attack,
                preset=preset,
                answers=[response(key)],
                verdicts={JUDGE: verdict},
            )
    run.commit()
    return run


def without_attempt(run: Run, case: str, reason: str = "") -> None:
    """A task of tap that failed for a reason, or that was not run."""
    run.add_tasks([Task(f"tap of {case}", "m", "s", case, "tap", "smoke", 0, "prompt", {})])
    if reason:
        run.end_task(f"tap of {case}", Outcome("failed", 0, Budget(), reason))
    run.commit()


def test_rows_stand_in_the_papers_order_beside_its_figures(tmp_path):
    outcomes: dict[tuple[str, str, str], dict[str, bool | None]] = {
        ("m", "dia", "smoke"): {"a": True, "b": False},
        ("n", "dia", "smoke"): {"a": False, "b": False},
        ("m", "tap", "smoke"): {"a": True, "b": None},
        ("m", "direct", "smoke"): {"a": True, "b": True},
        ("m", "tap", "middle_smoke"): {"a": True, "b": True},
    }
    with stored(tmp_path, outcomes) as run:
        head, _, tap, dia, *rest = beside_the_paper(figures_of(run))
    assert head.startswith("| attack | by | tokens | m | n | paper, AdvBench: original / ")
    cells = [cell.strip() for cell in tap.split("|")]
    assert cells[1] == "tap:smoke" and cells[5] == "-"  # n was not attacked so
    assert cells[4] == "1.00 (0.21 to 1.00, n=1); 0.75"  # the other behavior is unscored
    assert cells[6] == "0.791 (0.772) / 0.296 (0.281) / 0.045 (0.037)"
    cells = [cell.strip() for cell in dia.split("|")]
    assert cells[4].startswith("0.50 (") and cells[5].startswith("0.00 (")
    # No mean: one over some of the eight would stand beside one over all.
    assert rest[1] == "Aimed at the middle of the response:"
    assert (
        rest[-1] == "| tap:middle_smoke | 1 | 4 | 1.00 (0.34 to 1.00, n=2); 0.75 | 0.051 (0.044) |"
    )


def test_the_mean_is_over_cases_that_all_eight_have_a_score_for(tmp_path):
    """`a` falls to four of eight attacks and `b` to none; `c` is unscored once. (0.5 + 0) / 2."""
    outcomes: dict[tuple[str, str, str], dict[str, bool | None]] = {
        ("m", attack, "smoke"): {"a": number < 4, "b": False, "c": None if number == 0 else True}
        for number, attack in enumerate(PAPER_ATTACKS)
    }
    with stored(tmp_path, outcomes) as run:
        # A task that failed, and one that was not run: no attempt of theirs is read.
        without_attempt(run, "d", "the endpoint was down")
        without_attempt(run, "e")
        *_, mean = beside_the_paper(figures_of(run))
    assert mean.startswith("| mean | - | 4 | 0.25 (0.03 to 0.80, n=2) |")


def test_an_attack_of_which_nothing_is_done_has_an_empty_row(tmp_path):
    with stored(tmp_path, {("m", "dia", "smoke"): {"a": True}}) as run:
        without_attempt(run, "a", "the endpoint was down")
        table = list(beside_the_paper(figures_of(run)))
    assert table[2].startswith("| tap:smoke | - | - | - | 0.791 (0.772)")


def test_a_run_without_them_has_no_table(tmp_path):
    with stored(tmp_path, {("m", "direct", "paper"): {"a": True}}) as run:
        assert list(beside_the_paper(figures_of(run))) == []
