"""The page: whole without anything else, true to its content, small, and silent where redacted."""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser

import pytest
from page_content import (
    ATTACKS,
    HOSTILE,
    JUDGES,
    PAPER,
    REQUEST,
    SECRET,
    SUBJECTS,
    TITLES,
    WORDS,
    make_content,
    redacted_in_name_only,
    some_rate,
)
from refusals import refuses

from mosa.evidence.findings import HeatMap, LineChart
from mosa.player import NUM_STEP_COLOURS
from mosa.reporting import charts
from mosa.reporting.content import (
    Content,
    Histogram,
    Measure,
    Named,
    Overview,
    Paths,
    Points,
    ReportFigure,
    ReportTable,
    Section,
)
from mosa.reporting.page import COLOURS, render_page, write_page
from mosa.reporting.sample_data import keeping_order, pack
from mosa.reporting.tables import (
    FORMATS,
    chart_table,
    escape_latex,
    named_tables,
    shown,
    to_csv,
    to_json,
    to_latex,
    write_tables,
)
from mosa.stats.rates import Interval, Rate

VOID = {"meta", "input", "br", "img", "hr", "link", "wbr"}


class Page(HTMLParser):
    """Tags with their attributes, visible text, scripts by id, and tables as lists of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._script = self._table = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self._script = attributes.get("id", "page")
        if attributes.get("id", "").startswith(("table-", "figure-")):
            self._table = attributes["id"]
        if tag == "table":
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("th", "td"):
            self.tables[self._table][-1].append("")
        if tag == "small" and {"th", "td"} & set(self.open):
            self.tables[self._table][-1][-1] += " | "

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[self._script] = data
        elif self.open[-1:] != ["style"]:
            self.text += data
            if {"th", "td"} & set(self.open):
                self.tables[self._table][-1][-1] += data.strip()


def unpacked(text: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def content() -> Content:
    return make_content()


@pytest.fixture(scope="module")
def html(content) -> str:
    return render_page(content)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


# ------------------------------------------------------------------------------ one whole file


def test_page_is_self_contained(html, page):
    """Tags nest; nothing names another file or address; only our own script can run."""
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert not {"link", "img", "iframe", "object", "base"} & set(tags)
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#") or (tag, attributes["href"]) == (
            "a",
            PAPER,
        )
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\((?!#)", html.replace(PAPER, ""))
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
    digest = hashlib.sha256(page.scripts["page"].encode()).digest()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_ids_are_unique_and_what_is_pointed_at_exists(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    for _, attributes in page.tags:
        for key in ("href", "aria-labelledby", "clip-path"):
            for name in attributes.get(key, "").replace(PAPER, "").split():
                place = name.removeprefix("url(").rstrip(")").removeprefix("#")
                assert place.partition("=")[0] in ids  # #samples=... is the browser, filtered


def test_text_from_outside_is_shown_as_it_is(page, content):
    """The hostile sentence, paragraph and cell are read as they are and make no tags."""
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert len(scripts) == 3
    assert page.text.count(HOSTILE) == 3
    assert page.tables["table-disagreement"][1][0] == HOSTILE
    for sentence in (*content.verdict, *content.cautions):
        assert sentence in page.text


def test_hostile_names_everywhere():
    """A subject, a judge, a title, a label and a section of that name break nothing."""
    chart = LineChart(HOSTILE, HOSTILE, "$x_2$", {HOSTILE: [(1.0, Interval(0.5, 4, 0.2, 0.8))]})
    table = ReportTable(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), ((HOSTILE,),), judge=HOSTILE)
    section = Section(
        HOSTILE, HOSTILE, (HOSTILE,), (table,), (ReportFigure(HOSTILE, chart, HOSTILE),)
    )
    page = Page(
        render_page(
            Content(
                title=HOSTILE,
                verdict=(HOSTILE,),
                cautions=(HOSTILE,),
                subjects={HOSTILE: HOSTILE},
                judges={HOSTILE: HOSTILE, "other": "other"},
                overview=Overview(
                    HOSTILE, {HOSTILE: (Measure(HOSTILE, some_rate(0.5), True, HOSTILE),)}
                ),
                names={HOSTILE: Named(HOSTILE, "", HOSTILE, HOSTILE)},
                sections=(section, section),
            )
        )
    )
    assert page.open == []
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) > 20
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_commands_in_sentences(content):
    """What stands between backticks is set as code, and still cannot make a tag."""
    cautions = ("Run `mosa judge`, then `a<b>`.", "One ` alone.")
    html = render_page(
        dataclasses.replace(
            content, cautions=cautions, samples=[], sections=(), overview=Overview()
        )
    )
    assert "Run <code>mosa judge</code>, then <code>a&lt;b&gt;</code>." in html
    assert "One ` alone." in html


def test_equal_content_gives_equal_bytes(html):
    assert render_page(make_content()) == html


# -------------------------------------------------------------------------------------- tables


def cell_text(cell, arrow: str = "") -> str:
    """A cell as a reader should see it, written down a second time."""
    if isinstance(cell, Interval):
        return f"{cell.value:.2f}{arrow} | {cell.low:.2f} to {cell.high:.2f}, n={cell.n}"
    if cell is None:
        return "–"
    if isinstance(cell, float) and 0 < cell < 0.001:
        return "< 0.001"
    if isinstance(cell, float):
        return f"{cell:.2f}" if cell == 0.0 or abs(cell) >= 0.1 else f"{cell:.2}"
    return TITLES.get(cell, str(cell))


def arrows_of(table: ReportTable, row: str, column: str) -> str:
    """For each subject that can be compared with, in their order."""
    changes = (found.get((row, column)) for found in table.changes.values())
    return "".join("\u25bc" if change.is_safer else "\u25b2" for change in changes if change)


def test_tables_match_the_data(page, content):
    """Every cell of every table, those behind the charts included."""
    names = iter(named_tables(content))
    assert next(names)[0] == "trade-off"
    for section in content.sections:
        tables = [("table", table) for table in section.tables]
        tables += [("figure", chart_table(f.name, f.chart)) for f in section.figures]
        for kind, table in tables:
            name, _ = next(names)
            wanted = [list(table.columns)]
            wanted += [
                [
                    cell_text(cell, arrows_of(table, str(row[0]), column))
                    for column, cell in zip(table.columns, row, strict=True)
                ]
                for row in table.rows
            ]
            assert page.tables[f"{kind}-{name}"] == wanted
    assert next(names, None) is None
    assert len(page.tables) > 15


def test_heat_cells_carry_their_rate(html, content):
    (table,) = [t for s in content.sections for t in s.tables if t.is_heat and t.judge == JUDGES[0]]
    part = html.split('id="table-attacks-truth-2-world-0"')[1].split("</table>")[0]
    carried = [float(value) for value in re.findall(r'style="--v: ([\d.]+)"', part)]
    rates = [cell.value for row in table.rows for cell in row[1:] if isinstance(cell, Rate)]
    assert carried == pytest.approx(rates, abs=5e-4)
    assert len(carried) == len(ATTACKS) * len(SUBJECTS) - 1


def test_each_judge_has_its_table_and_switch(page):
    """Where there is no script, all of them are there to be read."""
    judged = [a["data-judge"] for _, a in page.tags if "data-judge" in a]
    assert Counter(judged) == dict.fromkeys(JUDGES, 2 + len(SUBJECTS))
    places = [a["name"] for t, a in page.tags if t == "input" and a.get("value") == JUDGES[1]]
    assert sorted(places) == ["judge-attacks", "judge-samples", "judge-scoreboard"]
    hidden = [a for _, a in page.tags if "hidden" in a and a.get("class", "")[:6] != "change"]
    assert [a["id"] for a in hidden] == ["browser-body"]


def test_what_is_open_comes_first_and_then_the_samples(page, content):
    anchors = [a["id"] for t, a in page.tags if t == "section"]
    folded = [section.name for section in content.sections if not section.is_open]
    assert anchors == ["verdict", "attacks", "samples", *folded]
    assert sum(a.get("class") == "fold chapter" for _, a in page.tags) == len(folded)


def test_the_first_screen_has_the_figures_of_each_subject(page, content):
    """A rate, its interval and its place on the scale; a dash for what was not measured."""
    overview = content.overview
    assert overview.headline in page.text
    gauges = [a["style"] for _, a in page.tags if a.get("class", "").startswith("gauge")]
    rates = [m.rate for tile in overview.tiles.values() for m in tile if m.rate is not None]
    assert len(gauges) == len(rates) == 11
    for style, rate in zip(gauges, rates, strict=True):
        at = [float(number) for number in re.findall(r"([\d.]+)%", style)]
        assert at == pytest.approx([100 * x for x in (rate.low, rate.value, rate.high)], abs=0.06)
    assert page.text.count("not measured\n") == 1
    places = [int(a["data-sample"]) for _, a in page.tags if "data-sample" in a]
    assert places == [place for row in overview.showcase.rows.values() for place in row]


def test_words_of_the_testbed_are_there_without_a_script(content):
    """They stand in the text of the page where nothing in them can be harmful, and nowhere else."""
    first = content.samples[0].responses[0]
    words = " ".join((first.tokens or ())[: min(first.end_positions)])
    assert words not in Page(render_page(content)).text
    assert words in Page(render_page(dataclasses.replace(content, shows_words=True))).text


def test_names_are_plain_and_lead_to_the_paper(html):
    assert f'<a href="{PAPER}" title="code_attack: to its paper" rel="noreferrer">' in html
    assert '<span title="prefill">given answer beginning</span>' in html
    assert '<span title="truth/2/world-0">truth</span>' in html


# ------------------------------------------------------------------------------------- exports


def test_csv_parses_back(content):
    """A rate is four columns; None is empty."""
    table = next(t for s in content.sections for t in s.tables if t.name == "attacks")
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0][:6] == ["attack", "Original", "Original low", "Original high", "Original n"] + [
        "Initial alignment"
    ]
    for row, read in zip(table.rows, rows[1:], strict=True):
        assert read[0] == row[0]
        for i, cell in enumerate(row[1:]):
            four = read[1 + 4 * i : 5 + 4 * i]
            if cell is None:
                assert four == [""] * 4
            else:
                assert isinstance(cell, Rate)
                assert [float(x) for x in four] == [cell.value, cell.low, cell.high, cell.n]


def test_a_spreadsheet_runs_no_cell_of_a_table(content):
    table = next(t for s in content.sections for t in s.tables if t.name == "attacks")
    hostile = dataclasses.replace(table, columns=("=1", "+a"), rows=(("@x", -0.5), ("a=b", None)))
    rows = list(csv.reader(io.StringIO(to_csv(hostile))))
    assert rows == [["'=1", "'+a"], ["'@x", "-0.5"], ["a=b", ""]]


def test_json_parses_back(content):
    for _, table in named_tables(content):
        read = json.loads(to_json(table))
        assert read["columns"] == list(table.columns)
        assert read["judge"] == (table.judge or None)
        for row, cells in zip(table.rows, read["rows"], strict=True):
            for cell, found in zip(row, cells, strict=True):
                if isinstance(cell, Interval):
                    value = found.pop("rate" if isinstance(cell, Rate) else "value")
                    assert type(cell)(value=value, **found) == cell
                else:
                    assert found == cell


def test_latex_of_a_small_table():
    table = ReportTable(
        "small",
        "Harm & cost",
        "In 100 % of_cases.",
        ("subject", "harm", "tokens"),
        (("a_b", some_rate(0.85), 12), ("<c>", None, None), ("d", some_rate(0.5, 8), 3)),
        judge="truth/1",
    )
    assert to_latex(table) == (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{Harm \\& cost. In 100 \\% of\\_cases. Judge: truth/1.}\n"
        "\\label{tab:small-truth-1}\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "subject & harm & tokens \\\\\n"
        "\\midrule\n"
        "a\\_b & 0.85 (0.64 to 0.95) & 12 \\\\\n"
        "\\textless{}c\\textgreater{} & -- & -- \\\\\n"
        "d & 0.50 (0.22 to 0.78) & 3 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par\\smallskip{\\footnotesize n: harm 8 to 20. 95 \\% intervals in parentheses.}\n"
        "\\end{table}\n"
    )


def test_latex_escapes_all_that_latex_reads():
    escaped = escape_latex("\\ ~ ^ < > | & % $ # _ { } – \n")
    bare = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", escaped)
    assert not re.search(r"[\\~^<>|&%$#_{}\n]", bare)


def test_one_case_has_no_interval():
    """An estimate of one case; the ends are not numbers, and JSON has no word for that."""
    lone = Interval(0.25, 1, float("nan"), float("nan"))
    table = ReportTable("lone", "Lone", "", ("x", "y"), (("a", lone),))
    assert "a & 0.25 \\\\" in to_latex(table)
    assert to_csv(table) == "x,y,y low,y high,y n\na,0.25,,,1\n"
    assert json.loads(to_json(table))["rows"] == [
        ["a", {"value": 0.25, "n": 1, "low": None, "high": None}]
    ]


def test_page_carries_what_the_command_line_writes(page, content, tmp_path):
    carried = unpacked(page.scripts["exports"])
    *paths, _ = write_tables(tmp_path / "tables", content)
    assert len(paths) == len({path.name.lower() for path in paths}) == 3 * len(carried)
    for path in paths:
        assert path.read_text(encoding="utf-8") == carried[path.stem][path.suffix[1:]]
    assert {path.suffix[1:] for path in paths} == set(FORMATS)
    saved = {a["data-save"] for _, a in page.tags if "data-save" in a}
    assert saved == set(carried)


def test_the_summary_has_the_figures_of_the_first_screen(content, tmp_path):
    path = write_tables(tmp_path / "tables", content)[-1]
    assert path.name == "summary.json"
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["headline"] == content.overview.headline and read["judge"] == JUDGES[0]
    assert read["cautions"] == list(content.cautions)
    initial = read["subjects"]["Initial alignment"]
    assert initial["attacks_succeed"]["rate"] == 0.6 and initial["attacks_succeed"]["n"] == 20
    assert initial["harmless_answered"].keys() >= {"rate", "low", "high", "n"}
    assert initial["tasks_solved"] is None


def test_tables_of_one_name_get_files_of_their_own():
    table = ReportTable("a/b", "T", "", ("x",), ((1,),))
    content = dataclasses.replace(
        make_content(num_samples=0),
        sections=(
            Section(
                "s",
                "S",
                (),
                (
                    table,
                    table,
                    dataclasses.replace(table, judge="j"),
                    dataclasses.replace(table, judge="j", base="b"),
                ),
            ),
        ),
    )
    names = [name for name, _ in named_tables(content)]
    assert names == ["trade-off", "a-b", "a-b-2", "a-b-j", "a-b-b-j"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (6e-08, "< 0.001"),
        (float("nan"), "–"),
        (0.0, "0.00"),
        (-0.001, "-0.001"),
        (12.5, "12.50"),
        (3, "3"),
        (Interval(-0.001, 5, -0.1, 0.1), "0.00"),
    ],
)
def test_cells_are_shown(cell, text):
    assert shown(cell) == text


# ------------------------------------------------------------------------------------- samples


def read_samples(data: dict) -> list[dict]:
    """What a reader of the packed data gets: a record for each sample."""
    records = data["samples"]
    for place, responses in data["texts"]:
        for response in responses:
            if response["tokens"] is not None:
                response["tokens"] = [data["words"][word] for word in response["tokens"]]
        records[place]["responses"] = responses
    return records


def test_samples_survive_the_packing(page, content):
    records = read_samples(unpacked(page.scripts["data"]))
    assert len(records) == len(content.samples)
    for record, sample in zip(records, content.samples, strict=True):
        assert record["subject"] == sample.subject and record["threat"] == sample.threat
        assert record["attack"] == sample.attack
        assert record["request"] == sample.request
        assert record["case_set"] == sample.case_set
        assert record["queries"] == sample.queries
        assert record["is_garbled"] == sample.is_garbled
        assert record["outcomes"] == sample.outcomes and record["scores"] == sample.scores
        for written, response in zip(record["responses"], sample.responses, strict=True):
            assert tuple(written["commit_step"]) == response.commit_step
            assert tuple(written["end_positions"]) == response.end_positions
            assert tuple(written["tokens"]) == response.tokens
            assert tuple(map(tuple, written["prompt"])) == response.prompt


@pytest.mark.parametrize("make", [lambda: make_content(is_redacted=True), "in name only"])
def test_redaction_leaves_no_word(make):
    """Neither words nor their number of letters: the order of commitment and nothing else.

    The second content says that it is redacted while its samples still hold every word.
    """
    content = redacted_in_name_only(make_content()) if isinstance(make, str) else make()
    html = render_page(content)
    page = Page(html)
    data = unpacked(page.scripts["data"])
    whole = html + json.dumps(data, ensure_ascii=False)
    assert SECRET not in whole
    assert "answer politely" not in whole
    assert REQUEST.split("{")[0] not in whole
    assert "endoftext" not in whole
    ours = page.scripts["page"] + page.text
    words = set(re.findall(r"[a-z]+", json.dumps(data))) - set(re.findall(r"[a-z]+", ours))
    # Behaviors' ids and names of variants are no output: "copper kiln", "variant 1".
    assert words & set(WORDS) <= {"copper", "kiln"}
    for record in read_samples(data):
        assert record["request"] is None
        for response in record["responses"]:
            assert response["tokens"] is None
            assert response["prompt"] is None
            assert len(response["commit_step"]) == 72
    assert "are not in this file" in page.text
    assert 'id="show-all"' not in html


def test_half_a_character_does_not_stop_the_page(content):
    """A model may write half of a surrogate pair as a token."""
    first = content.samples[0]
    response = dataclasses.replace(
        first.responses[0], tokens=("\ud83d",) * len(first.responses[0].commit_step)
    )
    samples = [dataclasses.replace(first, responses=(response,))]
    page = Page(
        render_page(dataclasses.replace(content, samples=samples, sections=(), overview=Overview()))
    )
    (record,) = read_samples(unpacked(page.scripts["data"]))
    assert set(record["responses"][0]["tokens"]) == {"?"}


# ---------------------------------------------------------------------------------------- size


@pytest.fixture(scope="module")
def large() -> Content:
    """10,000 tries of 128 tokens."""
    return make_content(num_samples=10_000, num_tokens=128)


def test_ten_thousand_tries_fit_into_five_megabytes(large):
    html = render_page(large)
    assert len(html.encode()) <= 5_000_000
    data = unpacked(Page(html).scripts["data"])
    assert len(data["samples"]) == 10_000
    assert len(data["texts"]) == 10_000
    assert "So that the page stays small" not in html


def test_page_is_cut_evenly_and_says_so(large):
    """At 1,500,000 bytes: all outcomes, and of each kind of sample its share of texts."""
    limit = 1_500_000
    html = render_page(large, max_bytes=limit)
    assert 0.97 * limit < len(html.encode()) <= limit
    data = unpacked(Page(html).scripts["data"])
    kept = {place for place, _ in data["texts"]}
    assert 1_000 < len(kept) < 9_000
    assert f"it has the responses of {len(kept):,} of them" in html
    assert len(data["samples"]) == 10_000

    def kind(place: int) -> tuple[str, str, str]:
        sample = large.samples[place]
        outcome = sample.outcomes.get(JUDGES[0]) or sample.outcomes["compliance/1"]
        return sample.subject, sample.attack, outcome

    there = Counter(kind(place) for place in range(len(large.samples)))
    share = Counter(kind(place) for place in kept)
    most = max(share.values())
    for name, count in there.items():
        assert share[name] >= min(count, most - 1)
    assert len(there) > 40


def test_the_case_of_the_first_screen_is_kept_first(content):
    assert set(keeping_order(content)[:4]) == {0, 3, 4, 7}


def test_what_is_kept_is_spread(content):
    """The first half of what is kept of one kind is not the first half of its tries."""
    order = keeping_order(dataclasses.replace(content, judges={}, overview=Overview()))
    assert sorted(order) == list(range(len(content.samples)))
    alike = [i for i in order if content.samples[i].subject == "Original"]
    half = alike[: len(alike) // 2]
    assert 0.4 < sum(i < 120 for i in half) / len(half) < 0.6


def test_samples_without_responses_are_counted(content):
    bare = [
        dataclasses.replace(sample, responses=()) if i % 2 else sample
        for i, sample in enumerate(content.samples)
    ]
    html = render_page(dataclasses.replace(content, samples=bare, overview=Overview()))
    assert "it has the responses of 120 of them" in html


def test_a_page_that_cannot_be_small_enough_is_refused(content):
    assert pack(content, 1_000) is None
    with refuses("100,000 bytes"):
        render_page(content, max_bytes=100_000)


def test_page_is_written_whole(content, html, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_page(path, content)
    digest = hashlib.sha256(html.encode()).hexdigest()
    assert path.read_text(encoding="utf-8") == html.replace("0" * 64, digest, 1)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").touch()
    with refuses("report.html"):
        write_page(tmp_path / "file" / "report.html", content)


# -------------------------------------------------------------------------------------- charts


def all_charts(content: Content) -> dict[str, charts.AnyChart]:
    assert content.overview.picture is not None
    return {"trade-off": content.overview.picture.chart} | {
        figure.name: figure.chart for s in content.sections for figure in s.figures
    }


@pytest.mark.parametrize("name", ["trade-off", "prefill", "order", "map", "refusal-start"])
def test_chart_follows_the_page(content, name):
    """No colour and no font of its own; equal charts, equal bytes; ids begin with the name."""
    chart = all_charts(content)[name]
    svg = charts.draw_chart(chart, "here", list(SUBJECTS))
    assert svg == charts.draw_chart(chart, "here", list(SUBJECTS))
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|xmlns|NaN", svg)
    assert all(found.startswith("here-") for found in re.findall(r'id="([^"]+)"', svg))
    head = re.search(r'^<svg class="chart" viewBox="0 0 380 \d+" role="img"', svg)
    assert head
    assert f'<title id="here-title">{chart.title}</title>' in svg
    assert charts.describe(chart) in unescape(svg)


def axis(svg: str, kind: str) -> tuple[float, float]:
    """Scale and offset of the axis, from the text of its ticks.

    Ticks at the bottom are centred, those at the left end at the axis; their text stands a fixed
    distance below the middle, which does not change the scale.
    """
    anchor = {"x": "middle", "y": "end"}[kind]
    ticks = re.findall(
        rf'text-anchor: {anchor}[^>]* x="([\d.]+)" y="([\d.]+)">(-?[\d.]+)</text>', svg
    )
    places = [(float(text), float(at["xy".index(kind)])) for *at, text in ticks]
    (v0, p0), (v1, p1) = places[0], places[-1]
    scale = (p1 - p0) / (v1 - v0)
    return scale, p0 - scale * v0


def marks(svg: str, index: int) -> list[tuple[float, float]]:
    found = re.findall(
        rf'<use href="[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--series-{index}\)', svg
    )
    return [(float(x), float(y)) for x, y in found]


def test_lines_place_their_marks(content):
    """Each subject keeps its colour; along both axes a mark stands where its estimate says."""
    chart = all_charts(content)["prefill"]
    assert isinstance(chart, LineChart)
    svg = charts.draw_chart(chart, "x", list(SUBJECTS))
    (kx, x0), (ky, _) = axis(svg, "x"), axis(svg, "y")
    rows = list(chart.series.values())
    for index, points in enumerate(rows):
        found = marks(svg, index)
        assert len(found) == len(points)
        for (px, py), (x, estimate) in zip(found, points, strict=True):
            assert px == pytest.approx(kx * x + x0, abs=0.1)
            base = rows[0][0][1].value
            assert py - marks(svg, 0)[0][1] == pytest.approx(ky * (estimate.value - base), abs=0.1)


def test_points_and_paths_place_their_marks(content):
    for name in ("trade-off", "training"):
        chart = all_charts(content)[name]
        svg = charts.draw_chart(chart, "x", list(SUBJECTS))
        (kx, x0), (ky, _) = axis(svg, "x"), axis(svg, "y")
        if isinstance(chart, Points):
            wanted = [[(x.value, y.value)] for x, y, _ in chart.points.values()]
            first, hollow = 0, [1]
        else:
            assert isinstance(chart, Paths)
            wanted = [[(x.value, y.value) for _, x, y in p] for p in chart.series.values()]
            first, hollow = 1, []
        offset = None
        for index, points in enumerate(wanted, start=first):
            if index in hollow:
                assert marks(svg, index) == []
                assert re.search(rf'style="fill: none; stroke: var\(--series-{index}\)', svg)
                continue
            found = marks(svg, index)
            assert len(found) == len(points)
            for (px, py), (x, y) in zip(found, points, strict=True):
                assert px == pytest.approx(kx * x + x0, abs=0.1)
                offset = py - ky * y if offset is None else offset
                assert py == pytest.approx(ky * y + offset, abs=0.1)


def test_map_colours_its_cells_by_size():
    """2 x 2: 0, 1/2, 1 and nothing; three depths of colour, one of them of a cell at 0."""

    def cell(value: float) -> Interval:
        return Interval(value, 4, 0.0, 1.0)

    chart = HeatMap(
        "m", "x", "y", [1.0, 2.0], [1.0, 2.0], [[cell(0.0), cell(0.5)], [cell(1.0), None]], "harm"
    )
    svg = charts.draw_chart(chart, "m")
    depths = re.findall(r"rgb\(var\(--heat\) / calc\(var\(--heat-most\) \* ([\d.]+)\)\)", svg)
    assert [float(depth) for depth in depths] == pytest.approx([0.04, 0.501, 1.0], abs=0.03)
    assert re.findall(r">(\d\.\d\d)</text>", svg) == ["0.00", "0.50", "1.00"]


def test_bars_are_as_high_as_their_shares():
    chart = Histogram("h", "x", (0.0, 1.0, 2.0), {"a": (0.2, 0.8)}, {"a": 10})
    svg = charts.draw_chart(chart, "h")
    assert "a (n = 10)" in svg
    path = re.search(r'<path d="([^"]+)"[^>]*style="fill: var\(--series-0\)', svg)
    assert path
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML] ([\d.]+ [\d.]+)", path[1])]
    heights = sorted({round(y, 1) for _, y in points}, reverse=True)
    floor, low, high = heights
    assert (floor - high) / (floor - low) == pytest.approx(4.0, abs=0.05)


def test_a_series_without_points_is_no_obstacle():
    chart = LineChart("t", "x", "y", {"a": [], "b": [(1.0, Interval(0.5, 4, 0.2, 0.8))]})
    svg = charts.draw_chart(chart, "t")
    assert marks(svg, 0) == []
    assert len(marks(svg, 1)) == 1


def test_subjects_keep_their_colour_and_marker():
    assert charts.series_indices(["MOSA (paper)", "Original"], list(SUBJECTS)) == [2, 0]
    assert charts.series_indices(["MOSA (paper)", "a phrase"], list(SUBJECTS)) == [0, 1]
    shapes = [re.findall(r' d="([^"]+)"', charts.mark(i))[-1] for i in range(8)]
    assert len(set(shapes)) == 8
    legend = charts.chart_legend(Paths("t", "x", "y", {"Original": []}), list(SUBJECTS))
    ((mark, label),) = legend
    assert label == "Original" and "var(--series-0)" in mark


# ------------------------------------------------------------------------------------- colours


def linear(colour: str) -> list[float]:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def contrast(one: str, other: str) -> float:
    """WCAG's ratio."""
    light = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(x), strict=True))
             for x in (one, other)]  # fmt: skip
    return (max(light) + 0.05) / (min(light) + 0.05)


def mixed(over: str, share: float, under: str) -> str:
    """An "r g b" colour of some opacity on a ground."""
    ground = [int(under[i : i + 2], 16) for i in (1, 3, 5)]
    channels = zip(map(int, over.split()), ground, strict=True)
    return "#" + "".join(f"{round(share * o + (1 - share) * g):02x}" for o, g in channels)


# Machado et al. 2009 (IEEE TVCG 15:1291), severity 1.
BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def times(matrix, vector) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def oklab(colour: str, blindness: str) -> list[float]:
    """The colour as it is seen, in Oklab (Ottosson 2020)."""
    seen = [min(1.0, max(0.0, c)) for c in times(BLINDNESS[blindness], linear(colour))]
    cones = times(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        seen,
    )
    return times(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        [cone ** (1 / 3) for cone in cones],
    )


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_series_can_be_told_apart(scheme):
    """3:1 against the card, and a distance in Oklab for each kind of colour blindness.

    0.07 is about four just noticeable differences; the first four series keep more.
    """
    colours = [pair[scheme] for pair in charts.SERIES_COLOURS]
    for colour in colours:
        assert contrast(colour, COLOURS["card"][scheme]) >= 3.0
    for blindness in BLINDNESS:
        seen = [oklab(colour, blindness) for colour in colours]
        for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
            distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
            assert distance >= (0.1 if j < 4 else 0.07), (blindness, colours[i], colours[j])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(scheme):
    """4.5:1 for words on every ground that they stand on; steps go one way in lightness."""
    colour = {name: pair[scheme] for name, pair in COLOURS.items()}
    for ground in ("page", "card", "tint"):
        assert contrast(colour["text"], colour[ground]) >= 7.0
        assert contrast(colour["soft"], colour[ground]) >= 4.5
    assert contrast(colour["pin"], colour["card"]) >= 3.0
    assert contrast(colour["good-ink"], colour["card"]) >= 4.5
    assert contrast(colour["accent"], colour["page"]) >= 3.0
    most = float(colour["heat-most"]) + 0.03
    for share in (0.0, 0.5, 1.0):
        cell = mixed(colour["heat"], share * most, colour["card"])
        assert contrast(colour["text"], cell) >= 4.5
    lights = []
    for step in range(NUM_STEP_COLOURS):
        assert contrast(colour[f"ink-{step}"], colour[f"step-{step}"]) >= 4.5, step
        lights.append(contrast(colour[f"step-{step}"], "#000000"))
    assert lights == sorted(lights, reverse=bool(scheme))
