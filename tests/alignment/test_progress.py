"""What a training shows while it runs: a line of figures by name, and no dictionary."""

from __future__ import annotations

import re

from mosa import cli, terminal
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
