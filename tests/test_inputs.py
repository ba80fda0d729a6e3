"""What comes from files: bounded, checked, and refused in one sentence that names the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from refusals import refuses

from mosa.inputs import (
    parse_json,
    parse_yaml,
    plain_text,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
)


@dataclass
class Counts:
    n: int


def test_an_object_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, true, null, "\xc3\xa4"]}')
    assert read_json(file) == {"a": [1, 2.5, True, None, "ä"]}
    assert read_json(file, dict[str, list[object]])["a"][0] == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nonsense", "[1]", "null", "1", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}", '{"a": 1, "a": 1}', "[" * 100_000,
        '{"a": ' + "[" * 200 + "]" * 200 + "}",
    ],
)  # fmt: skip
def test_json_that_is_no_plain_object_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with refuses("settings.json"):
        read_json(file)


def test_types_are_strict(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text('{"n": true}')
    with refuses("counts.json", "n"):
        read_json(file, Counts)


@pytest.mark.parametrize("name", ["x" * 300, "no/such", "nul\0name"])
def test_a_name_that_cannot_be_is_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with refuses("nothing here"):
        read_bytes(tmp_path / name, missing="nothing here")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with refuses(name if name != "." else tmp_path.name):
            read_bytes(tmp_path / name)
    with refuses("zero"):
        read_bytes(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(b"x" * 11)
    with refuses("large", "10"):
        read_bytes(tmp_path / "large", most=10)


def test_bytes_that_are_no_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"tea\ncaf\xe9\n")
    with refuses("latin.txt", "line 2"):
        read_text(tmp_path / "latin.txt")


@pytest.mark.parametrize("text", ["a\ud83d", "a\0b"])
def test_half_characters_and_nul_are_no_text(text: str) -> None:
    with refuses("row 2"):
        plain_text(text, "row 2")
    assert plain_text("caf\u00e9 \U0001f600", "row 2")


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        "a: [", "- 1", "word", "a: 1\na: 2", "a: .nan", "a: .inf", "a: 0x" + "f" * 1000,
        "a: " + "9" * 1000, "a: !!python/object/apply:os.getcwd []", "a: &a [*a]", LAUGHS,
        "{a: " * 10_000, "[" * 10_000,
        "\n".join(f"k{n}: 1" for n in range(200_000)), "x: " + "y" * 2_000_000,
    ],
)  # fmt: skip
def test_yaml_that_is_no_plain_table_is_refused_soon(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with refuses("settings.yaml"):
        read_yaml(file)


def test_settings_that_nest_too_deeply_are_told_once() -> None:
    with refuses("recipe.yaml") as caught:
        parse_yaml("[" * 200, "recipe.yaml")
    assert str(caught.value).count("recipe.yaml") == 1


def test_yaml_of_settings_is_read() -> None:
    assert parse_yaml("", "x") == {}
    text = "base: &b {r: 8}\nother: *b\nmerged:\n  <<: *b\n  alpha: 1e-5\n"
    read = parse_yaml(text, "x")
    assert read["other"] == {"r": 8} and read["merged"]["r"] == 8


def test_json_text_names_its_place() -> None:
    with refuses("row 3"):
        parse_json("{", "row 3")
