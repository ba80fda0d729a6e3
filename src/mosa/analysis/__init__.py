"""The paper's experiments on where safety lies in a response, as commands and as functions.

    criticality    harm by what is forced into a response, and where          (paper: E1)
    reach          how far an optimised prompt steers a position              (paper: E2)
    order          in which order positions are committed                     (paper: E3)
    map            harm by position and step of an intervention
    refusal-depth  where, and when, a model puts refusals

Each takes one or two models, behaviors and its own settings, and returns an `AnalysisResult`, which
the report draws without a model. Sections of arXiv 2508.12398 are named in each file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mosa.analysis import criticality, order, position_map, reach, refusal_depth
from mosa.analysis.result import AnalysisResult, Estimate, HeatMap, LineChart
from mosa.analysis.study import Cases, Study, Subject

__all__ = ["ANALYSES", "Analysis", "AnalysisResult", "Estimate", "HeatMap", "LineChart"]


@dataclass(frozen=True)
class Analysis:
    """One analysis: its settings, named choices of them, and what it does."""

    summary: str
    config_class: type
    presets: Mapping[str, Mapping[str, Any]]
    run: Callable[[list[Subject], Cases, Any, Study], AnalysisResult]


ANALYSES: dict[str, Analysis] = {
    "criticality": Analysis(
        "harm by what is forced into a response, and where",
        criticality.CriticalityConfig,
        criticality.PRESETS,
        criticality.run,
    ),
    "reach": Analysis(
        "how far an optimised prompt steers a position",
        reach.ReachConfig,
        reach.PRESETS,
        reach.run,
    ),
    "order": Analysis(
        "in which order positions are committed", order.OrderConfig, order.PRESETS, order.run
    ),
    "map": Analysis(
        "harm by position and step of an intervention",
        position_map.MapConfig,
        position_map.PRESETS,
        position_map.run,
    ),
    "refusal-depth": Analysis(
        "where and when a model puts refusals",
        refusal_depth.RefusalDepthConfig,
        refusal_depth.PRESETS,
        refusal_depth.run,
    ),
}
