"""What all parts of a report share: the evidence, the judge that decides, the models' labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mosa.evaluation.evidence import Evidence, Run, moment_of
from mosa.evaluation.evidence import Figure as Evidenced
from mosa.evaluation.judging import CANVAS
from mosa.stats.rates import Rate
from mosa.types import UserError


@dataclass(frozen=True)
class ReportConfig:
    """What a report is made with."""

    title: str = "Safety of diffusion language models"
    """Heading of the page."""
    judge: str | None = None
    """Judge whose verdicts decide; unset: the testbed's truth, else the first that reads."""
    redact: bool | None = None
    """Whether prompts and responses are left out; unset: yes, but for those of the testbed."""
    labels: Mapping[str, str] | None = None
    """What models are called on the page, by their names in the runs."""
    notes: Mapping[str, str] | None = None
    """A sentence about a model, by its name in the runs."""
    calibration: Path | None = None
    """Measured quality of judges, as `mosa judge calibrate --out` writes it."""
    limits: tuple[str, ...] = ()
    """Sentences that stand among the cautions."""


@dataclass(frozen=True)
class Setup:
    """What all parts of a report share."""

    evidence: Evidence
    judge: str | None
    """The deciding judge of attacks; None where nothing was attacked."""
    labels: dict[str, str]
    """Shown names of the models in their order, those along a training left out."""
    config: ReportConfig

    @property
    def judges(self) -> list[str]:
        """The judges of attacks, the deciding one first."""
        found = self.evidence.judges("safety")
        return sorted(found, key=lambda judge: judge != self.judge)

    @cached_property
    def judge_names(self) -> dict[str, str]:
        """Judges without the hashes in their ids, as far as that leaves them apart."""
        judges = [judge for run in self.evidence.runs for judge in run.judges]
        short = {judge: _short(judge) for judge in dict.fromkeys(judges)}
        several = Counter(short.values())
        return {judge: judge if several[name] > 1 else name for judge, name in short.items()}

    def hides(self, run: Run) -> bool:
        """Whether the words of a run are left out; those of the testbed are harmless."""
        redact = self.config.redact
        return run.world_seed is None if redact is None else redact


def _short(judge: str) -> str:
    reads = CANVAS if judge.endswith(CANVAS) else ""
    return judge.removesuffix(CANVAS).split("/")[0] + reads


def check_once(evidence: Evidence) -> None:
    """UserError where two runs hold one model under one attack, on one set or at one task.

    Each figure is one row of a table; a second one could only hide it, or count its cases twice.
    """
    known = set()
    for figure in evidence.figures:
        key = (figure.kind, figure.behavior_set, figure.name, figure.model, figure.judge)
        if (*key, figure.measure) in known:
            raise UserError(
                f"two of these runs hold {figure.name} on {figure.model}; leave one of them out, "
                "or make a report of each"
            )
        known.add((*key, figure.measure))


def deciding_judge(evidence: Evidence, config: ReportConfig) -> str | None:
    """The judge that was asked for, or the one to be believed first."""
    judges = evidence.judges("safety")
    if config.judge is not None and config.judge not in judges:
        known = ", ".join(judges) or "none yet (`mosa judge RUN` adds one)"
        raise UserError(f"no judge {config.judge} has judged these runs; there are: {known}")
    return config.judge or (judges[0] if judges else None)


def labels_of(evidence: Evidence, config: ReportConfig) -> dict[str, str]:
    """What each model is called on the page: those with a given label first, then those without an
    adapter, because the first is the one that others are compared with."""
    given = dict(config.labels or {})
    for name in given:
        if name not in evidence.models:
            raise UserError(
                f"a label is given for {name}, which is in none of the runs; there are: "
                f"{', '.join(evidence.models)}"
            )
    # Moments of a training are points of its curve, and no rows of tables.
    whole = [name for name in evidence.models if moment_of(evidence, name) is None]
    whole.sort(key=lambda name: evidence.models[name].get("adapter") is not None)
    names = dict.fromkeys([*given, *whole])
    if not names:
        raise UserError("these runs hold no model yet; let `mosa evaluate` finish a task first")
    labels = {name: given.get(name, name) for name in names}
    if len(set(labels.values())) < len(labels):
        raise UserError("two models have one label; give each its own")
    return labels


def note_of(record: Mapping[str, Any]) -> str:
    """What a model is, from its record in a run."""
    adapter = record.get("adapter")
    return (
        f"{record['source']}, with the adapter {Path(adapter).name}"
        if adapter
        else f"{record['source']}, as it is"
    )


def row_name(setup: Setup, figure: Evidenced) -> str:
    """An attack, and its set where there are several."""
    sets = {run.behavior_set for run in setup.evidence.runs if run.kind == "safety"}
    return figure.name if len(sets) == 1 else f"{figure.name} on {figure.behavior_set}"


def rate_in(figure: Evidenced | None) -> Rate | None:
    """The rate of a figure that may be missing."""
    return None if figure is None else figure.rate
