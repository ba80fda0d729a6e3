"""`mosa analyze` on the testbed at toy size: what it writes, and that it goes on without work."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from probed_runs import SET, probed_run, verdict
from refusals import cli_refuses, refuses

import mosa
from mosa.api.probing import run_probes, write_finding
from mosa.cli import main
from mosa.cli.analyze import show_finding
from mosa.cli.tables import Page
from mosa.denoising import Denoiser
from mosa.evidence.findings import HeatMap, LineChart, findings_of
from mosa.probes import PROBES
from mosa.reporting.charts import describe, save
from mosa.runs.evaluate import EvaluateConfig
from mosa.runs.store import Run
from mosa.runs.subject import subjects_of
from mosa.stats.rates import Interval
from mosa.suffix_search import GcgSearch

TOY = {
    "position": ["--positions", "[1,30]", "--phrase_types", "[none,procedural,random]"],
    "suffix": ["--positions", "[1,20]", "--num_iterations", "2", "--num_candidates", "8"],
    "order": ["--block_lengths", "[24]", "--tokens_per_step", "[24]"],
    "step": ["--spans", "[compliant]", "--positions", "[1,30]", "--step_shares", "[0,0.5]"],
    "depth": ["--step_shares", "[0,0.5]"],
}
FEW_STEPS = {name: ["--tokens_per_step", "18"] for name in TOY} | {"order": []}
CHARTS = (
    LineChart("Lines", "x", "y", {"a": [(1.0, Interval(0.5, 2, 0.1, 0.9))]}, (0.0, 1.0)),
    HeatMap("Cells", "x", "y", [1.0, 2.0], [0.0], [[Interval(0.5, 2, 0.1, 0.9), None]], "score"),
)


def run(name: str, out) -> int:
    argv = ["analyze", name, "--model", "testbed", "--sets", "testbed:direct", "--out", str(out)]
    return main([*argv, "--limit", "2", *TOY[name], *FEW_STEPS[name]])


@pytest.mark.parametrize("name", TOY)
def test_command_writes_everything_and_goes_on_without_work(name, tmp_path, capsys, monkeypatch):
    assert run(name, tmp_path) == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    files = {path.name for path in folder.iterdir()}
    assert {"data.csv", "estimates.csv", "header.json", "result.json", "finding.md"} <= files
    result = json.loads((folder / "result.json").read_text())
    assert {f"{chart}.{kind}" for chart in result["charts"] for kind in ("svg", "png")} <= files
    assert result["paragraph"] == (folder / "finding.md").read_text().strip()
    shown = " ".join(capsys.readouterr().out.split())
    title = f"{name}, preset quick ("
    assert title in shown and "responses of 72 tokens" in " ".join(shown.split())
    assert f"data and figures: {folder}" in shown
    with Run(tmp_path) as recorded:
        (finding,) = findings_of(recorded)
    with pytest.MonkeyPatch.context() as terminal:
        terminal.setenv("FORCE_COLOR", "1")
        terminal.setenv("COLUMNS", "80")
        show_finding(finding, Page())
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    in_one = " ".join(out.split())
    assert finding.key_figures and all(key.what in in_one for key in finding.key_figures)
    assert all(sentence in in_one for sentence in finding.key_sentences)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    header = json.loads((folder / "header.json").read_text())
    assert header["sets"] == {"testbed:direct": 2}
    assert header["judges"]["testbed:direct"].startswith("truth/")
    with (folder / "estimates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["n"]) >= 1 and row["value"]
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr(Denoiser, "step", refuse)
    monkeypatch.setattr(GcgSearch, "advance", refuse)
    assert run(name, tmp_path) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_commands_are_the_probes():
    from mosa.cli import COMMANDS, command_named

    named = {name.removeprefix("analyze ") for name in COMMANDS if name.startswith("analyze ")}
    assert named == PROBES.keys()
    for name in named:
        assert command_named(f"analyze {name}").summary == f"measure {PROBES[name].summary}"


def test_the_papers_protocol_is_its_preset(tmp_path, monkeypatch):
    """100 random cases and 256 tokens, where nothing else is given, in a file of subjects too."""
    seen: list[EvaluateConfig] = []

    def analyze_none(out, config, **_):
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("mosa.cli.analyze.run_probes", analyze_none)
    subjects = tmp_path / "subjects.yaml"
    subjects.write_text(
        "- {name: a, model: testbed}\n- {name: b, model: testbed, decoder: {max_new_tokens: 96}}\n"
    )
    sets = ["--sets", "testbed:direct", "--out", str(tmp_path / "run"), "--preset"]
    model = ["--model", "testbed"]
    for argv in (
        ["position", *model, *sets, "paper"],
        ["suffix", *model, *sets, "paper", "--limit", "5", "--max_new_tokens", "168"],
        ["position", "--subjects", str(subjects), *sets, "paper"],
        ["position", *model, *sets, "quick"],
    ):
        assert main(["analyze", *argv]) == 130
    found = [
        (
            c.options.limit,
            c.options.sample_seed,
            [s.full_decoder.max_new_tokens for s in c.subjects],
        )
        for c in seen
    ]
    assert found == [
        (100, 0, [256]),
        (5, 0, [168]),
        (100, 0, [256, 96]),
        (8, None, [72]),
    ]


def test_the_function_is_the_command(tmp_path, capsys):
    """The same settings, tasks and figures; a loaded model is not loaded again."""
    model = mosa.load_model("testbed")
    options: dict[str, Any] = {"limit": 2, "max_new_tokens": 48, "progress": False}
    found = mosa.analyze("order", model, sets="testbed:direct", out=tmp_path / "a", **options)
    argv = ["--model", "testbed", "--sets", "testbed:direct", "--limit", "2"]
    argv += ["--max_new_tokens", "48", "--out", str(tmp_path / "b")]
    assert main(["analyze", "order", *argv]) in (None, 0)
    capsys.readouterr()
    with Run(tmp_path / "b") as run:
        (other,) = findings_of(run)
    assert (found.rows, found.estimates) == (other.rows, other.estimates)
    assert found.paragraph in repr(found)
    shown = found._repr_html_()
    assert found.key_figures and all(key.what in shown for key in found.key_figures)
    assert all(sentence in html.unescape(shown) for sentence in found.key_sentences)
    assert (tmp_path / "a" / found.name / "data.csv").is_file()
    with refuses("middle", *PROBES):
        mosa.analyze("middle", model, sets="testbed:direct", out=tmp_path / "c")


def test_mistakes_are_named(tmp_path, capsys):
    argv = ["analyze", "order", "--model", "testbed", "--sets", "testbed:direct"]
    huge = [*argv, "--out", str(tmp_path), "--preset", "huge"]
    cli_refuses(capsys, huge, "order", "huge", "quick", "full")
    config = EvaluateConfig(subjects_of("testbed"), ("testbed:direct",), ("pap",))
    with refuses("pap", *PROBES):
        run_probes(tmp_path / "other", config)
    served = subjects_of("http://localhost:8000/v1#tea", i_am_authorized=True)
    with refuses("tea", "order"):
        run_probes(tmp_path / "other", replace(config, subjects=served, attacks=("order:quick",)))
    argv = ["analyze", "step", "--model", "testbed", "--sets", "testbed:direct", "--limit", "1"]
    late = [*argv, "--out", str(tmp_path / "step"), "--positions", "[71]"]
    assert main(late) == 3
    said = capsys.readouterr().out
    assert "position 71" in said and "max_new_tokens" in said and "Nothing came of step" in said


def test_csv_has_a_column_for_every_name(tmp_path):
    """The attempt without a span has neither position nor step."""
    cells = [
        ("m", "a", {"span": "none"}, verdict(0.0), None),
        ("m", "a", {"span": "neutral", "position": 3, "step": 0}, verdict(1.0), None),
    ]
    cells[0][2].update(position=None, step=None)
    with probed_run(tmp_path / "run", "step", cells) as made:
        (finding,) = findings_of(made)
    write_finding(tmp_path / "out", finding)
    with (tmp_path / "out" / "data.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["case_set"], first["position"], first["score"]) == (SET, "", "0.0")
    assert (second["position"], second["score"]) == ("3", "1.0")


@pytest.mark.parametrize("chart", CHARTS, ids=["lines", "cells"])
def test_figures_are_the_same_each_time(tmp_path, chart):
    save(chart, tmp_path / "one")
    save(chart, tmp_path / "two")
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert chart.title in svg
    assert (tmp_path / "one.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    if isinstance(chart, HeatMap):
        assert ">0.50<" in svg


def test_a_map_shows_and_says_where_blocks_begin(tmp_path):
    """One line more than without borders, before the second column, at position 2."""
    plain = CHARTS[1]
    assert isinstance(plain, HeatMap)
    lined = replace(plain, borders=[1])
    for name, chart in {"plain": plain, "lined": lined}.items():
        save(chart, tmp_path / name)
    lines = [
        (tmp_path / f"{name}.svg").read_text().count('id="line2d') for name in ("plain", "lined")
    ]
    assert lines[1] == lines[0] + 1
    assert describe(lined) == f"{describe(plain)} " + (
        "A block begins between these columns and those on their left: 2."
    )
