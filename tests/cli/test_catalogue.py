"""Lists of what there is: equal to the tables, and read without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mosa import cli
from mosa.catalogue import make_catalogue, read_catalogue


def test_the_file_is_what_the_tables_say():
    """`python -m mosa.catalogue` writes it anew."""
    assert read_catalogue() == json.loads(json.dumps(make_catalogue()))


@pytest.mark.parametrize("name", ["attacks", "judges", "sets"])
def test_lists_have_every_entry(capsys, name):
    assert cli.main([name]) == 0
    out = capsys.readouterr().out
    entries = read_catalogue()[name]
    assert entries and all(f"\n{entry['name']}" in f"\n{out}" for entry in entries)


def test_lists_import_no_torch():
    code = "import sys\nfrom mosa.cli import main\n"
    code += "".join(f"assert main(['{name}']) == 0\n" for name in ("attacks", "judges", "sets"))
    code += "sys.exit(bool({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_overlap(capsys, tmp_path):
    train, evaluation = tmp_path / "train.json", tmp_path / "eval.csv"
    train.write_text(json.dumps(["How is bread baked at home?", "What is tea?"]))
    evaluation.write_text("behavior\nhow is bread baked at home\nwho sings ?\n")
    assert cli.main(["data", "overlap", str(train), str(evaluation)]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 training prompts" in out and "row 1 ~ 0: 1.00" in out
