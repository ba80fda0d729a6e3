"""Texts of others in a terminal: as they are, never markup and never control characters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table

import mosa
from mosa.terminal import new_console, printable, short_warnings, show, without_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, caf\u00e9 \U0001f600\tand\na line", "plain, caf\u00e9 \U0001f600\tand\na line"),
        ("\x1b[31mred\x1b]0;T\x07", "\\x1b[31mred\\x1b]0;T\\x07"),
        ("a\rb\x00c\x7fd\x9be", "a\\rb\\x00c\\x7fd\\x9be"),
        ("x\u202ey\u2066z\u200e", "x\\u202ey\\u2066z\\u200e"),
        ("two\u2028lines", "two\\u2028lines"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_control_characters_are_written_out(capsys, text, shown):
    assert printable(text) == shown
    show(text)
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.parametrize(
    "text",
    ["the template wants [/INST] here", "run [/x]", "testbed+[red]ad[", "[bold]", "\\[", ":smile:"],
)
def test_brackets_are_no_markup(text):
    console = new_console(is_wide=True)
    console.file = io.StringIO()
    console.print(text)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(f"{text}\x1b[31m")
    console.print(table)
    shown = console.file.getvalue()
    assert shown.count(text) == 4 and "\x1b" not in shown and "\\x1b[31m" in shown


@pytest.mark.parametrize(
    "encoding",
    ["cp1252", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ascii", "utf-8"))],
)
def test_a_terminal_of_another_encoding_loses_no_answer(tmp_path, encoding):
    """What it lacks is written out, and the response stands in the file all the same."""
    (tmp_path / "emo.txt").write_text("x\nthe caf\u00e9 and \U0001f600\n", encoding="utf-8")
    decoder = ("--max_new_tokens", "8", "--steps", "2")
    done = subprocess.run(
        [sys.executable, "-m", "mosa", "generate", "--model", "testbed", "--data", "emo.txt"]
        + [*decoder, "--show_steps", "--out", "emo.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "MPLBACKEND": "module://not_there"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    (warning,) = done.stderr.decode(encoding).splitlines()  # that the testbed lacks the word x
    assert warning.startswith("mosa: ") and " x;" in warning
    assert len((tmp_path / "emo.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_warning_of_ours_is_one_line():
    short_warnings()
    ours = str(Path(mosa.__file__).parent / "chat" / "cache.py")
    shown = warnings.formatwarning("the cache\x1b is\nfull", UserWarning, ours, 3)
    assert shown == "mosa: the cache\\x1b is full\n"
    theirs = warnings.formatwarning("old", UserWarning, "/elsewhere/a.py", 3, "x = 1")
    assert theirs == "/elsewhere/a.py:3: UserWarning: old\n  x = 1\n"


def test_lines_of_a_library_are_left_out_and_others_stay(capfd):
    """Those that go around Python, too; afterwards all are shown."""
    with without_lines("noise:"):
        os.write(2, b"noise: begun\nan error\nnoise: ended\n")
    os.write(2, b"noise: of another\n")
    assert capfd.readouterr().err == "an error\nnoise: of another\n"
