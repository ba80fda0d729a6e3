"""`mosa.analyze`: where safety lies in a response. Probes are run, read, and written as data and
figures.

    finding = mosa.analyze("order", "testbed", sets="testbed:direct", out="runs/order")
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosa.api.runs import (
    AnyPath,
    asked_for,
    check_known,
    models_of,
    nothing_from,
    options_of,
    warn_of_nothing,
)
from mosa.evidence.findings import Finding, HeatMap, LineChart, findings_of
from mosa.evidence.findings.base import numbers_of
from mosa.families import DiffusionLM
from mosa.files import check_folder, claim_folder, plain_cell, write_json, write_text, writing
from mosa.probes import probe_named
from mosa.reporting.charts import save
from mosa.runs.evaluate import EvaluateConfig, OnProgress, run_evaluation
from mosa.runs.judging import JudgeConfig
from mosa.runs.options import judge_config, probe_config
from mosa.runs.plan import choose_attacks
from mosa.runs.processes import ALONE, Processes
from mosa.runs.progress import ProgressBar
from mosa.runs.store import Run
from mosa.runs.subject import NO_ADAPTER, Subject
from mosa.stats.rates import Interval
from mosa.types import UserError

MADE_BY = "mosa analyze"
"""The mark of a finding's folder."""


def analyze(
    probe: str,
    model: str | Path | DiffusionLM | None = None,
    *,
    sets: str | Sequence[str],
    out: AnyPath,
    adapter: str | Sequence[str] = NO_ADAPTER,
    system_prompt: str | None = None,
    decoder: str | None = None,
    subjects: str | Path | Sequence[Subject | Mapping[str, Any]] | None = None,
    preset: str = "quick",
    probe_options: Mapping[str, Any] | None = None,
    judges: str | Sequence[str] | None = None,
    judge_model: str | None = None,
    judge_templates: str | Path | None = None,
    seeds: int | Sequence[int] = 0,
    batch_size: int = 32,
    dtype: str = "auto",
    device: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Finding:
    """Run a probe (`mosa.probes.PROBES`) on subjects into the run in the folder `out`, and read
    what it has found (`mosa analyze`); a notebook shows the key figures.

    The arguments are those of `mosa.evaluate`; `probe_options` change the probe's preset, which
    also says on how many cases and on what lengths it is meant to be run, where `settings` do not.
    The finding is written into a folder PROBE-PRESET in `out`, with its figures. The same call
    again resumes where it stopped. Raises UserError where a subject does not grant what the probe
    needs, and where nothing was found; warns (`NothingCame`) where a judge produced nothing.
    """
    check_known(settings)
    given = {
        "sets": sets,
        "adapter": adapter,
        "system_prompt": system_prompt,
        "decoder": decoder,
        "subjects": subjects,
        "preset": preset,
        "judges": judges,
        "judge_model": judge_model,
        "judge_templates": judge_templates,
        "seeds": seeds,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        **settings,
    }
    options = options_of(model, given)
    config = probe_config(probe, options, probe_options or {})
    with ProgressBar(is_shown=progress) as bar:
        found = run_probes(
            Path(out),
            config,
            models=models_of(model, config),
            judge_config=judge_config(options),
            on_progress=bar.update,
            on_judged=bar.judging,
        )
    with Run(Path(out)) as run:
        nothing = nothing_from(run, bar.judged, asked_for(config.subjects, config.attacks))
    if not found:
        raise UserError(f"{probe} has found nothing; `mosa status {out}` says why")
    warn_of_nothing(nothing)
    return found[0]


def run_probes(
    out: Path,
    config: EvaluateConfig,
    *,
    models: Mapping[str, DiffusionLM] | None = None,
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
        probe_named(each.attack.name)

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
        models=models,
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
