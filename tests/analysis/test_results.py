"""Estimates, tables and the result file."""

import csv
import math

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


def test_differences_that_agree_are_no_point():
    """Eight equal differences: the case more weighs beta(1, 8), below 1 - 0.025^(1/8) = 0.37 in
    97.5 % of the draws."""
    estimate = mean([0.0] * 8, (-1.0, 1.0))
    assert estimate.value == 0.0
    assert (estimate.low, estimate.high) == pytest.approx((-0.37, 0.37), abs=0.01)
    assert mean([0.1, 0.4], (-1.0, 1.0)) == mean([0.1, 0.4], (-1.0, 1.0)), "repeatable"


def test_the_interval_of_a_mean_goes_by_its_bounds():
    """A share is a rate; nats have Student's interval, and one case none at all."""
    values = [0.1, 0.4, 0.7]
    assert mean(values, (0.0, 1.0)) == rate(values)
    nats = mean(values, None)
    half = 4.302653 * 0.3 / math.sqrt(3)
    assert (nats.low, nats.high) == pytest.approx((0.4 - half, 0.4 + half))
    alone = mean([0.3], None)
    assert alone.value == 0.3 and math.isnan(alone.low) and math.isnan(alone.high)
    for bounds in (None, (0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="at least one"):
            mean([], bounds)


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
