"""Lists of what there is: equal to the tables, and read without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from refusals import cli_refuses

from mosa import cli
from mosa.catalogue import make_catalogue, read_catalogue
from mosa.cli.catalogue import SHOWN_PAIRS


def test_the_file_is_what_the_tables_say():
    """`python -m mosa.catalogue` writes it anew."""
    assert read_catalogue() == json.loads(json.dumps(make_catalogue()))


@pytest.mark.parametrize("name", ["attacks", "judges", "sets"])
def test_lists_have_every_entry(capsys, name):
    assert cli.main([name]) == 0
    out = capsys.readouterr().out
    entries = read_catalogue()[name]
    assert entries and all(f"\n{entry['name']}" in f"\n{out}" for entry in entries)


@pytest.mark.parametrize("name", ["attacks", "judges", "sets"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_word_of_a_list_is_lost_on_a_narrow_terminal(capsys, monkeypatch, name, is_terminal):
    """There its lines fit; in a file or pipe an entry has one line."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert cli.main([name]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = " ".join(" ".join(lines).split())
    for entry in read_catalogue()[name]:
        assert f"{entry['name']} {entry.get('summary', entry.get('kind'))}" in told
    if is_terminal:
        assert all(len(line) <= 60 for line in lines)
    else:
        assert not any(line.startswith(" ") for line in lines)


@pytest.mark.parametrize("name", ["attacks", "judges", "sets"])
def test_an_entry_in_full_and_all_of_them_as_json(capsys, name):
    entries = read_catalogue()[name]
    assert cli.main([name, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == [each["name"] for each in entries]
    assert cli.main([name, entries[1]["name"]]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{entries[1]['name']}: ") and f"\n{entries[0]['name']}: " not in out
    source = entries[1].get("source") or entries[1].get("origin") or ""
    assert source in " ".join(out.split())


def test_attacks_by_what_they_need(capsys):
    assert cli.main(["attacks", "--access", "prompt", "--no-chat-model", "--json"]) == 0
    found = {attack["name"] for attack in json.loads(capsys.readouterr().out)}
    expected = {
        attack["name"]
        for attack in read_catalogue()["attacks"]
        if set(attack["access"]) <= {"prompt"} and not attack["roles"]
    }
    assert found == expected and "direct" in found and not found & {"prefill", "tap", "gcg"}
    cli_refuses(capsys, ["attacks", "--access", "weights"], "access", "weights", "gradients")


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


def test_of_many_pairs_some_are_shown_and_the_others_counted(capsys, tmp_path):
    """300 equal lines are 300 pairs with the first of them; 300 others are a pair each."""
    for lines in (["how is bread baked ?"] * 300, [f"a{i} b{i} c{i}" for i in range(300)]):
        file = tmp_path / "a.txt"
        file.write_text("\n".join(lines))
        assert cli.main(["data", "overlap", str(file), str(file)]) == 0
        *shown, last = capsys.readouterr().out.splitlines()
        assert len(shown) == 1 + SHOWN_PAIRS == 51 and f"{300 - SHOWN_PAIRS} more pairs" in last
