"""Options as words and as files: what is a word stays one, and nothing given is lost."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from refusals import cli_refuses, refuses

from mosa import cli
from mosa.cli import parse, parser_of

EVALUATE = ["evaluate", "--model", "testbed", "--sets", "testbed", "--out", "run"]
ALIGN = ["align", "mosa", "--model", "testbed", "--data", "a.txt", "--out", "adapter"]


def options(command: list[str], *words: str) -> dict[str, object]:
    return parse([*command, *words])[1].as_dict()


@pytest.mark.parametrize("word", ["null", "Null", "NULL", "~", "none", "yes", "12", "[a]"])
def test_a_word_is_that_word(word):
    for command, option in (
        (["generate", "--model", "testbed"], "prompt"),
        (["generate", "--model", "testbed"], "system"),
        (["generate", "--model", "testbed"], "adapter"),
        (["generate", "--model", "testbed"], "data"),
        (EVALUATE, "system_prompt"),
        (EVALUATE, "attacker"),
        (EVALUATE, "decoder_of_task"),
        (["results", "run"], "judge"),
        (["report", "run", "--out", "page.html"], "title"),
    ):
        for words in ([f"--{option}", word], [f"--{option}={word}"]):
            assert options(command, *words)[option] == word
    for option in ("out", "data_dir"):
        assert options(EVALUATE[:-2] + ["--out", word], "--data_dir", word)[option] == Path(word)


def test_no_option_takes_a_word_for_nothing():
    """Of all commands: an option of texts or paths has no None among its types."""
    for name in cli.COMMANDS:
        for action in parser_of(name)._actions:
            kinds = str(getattr(action, "_typehint", ""))
            assert kinds not in ("str | None", "pathlib.Path | None"), (name, action.dest)


def test_none_is_no_number():
    assert options(ALIGN, "--window_end", "none")["window_end"] is None
    assert options(ALIGN, "--window_end=none", "--save_total_limit", "null") == options(
        ALIGN, "--window_end", "null", "--save_total_limit=none"
    )
    assert options(EVALUATE, "--block_length", "none")["block_length"] is None


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--batch-size", "1", "--batch_size", "2"], "batch_size"),
        (["--config", "a.yaml", "--config", "b.yaml"], "config"),
    ],
)
def test_an_option_that_is_given_twice_is_refused(capsys, tmp_path, words, option):
    with contextlib.chdir(tmp_path):
        for name in ("a.yaml", "b.yaml"):
            Path(name).touch()
        cli_refuses(capsys, [*EVALUATE, *words], f"--{option}")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--attacks", "direct", "--attacks", "prefill,dia"], "attacks", "direct prefill dia"),
        (["--attacks=direct", "--seeds", "1", "--attacks", "dia"], "attacks", "direct dia"),
        (["--attacks", "[direct, dia]"], "attacks", "direct dia"),
        (["--seeds", "0,1", "--seeds=2"], "seeds", "0 1 2"),
        (["--adapter", "none", "a"], "adapter", "none a"),
        (["--adapter", "none,a", "b"], "adapter", "none a b"),
        (["--adapter=none", "--limit", "3", "--adapter", "a,b"], "adapter", "none a b"),
    ],
)
def test_lists_take_commas_and_repetition(words, name, value):
    _, args = cli.parse([*EVALUATE, *words])
    assert " ".join(map(str, args[name])) == value


def test_a_list_takes_no_positional():
    _, args = cli.parse(["judge", "--judges", "truth", "run", "--judges=refusal"])
    assert args.judges == ("truth", "refusal") and str(args.run) == "run"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["report", "run", "--out", ""], "--out"),
        (["report", "run", "--out="], "--out"),
        (["report", "", "--out", "x.html"], "path"),
        (["judge", "--judges", "truth", ""], "path"),
        (["results", "run", "--export", "csv", "--out", ""], "--out"),
    ],
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(capsys, words, name):
    cli_refuses(capsys, words, name, "empty")


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "-inf", ".nan", ".inf"])
def test_numbers_are_finite(capsys, number):
    cli_refuses(capsys, [*EVALUATE, f"--temperature={number}"], "temperature")
    cli_refuses(capsys, [*ALIGN, f"--learning_rate={number}"], "learning_rate")


# ------------------------------------------------------------------------------ files of options


def in_file(tmp_path: Path, text: str | bytes) -> dict[str, object]:
    file = tmp_path / "options.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return options(EVALUATE[:1], "--config", str(file))


NEEDED = "sets: testbed\nout: run\n"


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("adapter: none", "adapter", ["none"]),
        ("adapter: [none, a]", "adapter", ["none", "a"]),
        ("seeds: 0", "seeds", (0,)),
        ("seeds: [0, 1]", "seeds", (0, 1)),
        ("attacks: [direct, prefill]", "attacks", ("direct", "prefill")),
        ("limit: none", "limit", None),
        ("system_prompt: null", "system_prompt", None),
        ("temperature: 1e-1", "temperature", 0.1),
        ("subjects: [{model: testbed}]", "subjects", [{"model": "testbed"}]),
    ],
)
def test_files_of_options(tmp_path, line, option, value):
    assert in_file(tmp_path, NEEDED + line)[option] == value


def test_files_that_a_file_names_stand_beside_it(tmp_path):
    (tmp_path / "subjects.yaml").write_text("- {model: testbed}\n")
    assert in_file(tmp_path, NEEDED + "subjects: subjects.yaml")["subjects"] == [
        {"model": "testbed"}
    ]
    assert options([*EVALUATE, "--subjects", str(tmp_path / "subjects.yaml")])["subjects"] == [
        {"model": "testbed"}
    ]


@pytest.mark.parametrize(
    "line", ["preset: no", "model: yes", "system_prompt: off"], ids=["no", "yes", "off"]
)
def test_words_that_yaml_takes_for_truth_values_need_quotes(tmp_path, line):
    with refuses(line.partition(":")[0], "quotes"):
        in_file(tmp_path, NEEDED + line)


@pytest.mark.parametrize(
    "text",
    [
        b"model: caf\xe9\n",
        "model: x".encode("utf-16"),
        "- 1",
        "limit: .nan",
        "limit: 1\nlimit: 2",
        "a: &a [x, x]\nb: &b [" + "*a, " * 200 + "*a]\nc: &c [" + "*b, " * 200 + "*b]",
        "{a: " * 10_000,
        "limit: " + "9" * 100_000,
        "model: !!python/object/apply:os.getcwd []",
    ],
    ids=["latin", "utf16", "list", "nan", "twice", "laughs", "deep", "digits", "tag"],
)
def test_files_that_are_no_settings(tmp_path, text):
    with refuses("options.yaml"):
        in_file(tmp_path, text)
    with refuses("options.yaml"):
        from mosa.alignment import MosaConfig, load_config

        load_config(MosaConfig, tmp_path / "options.yaml")


def test_a_file_of_options_that_is_not_there(capsys, tmp_path):
    for name in ("absent.yaml", "x" * 300, "."):
        status = cli.main([*EVALUATE, "--config", str(tmp_path / name)])
        assert status == cli.EXIT_USER_ERROR
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("seeds: [0, 1.5]", "seeds"),
        ("seeds: [true]", "seeds"),
        ("seeds: [010]", "010"),
        ("seeds: 1:30", "1:30"),
        ("banned_token_ids: [5.7]", "banned_token_ids"),
        ("adapter: {a: b}", "adapter"),
        ("attack_options: {prefill: {positions: [1]}, prefill: {positions: [5]}}", "prefill"),
        ('system_prompt: "a\\0b"', "options.yaml"),
        ("config: other.yaml", "options.yaml"),
        ("model: !!binary aGk=", "options.yaml"),
        ("model: !!set {a}", "options.yaml"),
    ],
)
def test_values_that_are_not_what_is_meant_are_refused(tmp_path, line, name):
    with refuses(name):
        in_file(tmp_path, NEEDED + line)


def test_a_day_is_a_name(tmp_path):
    assert in_file(tmp_path, "sets: testbed\nout: 2026-11-29")["out"] == Path("2026-11-29")


def test_tables_on_the_command_line_have_each_name_once(capsys):
    good = '{"prefill": {"positions": [1, 30]}}'
    assert options(EVALUATE, "--attack_options", good)["attack_options"] == {
        "prefill": {"positions": [1, 30]}
    }
    twice = '{"prefill": {"positions": [1]}, "prefill": {"positions": [5]}}'
    cli_refuses(capsys, [*EVALUATE, "--attack_options", twice], "prefill")


def test_a_file_of_subjects_that_cannot_be_read_is_named(capsys, tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"caf\xe9")
    for name in ("a.yaml", "absent.yaml"):
        file = tmp_path / name
        argv = ["evaluate", "--sets", "testbed", "--out", "run", "--subjects", str(file)]
        cli_refuses(capsys, argv, "--subjects", name)


def test_the_home_folder_is_meant(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options(EVALUATE[:-2], "--out=~/run")["out"] == tmp_path / "run"
