"""At least a thousand damaged files of every kind that the package reads: one sentence, or read.

`MOSA_FUZZ=50` makes fewer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fuzz.surfaces import Surface, changed, comes_back, many, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from refusals import check_sentence

from mosa import cli
from mosa.alignment import MosaConfig, load_config
from mosa.alignment.phrases import read_phrases
from mosa.data import load_cases, load_prompts
from mosa.evidence.conditions import parse_condition
from mosa.judges.calibrate import (
    MeasuredErrors,
    load_labelled,
    read_calibration,
    write_calibration,
)

pytestmark = pytest.mark.slow


ROWS = [
    {"id": 1, "goal": "Bake bread", "target": "Sure, here is how", "category": "food"},
    {"id": 2, "goal": "Brew tea", "target": "Sure", "context": "A text about tea"},
]
LABELLED = [
    {"behavior": "bake", "response": "mix, then bake", "label": 1, "kind": "answer"},
    {"behavior": "brew", "response": "i am sorry", "label": "safe", "kind": "refusal"},
]
LABELLED_CSV = 'behavior,response,label\nbake,"mix, then ""bake"" it",1\nbrew,i am sorry,safe\n'
CSV = 'id,goal,target\n1,"Bake bread, please",Sure\n2,Brew tea,"Sure ""now"""\n'
OPTIONS = {
    "model": "testbed", "adapter": ["none", "a"], "sets": ["testbed", "xstest"], "out": "run",
    "attacks": "direct,prefill", "attack_options": {"prefill": {"positions": [1, 30]}},
    "seeds": [0, 1], "temperature": 0.5, "limit": 3, "subjects": None,
}  # fmt: skip


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def lines(rows: list[dict]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def calibration(folder: Path) -> None:
    write_calibration(folder / "a.json", {"strict": MeasuredErrors(3, 4, 1, 2, 5, "rows", "abc")})


SURFACES = [
    *(
        Surface(f"{what} {name}", name, text(name, content), lambda f, n=name, r=read: r(f / n))
        for what, read in (
            ("prompts", load_prompts),
            ("behaviors", lambda file: load_cases(str(file))),
        )
        for name, content in (
            ("a.txt", "Bake bread\n\nBrew tea\n"),
            ("a.csv", CSV),
            ("a.json", json.dumps(ROWS)),
            ("a.jsonl", lines(ROWS)),
        )
    ),
    *(
        Surface(
            f"labelled rows {name}", name, text(name, of), lambda f, n=name: load_labelled(f / n)
        )
        for name, of in (("a.jsonl", lines(LABELLED)), ("a.csv", LABELLED_CSV))
    ),
    Surface(
        "phrases", "a.txt", text("a.txt", "i am sorry\n# no\n"), lambda f: read_phrases(f / "a.txt")
    ),
    Surface("calibration", "a.json", calibration, lambda f: read_calibration(f / "a.json")),
    Surface(
        "training settings",
        "a.yaml",
        text("a.yaml", "base: mosa_testbed_paper\nwindow_end: 50\nlearning_rate: 1e-4\n"),
        lambda f: load_config(MosaConfig, f / "a.yaml", {"output_dir": str(f / "out")}),
    ),
    Surface(
        "options",
        "a.yaml",
        text("a.yaml", yaml.safe_dump(OPTIONS)),
        lambda f: cli.parse(["evaluate", "--config", str(f / "a.yaml")]),
    ),
    Surface(
        "options in JSON",
        "a.yaml",
        text("a.yaml", json.dumps(OPTIONS)),
        lambda f: cli.parse(["evaluate", "--config", str(f / "a.yaml")]),
    ),
    Surface(
        "subjects",
        "a.yaml",
        text("a.yaml", json.dumps([{"model": "testbed", "decoder": {"steps": 8, "rules": []}}])),
        lambda f: cli.parse(
            ["evaluate", "--sets", "testbed", "--out", "run", "--subjects", str(f / "a.yaml")]
        ),
    ),
]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_damaged_files_are_read_or_refused(surface: Surface, tmp_path: Path):
    surface.make(tmp_path)
    sound = (tmp_path / surface.file).read_bytes()
    surface.read(tmp_path)

    @many
    @given(changed(sound))
    def is_read_or_refused(damaged: bytes) -> None:
        (tmp_path / surface.file).write_bytes(damaged)
        read_or_refuse(surface.read, tmp_path)

    is_read_or_refused()


@many
@given(st.one_of(st.text(max_size=60), st.from_regex(r"[a-z_ ]{1,12}(<|>|=|>=|<=)?[-+0-9.e]{0,8}")))
def test_conditions_of_compare(condition: str):
    with comes_back():
        try:
            parse_condition(condition)
        except Exception as error:  # noqa: BLE001 - the next line says which is right
            assert type(error).__name__ == "UserError", error
            check_sentence(str(error))
