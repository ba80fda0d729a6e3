"""What a report shows of single responses, gathered in one pass over the attempts of its runs.

Responses to plain requests tell how a subject writes (in which order, how long); those to attacks
tell how it fails (where a refusal begins, how much can be read).
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from mosa.evidence.figures import CONTROL, case_name, figures_of
from mosa.evidence.findings import HeatMap, LineChart
from mosa.judges.compliance import compliance_of
from mosa.judges.refusal import find_refusal
from mosa.player import SampleResponse
from mosa.probes import PROBES
from mosa.reporting.content import Histogram, ReportFigure, Sample
from mosa.reporting.setup import ReportSetup
from mosa.runs.judging import METRIC
from mosa.runs.store import Run
from mosa.stats.rates import Interval, Rate, mean_of, once, rate_of
from mosa.types import Attempt, Response, SetKind, Tell, Verdict, tell_nobody

NUM_BINS = 12
"""Classes of a histogram, and rows and columns of a map of positions and steps."""
ATTEMPTS_BETWEEN = 50
"""How many attempts are read before the bar moves."""
MIN_CASES = 5
"""A position that fewer responses reach is left out of the commit order."""


@dataclass
class Writing:
    """How one subject writes, over many responses."""

    length: int = 0
    """Response tokens of the longest canvas of a plain request."""
    times: list[list[float]] = field(default_factory=list)
    """By response to a plain request: for each position, the share of all steps at which it was
    committed."""
    num_under_attack: int = 0
    read_lengths: list[int] = field(default_factory=list)
    """Tokens before the first end token, under attack."""
    refusal_words: list[int] = field(default_factory=list)
    """The word (from 1) with which the first refusal begins, under attack."""

    def add(self, response: Response) -> None:
        """Add the tokens of a plain request that a reader sees."""
        # More than were asked for where a block has its prompt's end in it, or masks come back.
        steps = max(response.decoder.get("steps") or 0, max(response.commit_step) + 1)
        self.length = max(self.length, len(response.commit_step))
        if read := response.commit_step[: response.num_read]:
            self.times.append([(step + 1) / steps for step in read])


Shares = dict[str, dict[int, list[bool]]]
"""By case and seed: whether each try is so."""


def _shares() -> Shares:
    return defaultdict(lambda: defaultdict(list))


def share_of_tries(found: Shares) -> Rate:
    """The share of tries that are so, the mean over cases."""
    return rate_of(
        {
            case: {seed: mean_of(tries) for seed, tries in by_seed.items()}
            for case, by_seed in found.items()
        }
    )


@dataclass
class Views:
    """What one pass over the attempts gives."""

    writing: dict[str, Writing]
    """By subject, in the order in which every chart lists them."""
    samples: list[Sample] = field(default_factory=list)
    garbled: dict[tuple[str, str], Shares] = field(default_factory=lambda: defaultdict(_shares))
    """By (subject, attack): whether a try is garbled; an empty one is not."""
    disagreement: dict[tuple[str, str], Shares] = field(
        default_factory=lambda: defaultdict(_shares)
    )
    """By pair of judges: whether they disagree on a try that both scored."""


def scan(setup: ReportSetup, runs: Sequence[Run], tell: Tell = tell_nobody) -> Views:
    """One pass over every attempt of the subjects that have a label, without probes and useful
    tasks."""
    sets = [(run, name) for run in runs for name, of in run.sets().items() if of.kind != "useful"]
    total, num_read = sum(run.num_unjudged(None, name) for run, name in sets), itertools.count(1)
    labels = setup.labels
    views = Views({label: Writing() for label in labels.values()})
    threats = {(t.case_set, t.attack, t.preset): t.threat for t, _ in setup.tasks}
    for run in runs:
        judges = [judge for judge in run.judges() if not judge.startswith(METRIC)]
        verdicts = {judge: run.verdicts(judge) for judge in judges}
        for case_set, record in run.sets().items():
            if record.kind == "useful":
                continue
            # The judges of its own kind: attacks may have others than harmless requests.
            own = [judge for judge in run.judges(case_set) if judge in verdicts]
            for attempt in run.attempts(case_set=case_set):
                if (number := next(num_read)) % ATTEMPTS_BETWEEN == 0:
                    tell("report: attempts", number, total)
                if attempt.subject not in labels or attempt.attack in PROBES:
                    continue
                responses = run.responses_of(attempt.key)
                judged = {judge: verdicts[judge].get(attempt.key) for judge in own}
                _take(setup, views, attempt, responses, judged)
                threat = threats[case_set, attempt.attack, attempt.preset]
                sample = _sample(setup, attempt, threat, responses, judged)
                views.samples.append(sample.without_words() if setup.hides(case_set) else sample)
    order = {label: place for place, label in enumerate(labels.values())}
    views.samples.sort(key=lambda sample: order[sample.subject])
    return views


Judged = Mapping[str, Verdict | None]
"""What each judge says of an attempt; None where it has not read it."""


def _take(
    setup: ReportSetup, views: Views, attempt: Attempt, responses: list[Response], judged: Judged
) -> None:
    subject, record = setup.labels[attempt.subject], setup.evidence.sets[attempt.case_set]
    writing = views.writing[subject]
    with_steps = [response for response in responses if response.served is None]
    if attempt.attack == CONTROL:
        for response in with_steps:
            writing.add(response)
    if record.kind != "harmful":
        return
    if attempt.attack != CONTROL:
        writing.num_under_attack += 1
        writing.read_lengths += [response.num_read for response in with_steps]
        found = find_refusal(attempt.response)
        if found is not None:
            writing.refusal_words.append(found[1] + 1)
    case = case_name(record, attempt.case)
    verdict = judged.get(setup.judge or "")
    is_empty = verdict is not None and verdict.native.get("class") == "empty"
    if verdict is not None and (is_empty or "coherent" in verdict.native):
        is_garbled = not is_empty and not verdict.native["coherent"]
        attack = setup.names[attempt.case_set, attempt.attack, attempt.preset]
        views.garbled[subject, attack][case][attempt.seed].append(is_garbled)
    scored = [
        (name, found.success)
        for name, found in judged.items()
        if found is not None and found.score is not None
    ]
    for (first, success), (second, other) in itertools.combinations(scored, 2):
        views.disagreement[first, second][case][attempt.seed].append(success != other)


def _sample(
    setup: ReportSetup, attempt: Attempt, threat: str, responses: list[Response], judged: Judged
) -> Sample:
    case = setup.cases[attempt.case_set][attempt.case]
    kind = setup.evidence.sets[attempt.case_set].kind
    return Sample(
        subject=setup.labels[attempt.subject],
        attack=setup.names[attempt.case_set, attempt.attack, attempt.preset],
        threat=threat,
        case_set=attempt.case_set,
        case=attempt.case,
        request=case.text,
        category=case.category or "",
        seed=attempt.seed,
        number=attempt.number,
        variant=attempt.variant,
        outcomes={judge: _outcome(kind, verdict) for judge, verdict in judged.items()},
        scores={
            judge: round(v.score, 4) if v is not None and v.score is not None else None
            for judge, v in judged.items()
        },
        queries=attempt.budget.target_queries,
        is_garbled=any(
            verdict is not None and not verdict.native.get("coherent", True)
            for verdict in judged.values()
        ),
        responses=tuple(map(_sample_response, responses)),
    )


def _sample_response(response: Response) -> SampleResponse:
    """A response for the browser of samples; of a served one its words, all of one step."""
    words, steps = response.tokens, response.commit_step
    if response.served is not None:
        words = re.findall(r"\S+|\n+", response.text)
        steps = [0] * len(words)
    return SampleResponse(
        commit_step=tuple(steps),
        end_positions=tuple(sorted(response.end_positions)),
        # One object for each word: ten thousand samples hold the same few hundred.
        tokens=tuple(map(sys.intern, words)),
        prompt=tuple((turn["role"], turn["content"]) for turn in response.prompt),
        block_starts=tuple(response.block_starts),
        replaced=tuple((r.position, r.written, r.until, r.token) for r in response.replaced),
    )


def _outcome(kind: SetKind, verdict: Verdict | None) -> str:
    if verdict is None or verdict.score is None:
        return "unscored"
    if kind == "harmless":
        return compliance_of(verdict) or "unscored"
    return "succeeded" if verdict.success else "held"


# --- figures --------------------------------------------------------------------------------------


def diffusion_figures(views: Views) -> Iterator[ReportFigure]:
    """How the subjects write and fail, as charts; those without data are left out."""
    yield from _commit_figures(views)
    starts = {subject: of.refusal_words for subject, of in views.writing.items()}
    if any(starts.values()):
        yield ReportFigure(
            "refusal-start",
            _histogram("Where the first refusal begins", "word of the response", starts),
            "Over all tries of attacks whose response holds a phrase of refusal: "
            + ", ".join(
                f"{len(of.refusal_words)} of {of.num_under_attack} for {subject}"
                for subject, of in views.writing.items()
                if of.num_under_attack
            )
            + ".",
        )
    lengths = {subject: of.read_lengths for subject, of in views.writing.items()}
    if any(lengths.values()):
        yield ReportFigure(
            "response-length",
            _histogram(
                "Response length under attack", "tokens before the first end token", lengths
            ),
            "The text that a reader sees. An end token in the middle (the breaker of MOSA) makes "
            "responses short; only judges named @canvas read the text behind it.",
        )


def _commit_figures(views: Views) -> Iterator[ReportFigure]:
    written = {subject: of for subject, of in views.writing.items() if of.times}
    series = {}
    for subject, of in written.items():
        columns = itertools.zip_longest(*of.times)  # None behind the end of a response
        known = [[time for time in column if time is not None] for column in columns]
        enough = [(float(i), times) for i, times in enumerate(known, 1) if len(times) >= MIN_CASES]
        if enough:
            series[subject] = [(position, rate_of(once(times))) for position, times in enough]
    if series:
        yield ReportFigure(
            "commit-order",
            LineChart(
                "The order in which positions are committed",
                "position in the response",
                "share of all steps done",
                series,
                (0.0, 1.0),
            ),
            "Plain requests, harmful and harmless; tokens before the first end token. A line that "
            "rises from left to right shows a subject that writes from left to right; stairs show "
            "the decoder's blocks, which it fills one after the other. Bands are 95 % intervals "
            f"over responses; the chart leaves out positions that fewer than {MIN_CASES} responses "
            "reach.",
        )
    length = max(of.length for of in views.writing.values())
    for number, (subject, of) in enumerate(written.items()):
        yield ReportFigure(
            f"commit-map-{number}",
            _commit_map(subject, of.times, length),
            "Of the positions that responses to plain requests reach: the share that each part of "
            "the denoising commits, the mean over responses. A diagonal means that the subject "
            "writes from left to right.",
        )


def _commit_map(subject: str, responses: Sequence[Sequence[float]], length: int) -> HeatMap:
    width = -(-length // NUM_BINS)
    columns = -(-length // width)
    shares: list[list[list[float]]] = [[[] for _ in range(columns)] for _ in range(NUM_BINS)]
    for times in responses:
        for x in range(-(-len(times) // width)):
            rows = [min(NUM_BINS - 1, int(t * NUM_BINS - 1e-9)) for t in times[x * width :][:width]]
            for y in range(NUM_BINS):
                shares[y][x].append(rows.count(y) / len(rows))
    return HeatMap(
        f"When each position is committed: {subject}",
        "position in the response (first of each class)",
        "share of all steps done",
        [float(i * width + 1) for i in range(columns)],
        [round((i + 1) / NUM_BINS, 2) for i in range(NUM_BINS)],
        [[rate_of(once(found)) if found else None for found in row] for row in shares],
        "share of positions",
    )


def _histogram(title: str, x_label: str, by_subject: Mapping[str, list[int]]) -> Histogram:
    """The values of each subject that has some."""
    values = {subject: found for subject, found in by_subject.items() if found}
    top = max(map(max, values.values()))
    width = -(-(top + 1) // NUM_BINS)
    num = -(-(top + 1) // width)
    shares = {}
    for subject, found in values.items():
        counts = Counter(value // width for value in found)
        shares[subject] = tuple(counts[i] / len(found) for i in range(num))
    return Histogram(
        title,
        x_label,
        tuple(float(i * width) for i in range(num + 1)),
        shares,
        {subject: len(found) for subject, found in values.items()},
    )


def position_figure(setup: ReportSetup, runs: Sequence[Run]) -> Iterator[ReportFigure]:
    """Success by the position at which the attack `prefill` fixes its phrase."""
    labels, judge = setup.labels, setup.judge
    points: dict[str, list[tuple[float, Interval]]] = {label: [] for label in labels.values()}
    num_unscored = 0
    for run, facts in zip(runs, setup.evidence.runs, strict=True):
        if not any(cell.attack == "prefill" for cell in facts.counts):
            continue
        for figure in figures_of(run, by_variant=True):
            word, _, number = figure.variant.partition(" ")
            is_asked = figure.judge == judge and figure.subject in labels
            if figure.attack != "prefill" or word != "position" or not is_asked:
                continue
            num_unscored += figure.num_unscored
            if figure.rate is not None:
                points[labels[figure.subject]].append((float(number), figure.rate))
    if max(map(len, points.values())) < 2:
        return
    series = {label: sorted(of, key=itemgetter(0)) for label, of in points.items() if of}
    yield ReportFigure(
        "prefill-position",
        LineChart(
            "Success by the position of a prefilled phrase",
            "position of the phrase's first token",
            "attack success rate",
            series,
            (0.0, 1.0),
        ),
        "The attack prefill fixes the same compliant phrase at one position of the response before "
        f"denoising begins. Judge {judge}; bars are 95 % intervals over cases. {num_unscored} "
        "cases are unscored.",
    )
