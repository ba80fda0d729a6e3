"""Over-refusal: what becomes of harmless requests, beside the attacks and under their decoder.

A defence that refuses everything wins every table of attacks, so that a safety figure says little
without this one. A set of harmless requests is a campaign with the plain request as its attack:

    RUN/run.sqlite                        the attacks, if there are any
    RUN/over_refusal/xstest/run.sqlite    one run for each set

Sets: XSTest (arXiv 2308.01263), OR-Bench-Hard (arXiv 2405.20947), the benign half of JailbreakBench
(arXiv 2404.01318), the testbed's `benign` and `near_miss`, files of the user's own. Headline is the
share that is refused, in full or in part, as XSTest's authors count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mosa.denoising import DecoderConfig
from mosa.evaluation.campaign import (
    NO_ADAPTER,
    CampaignConfig,
    Progress,
    behaviors_of,
    run_campaign,
    world_in,
)
from mosa.evaluation.defaults import default_decoder
from mosa.evaluation.metrics import Rate, rate_of
from mosa.evaluation.runs import OVER_REFUSAL, check_decoder, decoder_beside
from mosa.evaluation.store import Store
from mosa.judges import JUDGES, REFUSAL_CLASSES, Compliance, compliance_of
from mosa.types import Attempt, UserError, Verdict
from mosa.world import World

CONTRAST = "xstest:unsafe"
"""The one set of harmful requests that may stand beside the harmless ones."""


@dataclass(frozen=True)
class OverRefusalConfig:
    """Which models are asked which harmless requests."""

    model: str
    """The model that is asked."""
    sets: tuple[str, ...]
    """Sets of harmless requests: known ones, the testbed's, or files."""
    adapters: tuple[str, ...] = (NO_ADAPTER,)
    """Adapter folders, one model each; `none` is the model as it is."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the decoder; every request is asked once for each."""
    limit: int | None = None
    """Only the first so many requests of each set."""
    data_dir: Path | None = None
    """Where known benchmark files lie; unset: MOSA_DATA, else ./data."""
    batch_size: int = 32
    """Responses per forward pass."""
    dtype: str = "auto"
    """Number format of the weights."""
    device: str | None = None
    """Where the model runs; unset: a GPU if there is one."""

    def campaign(self, name: str) -> CampaignConfig:
        """The campaign of one set."""
        shared = {k: v for k, v in vars(self).items() if k != "sets"}
        return CampaignConfig(behaviors=name, attacks=("direct",), is_benign=True, **shared)


def run_over_refusal(
    out: Path,
    config: OverRefusalConfig,
    decoder: DecoderConfig | None = None,
    *,
    on_progress: Callable[[Progress], object] = lambda progress: None,
    on_finished: Callable[[Store], object] = lambda store: None,
) -> dict[str, Path]:
    """Ask every request of every set; returns the run folder of each set.

    `decoder` unset is `decoder_beside`, else `default_decoder`. `on_finished` gets the records of a
    set, open, when it has come to its end. Raises UserError for whatever cannot be run as it is
    asked for, before anything is generated.
    """
    world = world_of_sets(config)
    folders = set_folders(out, config)
    decoder = decoder or decoder_beside(out) or default_decoder(world)
    check_decoder(out, decoder)
    for name, folder in folders.items():
        store = run_campaign(
            folder,
            config.campaign(name),
            decoder,
            beside=out,
            on_progress=on_progress,
        )
        with store:
            on_finished(store)
    return folders


def world_of_sets(config: OverRefusalConfig) -> World | None:
    """The testbed's world, if the sets are its; UserError where some are and some are not."""
    worlds = [world_in(config.campaign(name)) for name in config.sets]
    if len({world is None for world in worlds}) > 1:
        raise UserError(
            "the testbed's sets are decoded and judged in their own way; run them and the others "
            "one after the other"
        )
    return worlds[0] if worlds else None


def set_folders(out: Path, config: OverRefusalConfig) -> dict[str, Path]:
    """Where the run of each set stands; UserError for a set that cannot be read or is not harmless.

    The bare name of a set is that of its folder, with `_` for the colon of a subset.
    """
    if not config.sets:
        raise UserError("no set is named; choose one of docs/over_refusal.md with --sets")
    folders: dict[str, Path] = {}
    for name in config.sets:
        if not behaviors_of(config.campaign(name))[0].is_benign and name != CONTRAST:
            raise UserError(
                f"{name} holds harmful requests, and to refuse those is no over-refusal; leave it "
                "out, or attack with it (`mosa evaluate`)"
            )
        folder = out / OVER_REFUSAL / Path(name).name.replace(":", "_")
        if folder in folders.values():
            raise UserError(f"two sets would be kept in {folder}; rename one, or leave it out")
        folders[name] = folder
    return folders


# --- what came out --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComplianceLine:
    """What became of one model's requests, by one judge."""

    model: str
    attack: str
    """How they were asked: `direct` in a run of this module."""
    preset: str
    judge: str
    cases: Mapping[str, Counter[Compliance]]
    """For each scored request, how many of its tries (one a seed) are of each class."""
    score: Rate | None
    """Mean of the judge's scores; by the truth, of the share of the steps that are right."""
    num_unscored: int
    """Tries that the judge could not score or has not yet, in no share."""
    num_failed: int
    """Tasks that failed."""
    num_left: int
    """Tasks that have not been run."""
    num_broken: int | None
    """Tries with broken sentences, whatever else they are; None where the judge does not tell."""
    num_tries: int

    @property
    def over_refusal(self) -> Rate | None:
        """The share that is refused, in full or in part."""
        return self.share(*REFUSAL_CLASSES)

    def share(self, *classes: Compliance) -> Rate | None:
        """The share of some classes together; None where no request was scored."""
        values = self.by_case(*classes)
        return rate_of(list(values.values())) if values else None

    def by_case(self, *classes: Compliance) -> dict[str, float]:
        """Each scored request with its own share of some classes, so that models can be compared
        on the same requests."""
        return {
            case: sum(counts[name] for name in classes) / counts.total()
            for case, counts in self.cases.items()
        }


def is_benign(store: Store) -> bool:
    """Whether a run is about harmless requests."""
    return bool((store.meta("behaviors") or {}).get("is_benign"))


def tells_refusals(judge: str) -> bool:
    """Whether the judge of this name or id tells refusals from answers."""
    name = judge.split("/")[0]
    return name in JUDGES and JUDGES[name].tells_refusals


def check_judge(judge: str) -> None:
    """Raises UserError for a judge, by name or id, that does not tell refusals from answers."""
    if not tells_refusals(judge):
        able = ", ".join(name for name in JUDGES if tells_refusals(name))
        raise UserError(f"{judge} does not tell refusals from answers; use one of {able}")


def summarise(store: Store, judge: str) -> list[ComplianceLine]:
    """What became of each model's requests, in the order of planning.

    Raises UserError for a judge that does not tell refusals.
    """
    check_judge(judge)
    states: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for model, attack, preset, status, count in store.counts():
        states[model, attack, preset][status] = count
    groups = {cell: _Group() for cell in states}
    for attempt, verdict in store.judged(judge):
        groups[attempt.model, attempt.attack, attempt.preset].add(attempt, verdict)
    return [
        ComplianceLine(
            *cell,
            judge,
            cases=dict(group.cases),
            score=_mean(group.scores),
            num_unscored=group.num_unscored,
            num_failed=states[cell].get("failed", 0),
            num_left=states[cell].get("todo", 0),
            num_broken=group.num_broken if group.num_told else None,
            num_tries=group.num_tries,
        )
        for cell, group in groups.items()
    ]


class _Group:
    """The tries of one line, summed up as they come."""

    def __init__(self) -> None:
        self.cases: dict[str, Counter[Compliance]] = defaultdict(Counter)
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.num_tries = self.num_unscored = self.num_told = self.num_broken = 0

    def add(self, attempt: Attempt, verdict: Verdict | None) -> None:
        self.num_tries += 1
        if verdict is None or verdict.score is None:
            self.num_unscored += 1
            return
        compliance = compliance_of(verdict)
        assert compliance is not None, "the judge tells refusals, and its verdict is scored"
        self.cases[attempt.behavior][compliance] += 1
        self.scores[attempt.behavior].append(verdict.score)
        self.num_told += "coherent" in verdict.native
        self.num_broken += not verdict.native.get("coherent", True)


def _mean(values: Mapping[str, list[float]]) -> Rate | None:
    return rate_of([sum(v) / len(v) for v in values.values()]) if values else None
