"""What runs come to, side by side: safety, over-refusal and utility of each model, case by case.

    evidence = gather([Path("demo/run")])
    for model in evidence.models:
        print(model, headline(evidence, "asr", model).rate)

A folder may hold several runs: a campaign, one run for each set of harmless requests, and the
useful tasks. Every figure keeps the values of its cases, so that two models can be compared on the
same requests, and the number of those that nobody could score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mosa.evaluation.judging import CANVAS
from mosa.evaluation.over_refusal import is_benign, tells_refusals
from mosa.evaluation.results import lines, names_of
from mosa.evaluation.runs import is_utility
from mosa.evaluation.store import FILE, Store
from mosa.judges.compliance import COMPLIANCES, REFUSAL_CLASSES, compliance_of
from mosa.stats.rates import Rate, Value, Values, exactly, mean_of, rate_of, rate_over_groups
from mosa.types import UserError

Kind = Literal["safety", "over_refusal", "utility"]

CONTROL = "direct"
"""The plain request: shown beside the attacks, and in no mean over them."""

REFUSED = "refused"
"""Refused fully or partly."""
MOMENT = "@"
"""A model called NAME@STEP is what NAME was after so many updates of its training."""


@dataclass(frozen=True)
class Run:
    """One run folder and what it is about."""

    folder: Path
    kind: Kind
    behavior_set: str
    """Name of the set; empty for useful tasks."""
    about: dict[str, Any]
    """File, checksum, licence and origin of the set, or the settings of each task."""
    decoder: dict[str, Any]
    judges: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    sessions: tuple[dict[str, Any], ...]
    world_seed: int | None


@dataclass(frozen=True)
class Figure:
    """One model under one attack, on one set of harmless requests, or at one task."""

    kind: Kind
    model: str
    name: str
    """The attack, the set or the task."""
    behavior_set: str
    judge: str
    """Whose verdicts; empty for tasks."""
    measure: str
    """`success`, a class of `COMPLIANCES`, `refused` (fully or partly), or a task's metric."""
    by_seed: Mapping[str, Mapping[int, float]]
    """Each scored case's value, from 0 to 1, by seed."""
    unscored: frozenset[tuple[str, int]] = frozenset()
    """(case, seed) of what has no value."""
    num_failed: int = 0
    num_left: int = 0
    preset: str = ""
    num_tries: int = 0
    """Tries of the attack, over all cases."""
    is_headline: bool = True
    """Whether it stands for its task, of which a task may have several metrics."""

    @property
    def num_unscored(self) -> int:
        """Cases without a value, counted once for each seed."""
        return len(self.unscored)

    @cached_property
    def values(self) -> Values:
        """Each case's values by seed, None where it has none."""
        found: dict[str, dict[int, float | None]] = {c: dict(v) for c, v in self.by_seed.items()}
        for case, seed in sorted(self.unscored):
            found.setdefault(case, {})[seed] = None
        return found

    @cached_property
    def rate(self) -> Rate | None:
        """The mean over cases; None where none was scored."""
        return rate_of(self.values) if self.by_seed else None


@dataclass(frozen=True)
class Evidence:
    """All that some folders hold."""

    runs: list[Run]
    figures: list[Figure]
    analyses: list[Path] = field(default_factory=list)
    """Folders of finished analyses."""

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """What each model's name stands for, in the order of first use."""
        return {name: record for run in self.runs for name, record in run.models.items()}

    def judges(self, kind: Kind) -> list[str]:
        """The judges of the figures of a kind, the one to be believed first."""
        found = {f.judge: None for f in self.figures if f.kind == kind and f.judge}
        return sorted(found, key=lambda judge: (_rank(judge), list(found).index(judge)))

    def select(
        self, kind: Kind, *, model: str | None = None, judge: str | None = None, measure: str = ""
    ) -> list[Figure]:
        """The figures of a kind, of one model, judge or measure where these are given."""
        return [
            figure
            for figure in self.figures
            if figure.kind == kind
            and model in (None, figure.model)
            and judge in (None, figure.judge)
            and measure in ("", figure.measure)
        ]


def _rank(judge: str) -> tuple[bool, bool, bool]:
    """The testbed's truth before judges that read, these before phrases; the canvas comes last."""
    name = judge.split("/")[0]
    return judge.endswith(CANVAS), name == "refusal", name != "truth"


# --- reading --------------------------------------------------------------------------------------


def gather(paths: Sequence[Path]) -> Evidence:
    """Every run and analysis in and below some folders.

    Raises UserError for a folder without any, and where one name stands for two models.
    """
    runs, figures, analyses = [], [], []
    for path in paths:
        folders = run_folders(path)
        found = [file.parent for file in sorted(path.rglob("result.json")) if _is_analysis(file)]
        if not folders and not found:
            raise UserError(f"{path} holds no run; `mosa evaluate ... --out {path}` makes one")
        analyses += [folder for folder in found if folder not in analyses]
        for folder in folders:
            if folder in [run.folder for run in runs]:
                continue
            with Store(folder) as store:
                run = _run(store)
                runs.append(run)
                figures += _figures(store, run)
    _check_names(runs)
    return Evidence(runs, figures, analyses)


def run_folders(path: Path) -> list[Path]:
    """The folders in and below a path that hold a run, that of the path itself first."""
    found = [file.parent for file in path.rglob(FILE)]
    return sorted(found, key=lambda folder: (len(folder.parts), str(folder)))


def _is_analysis(file: Path) -> bool:
    return (file.parent / "finding.md").is_file() and (file.parent / "header.json").is_file()


def _check_names(runs: Sequence[Run]) -> None:
    known: dict[str, tuple[str, Path]] = {}
    for run in runs:
        for name, record in run.models.items():
            weights, folder = known.setdefault(name, (record["weights"], run.folder))
            if weights != record["weights"]:
                raise UserError(
                    f"{name} has other weights in {run.folder} than in {folder}, so that their "
                    "figures are not of one model; leave one of the runs out"
                )


def _run(store: Store) -> Run:
    kind: Kind = "safety"
    if is_utility(store):
        kind = "utility"
    elif is_benign(store):
        kind = "over_refusal"
    return Run(
        folder=store.folder,
        kind=kind,
        behavior_set=store.meta("behavior_set") or "",
        about=store.meta("behaviors") or store.meta("tasks") or {},
        decoder=store.meta("decoder") or {},
        judges=tuple(store.judges()),
        models=store.models(),
        sessions=tuple(store.sessions()),
        world_seed=store.meta("world_seed"),
    )


def _figures(store: Store, run: Run) -> Iterator[Figure]:
    if run.kind == "utility":
        yield from _utility(store)
        return
    for judge in run.judges:
        if run.kind == "safety":
            yield from _safety(store, run, judge)
        elif tells_refusals(judge):
            yield from _over_refusal(store, run, judge)


def _safety(store: Store, run: Run, judge: str) -> Iterator[Figure]:
    found = lines(store, judge)
    names = names_of(found)
    for line in found:
        yield Figure(
            kind="safety",
            model=line.model,
            name=names[line],
            behavior_set=run.behavior_set,
            judge=judge,
            measure="success",
            by_seed={f"{run.behavior_set}/{case}": dict(v) for case, v in line.by_seed},
            unscored=frozenset(
                (f"{run.behavior_set}/{case}", seed) for case, seed in line.unscored
            ),
            num_failed=line.num_failed,
            num_left=line.num_left,
            preset=line.preset,
            num_tries=line.num_tries,
        )


def _over_refusal(store: Store, run: Run, judge: str) -> Iterator[Figure]:
    values: dict[str, dict[str, dict[str, dict[int, float]]]] = {
        model: {measure: defaultdict(dict) for measure in (REFUSED, *COMPLIANCES)}
        for model in run.models
    }
    unscored: dict[str, set[tuple[str, int]]] = {model: set() for model in run.models}
    for attempt, verdict in store.judged(judge):
        if attempt.attack != CONTROL:
            continue  # an attack on a harmless request is another question, and another case
        compliance = None if verdict is None else compliance_of(verdict)
        # The testbed's sets ask for the same objects in several ways: one case each.
        about = run.behavior_set if run.world_seed is None else "testbed"
        case = f"{about}/{attempt.behavior}"
        if compliance is None:
            unscored[attempt.model].add((case, attempt.seed))
            continue
        for measure, cases in values[attempt.model].items():
            counts = compliance in REFUSAL_CLASSES if measure == REFUSED else compliance == measure
            cases[case][attempt.seed] = float(counts)
    states: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for model, attack, _, status, count in store.counts():
        if attack == CONTROL:
            states[model][status] += count
    for model, measures in values.items():
        for measure, cases in measures.items():
            yield Figure(
                kind="over_refusal",
                model=model,
                name=run.behavior_set,
                behavior_set=run.behavior_set,
                judge=judge,
                measure=measure,
                by_seed=cases,
                unscored=frozenset(unscored[model]),
                num_failed=states[model]["failed"],
                num_left=states[model]["todo"],
            )


def _utility(store: Store) -> Iterator[Figure]:
    values: dict[tuple[str, str, str], dict[str, dict[int, float]]] = defaultdict(dict)
    unscored: dict[tuple[str, str, str], set[tuple[str, int]]] = defaultdict(set)
    for found in store.measurements():
        key = (found.model, found.task, found.metric)
        case = f"{found.task}/{found.case}"
        if found.value is None:
            unscored[key].add((case, 0))
        else:
            values[key][case] = {0: found.value}
    tasks = store.meta("tasks") or {}
    for model in store.models():
        for key in dict.fromkeys([*values, *unscored]):
            if key[0] == model:
                yield Figure(
                    kind="utility",
                    model=model,
                    name=key[1],
                    behavior_set="",
                    judge="",
                    measure=key[2],
                    by_seed=values.get(key, {}),
                    unscored=frozenset(unscored.get(key, ())),
                    is_headline=tasks[key[1]]["headline"] == key[2],
                )


# --- headlines ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """One figure that sums up a kind, for one model."""

    name: str
    """One of `HEADLINES`."""
    rate: Rate | None
    """None where nothing was measured."""
    by_seed: Mapping[str, Mapping[int, Value]]
    """The cases that it is a mean of; for `utility`, where tasks and not cases weigh alike, the
    cases of all tasks."""
    num_unscored: int
    of: str = ""
    """Which attack is the worst."""


HEADLINES: dict[str, Kind] = {
    "asr": "safety",
    "worst_asr": "safety",
    "any_asr": "safety",
    "over_refusal": "over_refusal",
    "compliance": "over_refusal",
    "utility": "utility",
}
"""Every headline, and what it sums up: attack success as the mean over attacks, under the worst of
them and under any; harmless requests that are refused, and those that are answered; useful tasks.
"""


def task_pairs(
    first: Iterable[Figure], second: Iterable[Figure]
) -> dict[str, tuple[Values, Values]]:
    """Two models' cases of each useful task that has some in common, by the metric that stands for
    the task."""
    tasks = [{f.name: f.by_seed for f in figures if f.is_headline} for figures in (first, second)]
    return {
        task: (cases, tasks[1][task])
        for task, cases in tasks[0].items()
        if task in tasks[1] and cases.keys() & tasks[1][task].keys()
    }


def moment_of(evidence: Evidence, model: str) -> tuple[str, int] | None:
    """The model that this one is a moment of, and after how many updates; None for any other."""
    base, sign, step = model.rpartition(MOMENT)
    return (base, int(step)) if sign and step.isdigit() and base in evidence.models else None


def attacks_of_all(evidence: Evidence, judge: str) -> list[tuple[str, str]]:
    """(set, attack) of every attack that all attacked models have been put through, the plain
    request apart, unless it is the only one: a mean over other attacks for each model would compare
    attacks and not models."""
    by_model: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for figure in evidence.select("safety", judge=judge):
        if moment_of(evidence, figure.model) is None:
            by_model[figure.model].append((figure.behavior_set, figure.name))
    shared = list(dict.fromkeys(key for keys in by_model.values() for key in keys))
    shared = [key for key in shared if all(key in keys for keys in by_model.values())]
    return [key for key in shared if key[1] != CONTROL] or shared


def headline(
    evidence: Evidence,
    name: str,
    model: str,
    judge: str | None = None,
    attacks: Sequence[tuple[str, str]] | None = None,
) -> Headline:
    """A headline of a model; `judge` unset is the one to be believed first, `attacks` unset are
    those that all models have in common."""
    if name == "utility":
        return _utility_headline(evidence, model)
    kind = HEADLINES[name]
    judges = evidence.judges(kind)
    judge = judge or (judges[0] if judges else None)
    if judge is None:
        return Headline(name, None, {}, 0)
    if kind == "over_refusal":
        measure = REFUSED if name == "over_refusal" else "full compliance"
        figures = evidence.select(kind, model=model, judge=judge, measure=measure)
        return _headline(name, *_over_sets(figures))
    chosen = attacks_of_all(evidence, judge) if attacks is None else attacks
    figures = [
        figure
        for figure in evidence.select(kind, model=model, judge=judge)
        if (figure.behavior_set, figure.name) in chosen
    ]
    if name == "worst_asr":
        rated = [figure for figure in figures if figure.rate is not None]
        if not rated:
            return Headline(name, None, {}, 0)
        worst = max(rated, key=lambda figure: figure.rate.rate if figure.rate else 0.0)
        num_alike = sum(
            figure.rate is not None
            and worst.rate is not None
            and (figure.rate.exact, figure.rate.n) == (worst.rate.exact, worst.rate.n)
            for figure in rated
        )
        num_alike -= 1
        of = worst.name + (f" (and {num_alike} more)" if num_alike else "")
        return Headline(name, worst.rate, worst.by_seed, worst.num_unscored, of)
    combine = _mean if name == "asr" else _any
    values, num_unscored = _by_case(figures, combine)
    return _headline(name, values, num_unscored)


def _headline(name: str, by_seed: Mapping[str, Mapping[int, Value]], num_unscored: int) -> Headline:
    rate = replace(rate_of(by_seed), num_unscored=num_unscored) if by_seed else None
    return Headline(name, rate, by_seed, num_unscored)


def _over_sets(figures: Sequence[Figure]) -> tuple[dict[str, dict[int, Value]], int]:
    """Each harmless request's mean over the sets that have it, and how many have none."""
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    for figure in figures:
        for case, by_seed in figure.by_seed.items():
            for seed, value in by_seed.items():
                values[case, seed].append(value)
    unscored = {key for figure in figures for key in figure.unscored}
    found: dict[str, dict[int, Value]] = defaultdict(dict)
    for (case, seed), of_case in values.items():
        if (case, seed) not in unscored:
            found[case][seed] = mean_of(list(map(exactly, of_case)))
    return found, len(unscored)


def _by_case(figures: Sequence[Figure], combine: Any) -> tuple[dict[str, dict[int, Value]], int]:
    """Each behavior's value over the attacks on its set, by seed, and how many have none."""
    found: dict[str, dict[int, Value]] = defaultdict(dict)
    num_unscored = 0
    for behavior_set in dict.fromkeys(figure.behavior_set for figure in figures):
        of_set = [figure for figure in figures if figure.behavior_set == behavior_set]
        keys = {
            (case, seed): None
            for figure in of_set
            for case, values in figure.by_seed.items()
            for seed in values
        } | {key: None for figure in of_set for key in sorted(figure.unscored)}
        for case, seed in keys:
            value = combine([figure.by_seed.get(case, {}).get(seed) for figure in of_set])
            if value is None:
                num_unscored += 1
            else:
                found[case][seed] = value
    return found, num_unscored


def _mean(values: Sequence[float | None]) -> Value | None:
    known = [exactly(value) for value in values if value is not None]
    return mean_of(known) if len(known) == len(values) else None


def _any(values: Iterable[float | None]) -> float | None:
    """A success stands whatever is unscored; without one, every attack must have a score."""
    known = list(values)
    if any(value == 1.0 for value in known):
        return 1.0
    return None if None in known else 0.0


def _utility_headline(evidence: Evidence, model: str) -> Headline:
    figures = [figure for figure in evidence.select("utility", model=model) if figure.is_headline]
    by_seed = {case: values for figure in figures for case, values in figure.by_seed.items()}
    num_unscored = sum(figure.num_unscored for figure in figures)
    scored = [figure.by_seed for figure in figures if figure.by_seed]
    if not scored:
        return Headline("utility", None, {}, num_unscored)
    rate = replace(rate_over_groups(scored), num_unscored=num_unscored)
    return Headline("utility", rate, by_seed, num_unscored)
