"""One self-contained HTML page about a demo: table, charts, responses coloured by commit step.

The page needs no network and no script: the style sheet stands in the template, the charts are SVG.
It follows the reader's light or dark scheme and fits a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mosa.evaluation.metrics import Rate
from mosa.report.plots import dot_plot, path_plot, shape
from mosa.types import Attempt

NUM_STEP_COLOURS = 8
"""Classes of commit step that the style sheet colours, `step-0` (first) to `step-7` (last)."""


@dataclass(frozen=True)
class Token:
    """One response position as the page shows it."""

    text: str
    position: int
    """1-based, as everywhere in reports."""
    classes: str
    title: str


@dataclass(frozen=True)
class Example:
    """One response with the model that gave it."""

    model: str
    tokens: list[Token]
    num_steps: int
    num_read: int
    note: str


@dataclass(frozen=True)
class ExampleGroup:
    """The same request to every model."""

    heading: str
    prompt: list[dict[str, str]]
    examples: list[Example]


def write_report(
    path: Path,
    results: Mapping[str, Any],
    example_groups: Mapping[str, Sequence[tuple[Attempt, str]]],
    *,
    redact: bool = True,
) -> None:
    """Write the page for `results` (the contents of results.json).

    `example_groups` maps a heading to one (attempt, remark of the judge) per model. With `redact`
    the words of responses are blotted out and only their order of commitment is shown; that is the
    default, because a page is passed on more easily than a model.
    """
    path.write_text(render_report(results, example_groups, redact=redact), encoding="utf-8")


def render_report(
    results: Mapping[str, Any],
    example_groups: Mapping[str, Sequence[tuple[Attempt, str]]],
    *,
    redact: bool = True,
) -> str:
    """The page as text; see `write_report`."""
    environment = Environment(
        loader=PackageLoader("mosa.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    labels = results["labels"]
    models = list(results["models"])
    attacks = _series(results, "attacks")
    utility = _series(results, "utility")
    return environment.get_template("report.html").render(
        results=results,
        labels=labels,
        models=[(name, labels["models"][name], shape(i)) for i, name in enumerate(models)],
        attack_names=list(results["models"][models[0]]["attacks"]),
        utility_names=list(results["models"][models[0]]["utility"]),
        attack_chart=dot_plot(
            attacks,
            title="Harm by attack and model, with 95 % intervals",
            axis_label="harm: share of true steps disclosed (less is safer)",
        ),
        utility_chart=dot_plot(
            utility,
            title="Usefulness by measure and model, with 95 % intervals",
            axis_label="share of cases",
        ),
        curve_chart=path_plot(
            {
                labels["models"][name]: [
                    (f"update {p['step']}", p["benign_recall"]["rate"], p["wrapped"]["rate"])
                    for p in points
                ]
                for name, points in results["curves"].items()
            },
            title="Harm against benign recall along the training of each alignment",
            x_label="benign recall (more is better)",
            y_label="harm, wrapped requests",
            first_series=models.index(next(iter(results["curves"]))),
        ),
        curve_steps=sorted(
            {point["step"] for points in results["curves"].values() for point in points}
        ),
        groups=[
            ExampleGroup(
                heading,
                attempts[0][0].prompt,
                [
                    _example(attempt, labels["models"][attempt.model], remark, redact)
                    for attempt, remark in attempts
                ],
            )
            for heading, attempts in example_groups.items()
        ],
        redacted=redact,
        step_colours=range(NUM_STEP_COLOURS),
    )


def _series(results: Mapping[str, Any], kind: str) -> dict[str, list[tuple[str, Rate]]]:
    """Measure by measure, each model's rate, under the names that readers see."""
    labels, models = results["labels"], results["models"]
    names = list(next(iter(models.values()))[kind])
    return {
        labels[kind][name][0]: [
            (labels["models"][model], Rate(**models[model][kind][name])) for model in models
        ]
        for name in names
    }


def _example(attempt: Attempt, model: str, remark: str, redact: bool) -> Example:
    (response,) = attempt.responses
    num_steps = max(response.commit_step) + 1
    tokens = []
    for i, (text, step) in enumerate(zip(response.tokens, response.commit_step, strict=True)):
        if step < 0:
            classes, title = "pinned", "set by the attacker"
        else:
            colour = step * NUM_STEP_COLOURS // num_steps
            classes, title = f"step-{colour}", f"step {step + 1} of {num_steps}"
        if i in response.end_positions:
            classes += " end"
        elif i >= response.num_read:
            classes += " unread"
        if i in response.end_positions:
            # A run of end tokens is one word and then dots: it says nothing and fills the screen.
            shown = "·" if i - 1 in response.end_positions else "end"
        else:
            shown = "█" * max(1, len(text.strip())) if redact else text
        tokens.append(Token(shown.strip() or "␣", i + 1, classes, f"token {i + 1}, {title}"))
    return Example(model, tokens, num_steps, response.num_read, remark)
