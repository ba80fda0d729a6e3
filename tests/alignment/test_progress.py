"""What a training shows while it runs: a line of figures by name, and no dictionary."""

from __future__ import annotations

import re
from functools import partial

import pytest
from made_runs import begun, made_set, record
from two_stages import read_written, two_stages, write_late

import mosa
from mosa import cli, terminal
from mosa.experiments.workers import run_jobs
from mosa.terminal import LiveBar


def test_figures_by_name_in_the_width_of_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("how do i make a copper kiln ?\nhow do i make a copper pump ?\n")
    words = f"align initial --config initial_testbed_window --model testbed --data {prompts}"
    words += f" --out {tmp_path / 'out'} --max_steps 2 --logging_steps 1 --use_cpu true"
    words += " --per_device_train_batch_size 2 --gradient_accumulation_steps 1"
    assert cli.main(words.split()) == 0
    captured = capsys.readouterr()
    out = re.sub(r"\x1b\[[0-9;?]*m", "", captured.out)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", out)  # the bar is drawn anew
    assert re.search(r"step 1 of 2: loss \d", out) and "learning_rate " in " ".join(out.split())
    assert "align initial" in out and "2/2" in out
    assert "{'" not in out + captured.err and "it/s" not in captured.err
    assert all(len(line.rstrip()) <= 80 for line in re.split(r"[\r\n]", out.split("Trained")[0]))


def test_nothing_is_drawn_without_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with LiveBar() as bar:
        bar.update("something", 1, 2, "10 s left")
    assert capsys.readouterr() == ("", "")


def test_time_left_is_at_the_pace_since_something_began(capsys, monkeypatch):
    """From 10 of 40 on, two in ten seconds: 28 more take 2 min. What comes next has a pace of
    its own."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    bar = LiveBar()
    for what, done, seconds, left in [
        ("one", 10, 0, ""),
        ("one", 12, 10, "about 2 min left"),
        ("one", 40, 10, ""),
        ("other", 1, 0, ""),
        ("other", 2, 7, "about 7 s left"),
    ]:
        now[0] += seconds
        bar.update(what, done, 40 if what == "one" else 3)
        (task,) = bar.bar.tasks
        assert task.fields["left"] == left
    bar.bar.stop()


def test_what_takes_a_moment_has_no_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with LiveBar(vanishes=True) as bar:
        bar.update("tokens", 1, 2)
        assert not bar.bar.live.is_started
        now[0] += 2 * terminal.SECONDS_BEFORE
        bar.update("tokens", 2, 2)
        assert bar.bar.live.is_started


@pytest.mark.parametrize("num_workers", [1, 2])
def test_jobs_have_a_row_each_while_they_run_and_one_for_all(capsys, monkeypatch, num_workers):
    """Off a terminal each stage is a line, and all of a job's come in their order."""
    drawn = []
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 1e9)  # however slow the machine is
    monkeypatch.setattr(LiveBar, "update", kept(drawn, LiveBar.update))
    run_jobs({"one": [two_stages], "two": [two_stages]}, num_workers)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == ["one: aligning", "one: attacks", "two: aligning", "two: attacks"]
    assert drawn[0] == ("models done", 0, 2) and drawn[-1] == ("models done", 2, 2)
    assert [what for what in drawn if what[0].startswith("one")] == [
        ("one: aligning", 0, None),
        ("one: aligning", 1, 2),
        ("one: attacks", 0, None),
        ("one: attacks", 1, 2),
    ]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_follows_a_job_waits_for_it_and_a_name_is_done_with_its_last(
    tmp_path, monkeypatch, num_workers
):
    """Two jobs under "one", the second of which reads what the first has written."""
    drawn = []
    monkeypatch.setattr(LiveBar, "update", kept(drawn, LiveBar.update))
    written, heard = tmp_path / "written", []
    jobs = {
        "one": [partial(write_late, written), partial(read_written, written)],
        "two": [two_stages],
    }
    run_jobs(jobs, num_workers, lambda: heard.append(written.exists()))
    assert written.read_text() == "read"
    done = [done for what, done, _ in drawn if what == "models done"]
    assert done == sorted(done) and [*dict.fromkeys(done)] == [0, 1, 2]
    assert True in heard  # after the first of "one", whose second goes on or is still to begin


def kept(calls, update):
    """The method, with what it is given kept in a list."""

    def keeping(bar, what, done, total, *others, **named):
        calls.append((what, done, total))
        return update(bar, what, done, total, *others, **named)

    return keeping


def test_rows_have_a_time_of_their_own_and_end(monkeypatch):
    """Two rows at once: 1 of 4 after 10 s, and 1 of 2 after 30 s; then the second is gone."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with LiveBar() as bar:
        bar.update("a", 0, 4, row="a")
        bar.update("b", 0, 2, row="b")
        now[0] = 110.0
        bar.update("a", 1, 4, row="a")
        now[0] = 130.0
        bar.update("b", 1, 2, row="b")
        assert [task.fields["left"] for task in bar.bar.tasks] == [
            "about 30 s left",
            "about 30 s left",
        ]
        bar.end("b")
        assert [task.fields["what"] for task in bar.bar.tasks] == ["a"]


def test_a_bar_fits_the_terminal_and_shows_what_is_left(capsys, monkeypatch):
    """The bar gives way, and not the words."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    left = "1234 responses, at least 3 min left"
    with LiveBar() as bar:
        bar.update("testbed+mosa", 30, 300, left)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    lines = [line for line in re.split(r"[\r\n]", out) if line.strip()]
    assert lines and all(len(line) <= 80 for line in lines)
    assert "testbed+mosa" in lines[-1] and "30/300 0:00:0" in lines[-1] and lines[-1].endswith(left)


def test_a_report_shows_its_stages(tmp_path, monkeypatch):
    """By name, and every attempt is counted."""
    monkeypatch.setattr("mosa.reporting.views.ATTEMPTS_BETWEEN", 1)
    with begun(tmp_path / "run", ["m"]) as run:
        run.add_set(made_set("s", "harmful", ["a", "b"]))
        for case in ("a", "b"):
            record(run, case, "s", case, subject="m")
    drawn = []
    monkeypatch.setattr(LiveBar, "update", kept(drawn, LiveBar.update))
    mosa.report(tmp_path / "run", tmp_path / "page.html")
    assert drawn == [
        ("report: figures", 0, None),
        ("report: attempts", 1, 2),
        ("report: attempts", 2, 2),
        ("report: findings and tables", 0, None),
        ("report: page", 0, None),
    ]
