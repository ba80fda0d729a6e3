"""Exit codes, sentences, help; what commands do is tested where it is done."""

import errno
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import cli_refuses, unreadable

from mosa import cli
from mosa.cli import models
from mosa.cli.help import read_help
from mosa.cli.help_texts import make_help
from mosa.cli.options import Command
from mosa.terminal import printable
from mosa.types import UserError


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "matplotlib", "httpx2")
"""Libraries that take a noticeable time to import."""


HELPS = [[*name.split(), "--help"] for name in cli.COMMANDS]


@pytest.mark.parametrize(
    "calls", [[["--help"], ["--version"], ["align"]], HELPS], ids=["overview", "help"]
)
def test_help_imports_no_heavy_library(calls):
    """So that it is there at once, of every command."""
    code = f"import sys\nfrom mosa.cli import main\nassert not any(map(main, {calls}))\n"
    code += f"sys.exit(', '.join(sys.modules.keys() & {{*{HEAVY}}}) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_overview_lists_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert run(capsys)[1] == out


def test_every_command_of_every_module_is_in_the_table():
    folder = Path(cli.__file__).parent
    files = [file.stem for file in folder.glob("[a-z]*.py") if "COMMANDS: dict" in file.read_text()]
    modules = {name: importlib.import_module(f"mosa.cli.{name}") for name in files}
    found = {command: name for name, module in modules.items() for command in module.COMMANDS}
    assert found == cli.COMMANDS and len(modules) > 5


def test_overview_cuts_no_summary(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys, "--help")[1]
    assert "..." not in out and max(map(len, out.splitlines())) <= 80


def test_the_first_page_of_an_evaluation_has_what_a_user_thinks_of_first(capsys, monkeypatch):
    """Under each of its groups, in whole sentences."""
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "evaluate", "--help")
    places = [out.index(f"\n{title}") for title in read_help()["evaluate"]["groups"]]
    assert places == sorted(places) and len(places) == 7
    for option in ("model", "sets", "out", "adapter", "limit", "attacks", "preset", "judges"):
        assert f"\n  --{option} " in out
    for option in ("attacker", "judge-model", "decoder", "i-am-authorized", "dry-run"):
        assert f"\n  --{option} " in out


def test_group_lists_its_own(capsys):
    status, out, _ = run(capsys, "align")
    assert status == 0
    assert "align mosa" in out
    assert "generate" not in out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_every_command(capsys, name):
    status, out, _ = run(capsys, *name.split(), "--help")
    assert status == 0
    about = read_help()[name]
    places = [word.upper() for word in about["groups"].get("positional arguments", ())]
    assert out.startswith(f"usage: {' '.join(['mosa', name, *places, '[options]'])}\n")
    words = " ".join(out.replace("\\", "").split())
    assert about["summary"] in words and about["example"] in words


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_first_pages_are_short_and_the_rest_is_behind_them(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    _, first, _ = run(capsys, *name.split(), "--help")
    _, whole, _ = run(capsys, *name.split(), "--help-all")
    groups = read_help()[name]["groups"]
    assert len(first.splitlines()) <= 40 and max(map(len, first.splitlines())) <= 80
    assert all(f"  {option}" in whole for options in groups.values() for option in options)
    texts = [" ".join(text.split()) for options in groups.values() for text in options.values()]
    assert all(text in " ".join(whole.split()) for text in texts)
    assert whole == first or all(
        re.search(rf"^{title}( \(\d+ of \d+\))?:$", first, re.M) for title in groups
    )
    assert not re.search(r"(?<!A,B,)(?<!ITEM,)\.\.\.|…", first), "a text is cut"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_examples_are_commands(name):
    """Their options are known, and have values of the right kind."""
    words = shlex.split(cli.command_named(name).example)
    if name == "completion":
        words = ["mosa", "completion", "bash"]  # its script is run by the shell
    assert words[0] == "mosa" and " ".join(words[1:]).startswith(name)
    cli.parse(words[1:])


def test_help_is_a_command_too(capsys):
    assert run(capsys, "help", "judge", "check") == run(capsys, "judge", "check", "--help")
    assert run(capsys, "help") == run(capsys, "--help")


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["evalute"], "evaluate"),
        (["judge-check"], "judge check"),
        (["bench", "sampeler"], "bench sampler"),
        (["generate", "--modle", "testbed"], "--model"),
        (["generate", "--model", "testbed", "--max-new-token=3"], "--max_new_tokens"),
        (["attacks", "prefil"], "prefill"),
    ],
)
def test_what_was_meant_is_asked(capsys, argv, meant):
    assert f"did you mean {meant}?" in cli_refuses(capsys, argv, meant)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command(capsys, shell):
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0
    assert all(word in out for name in cli.COMMANDS for word in name.split())
    assert "max-new-tokens" in out


def test_bash_completes(capsys, tmp_path):
    """As bash asks: the words so far, and which of them stands at the cursor."""
    script = tmp_path / "completion"
    script.write_text(run(capsys, "completion", "bash")[1])
    code = f"""source {script}
    COMP_WORDS=(mosa judge ch); COMP_CWORD=2; _shtab_mosa; echo ${{COMPREPLY[@]}}
    COMP_WORDS=(mosa generate --show); COMP_CWORD=2; _shtab_mosa; echo ${{COMPREPLY[@]}}"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["check", "--show-steps"]


def test_help_is_what_the_options_say():
    """`python -m mosa.cli.help_texts` writes it anew."""
    assert read_help() == make_help()


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    """All of its words are there, and an option's text stands in one column."""
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run(capsys, "generate", "--help-all")
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  --block-length N"))
    column = lines[place].index("Tokens in")
    assert max(map(len, lines)) <= 60 and re.match(rf" {{{column}}}\S", lines[place + 1])


def test_help_tells_what_each_decoder_setting_is(capsys):
    _, out, _ = run(capsys, "generate", "--help-all")
    out = " ".join(out.split())
    assert "--block-length" in out
    assert "Temperature at which tokens are drawn" in out


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["dance"], ["dance", "mosa --help"]),
        (["align", "dance"], ["align dance", "align mosa"]),
        (["generate", "--prompt", "hello"], ["model"]),
        (["generate", "--model", "m", "--stepz", "3"], ["stepz", "mosa generate --help"]),
        (["generate", "--model", "m", "--prompt", "x", "--steps", "many"], ["steps", "many"]),
        (["generate", "--model", "m"], ["--prompt", "--data"]),
        (["generate", "--model", "m", "--prompt", "x", "--data", "y"], ["--prompt", "--data"]),
        (["generate", "--model", "m", "--prompt", "x", "--limit", "3"], ["--limit"]),
        (["generate", "--model", "no/such/folder", "--prompt", "x"], ["no/such/folder"]),
        (["generate", "--model", "m", "--data", "no.csv"], ["no.csv"]),
        (["generate", "--model", "m", "--prompt", "x", "--batch_size", "0"], ["--batch_size"]),
        (["generate", "--model", "m", "--prompt", "x", "--batch_size", "-1"], ["--batch_size"]),
        (["generate", "--model", "m", "--data", "a.txt", "--limit", "-1"], ["--limit"]),
        (["generate", "--model", "m", "--data", "a.txt", "--limit", "0"], ["--limit"]),
        (["generate", "--model", "m", "--prompt", ""], ["--prompt"]),
        (["generate", "--model", "m", "--prompt", "caf\udce9"], ["--prompt", "U+DCE9"]),
        (["generate", "--model", "m", "--prompt", "x", "--system", "\ud83d"], ["--system"]),
        (["generate", "--model", "m", "--prompt", "x", "--seed", str(1 << 63)], ["seed"]),
        (["generate", "--model", "m", "--data", "no" * 200 + ".txt"], ["no prompt file"]),
        (["align", "mosa", "--model", "m", "--data", "no.txt", "--out", "o"], ["no.txt"]),
        (["merge", "--model", "m", "--adapter", "a"], ["out"]),
    ],
)
def test_mistakes_are_one_sentence(capsys, argv, names):
    cli_refuses(capsys, argv, *names)


ROWS = {
    "a.txt": ("how do i make tea ?\n", ["generate --model m --data {}", "data overlap {} {}"]),
    "a.csv": (
        "goal\nmake tea\n",
        ["evaluate --model testbed --sets {} --out run", "align sft --model m --data {} --out run"],
    ),
    "a.jsonl": (
        '{"behavior": "a", "response": "b", "label": 1}\n',
        ["judge check --judges refusal --data {}"],
    ),
    "a.yaml": (
        "steps: 4\n",
        [
            "generate --model m --prompt x --config {}",
            "align mosa --model m --data README.md --config {} --out run",
        ],
    ),
}


@pytest.mark.parametrize("command", [words for _, all_ in ROWS.values() for words in all_])
def test_a_file_that_may_not_be_read_says_so(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    name, (content, _) = next(each for each in ROWS.items() if command in each[1][1])
    Path(name).write_text(content)
    unreadable(monkeypatch, Path(name))
    message = cli_refuses(capsys, command.format(*[name] * command.count("{}")).split(), name)
    assert "permission" in message.lower()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "command",
    [
        "data get advbench_50 --data_dir {}",
        "evaluate --model testbed --sets advbench --data_dir {} --out run",
        "evaluate --model testbed --sets humaneval --data_dir {} --out run",
        "evaluate --model testbed --sets testbed --out {}",
        "generate --model m --prompt x --out {}",
        "judge check --judges refusal --data refusal --out {}",
    ],
)
def test_a_folder_that_the_system_refuses_is_none(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOSA_DATA", raising=False)
    cli_refuses(capsys, command.format("long/" + "x" * 300).split(), "long")
    assert not list(tmp_path.iterdir())


def test_the_backend_of_a_notebook_is_not_ours(capsys, monkeypatch):
    """Figures are drawn by a program that has not got it."""
    monkeypatch.setenv("MPLBACKEND", "module://not_there")
    assert run(capsys, "--version")[0] == 0 and "MPLBACKEND" not in os.environ


def test_unknown_key_in_yaml_is_refused(capsys, tmp_path):
    config = tmp_path / "decoder.yaml"
    config.write_text("stepz: 3\n")
    argv = ["generate", "--config", str(config), "--model", "m", "--prompt", "x"]
    cli_refuses(capsys, argv, "stepz")


def test_out_is_never_overwritten(capsys, tmp_path):
    kept = tmp_path / "responses.jsonl"
    kept.write_text("{}\n")
    argv = ["generate", "--model", "m", "--prompt", "x", "--out", str(kept)]
    cli_refuses(capsys, argv, kept, "--out")
    assert kept.read_text() == "{}\n"


def command(run_command) -> Command:
    return Command("x", lambda parser: None, run_command, "All of it is kept.", example="mosa x")


def raising(error: BaseException):
    def run_command(args):
        raise error

    return run_command


def test_interruption_says_what_is_kept(capsys, monkeypatch):
    monkeypatch.setitem(models.COMMANDS, "merge", command(raising(KeyboardInterrupt())))
    status, _, err = run(capsys, "merge")
    assert status == 130
    assert err == "\nmosa: interrupted. All of it is kept.\n"
    monkeypatch.setitem(models.COMMANDS, "merge", command(raising(KeyboardInterrupt("Go on so."))))
    assert run(capsys, "merge")[2] == "\nmosa: Go on so.\n"


def test_our_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(models.COMMANDS, "merge", command(raising(ZeroDivisionError("ours"))))
    with pytest.raises(ZeroDivisionError):
        cli.main(["merge"])


def test_user_errors_of_the_library_are_sentences(capsys, monkeypatch):
    monkeypatch.setitem(models.COMMANDS, "merge", command(raising(UserError("mend this so"))))
    assert run(capsys, "merge") == (2, "", "mosa: mend this so\n")


def test_both_spellings_of_an_option():
    """Only the name of an option is respelled, never its value or a word that follows it."""
    assert cli._with_underscores("--show-steps") == "--show_steps"
    assert cli._with_underscores("--max-new-tokens=3-4") == "--max_new_tokens=3-4"
    assert cli._with_underscores("a--b-c") == "a--b-c"
    assert cli._with_underscores("-x-y") == "-x-y"


# --- generate -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, new_tiny_llada):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    new_tiny_llada().save(folder)
    return str(folder)


DECODER = ("--max-new-tokens", "8", "--steps", "4")


def test_generate_prints_the_response(capsys, checkpoint):
    from mosa.denoising import sample
    from mosa.families import load_model

    status, out, _ = run(capsys, "generate", "--model", checkpoint, "--prompt", "tea ?", *DECODER)
    result = sample(load_model(checkpoint), ["tea ?"], max_new_tokens=8, steps=4)
    assert status == 0
    assert result.text is not None
    assert out == f"{printable(result.text[0])}\n"


def test_generate_reads_its_settings_from_yaml(capsys, checkpoint, tmp_path):
    config = tmp_path / "decoder.yaml"
    config.write_text("max_new_tokens: 8\nsteps: 2\n")
    argv = ["generate", "--config", str(config), "--model", checkpoint, "--prompt", "tea ?"]
    out_file = tmp_path / "r.jsonl"
    assert run(capsys, *argv, "--steps", "4", "--out", str(out_file))[0] == 0
    decoder = json.loads(out_file.read_text())["decoder"]
    assert (decoder["max_new_tokens"], decoder["steps"]) == (8, 4)


def test_show_steps_without_a_terminal(capsys, checkpoint):
    """Eight masks, two words a step; each step is one line, and at last nothing is masked."""
    argv = ["generate", "--model", checkpoint, "--prompt", "tea ?", *DECODER, "--show-steps"]
    status, out, _ = run(capsys, *argv)
    lines = out.split("step ")[1:]
    assert status == 0
    assert [line.count("·") for line in lines] == [6, 4, 2, 0]
    assert lines[0].startswith("1: ")


def test_generate_for_a_file_of_prompts(capsys, checkpoint, tmp_path):
    data, out_file = tmp_path / "prompts.csv", tmp_path / "responses.jsonl"
    data.write_text('goal,target\n"how is tea made ?",x\nwho is there ?,x\nwhat now ?,x\n')
    argv = ["generate", "--model", checkpoint, "--data", str(data), "--limit", "2", *DECODER]
    status, out, _ = run(capsys, *argv, "--out", str(out_file))
    records = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert status == 0
    assert [record["prompt"] for record in records] == [
        [{"role": "user", "content": "how is tea made ?"}],
        [{"role": "user", "content": "who is there ?"}],
    ]
    assert "[2/2] who is there ?" in out
    for record in records:
        assert record.keys() == {"key", "prompt", "response", "response_full", "decoder"}
        assert record["response_full"].startswith(record["response"])
        assert f"{printable(record['response'])}\n" in out
    assert len({r["key"] for r in records}) == 2


def test_a_generation_that_is_cut_off_leaves_no_file(capsys, checkpoint, tmp_path, monkeypatch):
    """The second of two batches is interrupted."""
    from mosa import denoising

    asked = []

    def interrupted(model, prompts, config, progress):
        asked.append(prompts)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample(model, prompts, config)

    sample = denoising.sample
    monkeypatch.setattr(denoising, "sample", interrupted)
    data, out_file = tmp_path / "prompts.txt", tmp_path / "r.jsonl"
    data.write_text("tea ?\ncake ?\n")
    argv = ["generate", "--model", checkpoint, "--data", str(data), "--batch_size", "1", *DECODER]
    assert run(capsys, *argv, "--out", str(out_file))[0] == 130
    assert len(asked) == 2 and [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("unable to mmap 123 bytes from file </x>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_does_not_suffice_is_told_with_the_remedy(capsys, monkeypatch, error):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr("mosa.families.load_model", load)
    cli_refuses(capsys, ["generate", "--model", "m", "--prompt", "x"], "memory", "--batch_size")


def test_another_error_keeps_its_traceback(monkeypatch):
    def load(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("mosa.families.load_model", load)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["generate", "--model", "m", "--prompt", "x"])


def test_a_full_disk_behind_the_output_is_told():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "mosa", "attacks"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_row_that_is_too_long_is_named_before_anything_is_answered(capsys, checkpoint, tmp_path):
    data, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    data.write_text("tea ?\n" + "how is tea made ? " * 3000 + "\n")
    argv = ["generate", "--model", checkpoint, "--data", str(data), "--batch_size", "1", *DECODER]
    cli_refuses(capsys, [*argv, "--out", str(out)], "prompt 2", data)
