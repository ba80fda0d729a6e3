"""A run next to the tables of the MOSA paper (arXiv 2508.12398), as Markdown.

The paper's figures are on LLaDA, by its own judge (a rating above 3 of 5 by GPT-4.1) and by
StrongREJECT (both grades at 5 of 5). They stand here in percent, as published, and are shown as
shares. The paper gives no intervals and no number of prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mosa.evidence.figures import Figure, mean_over_attacks
from mosa.evidence.labels import length_of, marked, tries_of
from mosa.stats.rates import NOTHING, Rate, format_rate, format_value

JudgedPair = tuple[float, float]
"""By the paper's own judge, and by StrongREJECT."""

PAPER_ATTACKS = ("avatar", "tap", "speak_easy", "aos", "pal", "ept", "dia", "adv_prefix")
"""The eight, in the paper's order."""

MODELS = ("original", "initial", "MOSA")
ADVBENCH: dict[str, tuple[JudgedPair, JudgedPair, JudgedPair]] = {
    "avatar": ((74.5, 65.6), (23.5, 22.5), (14.3, 12.8)),
    "tap": ((79.1, 77.2), (29.6, 28.1), (4.5, 3.7)),
    "speak_easy": ((69.8, 57.4), (22.4, 23.3), (8.1, 12.9)),
    "aos": ((65.2, 62.9), (32.4, 25.9), (6.5, 5.4)),
    "pal": ((72.8, 67.1), (36.4, 24.5), (6.2, 4.5)),
    "ept": ((78.4, 72.3), (28.5, 22.0), (3.8, 7.1)),
    "dia": ((66.7, 64.2), (34.3, 28.6), (4.2, 7.7)),
    "adv_prefix": ((79.5, 70.1), (29.8, 27.2), (6.8, 3.5)),
}
"""Table 1: original, initial alignment and MOSA on AdvBench."""
HARMBENCH: dict[str, tuple[JudgedPair, JudgedPair, JudgedPair]] = {
    "avatar": ((76.8, 73.7), (25.6, 25.1), (14.7, 8.3)),
    "tap": ((79.2, 76.7), (29.8, 27.9), (7.5, 6.2)),
    "speak_easy": ((70.5, 66.3), (24.5, 22.4), (14.5, 13.2)),
    "aos": ((64.1, 61.3), (31.4, 28.3), (6.1, 5.2)),
    "pal": ((73.8, 70.8), (29.2, 27.5), (5.4, 6.4)),
    "ept": ((77.9, 75.8), (32.7, 31.8), (3.6, 2.2)),
    "dia": ((68.6, 65.1), (36.4, 32.3), (8.9, 7.2)),
    "adv_prefix": ((79.9, 78.4), (29.9, 28.7), (4.9, 4.1)),
}
"""Table 2: the same on HarmBench."""
ADAPTIVE: dict[str, JudgedPair] = {"tap": (5.1, 4.4), "ept": (3.8, 4.2), "adv_prefix": (4.5, 5.1)}
"""Table 4: MOSA under attacks aimed at the middle; the benchmark is not named."""


def beside_the_paper(results: Sequence[Figure]) -> Iterator[str]:
    """A judge's results and the paper's, line by line; nothing where there are none of the eight.

    Presets that begin with `middle` are the adaptive attacks and have their own table.
    """
    found = [figure for figure in results if figure.attack in PAPER_ATTACKS]
    plain = [figure for figure in found if not figure.preset.startswith("middle")]
    adaptive = [figure for figure in found if figure.preset.startswith("middle")]
    if plain:
        tables = {"paper, AdvBench": ADVBENCH, "paper, HarmBench": HARMBENCH}
        paper = [f"{name}: {' / '.join(MODELS)}" for name in tables]
        published = {
            row: [_published(table[row]) for table in tables.values()] for row in PAPER_ATTACKS
        }
        published["mean"] = [_published(_means(table)) for table in tables.values()]
        yield from _table(plain, _means_over_the_eight(plain), paper, published)
    if adaptive:
        published = {attack: [_published((pair,))] for attack, pair in ADAPTIVE.items()}
        yield ""
        yield "Aimed at the middle of the response:"
        yield ""
        yield from _table(adaptive, {}, ["paper, MOSA"], published)


def _table(
    found: Sequence[Figure],
    means: dict[str, Rate],
    paper: Sequence[str],
    published: dict[str, list[str]],
) -> Iterator[str]:
    subjects = list(dict.fromkeys(figure.subject for figure in found))
    yield f"| attack | by | tokens | {' | '.join((*subjects, *paper))} |"
    yield f"|---|---|---|{'---|' * (len(subjects) + len(paper))}"
    cells = {(figure.attack, figure.preset, figure.subject): figure for figure in found}
    rows = sorted(
        {(figure.attack, figure.preset) for figure in found},
        key=lambda row: (PAPER_ATTACKS.index(row[0]), row[1]),
    )
    for attack, preset in rows:
        of_row = [f for f in found if (f.attack, f.preset) == (attack, preset)]
        label = marked(f"{attack}:{preset}", of_row)
        own = [cell_of(cells.get((attack, preset, subject))) for subject in subjects]
        shown = (*own, *published.get(attack, [NOTHING] * len(paper)))
        yield f"| {label} | {tries_of(of_row)} | {length_of(of_row)} | {' | '.join(shown)} |"
    if means:
        own = [format_rate(means.get(subject), with_n=True) for subject in subjects]
        shown = (NOTHING, length_of(found), *own, *published["mean"])
        yield f"| {marked('mean', found)} | {' | '.join(shown)} |"


def _means_over_the_eight(found: Sequence[Figure]) -> dict[str, Rate]:
    """The mean of each model that has all eight attacks once: of its cases that all have a score
    for, so that the interval is one over cases and seeds."""
    means = {}
    for subject in dict.fromkeys(figure.subject for figure in found):
        rows = [figure for figure in found if figure.subject == subject]
        rate = mean_over_attacks(rows).rate
        if sorted(figure.attack for figure in rows) == sorted(PAPER_ATTACKS) and rate is not None:
            means[subject] = rate
    return means


def cell_of(figure: Figure | None) -> str:
    """Success rate and mean score of a figure, as a table shows it, and any-of-N where one try was
    selected; `NOTHING` without a score."""
    if figure is None or figure.score is None:
        return NOTHING
    shown = f"{format_rate(figure.rate, with_n=True)}; {format_value(figure.score.value)}"
    if figure.decides != "best rated":
        return shown
    return f"{shown}; any of {figure.most_tries}: {format_rate(figure.any_rate)}"


def _published(pairs: Sequence[JudgedPair]) -> str:
    """Both judges' figures for each model, as shares with the digits that are published."""
    return " / ".join(f"{own / 100:.3f} ({strict / 100:.3f})" for own, strict in pairs)


def _means(table: dict[str, tuple[JudgedPair, JudgedPair, JudgedPair]]) -> list[JudgedPair]:
    return [
        (sum(own for own, _ in pairs) / len(pairs), sum(strict for _, strict in pairs) / len(pairs))
        for pairs in zip(*table.values(), strict=True)
    ]
