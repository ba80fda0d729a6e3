"""The report: self-contained, faithful to results.json, and redacted unless asked otherwise."""

import re
from html.parser import HTMLParser

import pytest

from mosa.report.html import render_report


class Page(HTMLParser):
    """Tags with their attributes, and the text in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect", "circle", "path", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())


@pytest.fixture
def html(results, groups) -> str:
    return render_report(results, groups, redact=False)


def test_page_is_self_contained(html):
    """No script, no address of another file, nothing that a browser would fetch."""
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & attributes.keys()
    assert not re.search(r"https?://|url\(|@import", html)


def test_page_shows_each_rate_with_n_and_interval(html, results):
    shown = re.findall(
        r"(\d\.\d\d)<span class=\"ends\">(\d\.\d\d)–(\d\.\d\d), n=(\d+)</span>", html
    )
    models = results["models"].values()
    wanted = [
        model[kind][name]
        for kind in ("attacks",)
        for name in results["labels"][kind]
        for model in models
    ]
    wanted += [model["wrapped"] for model in models]
    wanted += [model["utility"][name] for name in results["labels"]["utility"] for model in models]
    assert [tuple(row) for row in shown] == [
        (f"{r['rate']:.2f}", f"{r['low']:.2f}", f"{r['high']:.2f}", str(r["n"])) for r in wanted
    ]


def test_chart_places_marks_and_intervals(html, results):
    """The axis runs from x = 12 (0) to x = 352 (1)."""
    chart = html.split('aria-label="Harm by attack')[1].split("</svg>")[0]
    rate = results["models"]["original"]["attacks"]["code"]
    title = f"Original: {rate['rate']:.2f}"
    row = chart.split(title)[1].split("</text></g>")[0]
    x = [float(v) for v in re.findall(r'x[12]="([\d.]+)"', row)]
    at = float(re.search(r"translate\(([\d.]+)", row)[1])  # pyright: ignore
    assert x == pytest.approx([12 + 340 * rate["low"], 12 + 340 * rate["high"]], abs=0.06)
    assert at == pytest.approx(12 + 340 * rate["rate"], abs=0.06)


def test_curve_places_its_points_and_keeps_the_models_colours(html, results):
    """The plot's square runs from (56, 312) at recall and harm 0 to (356, 12) at 1."""
    chart = html.split('aria-label="Harm against')[1].split("</svg>")[0]
    # The first aligned model is the second of all models.
    line = chart.split('<g class="series-1"><polyline class="path" points="')[1].split('"')[0]
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert len(points) == len(results["curves"]["initial"])
    for (x, y), point in zip(points, results["curves"]["initial"], strict=True):
        assert x == pytest.approx(56 + 300 * point["benign_recall"]["rate"], abs=0.06)
        assert y == pytest.approx(312 - 300 * point["wrapped"]["rate"], abs=0.06)
    assert "Initial alignment, update 90: " in chart


def test_every_point_of_the_curves_stands_in_their_table(html, results):
    table = html.split('<div class="card scroll curve">')[1].split("</table>")[0]
    shown = {}
    for row in table.split("<tr>")[2:]:
        step = int(re.search(r'<th scope="row">(\d+)</th>', row)[1])  # pyright: ignore
        shown[step] = re.findall(r">(\d\.\d\d), (\d\.\d\d)</td>", row)
    curves = results["curves"].values()
    assert list(shown) == sorted({point["step"] for points in curves for point in points})
    for step, cells in shown.items():
        assert cells == [
            (f"{p['wrapped']['rate']:.2f}", f"{p['benign_recall']['rate']:.2f}")
            for points in curves
            for p in points
            if p["step"] == step
        ]


def test_words_of_prompts_are_escaped(html):
    assert "&lt;copper&gt; kiln" in html


def test_tokens_show_step_breaker_and_what_nobody_reads(html):
    """Positions 1 and 2 are pinned; 31 is the breaker; what follows is struck through."""
    example = html.split('<p class="tokens">')[1].split("</p>")[0]
    tokens = re.findall(
        r'<span class="t ([^"]*)" title="token (\d+), ([^"]*)">([^<]*)</span>', example
    )
    assert len(tokens) == 96
    assert tokens[0][0] == "pinned"
    assert tokens[0][2] == "set by the attacker"
    assert tokens[30][0].endswith(" end")
    assert tokens[30][3] == "end"
    assert all("unread" not in classes for classes, *_ in tokens[:31])
    assert all("unread" in classes for classes, *_ in tokens[31:60])
    steps = [int(title.split()[1]) for _, _, title, _ in tokens[2:]]
    colours = [int(classes.split()[0].removeprefix("step-")) for classes, *_ in tokens[2:]]
    assert [c for _, c in sorted(zip(steps, colours, strict=True))] == sorted(colours)
    assert {0, 7} <= set(colours)
    # A run of end tokens is one word and dots.
    assert [text for *_, text in tokens[60:]] == ["end"] + ["·"] * 35


def test_redaction_is_the_default(results, groups):
    """Not one word of a response is left; the order of commitment is."""
    html = render_report(results, groups)
    examples = "".join(part.split("</p>")[0] for part in html.split('<p class="tokens">')[1:])
    texts = set(re.findall(r">([^<]+)</span>", examples)) - {"20", "60"}
    assert texts <= {"end", "·"} | {"█" * n for n in range(1, 20)}
    assert "Words are blotted out" in html
    assert examples.count("step-0") > 0
