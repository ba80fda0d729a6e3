"""What the probes of a run have found (mosa/probes): one reader per probe.

    findings_of(run)[0].paragraph

Each takes the attempts of its probe with the verdicts of one judge and fills a `Finding`: rows,
estimates with intervals, charts as data, a paragraph. No model is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mosa.evidence.findings import depth, order, position, step, suffix
from mosa.evidence.findings.base import (
    Chart,
    Finding,
    HeatMap,
    LineChart,
    MissingDetail,
    Probed,
    not_read,
    probed_of,
)
from mosa.runs.store import Run

__all__ = ["FINDINGS", "Chart", "Finding", "HeatMap", "LineChart", "findings_of"]

FINDINGS: dict[str, Callable[[Probed], None]] = {
    "position": position.read,
    "suffix": suffix.read,
    "order": order.read,
    "step": step.read,
    "depth": depth.read,
}
"""The reader of every probe, by the probe's name; it fills the finding."""


def findings_of(
    run: Run, *, judge: str | None = None, labels: Mapping[str, str] | None = None
) -> list[Finding]:
    """What each probe in a run has found, with each of its presets.

    `judge` is a judge's id; unset, and where it has not read a set: the most trusted one of the set
    (the testbed's truth before judges that read, these before phrases). `labels` says what subjects
    are called in sentences and charts, where not by their names.
    """
    found = probed_of(run, FINDINGS, judge, labels or {})
    for probed in found:
        try:
            FINDINGS[probed.finding.probe](probed)
        except MissingDetail as error:
            raise run.damage(*error.args) from error
        probed.finding.sentences += not_read(probed)
    return [probed.finding for probed in found]
