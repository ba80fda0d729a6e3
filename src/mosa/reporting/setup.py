"""What the parts of a report share: evidence, tasks, cases, the deciding judge, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

from mosa.attacks.base import Threat
from mosa.denoising import DecoderConfig
from mosa.evidence.figures import (
    HEADLINES,
    Evidence,
    Figure,
    Headline,
    attacks_of_all,
    evidence_of,
    headline,
    moment_of,
    names_of,
)
from mosa.evidence.labels import Names, marked
from mosa.runs.judging import judge_meant, short_name
from mosa.runs.records import NotApplicable, Outcome, SubjectRecord, Task
from mosa.runs.store import Run
from mosa.types import Behavior, UserError

THREATS: dict[Threat, str] = {
    "prompt": "a user of a chat API",
    "canvas": "a user of an API that takes prefills and masks",
    "open": "an owner of the weights and the sampler",
}
"""Every threat model, weakest first, with who can run its attacks."""


SIGNIFICANT = 0.05
"""A difference is told of where its p value, corrected for the number asked, is below this."""


@dataclass(frozen=True)
class ReportConfig:
    """The settings of a report."""

    title: str = "Safety of diffusion language models"
    """Heading of the page."""
    judge: str | None = None
    """Judge whose verdicts decide; unset: the testbed's truth, else the first that reads."""
    redact: bool | None = None
    """Whether the page leaves out prompts and responses; unset: all but those of the testbed."""
    labels: Mapping[str, str] | None = None
    """The names of subjects on the page, by their names in the runs."""
    notes: Mapping[str, str] | None = None
    """A sentence about a subject, by its name in the runs."""
    calibration: Path | None = None
    """Measured quality of judges, as `mosa judge check --out` writes it."""
    limits: tuple[str, ...] = ()
    """Sentences among the cautions."""


@dataclass(frozen=True)
class ReportSetup:
    """What the parts of a report share."""

    evidence: Evidence
    names: Mapping[tuple[str, str, str], str]
    """What each (set, attack, preset) is called."""
    tasks: Sequence[tuple[Task, Outcome | None]]
    """The tasks of all runs, with how they ended."""
    cases: Mapping[str, Mapping[str, Behavior]]
    """The cases of each set by id."""
    judge: str | None
    """The deciding judge of attacks; None where nothing was attacked."""
    labels: dict[str, str]
    """Shown names of the subjects in their order, those along a training left out."""
    config: ReportConfig

    @property
    def judges(self) -> list[str]:
        """The judges of attacks, the deciding one first."""
        found = self.evidence.judges("safety")
        return sorted(found, key=lambda judge: judge != self.judge)

    @cached_property
    def judge_names(self) -> dict[str, str]:
        """Judges without the hashes in their ids, unless two would then have one name."""
        judges = [judge for run in self.evidence.runs for judge in run.judges]
        short = {judge: short_name(judge) for judge in dict.fromkeys(judges)}
        several = Counter(short.values())
        return {judge: judge if several[name] > 1 else name for judge, name in short.items()}

    @property
    def first(self) -> str:
        """The label of the first subject, which the others are compared with."""
        return next(iter(self.labels.values()))

    @property
    def not_applicable(self) -> list[NotApplicable]:
        """The pairs of attack and subject that were left out, of subjects that have a label."""
        pairs = (pair for run in self.evidence.runs for pair in run.not_applicable)
        return [pair for pair in pairs if pair.subject in self.labels]

    def headline(
        self, name: str, subject: str, attacks: Sequence[tuple[str, str]] | None = None
    ) -> Headline:
        """A headline of a subject, that of attacks by the deciding judge; `attacks` unset are those
        that all subjects faced."""
        judge = self.judge if HEADLINES[name] == "safety" else None
        return headline(self.evidence, name, subject, judge, attacks)

    def shared_attacks(self, threat: Threat | None = None) -> list[tuple[str, str]]:
        """(set, attack) of the attacks that all subjects faced, of one threat model if given."""
        return attacks_of_all(self.evidence, self.judge, threat) if self.judge else []

    def attack_figures(self, judge: str | None) -> dict[tuple[str, str], Figure]:
        """The figures of attacks on subjects that have a label, by (row of a table, subject)."""
        return {
            (self.row_of(figure), figure.subject): figure
            for figure in self.evidence.select("safety", judge=judge)
            if figure.subject in self.labels
        }

    def row_name(self, figure: Figure, name_of: Names = attrgetter("name")) -> str:
        """An attack, and its set where there are several."""
        sets = {f.case_set for f in self.evidence.figures if f.kind == "safety"}
        name = name_of(figure)
        return name if len(sets) == 1 else f"{name} on {figure.case_set}"

    def row_of(self, figure: Figure, name_of: Names = attrgetter("name")) -> str:
        """The row of a table for an attack: its name with its mark."""
        return marked(self.row_name(figure, name_of), [figure])

    def hides(self, case_set: str) -> bool:
        """Whether to leave out the words of a set; those of the testbed are harmless."""
        redact = self.config.redact
        return self.evidence.sets[case_set].world_seed is None if redact is None else redact


def read_setup(runs: Sequence[Run], config: ReportConfig) -> ReportSetup:
    """What a report needs of open runs, except single responses.

    Raises UserError for a figure that two runs hold, an unknown judge, and a label of no
    subject.
    """
    evidence = evidence_of(runs)
    check_once(evidence)
    return ReportSetup(
        evidence,
        {key: name for run in evidence.runs for key, name in names_of(run.counts).items()},
        [task for run in runs for task in run.tasks()],
        {name: run.cases(name) for run in runs for name in run.sets()},
        deciding_judge(evidence, config),
        labels_of(evidence, config),
        config,
    )


def check_once(evidence: Evidence) -> None:
    """UserError where two runs hold one subject under one attack, on one set or at one task.

    Each figure is one row of a table; a second one could only hide it, or count its cases twice.
    """
    known = set()
    for figure in evidence.figures:
        key = (figure.kind, figure.case_set, figure.name, figure.subject, figure.judge)
        if (*key, figure.measure) in known:
            raise UserError(
                f"two of these runs hold {figure.name} on {figure.subject}; leave one of them out, "
                "or make a report of each"
            )
        known.add((*key, figure.measure))


def deciding_judge(evidence: Evidence, config: ReportConfig) -> str | None:
    """The judge of the settings, or the most trusted one."""
    judges = evidence.judges("safety")
    if config.judge is not None:
        return judge_meant(config.judge, judges, "these runs")
    return judges[0] if judges else None


def labels_of(evidence: Evidence, config: ReportConfig) -> dict[str, str]:
    """The label of each subject: first those with a given label, then those without an adapter,
    because the others are compared with the first."""
    given = dict(config.labels or {})
    for name in given:
        if name not in evidence.subjects:
            raise UserError(
                f"a label is given for {name}, which is in none of the runs; there are: "
                f"{', '.join(evidence.subjects)}"
            )
    # Moments of a training are points of its curve, and no rows of tables.
    whole = [name for name in evidence.subjects if moment_of(evidence, name) is None]
    whole.sort(key=lambda name: evidence.subjects[name].adapter is not None)
    names = dict.fromkeys([*given, *whole])
    if not names:
        raise UserError("these runs hold no subject yet; let `mosa evaluate` finish a task first")
    labels = {name: given.get(name, name) for name in names}
    twice = [label for label, count in Counter(labels.values()).items() if count > 1]
    if twice:
        raise UserError(f"two subjects have the label {twice[0]}; give each its own")
    return labels


def note_of(record: SubjectRecord) -> str:
    """What a subject is, from its record in a run."""
    parts = [record.source]
    parts += ["served elsewhere"] if record.server is not None else []
    parts += [f"with the adapter {Path(record.adapter).name}"] if record.adapter else []
    parts += ["behind a system prompt"] if record.system_prompt else []
    if record.block_length is not None:
        parts += [f"in blocks of {record.block_length} of its own"]
    if (threshold := record.decoder.get("edit_threshold")) is not None:
        parts += [f"whose decoder edits above {threshold:g}"]
    monitors = monitors_of(record)
    parts += [f"with {', '.join(monitors)} in its decoder"] if monitors else []
    return ", ".join(parts) if len(parts) > 1 else f"{record.source}, as it is"


def monitors_of(record: SubjectRecord) -> list[str]:
    """The rules of a subject's decoder that look at its rows and may change or stop them."""
    return [monitor.name for monitor in DecoderConfig.from_dict(record.decoder).monitors]
