"""What a training shows while it runs: a line of figures by name, and no dictionary."""

from __future__ import annotations

import re

from mosa import cli


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
    from mosa.terminal import LiveBar

    with LiveBar() as bar:
        bar.update("something", 1, 2, "10 s left")
    assert capsys.readouterr() == ("", "")
