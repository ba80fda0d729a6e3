"""`mosa report`: what it writes and says, and mistakes as one sentence."""

from __future__ import annotations

import csv

import pytest
from made_runs import attacked, solved
from refusals import cli_refuses

from mosa.cli import main

CASES = {f"b{i}": i % 2 == 0 for i in range(6)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    attacked(
        folder,
        {"m": {"tap": CASES}, "n": {"tap": dict.fromkeys(CASES, False)}},
        words=("take", "the", "spoon"),
    )
    solved(folder, {"m": {"sums": {"1": 1.0}}, "n": {"sums": {"1": 1.0}}})
    return folder


def test_page_and_tables_are_written(run, tmp_path, capsys):
    page, tables = tmp_path / "report.html", tmp_path / "tables"
    argv = ["report", str(run), "--out", str(page), "--tables", str(tables)]
    assert main([*argv, "--title", "Kettles & spoons", "--label", "n=Ours", "m=Theirs"]) == 0
    out = capsys.readouterr().out
    assert "Over-refusal was not measured" in out
    assert "without prompts and responses" in out
    text = page.read_text(encoding="utf-8")
    assert "Kettles &amp; spoons" in text
    with (tables / "scoreboard.csv").open(encoding="utf-8") as file:
        assert [row["Subject"] for row in csv.DictReader(file)] == ["Ours", "Theirs"]
    assert (tables / "scoreboard.tex").exists() and (tables / "scoreboard.json").exists()


def test_words_are_shown_when_asked_for(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--no-redact"]) == 0
    assert "with all words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--redact", "--no-redact"], ("--redact", "--no_redact")),
        (["--label", "Ours"], ("--label", "Ours")),
        (["--label", "nobody=Ours"], ("nobody", "m", "n")),
        (["--judge", "nobody"], ("judge", "nobody")),
        (["--calibration", "nothing.json"], ("nothing.json",)),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, capsys, options, names):
    page = tmp_path / "r.html"
    cli_refuses(capsys, ["report", str(run), "--out", str(page), *options], *names)
    assert not page.exists()


def test_the_page_is_not_put_among_the_tables(run, tmp_path, capsys):
    tables = tmp_path / "tables"
    page = tables / "page.html"
    cli_refuses(
        capsys,
        ["report", str(run), "--out", str(page), "--tables", str(tables)],
        "--out",
        "--tables",
    )
    assert not tables.exists()


def test_a_folder_is_no_page(run, tmp_path, capsys):
    cli_refuses(capsys, ["report", str(run), "--out", str(tmp_path)], tmp_path)


def test_a_folder_without_runs_is_told_of(tmp_path, capsys):
    argv = ["report", str(tmp_path), "--out", str(tmp_path / "r.html")]
    cli_refuses(capsys, argv, tmp_path)
