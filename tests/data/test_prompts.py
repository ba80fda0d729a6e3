"""Every file format, on harmless examples; and the sentences for files that cannot be read."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from mosa.data import KNOWN_FILES, TrainingExample, identify, load_prompts, verify
from mosa.data.registry import sha256
from mosa.types import Message, UserError

BREAD, TEA = "How do I bake bread?", "How do I make tea?"


def write(tmp_path, name: str, content) -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", f"{BREAD}\n\n  {TEA}  \n"),
        ("a.csv", f'goal,target\n"{BREAD}","Sure, here is how"\n{TEA},Sure\n'),
        ("a.csv", f",Goal,Target,Behavior\n0,{BREAD},Sure,baking\n1,{TEA},Sure,brewing\n"),
        ("a.csv", f"Behavior,ContextString\r\n{BREAD},\r\n{TEA},\r\n"),
        ("a.csv", f"category,source,forbidden_prompt\nfood,us,{BREAD}\nfood,us,{TEA}\n"),
        ("a.csv", f"index,text\n0,{BREAD}\n1,{TEA}\n"),
        ("a.json", [BREAD, TEA]),
        ("a.json", {"Food": {"Baking": [BREAD]}, "Drink": {"Hot": [TEA]}}),
        ("a.json", [{"instruction": BREAD, "category": None}, {"instruction": TEA}]),
        ("a.jsonl", f'{{"prompt": "{BREAD}"}}\n\n{{"prompt": "{TEA}", "category": "x"}}\n'),
        ("a.jsonl", f'"{BREAD}"\n"{TEA}"\n'),
        ("a.txt", f"\ufeff{BREAD}\n{TEA}\n"),
    ],
)
def test_formats(tmp_path, name, content):
    examples = load_prompts(write(tmp_path, name, content))
    assert examples == [TrainingExample(BREAD), TrainingExample(TEA)]


def test_answers(tmp_path):
    """Answers come from `answer`, `response`, ...; AdvBench's `target` is none."""
    rows = [{"prompt": BREAD, "answer": "Mix flour."}, {"prompt": TEA, "response": "Boil water."}]
    file = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert [e.answer for e in load_prompts(file)] == ["Mix flour.", "Boil water."]
    file = write(tmp_path, "b.csv", f"prompt,answer\n{BREAD},Mix flour.\n{TEA},\n")
    assert [e.answer for e in load_prompts(file)] == ["Mix flour.", None]


def test_quoted_newlines_and_commas(tmp_path):
    file = write(tmp_path, "a.csv", 'goal\n"Bake, then\neat"\n')
    assert load_prompts(file) == [TrainingExample("Bake, then\neat")]


def test_context_and_input_belong_to_the_prompt(tmp_path):
    file = write(tmp_path, "a.csv", "Behavior,ContextString\nSum it up,A long text\n")
    assert load_prompts(file)[0].prompt == "A long text\n\n---\n\nSum it up"
    file = write(tmp_path, "a.json", [{"instruction": "Sort", "input": "3 1 2", "output": "1 2 3"}])
    assert load_prompts(file) == [TrainingExample("Sort\n\n3 1 2", "1 2 3")]


def test_dialogues(tmp_path):
    expected = (Message("user", BREAD), Message("assistant", "Gladly."), Message("user", TEA))
    turns = [asdict(turn) for turn in expected]
    file = write(tmp_path, "a.jsonl", json.dumps({"messages": turns, "answer": "Boil water."}))
    assert load_prompts(file) == [TrainingExample(expected, "Boil water.")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.xlsx", "x", "ends in .xlsx"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "id,label\n1,2\n", "row 1 has no prompt among its columns id, label"),
        ("a.csv", "goal\nBake\n   \n", "row 2 has no prompt"),
        ("a.csv", "goal\nBake bread, please\n", "row 1 has more fields than the header"),
        ("a.json", "[", "not valid JSON"),
        ("a.json", [{"label": "x"}], "row 1 has no prompt among its columns label"),
        ("a.json", ["Bake", 3], "row 2 is 3; a prompt must be text"),
        ("a.json", ["Bake", " "], "row 2 is an empty string"),
        ("a.jsonl", '{"prompt": "Bake"}\n{oops\n', "line 2 is not valid JSON"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1 has no prompt"),
        (
            "a.jsonl",
            '{"prompt": "Bake", "answer": 3}\n',
            "has 3 as its answer; write it as text",
        ),
        ("a.jsonl", '{"messages": []}\n', "last turn must be"),
        (
            "a.jsonl",
            '{"messages": [{"role": "robot", "content": "x"}]}\n',
            "turns, each with a role",
        ),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "x"}]}\n', "last turn must be"),
    ],
)
def test_mistakes_name_file_and_row(tmp_path, name, content, sentence):
    file = write(tmp_path, name, content)
    with pytest.raises(UserError) as error:
        load_prompts(file)
    assert sentence in str(error.value) and file in str(error.value)


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(UserError, match="There is no prompt file"):
        load_prompts(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_prompts(tmp_path / "latin.txt")


def test_verify_names_a_mismatch(tmp_path, monkeypatch):
    file = write(tmp_path, "mine.csv", f"goal\n{BREAD}\n")
    assert identify(file) is None
    with pytest.raises(UserError, match="is not the published harmful_behaviors.csv"):
        verify(file, "advbench")
    with pytest.raises(UserError, match="No known file is called adv"):
        verify(file, "adv")
    with pytest.raises(UserError, match="There is no file"):
        verify(tmp_path / "nothing.csv", "advbench")
    known = KNOWN_FILES["advbench"]
    monkeypatch.setitem(
        KNOWN_FILES, "advbench", type(known)(**{**vars(known), "sha256_prefix": sha256(file)[:16]})
    )
    assert verify(file, "advbench").licence == "MIT"


def test_the_registry_is_consistent():
    for name, known in KNOWN_FILES.items():
        assert known.name == name and len(known.sha256_prefix) == 16
        assert int(known.sha256_prefix, 16) >= 0 and known.num_rows > 0 and known.licence
