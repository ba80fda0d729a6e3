"""What a report shows of single responses, gathered in one pass over the attempts of its runs.

Responses to plain requests tell how a model writes (in which order, how long); those to attacks
tell how it breaks (where a refusal begins, how much is neither refusal nor answer).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mosa.analysis.result import Estimate, HeatMap, LineChart, estimate_of
from mosa.analysis.result import mean as mean_of
from mosa.evaluation.evidence import CONTROL, Evidence, Run
from mosa.evaluation.metrics import Rate, rate_of, wilson
from mosa.evaluation.results import attack_names, lines
from mosa.evaluation.store import Store
from mosa.judges.compliance import compliance_of
from mosa.judges.refusal import find_refusal
from mosa.report.content import Figure, Histogram, Sample, SampleResponse
from mosa.report.setup import Setup
from mosa.types import Attempt, Behavior, Response, Verdict

NUM_BINS = 12
"""Classes of a histogram, and rows and columns of a map of positions and steps."""
MIN_CASES = 5
"""A position that fewer responses reach is left out of the commit order."""


@dataclass
class Grid:
    """When positions were committed, over many responses of one model."""

    length: int = 0
    """Response tokens of the longest canvas."""
    times: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By position (from 0): the share of all steps at which each response committed it."""

    def add(self, response: Response) -> None:
        """Take in the tokens that a reader gets to see."""
        steps = response.decoder.get("steps") or max(response.commit_step) + 1
        self.length = max(self.length, len(response.commit_step))
        for position, step in enumerate(response.commit_step[: response.num_read]):
            self.times[position].append((step + 1) / steps)


@dataclass
class Views:
    """All that one pass gives."""

    samples: list[Sample] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=lambda: defaultdict(Grid))
    """By model, from plain requests."""
    read_lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By model: tokens before the first end token, under attack."""
    refusal_words: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By model: the word (from 1) with which the first refusal begins, under attack."""
    num_under_attack: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    incoherent: dict[tuple[str, str], dict[str, list[bool]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """By (model, attack), for each behavior: whether each try is broken text; an empty one is
    not."""
    disagreement: dict[tuple[str, str], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0])
    )
    """By pair of judges: tries on which they disagree, and tries that both scored."""

    def longest_canvas(self) -> int:
        """Positions of the longest response."""
        return max((grid.length for grid in self.grids.values()), default=0)


def scan(setup: Setup) -> Views:
    """One pass over every attempt of the models that have a label."""
    views = Views()
    judge, labels = setup.judge, setup.labels
    for label in labels.values():  # every chart lists the models in this order
        views.grids[label], views.read_lengths[label] = Grid(), []
        views.refusal_words[label], views.num_under_attack[label] = [], 0
    for run in setup.evidence.runs:
        if run.kind == "utility":
            continue
        hidden = setup.hides(run)
        with Store(run.folder) as store:
            verdicts = {name: store.verdicts(name) for name in run.judges}
            behaviors = store.behaviors()
            names = attack_names((attack, preset) for _, attack, preset, _, _ in store.counts())
            for attempt in store.attempts():
                if attempt.model not in labels:
                    continue
                responses = store.responses_of(attempt.key)
                judged = {name: found.get(attempt.key) for name, found in verdicts.items()}
                name = names[attempt.attack, attempt.preset]
                _take(views, run, attempt, responses, judged, judge, labels[attempt.model], name)
                views.samples.append(
                    _sample(
                        run,
                        attempt,
                        responses,
                        judged,
                        behaviors[attempt.behavior],
                        labels[attempt.model],
                        name,
                        hidden,
                    )
                )
    order = {label: place for place, label in enumerate(labels.values())}
    views.samples.sort(key=lambda sample: order[sample.model])
    return views


def _take(
    views: Views,
    run: Run,
    attempt: Attempt,
    responses: list[Response],
    judged: Mapping[str, Verdict | None],
    judge: str | None,
    model: str,
    name: str,
) -> None:
    if attempt.attack == CONTROL:
        for response in responses:
            views.grids[model].add(response)
    if run.kind != "safety":
        return
    if attempt.attack != CONTROL:
        views.num_under_attack[model] += 1
        views.read_lengths[model] += [response.num_read for response in responses]
        found = find_refusal(attempt.response)
        if found is not None:
            views.refusal_words[model].append(found[1] + 1)
    verdict = judged.get(judge or "")
    is_empty = verdict is not None and verdict.native.get("class") == "empty"
    if verdict is not None and (is_empty or "coherent" in verdict.native):
        is_broken = not is_empty and not verdict.native["coherent"]
        views.incoherent[model, name][f"{run.behavior_set}/{attempt.behavior}"].append(is_broken)
    scored = [(j, v.success) for j, v in judged.items() if v is not None and v.score is not None]
    for i, (first, success) in enumerate(scored):
        for second, other in scored[i + 1 :]:
            count = views.disagreement[first, second]
            count[0] += success != other
            count[1] += 1


def _sample(
    run: Run,
    attempt: Attempt,
    responses: list[Response],
    judged: Mapping[str, Verdict | None],
    behavior: Behavior,
    model: str,
    name: str,
    hidden: bool,
) -> Sample:
    outcomes, scores = {}, {}
    is_incoherent = False
    for judge, verdict in judged.items():
        scores[judge] = None if verdict is None else verdict.score
        outcomes[judge] = _outcome(run, verdict)
        if verdict is not None:
            is_incoherent |= not verdict.native.get("coherent", True)
    return Sample(
        model=model,
        attack=name,
        behavior_set=run.behavior_set,
        behavior=attempt.behavior,
        request=None if hidden else behavior.text,
        category=behavior.category or "",
        seed=attempt.seed,
        number=attempt.number,
        variant=attempt.variant,
        outcomes=outcomes,
        scores=scores,
        queries=attempt.budget.target_queries,
        is_incoherent=is_incoherent,
        responses=tuple(
            SampleResponse(
                commit_step=tuple(response.commit_step),
                end_positions=tuple(response.end_positions),
                # One object for each word: ten thousand samples hold the same few hundred.
                tokens=None if hidden else tuple(map(sys.intern, response.tokens)),
                prompt=None
                if hidden
                else tuple((turn["role"], turn["content"]) for turn in response.prompt),
            )
            for response in responses
        ),
    )


def _outcome(run: Run, verdict: Verdict | None) -> str:
    if verdict is None or verdict.score is None:
        return "unscored"
    if run.kind == "over_refusal":
        return compliance_of(verdict) or "unscored"
    return "broken" if verdict.success else "held"


# --- figures --------------------------------------------------------------------------------------


def diffusion_figures(views: Views) -> Iterator[Figure]:
    """How the models write and break, as charts; those without data are left out."""
    yield from _commit_figures(views)
    starts = {model: found for model, found in views.refusal_words.items() if found}
    if starts:
        yield Figure(
            "refusal-start",
            _histogram(
                "Where the first refusal begins",
                "word of the response",
                starts,
                max(max(found) for found in starts.values()),
            ),
            "Over all tries of attacks whose response holds a phrase of refusal: "
            + ", ".join(
                f"{len(starts.get(model, []))} of {total} for {model}"
                for model, total in views.num_under_attack.items()
                if total
            )
            + ".",
        )
    lengths = {model: found for model, found in views.read_lengths.items() if found}
    if lengths:
        yield Figure(
            "response-length",
            _histogram(
                "Response length under attack",
                "tokens before the first end token",
                lengths,
                max(max(found) for found in lengths.values()),
            ),
            "What a reader gets to see. An end token in the middle (the breaker of MOSA) makes "
            "responses short; text behind it is unread, and judges named @canvas read it too.",
        )


def _commit_figures(views: Views) -> Iterator[Figure]:
    grids = {model: grid for model, grid in views.grids.items() if grid.times}
    if not grids:
        return
    series = {}
    for model, grid in grids.items():
        points = [
            (float(position + 1), mean_of(times))
            for position, times in sorted(grid.times.items())
            if len(times) >= MIN_CASES
        ]
        if points:
            series[model] = points
    if series:
        yield Figure(
            "commit-order",
            LineChart(
                "In which order positions are committed",
                "position in the response",
                "share of all steps done",
                series,
                (0.0, 1.0),
            ),
            "Plain requests, harmful and harmless; tokens before the first end token. A line that "
            "rises from left to right is a model that writes from left to right; stairs are the "
            "decoder's blocks, which are filled one after the other. Bands are 95 % bootstrap "
            f"intervals over responses; positions that fewer than {MIN_CASES} responses reach are "
            "left out.",
        )
    length = views.longest_canvas()
    for number, (model, grid) in enumerate(grids.items()):
        yield Figure(
            f"commit-map-{number}",
            _commit_map(model, grid, length),
            "Of the responses to plain requests that reach a position: the share that commits it "
            "in each part of the denoising. A diagonal is writing from left to right.",
        )


def _commit_map(model: str, grid: Grid, length: int) -> HeatMap:
    width = -(-length // NUM_BINS)
    columns = -(-length // width)
    counts = [[0] * columns for _ in range(NUM_BINS)]
    totals = [0] * columns
    for position, times in grid.times.items():
        for time in times:
            counts[min(NUM_BINS - 1, int(time * NUM_BINS - 1e-9))][position // width] += 1
            totals[position // width] += 1

    def cell(count: int, total: int) -> Estimate | None:
        if not total:
            return None
        low, high = wilson(count / total, total)
        return Estimate(count / total, total, low, high)

    return HeatMap(
        f"When each position is committed: {model}",
        "position in the response (first of each class)",
        "share of all steps done",
        [float(i * width + 1) for i in range(columns)],
        [round((i + 1) / NUM_BINS, 2) for i in range(NUM_BINS)],
        [[cell(counts[y][x], totals[x]) for x in range(columns)] for y in range(NUM_BINS)],
        "share of responses",
    )


def _histogram(title: str, x_label: str, values: Mapping[str, list[int]], top: int) -> Histogram:
    width = max(1, -(-(top + 1) // NUM_BINS))
    num = -(-(top + 1) // width)
    shares = {}
    for model, found in values.items():
        counts = [0] * num
        for value in found:
            counts[value // width] += 1
        shares[model] = tuple(count / len(found) for count in counts)
    return Histogram(
        title,
        x_label,
        tuple(float(i * width) for i in range(num + 1)),
        shares,
        {model: len(found) for model, found in values.items()},
    )


def position_figure(evidence: Evidence, judge: str, labels: Mapping[str, str]) -> Figure | None:
    """Success by the position at which the attack `prefill` fixes its phrase."""
    series: dict[str, list[tuple[float, Estimate]]] = {}
    num_unscored = 0
    for run in evidence.runs:
        if run.kind != "safety" or judge not in run.judges:
            continue
        with Store(run.folder) as store:
            for line in lines(store, judge, by_variant=True):
                word, _, number = line.variant.partition(" ")
                if line.attack != "prefill" or word != "position" or line.model not in labels:
                    continue
                num_unscored += line.num_unscored
                if line.success is not None:
                    series.setdefault(labels[line.model], []).append(
                        (float(number), estimate_of(line.success))
                    )
    series = {
        label: sorted(series[label], key=lambda point: point[0])
        for label in labels.values()
        if label in series
    }
    if not any(len(points) > 1 for points in series.values()):
        return None
    return Figure(
        "prefill-position",
        LineChart(
            "Success by the position of a prefilled phrase",
            "position of the phrase's first token",
            "attack success rate",
            series,
            (0.0, 1.0),
        ),
        "The same compliant phrase, fixed at one position of the response before denoising begins "
        f"(attack prefill). Judge {judge}; bars are 95 % Wilson intervals over "
        f"behaviors. {num_unscored} cases are unscored.",
    )


def incoherent_rates(views: Views) -> dict[tuple[str, str], Rate]:
    """By (model, attack): the share of tries that are broken text, the mean over behaviors."""
    return {
        key: rate_of([sum(tries) / len(tries) for tries in by_behavior.values()])
        for key, by_behavior in views.incoherent.items()
    }
