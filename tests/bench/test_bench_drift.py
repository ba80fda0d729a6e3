"""The drift report: what is exact drifts nowhere, and what is not is compared case by case."""

from __future__ import annotations

import pytest
from refusals import cli_refuses, refuses

from mosa import cli
from mosa.bench.drift import MEASURES, Answers, DriftConfig, bench_drift, drift_of
from mosa.stats.pairs import PairedDifference

pytestmark = pytest.mark.integration


def test_a_cache_renewed_in_every_step_drifts_nowhere_and_a_low_threshold_does():
    settings = ({"cache": "dual", "cache_refresh": 1}, {"threshold": 0.01})
    told = []
    result = bench_drift(
        DriftConfig(approximations=settings, num=1), tell=lambda *line: told.append(line)
    )
    assert told[-1][1] == told[-1][2]
    rates, differences = result.tables
    assert [(row["adapter"], row["decoder"]) for row in rates.rows] == [
        ("none", "exact"),
        ("none", "cache dual, cache_refresh 1"),
        ("none", "threshold 0.01"),
    ]
    exact, renewed, hasty = rates.rows
    for name in (*MEASURES, "passes"):
        assert exact[name] == renewed[name]
    assert exact["passes"] == 36 and hasty["passes"] < 10
    assert len(told) == 3
    same, other = differences.rows
    assert same["tokens equal"] == same["texts equal"] == 1.0
    assert all(same[name].startswith("+0.000") for name in MEASURES)
    assert other["tokens equal"] < 1.0 and other["texts equal"] < 1.0


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
    differences = {
        name: found.value for name, found in drift.items() if isinstance(found, PairedDifference)
    }
    assert differences == pytest.approx({"harm": 0.2, "refused": 0.0, "utility": -0.5})
    equal = drift["tokens equal"], drift["texts equal"], drift["times as fast"]
    assert equal == (0.75, 0.5, 3.0)


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
