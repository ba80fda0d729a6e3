"""Where the reward of a training has settled, and several trainings of one kind as one subject."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mosa.evidence.figures import Evidence, Figure
from mosa.runs.records import TrainingPoint
from mosa.stats.rates import exactly, mean_of

BAND = (15.0, 18.0)
"""Where the reward settles in the paper, in nats (arXiv 2508.12398, section 4)."""
MOST = 20.0
"""The largest reward that still counts as the paper's regime: its figure is read by eye."""
SHARE_AT_THE_END = 0.2
"""The part of a training's log that says where it has settled."""


@dataclass(frozen=True)
class Settled:
    """Means over the last `SHARE_AT_THE_END` of a training's log."""

    reward: float
    """In nats."""
    refusal_share: float | None
    """Of fully masked prompts, the share with a refusal in the window in the first step."""
    kl: float | None
    """From the reference on harmful prompts, in nats."""

    @property
    def is_in_band(self) -> bool:
        """Whether the reward is where the paper's is."""
        return BAND[0] <= self.reward <= MOST


def settled(points: Sequence[TrainingPoint]) -> Settled | None:
    """Where a training ended; None without a log."""
    if not points:
        return None
    end = points[-max(1, round(SHARE_AT_THE_END * len(points))) :]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    return Settled(
        fmean(point.reward for point in end),
        mean(point.refusal_share for point in end),
        mean(point.kl for point in end),
    )


def over_trainings(evidence: Evidence, trainings: Mapping[str, Mapping[int, str]]) -> Evidence:
    """Each method with its trainings as one subject whose seeds are those of the trainings.

    `trainings` gives for each method the subject of every training seed. A case counts, for each
    training, with its mean over the seeds of decoding; where one of those has no score, the case is
    unscored for this training. So an interval covers other trainings and not other decodings.
    """
    place = {
        name: (method, seed)
        for method, by_seed in trainings.items()
        for seed, name in by_seed.items()
    }
    groups: dict[tuple[str, ...], dict[int, Figure]] = defaultdict(dict)
    for figure in evidence.figures:
        if figure.subject in place:
            method, seed = place[figure.subject]
            key = (
                method,
                figure.case_set,
                figure.name,
                figure.variant,
                figure.judge,
                figure.measure,
            )
            groups[key][seed] = figure
    figures = [_pooled(method, by_seed) for (method, *_), by_seed in groups.items()]
    return Evidence(evidence.runs, figures)


def _pooled(method: str, by_training: Mapping[int, Figure]) -> Figure:
    figures = list(by_training.values())
    values: dict[str, dict[str, dict[int, float]]] = {}
    for name in ("by_seed", "scores", "any_by_seed"):
        values[name] = defaultdict(dict)
        for training, figure in by_training.items():
            lacking = {case for case, _ in figure.unscored}
            for case, by_seed in getattr(figure, name).items():
                if case not in lacking:
                    mean = mean_of([exactly(value) for value in by_seed.values()])
                    values[name][case][training] = float(mean)
    return replace(
        figures[0],
        subject=method,
        **values,
        unscored=frozenset(
            (case, training) for training, f in by_training.items() for case, _ in f.unscored
        ),
        **{
            name: sum(getattr(figure, name) for figure in figures)
            for name in ("num_failed", "num_left", "num_tries", "num_empty")
        },
    )
