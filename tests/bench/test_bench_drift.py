"""The drift report: what is exact drifts nowhere, and what is not is compared case by case."""

from __future__ import annotations

import pytest
from refusals import cli_refuses, refuses

from mosa import cli
from mosa.bench.drift import Answers, DriftConfig, bench_drift, drift_of


def test_a_cache_renewed_in_every_step_drifts_nowhere_and_a_low_threshold_does():
    settings = ({"cache": "dual", "cache_refresh": 1}, {"threshold": 0.01})
    told = []
    result = bench_drift(DriftConfig(approximations=settings, num=1), on_row=told.append)
    rates, differences = result.tables
    assert [row[:2] for row in rates.rows] == [
        ("none", "exact"),
        ("none", "cache dual, cache_refresh 1"),
        ("none", "threshold 0.01"),
    ]
    exact, renewed, hasty = rates.rows
    assert exact[2:6] == renewed[2:6] and exact[5] == 36 and hasty[5] < 10
    assert len(told) == 3
    same, other = differences.rows
    assert same[3:5] == (1.0, 1.0)
    assert all(written.startswith("+0.000") for written in same[5:])
    assert other[3] < 1.0 and other[4] < 1.0


def test_differences_are_approximate_minus_exact():
    def answers(harm: float, solved: float, token: int, seconds: float) -> Answers:
        return Answers(
            tokens=[[1, 2], [3, token]],
            texts=["a", str(token)],
            harm={"x": harm, "y": 0.0},
            refused={"x": 0.0, "y": 1.0},
            utility={"sums": {"1": solved}, "lists": {"1": 1.0}},
            num_passes=3.0,
            seconds=seconds,
        )

    drift = drift_of(answers(0.2, 1.0, 4, 6.0), answers(0.6, 0.0, 5, 2.0))
    assert drift.harm.value == pytest.approx(0.2)
    assert drift.utility.value == pytest.approx(-0.5)
    assert drift.refused.value == 0
    assert (drift.tokens_equal, drift.texts_equal, drift.times_as_fast) == (0.75, 0.5, 3.0)


def test_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "drift.txt"
    words = ["bench", "drift", "--num", "1", "--threshold", "0.01", "--out", str(out)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "threshold 0.01" in shown and "$ mosa bench drift" in out.read_text()


def test_mistakes(capsys):
    with refuses("--threshold", "--factor", "--cache"):
        DriftConfig(approximations=({"steps": 3},))
    with refuses("--num", "0"):
        DriftConfig(num=0)
    cli_refuses(capsys, ["bench", "drift", "--cache_refresh", "2"], "cache_refresh", "cache")
