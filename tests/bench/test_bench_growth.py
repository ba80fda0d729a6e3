"""How campaigns and reports grow: every attempt is answered, and the sentence adds up."""

from __future__ import annotations

import json

import pytest
from refusals import cli_refuses, refuses

from mosa import cli
from mosa.bench import campaign, report
from mosa.bench.campaign import CampaignBenchConfig, bench_campaign, growth_of
from mosa.bench.common import growth
from mosa.bench.report import ReportBenchConfig, bench_report


@pytest.fixture
def in_one_process(monkeypatch):
    """Every run here; processes of their own have a test in test_bench_common.py."""
    for module in (campaign, report):
        monkeypatch.setattr(module, "in_own_process", lambda function, *args: function(*args))


def test_a_campaign_answers_every_attempt(in_one_process):
    """30 attempts are 30 of one query each, or two cases of three rounds of four."""
    told = []
    result = bench_campaign(
        CampaignBenchConfig(sizes=(30, 12), batch_size=4), tell=lambda *line: told.append(line)
    )
    assert told[-1][1] == told[-1][2]
    rows = result.tables[0].plain()["rows"]
    assert [(row["attack"], row["attempts"]) for row in rows] == [
        ("single", 12),
        ("single", 30),
        ("rounds", 12),
        ("rounds", 24),
    ]
    assert all(0 < row["busy"] <= 1 for row in rows)
    assert all(row["kB/attempt"] > 0 for row in rows)
    assert [line.partition(" attempts: ")[0] for line, _, _ in told] == [
        f"{row['attack']}, {row['attempts']}" for row in rows
    ]
    assert [note.partition(":")[0] for note in result.notes] == ["single", "rounds"]


def campaign_row(attempts: int, ms: float, mebibytes: float) -> dict[str, int | float]:
    """A row whose four stages together take so many milliseconds for an attempt."""
    stages = dict(zip(campaign.STAGES, (ms / 8, 3 * ms / 8, ms / 4, ms / 4), strict=True))
    return {"attempts": attempts, "peak MiB": mebibytes, **stages}


def test_growth_of_a_campaign_in_a_sentence():
    """2 ms, then 3: 1.5 times; 5 MiB over 5,000 attempts."""
    small, large = campaign_row(1_000, 2.0, 400), campaign_row(6_000, 3.0, 405)
    assert growth_of([small, large]) == (
        "an attempt among 6,000 takes 1.50 times as long as one among 1,000; memory grows by "
        "10.0 MiB for each 10,000 attempts"
    )
    assert "one size alone" in growth_of([small])


def test_spelled_numbers_are_all_different():
    assert len({campaign.spelled(number) for number in range(2_000)}) == 2_000


def test_reports_of_two_sizes(in_one_process):
    told = []
    result = bench_report(ReportBenchConfig(sizes=(40, 8)), tell=lambda *line: told.append(line))
    assert told[-1][1] == told[-1][2]
    assert [line.partition(":")[0] for line, _, _ in told] == ["8 attempts", "40 attempts"]
    small, large = result.tables[0].plain()["rows"]
    assert (small["attempts"], large["attempts"]) == (8, 40)
    assert large["page MB"] > small["page MB"]
    seconds = large["read s"] + large["draw s"]
    assert large["ms per 1,000"] == pytest.approx(1e6 * seconds / 40)
    assert result.notes[0].startswith("an attempt among 40 takes ")


def test_growth_in_a_sentence():
    assert growth((1_000, 2000.0), (10_000, 3000.0)) == (
        "an attempt among 10,000 takes 1.50 times as long as one among 1,000"
    )
    assert "one size alone" in growth((1_000, 2000.0), (1_000, 2000.0))


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
    seal, shown = out.read_text(encoding="utf-8").split("\n", 1)
    assert seal.startswith("mosa bench sha256:") and shown in capsys.readouterr().out
    assert cli.main(words) == 0  # it replaces its own
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read["environment"]["command"].startswith(f"mosa bench {name} ")
    assert read["notes"]


def test_a_command_refuses_sizes_that_are_no_numbers(capsys):
    cli_refuses(capsys, ["bench", "report", "--sizes", "many"], "--sizes", "many")
