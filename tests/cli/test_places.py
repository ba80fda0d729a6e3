"""Every command that writes claims its place before it begins: what others made stays as it was."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from made_runs import attacked
from peft import LoraConfig
from refusals import cli_refuses

from mosa.cli import COMMANDS, main
from mosa.families import load_model

TRAINING = "--model missing --data prompts.txt --max_steps 1 --use_cpu true"
FILES = {
    "report": "report run --out {}",
    "generate": "generate --model missing --prompt x --out {}",
    "judge check": "judge check --judges refusal --data refusal --out {}",
    "attacks check": "attacks check --attacker http://localhost:1/v1#m --out {}",
    "bench sampler": "bench sampler --out {}",
    "bench align": "bench align --json {}",
    "bench drift": "bench drift --out {}",
    "bench campaign": "bench campaign --json {}",
    "bench report": "bench report --out {}",
}
"""Commands that write a file; they would fail late, by their model, or take long."""
FOLDERS = {
    "align mosa": f"align mosa {TRAINING} --config mosa_testbed_paper --out {{}}",
    "align sft": f"align sft {TRAINING} --out {{}}",
    "merge": "merge --model missing --adapter missing --out {}",
    "demo": "demo --out {}",
    "testbed tables": "testbed tables --out {}",
    "testbed build": "testbed build --out {}",
    "evaluate": "evaluate --model testbed --sets testbed --out {}",
    "analyze depth": "analyze depth --model testbed --sets testbed --out {}",
    "results": "results run --export csv --out {}",
    "report": "report run --out page.html --tables {}",
}
"""Commands that write a folder."""
OWN_PLACES = {"data get"}
"""It writes into a folder of the user's files, each under a name of its own (test_copies.py)."""
WRITE_NOTHING = {
    *("attacks", "compare", "completion", "data overlap", "judge", "judges", "sets", "status"),
}
"""`judge` writes into a run, and `compare` prints."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run, prompts, and a letter."""
    monkeypatch.chdir(tmp_path)
    attacked(Path("run"), {"a": {"direct": {"x": True}}})
    Path("prompts.txt").write_text("how do i make a copper kiln ?\n")
    Path("letter.txt").write_text("dear reader")
    return tmp_path


def letter(path: Path) -> None:
    path.write_text("dear reader")


def read_only(path: Path) -> None:
    path.write_text("dear reader")
    path.chmod(0o444)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_a_letter(path: Path) -> None:
    path.symlink_to("letter.txt")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def records(path: Path) -> None:
    path.write_bytes(Path("run/run.sqlite").read_bytes())


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("dear reader")


def below_a_read_only_folder(path: Path) -> None:
    path.parent.chmod(0o555)


def others_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def others_mark(path: Path) -> None:
    path.mkdir()
    (path / ".mosa.jsonl").write_text("my letter")


def empty_read_only_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o555)


THINGS = [letter, read_only, pipe, bound_socket, link_to_a_letter, link_to_nothing]
THINGS += [link_to_a_device, records, below_a_file, below_a_read_only_folder, others_folder]


def picture(folder: Path) -> dict[str, Any]:
    """Everything below a folder: what it is, its mode, and its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "run" in path.relative_to(folder).parts[0]:
            continue  # reading a run may move its write-ahead log into it
        kind = os.lstat(path)
        content = path.read_bytes() if stat.S_ISREG(kind.st_mode) else None
        target = os.readlink(path) if path.is_symlink() else None
        found[str(path)] = kind.st_mode, kind.st_ino, content, target
    return found


def check(capsys, here: Path, command: str, thing) -> None:
    place = Path("below") / "place"
    place.parent.mkdir()
    thing(place)
    before = picture(here)
    try:
        cli_refuses(capsys, command.format(place).split(), place)
        assert picture(here) == before
    finally:
        place.parent.chmod(0o755)


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("command", FILES)
def test_a_file_is_never_put_over_what_others_made(capsys, here, command, thing):
    check(capsys, here, FILES[command], thing)


@pytest.mark.parametrize(
    "thing", [*THINGS, others_mark, empty_read_only_folder], ids=lambda thing: thing.__name__
)
@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_of_others_is_left_alone(capsys, here, command, thing):
    check(capsys, here, FOLDERS[command], thing)


def test_every_command_that_writes_is_tried():
    tried = {*FILES, *FOLDERS} | {
        name for name in COMMANDS if name.startswith(("align ", "analyze "))
    }
    assert tried | WRITE_NOTHING | OWN_PLACES == set(COMMANDS)


def test_records_that_are_an_input_stay(capsys, here):
    """The run itself, and an analysis's result."""
    Path("run/depth-quick").mkdir()
    Path("run/depth-quick/result.json").write_text("{}")
    before = Path("run/run.sqlite").read_bytes()
    for name in ("run/run.sqlite", "run/depth-quick/result.json"):
        cli_refuses(capsys, ["report", "run", "--out", name], name)
    cli_refuses(capsys, ["results", "run", "--export", "json", "--out", "run"], "run")
    assert Path("run/run.sqlite").read_bytes() == before
    assert Path("run/depth-quick/result.json").read_text() == "{}"


def test_a_finding_is_not_put_over_files_of_others(capsys, here):
    for name in ("data.csv", "finding.md"):
        folder = Path("an") / "depth-quick"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "rows.jsonl").symlink_to(here / "letter.txt")
    before = picture(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosa.runs.store.check_folder", lambda path, made_by: None)
        words = "analyze depth --model testbed --sets testbed --out an"
        cli_refuses(capsys, words.split(), folder)
    assert picture(here) == before


def test_the_same_command_replaces_its_own(capsys, here):
    """And what is not of it stays, in the same folder too; a second format may join the first."""
    export = ["results", "run", "--export", "csv", "--out", "out"]
    page = ["report", "run", "--out", "page.html", "--tables", "tables"]
    for argv in (export, page):
        assert main(argv) == 0
    for folder in ("out", "tables"):
        (Path(folder) / "notes.txt").write_text("mine")
    first = {path: path.stat().st_ino for path in here.rglob("*.csv")}
    for argv in (export, page, [*export[:3], "json", *export[4:]]):
        assert main(argv) == 0
    assert all(path.stat().st_ino != inode for path, inode in first.items())
    assert Path("out/notes.txt").read_text() == Path("tables/notes.txt").read_text() == "mine"
    assert Path("out/run.json").is_file()
    Path("out/tasks.csv").unlink()
    Path("out/tasks.csv").symlink_to(here / "letter.txt")  # others' since
    capsys.readouterr()
    cli_refuses(capsys, export, "tasks.csv")
    assert Path("letter.txt").read_text() == "dear reader"


def test_what_its_user_has_changed_is_not_replaced(capsys, here):
    """Neither in a folder of ours nor where the file stands alone."""
    page = ["report", "run", "--out", "page.html"]
    export = ["results", "run", "--export", "csv", "--out", "out"]
    rows = ["judge", "check", "--judges", "refusal", "--data", "refusal", "--out", "errors.json"]
    files = {"page.html": page, "out/tasks.csv": export, "errors.json": rows}
    for argv in files.values():
        assert main(argv) == main(argv) == 0
    for name, argv in files.items():
        sound = Path(name).read_bytes()
        for changed in (b"mine", sound.replace(b"1", b"2")):
            Path(name).write_bytes(changed)
            before = picture(here)[str(here / name)]
            capsys.readouterr()
            cli_refuses(capsys, argv, name)
            assert picture(here)[str(here / name)] == before
        Path(name).write_bytes(sound)
        assert main(argv) == 0


def test_a_file_that_others_put_into_a_folder_of_ours_is_not_replaced(capsys, here):
    assert main(["results", "run", "--export", "json", "--out", "out"]) == 0
    Path("out/tasks.csv").write_text("mine")
    capsys.readouterr()
    cli_refuses(capsys, ["results", "run", "--export", "csv", "--out", "out"], "tasks.csv")
    assert Path("out/tasks.csv").read_text() == "mine"


QUICK = {
    "report": "report run --out page.html --tables tables",
    "results": "results run --export csv --out out",
    "generate": "generate --model testbed --prompt hello --steps 2 --max_new_tokens 4 --out new/a",
    "merge": "merge --model testbed --adapter adapter --out out",
    "align mosa": "align mosa --config mosa_testbed_paper --model testbed --data prompts.txt "
    "--max_steps 1 --use_cpu true --lora_r 1 --out out",
    "testbed build": "testbed build --width 16 --num_layers 1 --num_heads 2 --mlp_width 16 "
    "--batch_size 2 --primer_steps 1 --helpful_steps 1 --shallow_steps 1 --num_measured 1 "
    "--out out",
}


@pytest.mark.parametrize("command", QUICK)
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    capsys, here, monkeypatch, command
):
    """Whichever write finds the disk full, nothing half is left, and what was there stays."""
    if command == "merge":
        model = load_model("testbed")
        model.add_lora(LoraConfig(r=1, init_lora_weights=False))
        model.save_adapter("adapter")
    flush, places = os.fsync, picture(here)
    num_left = 0

    def full(descriptor):
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    # `generate` writes one file; the others have several.
    for num_left in (0, 1_000_000) if command == "generate" else (0, 2, 1_000_000):
        monkeypatch.setattr(os, "fsync", full)
        is_full = num_left < 1_000_000
        assert main(QUICK[command].split()) == (2 if is_full else 0)
        told = capsys.readouterr().err
        assert not is_full or "full" in told.splitlines()[-1], told
        assert not [path for path in here.rglob("*") if ".part" in path.name]
        for path, before in places.items():
            assert picture(here)[path][2] == before[2] or Path(path).is_dir()
