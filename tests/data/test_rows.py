"""One reader of rows: prompts to train on, behaviors and labelled rows take and refuse the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refuses

from mosa.alignment.phrases import read_phrases
from mosa.data import load_cases, load_prompts
from mosa.judges.calibrate import load_labelled


def prompts(file: Path) -> list[str]:
    return [str(example.prompt) for example in load_prompts(file)]


def behaviors(file: Path) -> list[str]:
    return [case.request for case in load_cases(str(file)).cases]


both = pytest.mark.parametrize("read", [prompts, behaviors])


@both
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "lines.txt",
            "Bake bread\u2028in two lines\nBrew tea\fslowly\nKnit\u0085a hat\n",
            ["Bake bread\u2028in two lines", "Brew tea\fslowly", "Knit\u0085a hat"],
        ),
        (
            "ends.txt",
            "Bake bread\rBrew tea\r\nKnit a hat",
            ["Bake bread", "Brew tea", "Knit a hat"],
        ),
        (
            "context.jsonl",
            '{"prompt":"Sum it up","context":"A text about rye bread"}\n',
            ["A text about rye bread\n\n---\n\nSum it up"],
        ),
        ("blanks.csv", " Goal , Target \nBake bread,Sure\n", ["Bake bread"]),
        ("upper.CSV", "goal\nBake bread\n", ["Bake bread"]),
        ("request.csv", "id,request\n1,Bake bread\n", ["Bake bread"]),
        ("goal_first.csv", "prompt,goal\nBrew tea,Bake bread\n", ["Bake bread"]),
        ("index.csv", ",,goal\n0,0,Bake bread\n", ["Bake bread"]),
        ("long.csv", "goal\n" + "y" * 160_000 + "\n", ["y" * 160_000]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:16] else "",
)
def test_both_read_the_same(tmp_path, read, name, content, expected):
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path / name) == expected


@both
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quote.csv", 'goal,target\n"Bake bread,Sure\nBrew tea,Sure\n'),
        ("comma.csv", "goal,target\nBake bread, then eat it,Sure\n"),
        ("twice.csv", "goal,goal\nBake bread,Brew tea\n"),
        ("twice_in_other_case.csv", "Goal, goal\nBake bread,Brew tea\n"),
        ("twice.jsonl", '{"prompt": "Bake bread", "prompt": "Brew tea"}\n'),
        ("twice_in_other_case.jsonl", '{"prompt": "Bake bread", "Prompt": "Brew tea"}\n'),
        ("half.jsonl", '{"prompt":"Bake \\ud83d bread"}\n'),
        ("half.json", '[{"prompt":"Sum up","context":"a \\udc00 b"}]'),
        ("nul.jsonl", '{"prompt":"Bake\\u0000bread"}\n'),
        ("nul.csv", "goal\nBake\0bread\n"),
        ("nul.txt", "Bake\0bread\n"),
        ("nan.jsonl", '{"prompt":"Bake bread", "id": NaN}\n'),
        ("digits.jsonl", '{"prompt":"Bake bread", "id": ' + "9" * 5000 + "}\n"),
        ("deep.json", "[" * 100_000),
        ("deep.jsonl", '{"prompt":' + "[" * 100_000 + "\n"),
        ("number.jsonl", '{"prompt":"Sum up", "context": 5}\n'),
        ("context.jsonl", '{"behavior":"Sum up", "ContextString": 5}\n'),
        ("latin.txt", "caf\udce9\n"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 26 else "",
)
def test_both_refuse_the_same(tmp_path, read, name, content):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with refuses(name):
        read(tmp_path / name)


def test_an_input_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "alpaca.jsonl").write_text('{"instruction":"Add one","input":5,"output":"6"}\n')
    with refuses("alpaca.jsonl", "input"):
        load_prompts(tmp_path / "alpaca.jsonl")


def test_labelled_rows_are_read_as_strictly(tmp_path):
    for name, content in (
        ("quote.csv", 'behavior,response,label\nbake,"mix,1\nbrew,boil,0\n'),
        ("twice.csv", "behavior,response,label,label\nbake,mix,1,0\n"),
        ("half.jsonl", '{"behavior":"bake","response":"mix \\ud83d","label":1}\n'),
    ):
        (tmp_path / name).write_text(content)
        with refuses(name):
            load_labelled(tmp_path / name)


def test_phrases_are_the_lines_of_their_file(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_bytes("i am sorry\u2028i cannot\r\n# a remark\nno\n".encode())
    assert read_phrases(file) == ["i am sorry\u2028i cannot", "no"]
    file.write_bytes(b"caf\xe9\n")
    with refuses("phrases.txt", "line 1"):
        read_phrases(file)


@pytest.mark.parametrize("read", [prompts, behaviors, load_labelled, read_phrases])
def test_a_name_that_the_system_refuses_is_not_there(read):
    """A prompt that was pasted where a file was wanted."""
    with refuses("how do i make a lantern"):
        read(Path("how do i make a lantern " * 12 + ".txt"))


@both
@pytest.mark.parametrize(
    "row", ['{"prompt": "\\u200b"}', '{"prompt": " "}', '{"goal": "", "prompt": "Bake bread"}']
)
def test_a_request_that_nobody_sees_is_none(tmp_path, read, row):
    (tmp_path / "blank.jsonl").write_text(row + "\n")
    with refuses("blank.jsonl"):
        read(tmp_path / "blank.jsonl")


def test_a_turn_that_nobody_sees_is_none(tmp_path):
    (tmp_path / "blank.jsonl").write_text('{"messages":[{"role":"user","content":""}]}\n')
    with refuses("blank.jsonl"):
        load_prompts(tmp_path / "blank.jsonl")
