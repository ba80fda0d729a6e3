"""What commands show in a terminal of 80 columns: no line is wider, no name is cut."""

from __future__ import annotations

import re

import pytest
from made_runs import attacked, solved

from mosa import cli
from mosa.cli.tables import Column, Page, TableCell, TextTable

SUBJECT = "testbed+mosa_robust"
ATTACKS = ("best_of_n", "decoding_order:confidence_reversed", "tap", "dija_canvas")
HARMLESS = "testbed:benign_recall_wrapped"
STYLES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch):
    """Sets the width of the terminal that commands write to."""
    monkeypatch.setenv("FORCE_COLOR", "1")

    def set_width(width: int) -> None:
        monkeypatch.setenv("COLUMNS", str(width))

    set_width(80)
    return set_width


@pytest.fixture
def folder(tmp_path):
    """Attacks by names of any length, a harmless set and a useful task."""
    cases = {case: case in "ab" for case in "abcde"}
    names = [name.partition(":")[0] for name in ATTACKS]
    attacked(tmp_path, {who: dict.fromkeys(names, cases) for who in ("testbed", SUBJECT)})
    attacked(
        tmp_path,
        {SUBJECT: {"direct": cases}},
        case_set=HARMLESS,
        is_harmless=True,
        judge="refusal/1/abc",
        native={"class": "none", "coherent": True},
    )
    solved(tmp_path, {SUBJECT: {"testbed:arithmetic": {"one": 1.0, "two": 0.5}}})
    return str(tmp_path)


def shown(capsys, *argv: str, width: int = 80) -> str:
    assert cli.main(list(argv)) == 0
    out = STYLES.sub("", capsys.readouterr().out)
    assert [line for line in out.splitlines() if len(line.rstrip()) > width] == []
    return out


def test_results_status_and_compare_have_room(capsys, terminal, folder):
    results = shown(capsys, "results", folder)
    for name in ("decoding_order", "dija_canvas", HARMLESS, "testbed:arithmetic", SUBJECT):
        assert name in results
    assert "0.40 [.12-.77]" in results
    assert "See them with a terminal of" in " ".join(results.split())
    status = shown(capsys, "status", folder)
    assert all(name in status for name in ("decoding_order", HARMLESS, SUBJECT))
    two = (folder, folder, "--subject-a", "testbed", "--subject-b", SUBJECT)
    compared = shown(capsys, "compare", *two)
    row = next(line for line in compared.splitlines() if line.startswith("decoding_order"))
    assert row.count("0.40 [.12-.77]") == 2 and "+0.00 [-.52,+.52]" in row
    assert "|" not in compared
    shown(capsys, "results", folder, "--matrix")


def test_a_wide_terminal_has_everything(capsys, terminal, folder):
    terminal(160)
    out = shown(capsys, "results", folder, width=160)
    assert "0.40 (0.12 to 0.77)" in out and "queries" in out
    assert "for want of room" not in out


def test_a_pipe_has_all_columns_and_long_rates(capsys, monkeypatch, folder):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["results", folder]) == 0
    out = capsys.readouterr().out
    assert "0.40 (0.12 to 0.77)" in out and "for want of room" not in out


def test_markdown_on_request(capsys, terminal, folder):
    for command in (
        ("status", folder),
        ("results", folder),
        ("results", folder, "--matrix"),
        ("compare", folder, folder, "--subject-a", "testbed", "--subject-b", SUBJECT),
    ):
        assert cli.main([*command, "--format", "md"]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert any(line.startswith("|---|") for line in rows)
        if command[0] != "status":
            assert any("0.40 (0.12 to 0.77" in line for line in rows)


RATE = TableCell("0.40 (0.12 to 0.77)", "0.40 [.12-.77]")
TABLE = TextTable(
    "made up",
    (Column("name", is_number=False), Column("one"), Column("two"), Column("more", 2)),
    [("group", "a_rather_long_name_of_an_attack", RATE, RATE, "123")],
    grouped_by="subject",
    left_out_if_short=("n",),
)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            75,
            ["  a_rather_long_name_of_an_attack  0.40 [.12-.77]  0.40 [.12-.77]   123"],
        ),
        (
            65,
            ["  a_rather_long_name_of_an_attack  0.40 [.12-.77]  0.40 [.12-.77]"],
        ),
        (
            40,
            ["  a_rather_long_name_of_an_attack", "    0.40 [.12-.77]  0.40 [.12-.77]"],
        ),
        (
            33,
            [
                "  a_rather_long_name_of_an_attack",
                "    one: 0.40 [.12-.77]",
                "    two: 0.40 [.12-.77]",
                "    more: 123",
            ],
        ),
    ],
)
def test_less_and_less_room(capsys, terminal, width, expected):
    terminal(width)
    Page("text").table(TABLE)
    lines = [STYLES.sub("", line) for line in capsys.readouterr().out.splitlines()]
    at = lines.index("group") + 1
    assert lines[at : at + len(expected)] == expected
    told = " ".join(" ".join(lines[at + len(expected) :]).split())
    left_out = "more; n" if width in (65, 40) else "n"
    assert told.startswith(f"Not shown for want of room: {left_out}. ")
    assert max(map(len, (line.rstrip() for line in lines))) <= width


def test_bars_in_cells_are_no_columns_in_markdown(capsys):
    Page("md").table(TextTable("", (Column("name"), Column("*")), [("a|b", "1")]))
    assert capsys.readouterr().out == "| name | \\* |\n|---|---|\n| a\\|b | 1 |\n\n"
