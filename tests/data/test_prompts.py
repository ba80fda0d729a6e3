"""Every file format, on harmless examples; and the sentences for files that cannot be read."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from refusals import refuses

from mosa.data import (
    KNOWN_FILES,
    TrainingExample,
    draw_prompts,
    identify,
    load_cases,
    load_prompts,
    verify,
)
from mosa.inputs import sha256
from mosa.types import Message

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


def test_sorry_benchs_own_rows(tmp_path):
    """The text is under `turns`; the style of the request is kept."""
    rows = [
        {"question_id": 1, "category": "4", "turns": [BREAD], "prompt_style": "base"},
        {"question_id": 1, "category": "4", "turns": [f" {TEA} "], "prompt_style": "slang"},
    ]
    file = write(tmp_path, "question.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_prompts(file) == [
        TrainingExample(BREAD, style="base"),
        TrainingExample(TEA, style="slang"),
    ]
    cases = load_cases(file).cases
    assert [(case.id, case.text, case.category) for case in cases] == [
        ("1-base", BREAD, "4"),
        ("1-slang", TEA, "4"),
    ]


@pytest.mark.parametrize("turns", ["Bake", [], ["Bake", "Eat"], [3], [" "]])
def test_turns_are_one_text(tmp_path, turns):
    file = write(tmp_path, "question.jsonl", json.dumps({"question_id": 1, "turns": turns}))
    for read in (load_prompts, load_cases):
        with refuses(file, "line 1", "turns"):
            read(file)


def test_a_sample_is_drawn_by_its_seed():
    """In the order of the file, and nothing twice."""
    examples = [TrainingExample(f"{number}") for number in range(1000)]
    drawn = draw_prompts(examples, 300, seed=42)
    assert drawn == draw_prompts(examples, 300, seed=42) != draw_prompts(examples, 300, seed=43)
    numbers = [int(str(example.prompt)) for example in drawn]
    assert numbers == sorted(set(numbers)) and len(numbers) == 300 and numbers[-1] > 900
    with refuses("num_prompts", "1001", "1000"):
        draw_prompts(examples, 1001, seed=42)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.xlsx", "x", (".xlsx", ".jsonl")),
        ("a.txt", "\n \n", ()),
        ("a.csv", "", ()),
        ("a.csv", "id,label\n1,2\n", ("id", "label")),
        ("a.csv", "goal\nBake\n   \n", ("row 2", "prompt")),
        ("a.csv", "goal\nBake bread, please\n", ("row 1", "header")),
        ("a.json", "[", ("JSON",)),
        ("a.json", [{"label": "x"}], ("row 1", "prompt")),
        ("a.json", ["Bake", 3], ("row 2", "3")),
        ("a.json", ["Bake", " "], ("row 2",)),
        ("a.jsonl", '{"prompt": "Bake"}\n{oops\n', ("line 2", "JSON")),
        ("a.jsonl", '{"prompt": 3}\n', ("line 1", "prompt")),
        ("a.jsonl", '{"prompt": "Bake", "answer": 3}\n', ("line 1", "answer", "3")),
        ("a.jsonl", '{"messages": []}\n', ("line 1", "last turn")),
        (
            "a.jsonl",
            '{"messages": [{"role": "robot", "content": "x"}]}\n',
            ("line 1", "role"),
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "system", "content": "x"}]}\n',
            ("line 1", "last turn"),
        ),
    ],
)
def test_mistakes_name_file_and_row(tmp_path, name, content, names):
    file = write(tmp_path, name, content)
    with refuses(file, *names):
        load_prompts(file)


def test_missing_and_undecodable_files(tmp_path):
    with refuses(tmp_path / "nothing.txt"):
        load_prompts(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with refuses(tmp_path / "latin.txt", "UTF-8"):
        load_prompts(tmp_path / "latin.txt")


def test_verify_names_a_mismatch(tmp_path, monkeypatch):
    file = write(tmp_path, "mine.csv", f"goal\n{BREAD}\n")
    assert identify(file) is None
    with refuses(file, "harmful_behaviors.csv"):
        verify(file, "advbench")
    with refuses("adv", "advbench"):
        verify(file, "adv")
    with refuses(tmp_path / "nothing.csv", "advbench"):
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
