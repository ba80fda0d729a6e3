"""Estimates, tables and the result file."""

import csv
import math

import numpy as np
import pytest

from mosa.analysis import figures
from mosa.analysis.result import (
    AnalysisResult,
    Estimate,
    HeatMap,
    LineChart,
    mean,
    rate,
    read_result,
    result_json,
    write_csv,
)

RESULT = AnalysisResult(
    "order",
    {"settings": {"seed": 0}},
    [{"measure": "tau", "value": 0.5, "n": 2, "low": 0.1, "high": 0.9}],
    {
        "lines": LineChart(
            "Lines", "x", "y", {"a": [(1.0, Estimate(0.5, 2, 0.1, 0.9))]}, (0.0, 1.0)
        ),
        "cells": HeatMap(
            "Cells", "x", "y", [1.0, 2.0], [0.0], [[Estimate(0.5, 2, 0.1, 0.9), None]], "harm"
        ),
    },
    "Found.",
)


def test_bootstrap_interval_covers_about_as_often_as_it_says():
    """95 % intervals of 200 samples of 30 uniform numbers hold 0.5 about 190 times."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        estimate = mean(rng.uniform(size=30).tolist())
        held += estimate.low <= 0.5 <= estimate.high
    assert 178 <= held <= 198


def test_mean_is_repeatable_and_honest_about_one_case():
    values = [0.1, 0.4, 0.7]
    assert mean(values, seed=3) == mean(values, seed=3)
    alone = mean([0.3])
    assert alone.value == 0.3 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_rate_of_none_is_not_certainty():
    estimate = rate([0.0] * 10)
    assert estimate.value == 0.0 and estimate.high > 0.2


def test_result_file_gives_the_result_back(tmp_path):
    (tmp_path / "result.json").write_text(result_json(RESULT))
    assert read_result(tmp_path / "result.json") == RESULT


def test_csv_has_a_column_for_every_name(tmp_path):
    write_csv(tmp_path / "x.csv", [{"a": 1}, {"a": 2, "b": "x,y"}])
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x,y"}]


@pytest.mark.parametrize("name", ["lines", "cells"])
def test_figures_are_the_same_each_time(tmp_path, name):
    chart = RESULT.charts[name]
    figures.draw(chart, tmp_path / "one")
    figures.draw(chart, tmp_path / "two")
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert chart.title in svg
    assert (tmp_path / "one.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    if name == "cells":
        assert ">0.50<" in svg
