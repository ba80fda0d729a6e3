"""How campaigns and reports grow: every attempt is answered, and the sentence adds up."""

from __future__ import annotations

import json

import pytest
from refusals import cli_refuses, refuses

from mosa import cli
from mosa.bench import campaign, report
from mosa.bench.campaign import CampaignBenchConfig, CampaignRow, bench_campaign
from mosa.bench.report import ReportBenchConfig, ReportRow, bench_report


@pytest.fixture
def in_one_process(monkeypatch):
    """Every run here; processes of their own have a test in test_bench_common.py."""
    for module in (campaign, report):
        monkeypatch.setattr(module, "in_own_process", lambda function, *args: function(*args))


def test_a_campaign_answers_every_attempt(in_one_process):
    """30 attempts are 30 of one query each, or two cases of three rounds of four."""
    told = []
    result = bench_campaign(CampaignBenchConfig(sizes=(30, 12), batch_size=4), on_row=told.append)
    assert [(row.kind, row.num_attempts) for row in told] == [
        ("single", 12),
        ("single", 30),
        ("rounds", 12),
        ("rounds", 24),
    ]
    assert all(0 < row.busy <= 1 for row in told)
    assert all(row.file_bytes > 0 for row in told)
    rows = result.tables[0].plain()["rows"]
    assert [row["attempts"] for row in rows] == [12, 30, 12, 24]
    assert [note.partition(":")[0] for note in result.notes] == ["single", "rounds"]


def test_growth_of_a_campaign_in_a_sentence():
    """0.25 + 0.75 + 0.5 + 0.5 ms, then half as much again of each: 1.5 times; 5 MiB over 5,000
    attempts."""
    small = CampaignRow("single", 1_000, 0.25, 0.75, 0.5, 0.5, 1.0, 400 * 2**20, 1.0)
    large = CampaignRow("single", 6_000, 0.375, 1.125, 0.75, 0.75, 1.0, 405 * 2**20, 1.0)
    assert campaign.growth("single", [small, large]) == (
        "single: an attempt among 6,000 takes 1.50 times as long as one among 1,000; memory grows "
        "by 10.0 MiB for each 10,000 attempts"
    )
    assert "one size only" in campaign.growth("single", [small])


def test_spelled_numbers_are_all_different():
    assert len({campaign.spelled(number) for number in range(2_000)}) == 2_000


def test_reports_of_two_sizes(in_one_process):
    told = []
    result = bench_report(ReportBenchConfig(sizes=(40, 8)), on_row=told.append)
    assert [row.num_attempts for row in told] == [8, 40]
    assert told[1].page_bytes > told[0].page_bytes
    assert [row["attempts"] for row in result.tables[0].plain()["rows"]] == [8, 40]
    assert result.notes[0].startswith("an attempt among 40 takes ")


def test_growth_of_reports_in_a_sentence():
    """2 s for 1,000 attempts are 2,000 ms for 1,000; 30 s for 10,000 are 3,000 ms."""
    small = ReportRow(1_000, 1.0, 1.0, 1, 1)
    large = ReportRow(10_000, 25.0, 5.0, 1, 1)
    assert (small.ms_per_1000, large.ms_per_1000) == (2000.0, 3000.0)
    assert report.growth([small, large]) == (
        "an attempt among 10,000 takes 1.50 times as long as one among 1,000"
    )
    assert "one size only" in report.growth([small])


def test_sizes_that_do_not_fit():
    with refuses("--sizes", "12"):
        CampaignBenchConfig(sizes=(11,))
    with refuses("--batch_size", "0"):
        CampaignBenchConfig(batch_size=0)
    with refuses("--sizes", "1"):
        ReportBenchConfig(sizes=())


@pytest.mark.parametrize("name", ["campaign", "report"])
def test_commands_write_files(in_one_process, name, tmp_path, capsys):
    out, file = tmp_path / "a.txt", tmp_path / "a.json"
    words = ["bench", name, "--sizes", "12,24", "--out", str(out), "--json", str(file)]
    assert cli.main(words) == 0
    assert out.read_text(encoding="utf-8") in capsys.readouterr().out
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read["environment"]["command"].startswith(f"mosa bench {name} ")
    assert read["notes"]


def test_a_command_refuses_sizes_that_are_no_numbers(capsys):
    cli_refuses(capsys, ["bench", "report", "--sizes", "many"], "--sizes", "many")
