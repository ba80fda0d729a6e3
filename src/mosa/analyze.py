"""Where safety lies in a response: probes are run, read, and written as data and figures.

config = EvaluateConfig(subjects_of("testbed"), ("testbed:direct",), ("order",), preset="quick")
findings = analyze(Path("runs/order"), config)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mosa.evidence.findings import Finding, HeatMap, LineChart, findings_of
from mosa.evidence.findings.base import numbers_of
from mosa.files import check_folder, claim_folder, plain_cell, write_json, write_text, writing
from mosa.probes import PROBES
from mosa.reporting.charts import save
from mosa.runs.evaluate import EvaluateConfig, OnProgress, run_evaluation
from mosa.runs.judging import JudgeConfig
from mosa.runs.plan import choose_attacks
from mosa.runs.processes import ALONE, Processes
from mosa.stats.rates import Interval
from mosa.types import UserError

MADE_BY = "mosa analyze"
"""The mark of a finding's folder."""


def analyze(
    out: Path,
    config: EvaluateConfig,
    *,
    judge_config: JudgeConfig | None = None,
    on_progress: OnProgress = lambda subject, done, total, left: None,
    on_judged: Callable[[str, int, int], object] = lambda judge, done, total: None,
    processes: Processes = ALONE,
) -> list[Finding]:
    """What the probes among `config.attacks` find; each finding is a folder PROBE-PRESET in `out`.

    The run itself is in `out`: the same call again resumes where it stopped. Of several `processes`
    only the main one returns results. Raises UserError for an attack that is not a probe, and
    where a subject does not grant what a probe needs. A probe whose tasks all failed has no
    finding.
    """
    chosen = choose_attacks(config.attacks, config.preset, config.attack_options)
    for each in chosen:
        if each.attack.name not in PROBES:
            raise UserError(f"{each.attack.name} is no probe; choose from {', '.join(PROBES)}")

    def check() -> None:
        for subject in config.subjects:
            if subject.is_served:
                raise UserError(
                    f"{subject.name} is served elsewhere, and the probe {chosen[0].attack.name} "
                    "reads tokens and steps, which no server shows; load the weights"
                )
        for each in chosen if processes.is_main else ():
            check_folder(out / f"{each.attack.name}-{each.preset}", MADE_BY)

    processes.agree(check)  # before the work
    run = run_evaluation(
        out,
        config,
        judge_config=judge_config,
        on_progress=on_progress,
        on_judged=on_judged,
        processes=processes,
    )
    if run is None:
        return []
    with run:
        by_name = {(finding.probe, finding.preset): finding for finding in findings_of(run)}
        reasons = {pair.attack: pair.reason for pair in run.not_applicable()}
    names = [(each.attack.name, each.preset) for each in chosen]
    for name, _ in names:
        if name in reasons:
            raise UserError(f"{name} could be run on no case: {reasons[name]}")
    found = [by_name[name] for name in names if name in by_name]
    for finding in found:
        write_finding(out / finding.name, finding)
    return found


def write_finding(folder: Path, finding: Finding) -> None:
    """Write data.csv, estimates.csv, header.json, result.json, finding.md and the figures.

    Raises UserError for a folder of others.
    """
    result = {
        "header": finding.header,
        "estimates": finding.estimates,
        "charts": _plain(finding.charts),
        "paragraph": finding.paragraph,
    }
    with claim_folder(folder, MADE_BY):
        _write_csv(folder / "data.csv", finding.rows)
        _write_csv(folder / "estimates.csv", finding.estimates)
        write_json(folder / "header.json", finding.header)
        write_json(folder / "result.json", result)
        write_text(folder / "finding.md", f"{finding.paragraph}\n")
        for name, chart in finding.charts.items():
            save(chart, folder / name)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with writing(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writerow({column: plain_cell(column) for column in columns})
        for row in rows:
            writer.writerow({column: plain_cell(cell) for column, cell in row.items()})


def _plain(value: Any) -> Any:
    """A chart, or a part of one, as JSON."""
    if isinstance(value, Interval):
        return numbers_of(value)
    if isinstance(value, LineChart | HeatMap):
        return {name: _plain(v) for name, v in vars(value).items()} | {"kind": type(value).__name__}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
