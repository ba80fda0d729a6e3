"""`mosa results` and `mosa status` on made-up runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import JUDGE, attacked, begun, made_set, record, solved
from refusals import cli_refuses

from mosa import cli
from mosa.runs.records import NotApplicable


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two attacks by two judges, a harmless set, a useful task, a failure, a pair left out."""
    out = tmp_path / "run"
    yes_no = {"a": True, "b": False}
    attacked(out, {"m": {"tap": yes_no, "dia": {"a": True, "b": None}}})
    attacked(
        out,
        {"m": {"direct": yes_no}},
        case_set="tea",
        is_harmless=True,
        judge="refusal/1/abc",
        native={"class": "none", "coherent": True},
    )
    solved(out, {"m": {"sums": {"one": 1.0, "two": 0.5}}})
    with begun(out, ["m"]) as found:
        record(found, "down", "made up", "a", subject="m", attack="pair", reason="it is down")
        found.add_not_applicable(
            NotApplicable("m", "made up", "gcg", "smoke", "open", "needs gradients")
        )
    return out


def test_every_kind_has_a_table_and_nothing_is_left_out(capsys, folder):
    status, out, _ = run(capsys, "results", str(folder))
    assert status == 0
    out = " ".join(out.split())
    for words in (
        f"attacks, judge {JUDGE}",
        "harmless requests, judge refusal/1/abc",
        "useful tasks",
        "pair: 1 failed: it is down",
        "not applicable: gcg on made up against m: it needs gradients",
        "0.75",
    ):
        assert words in out
    status, out, _ = run(capsys, "status", str(folder))
    assert status == 0 and f"judge {JUDGE}: 1 attempts without a score" in out
    assert "metric:" not in out


def test_one_judge_alone(capsys, folder):
    status, out, _ = run(capsys, "results", str(folder), "--judge", JUDGE)
    assert status == 0 and f"judge {JUDGE}" in out and "refusal/1" not in out


def test_other_ways_to_see_a_run(capsys, folder):
    md = ("--matrix", "--by_variant", "--format", "md")
    status, out, _ = run(capsys, "results", str(folder), *md)
    assert status == 0 and "| tap | prompt | 1 | 4 | 0.50 (" in out
    assert "In no rate: 1 unscored cases, 1 failed and 0 open tasks." in out
    status, out, _ = run(capsys, "results", str(folder), "--paper")
    assert status == 0 and "| tap" in out


def test_exports_are_written(capsys, tmp_path, folder):
    out = tmp_path / "export"
    status, told, _ = run(capsys, "results", str(folder), "--export", "csv", "--out", str(out))
    assert status == 0 and "attempts.csv" in told
    assert (out / "attempts.csv").read_text().count(",tap,") == 2


def test_a_run_without_verdicts_says_how_to_get_some(capsys, tmp_path):
    with begun(tmp_path, ["m"]) as found:
        found.add_set(made_set("made up", "harmful", ["a"]))
        record(found, "k", "made up", "a", subject="m")
    for way in ((), ("--paper",), ("--matrix",)):
        status, out, _ = run(capsys, "results", str(tmp_path), *way)
        assert status == 0 and "`mosa judge` adds them" in " ".join(out.split())


def test_mistakes(capsys, tmp_path, folder):
    for where, argv, names in (
        (tmp_path, (), [tmp_path]),
        (folder, ("--judge", "nobody"), ["nobody"]),
        (folder, ("--by_variant", "--paper"), ["--by_variant", "--paper"]),
        (folder, ("--matrix", "--paper"), ["--matrix", "--paper"]),
        (folder, ("--export", "csv"), ["--export", "--out"]),
        (folder, ("--out", str(tmp_path / "x")), ["--out", "--export"]),
        (folder, ("--export", "xml", "--out", str(tmp_path / "x")), ["export", "xml"]),
        (folder, ("--no_redact",), ["--no_redact"]),
    ):
        cli_refuses(capsys, ["results", str(where), *argv], *names)
    cli_refuses(capsys, ["status", str(tmp_path)], tmp_path)
