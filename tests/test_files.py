"""Files are written whole or not at all, and nothing but a file is ever replaced."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from refusals import refuses

from mosa.files import (
    MARK,
    append_text,
    check_folder,
    claim_file,
    claim_folder,
    filling,
    make_private_file,
    plain_cell,
    replacing,
    seal,
    user_errors,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there_to_the_byte(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "ä\r\nb\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ä\r\nb\n".encode()
    write_bytes(tmp_path / "b", b"\0\xff")
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    write_json(tmp_path / "c.json", {"ä": 1})
    assert (tmp_path / "c.json").read_text("utf-8") == '{\n  "ä": 1\n}\n'
    assert names(tmp_path) == ["b", "c.json", "new"] and names(tmp_path / "new") == ["a.txt"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing(path) as file:
        file.write("ne")
        file.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_the_disk_refuses_is_a_users_matter(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with refuses(tmp_path / "a") as caught:
        write_text(tmp_path / "a", "new")
    assert ("full" in str(caught.value)) == (number == errno.ENOSPC)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with refuses(tmp_path / "file"):
        write_text(tmp_path / "file" / "a", "")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    behind, link, dangling = tmp_path / "there" / "b", tmp_path / "link", tmp_path / "dangling"
    behind.write_text("old")
    link.symlink_to(behind)
    dangling.symlink_to(tmp_path / "there" / "c")
    write_text(link, "new")
    with refuses(dangling):
        write_text(dangling, "newer")
    assert link.is_symlink() and behind.read_text() == "new"
    assert dangling.is_symlink() and names(tmp_path / "there") == ["b"]


def test_nothing_but_a_file_is_replaced(tmp_path, monkeypatch):
    """A folder, a pipe, a socket, a device, a link to a device, and a link to itself stay."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        Path("null").symlink_to("/dev/null")
        Path("circle").symlink_to("circle")
        before = {name: os.lstat(name) for name in names(tmp_path)}
        for name in before:
            with refuses(name):
                write_text(Path(name), "new")
        with refuses("/dev/null"):
            write_text(Path("/dev/null"), "new")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        after = {name: os.lstat(name) for name in names(tmp_path)}
    assert {n: (s.st_ino, s.st_mode) for n, s in after.items()} == {
        n: (s.st_ino, s.st_mode) for n, s in before.items()
    }


def test_permissions_of_the_old_file_are_kept_and_a_read_only_one_is_not_replaced(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o444)
    with refuses(path):
        write_text(path, "newer")
    assert path.read_text() == "new"


def test_the_name_to_write_to_is_private(tmp_path):
    """It is made new, so that no link can wait under it, and it differs each time."""
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two and one.parent == two.parent == tmp_path
        assert one.is_file() and not one.is_symlink()
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and names(tmp_path) == ["a"]


# --------------------------------------------------------------------------- errors of the disk


class SafetensorError(Exception):
    """As safetensors has it: its own class, the system's number in words."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 13440 vs 13332"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_told_whoever_finds_it(tmp_path, error):
    with refuses(tmp_path, "full"), user_errors(tmp_path):
        raise error


OTHERS = [RuntimeError("a bug"), KeyError("x"), BrokenPipeError()]
OTHERS += [RuntimeError("[enforce fail at inline_container.cc:268] . PytorchStreamReader failed")]


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_what_the_disk_has_not_done_passes(tmp_path, error):
    with pytest.raises(type(error)), user_errors(tmp_path):
        raise error


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs some code with the names of mosa.files, and says when it is ready."""
    code = "import os, signal, sys\nfrom pathlib import Path\nfrom mosa.files import *\n" + (
        textwrap.dedent(code)
    )
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_limit_on_files_is_told_and_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    process = child(
        """
        import resource
        from mosa.types import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_text(Path(sys.argv[1]), "x" * 20_000)
        except UserError as error:
            print(error)
        """,
        tmp_path / "a",
    )
    told, _ = process.communicate(timeout=60)
    assert "ulimit" in told and str(tmp_path / "a") in told
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


# ------------------------------------------------------------------------ leftovers and locks


def waiting(process: subprocess.Popen[str]) -> None:
    """Until the process has said that it is ready."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("way", ["replacing", "filling"])
def test_the_next_writer_clears_what_a_kill_left_and_nothing_of_the_living(tmp_path, way, number):
    """The leftovers, a file or a folder, hold words; what only has a similar name stays."""
    (tmp_path / ".mosa.thesis.part").write_text("mine")
    place = tmp_path / "a" if way == "replacing" else tmp_path
    process = child(
        f"""
        with {way}(Path(sys.argv[1])) as part:
            (part if part.is_file() else part / "b").write_text("half")
            print("ready", flush=True)
            signal.pause()
        """,
        place,
    )
    waiting(process)
    write_text(tmp_path / "c", "whole")
    assert len(names(tmp_path)) == 3, "it lives"
    process.send_signal(number)
    process.wait(timeout=60)
    assert len(names(tmp_path)) == 3
    write_text(tmp_path / "c", "whole")
    assert names(tmp_path) == [".mosa.thesis.part", "c"]


def test_two_processes_cannot_own_one_folder_and_a_kill_gives_it_free(tmp_path):
    out = tmp_path / "out"
    process = child(
        """
        with claim_folder(Path(sys.argv[1]), "mosa x"):
            write_text(Path(sys.argv[1]) / "a", "1")
            print("ready", flush=True)
            signal.pause()
        """,
        out,
    )
    waiting(process)
    with refuses(out, "another process"), claim_folder(out, "mosa x"):
        raise AssertionError("two own one folder")
    process.kill()
    process.wait(timeout=60)
    with claim_folder(out, "mosa x") as own:
        assert own.files == {"a"} and not own.is_finished


def test_two_processes_cannot_claim_one_file_and_a_kill_gives_it_free(tmp_path):
    """By whichever path, and while its folder is missing, too."""
    for path in (tmp_path / "a", tmp_path / "new" / "a"):
        process = child(
            """
            with claim_file(Path(sys.argv[1])):
                print("ready", flush=True)
                signal.pause()
            """,
            path,
        )
        waiting(process)
        write_text(tmp_path / "b", "")  # clears what the dead have left
        link = tmp_path / "link"
        link.symlink_to(tmp_path)
        with refuses("another process"), claim_file(link / path.relative_to(tmp_path)):
            raise AssertionError("two have claimed one file")
        process.kill()
        process.wait(timeout=60)
        with claim_file(path):
            write_text(path, "mine")
        link.unlink()
    assert names(tmp_path) == ["a", "b", "new"] and names(tmp_path / "new") == ["a"]


# --------------------------------------------------------------------------------- folders of ours


def test_a_claim_that_makes_nothing_leaves_nothing(tmp_path):
    with claim_folder(tmp_path / "new", "mosa x"):
        assert names(tmp_path / "new") == [MARK]
    assert names(tmp_path) == []
    (tmp_path / "empty").mkdir()
    with claim_folder(tmp_path / "empty", "mosa x"):
        pass
    assert names(tmp_path / "empty") == []


def test_a_folder_belongs_to_the_command_that_made_it(tmp_path):
    out = tmp_path / "out"
    with claim_folder(out, "mosa x") as own:
        write_text(out / "deep" / "a", "1")
        own.finish()
    with claim_folder(out, "mosa x") as own:
        assert own.files == {"deep/a"} and own.is_finished
        write_text(out / "deep" / "a", "2")
    for claim in (check_folder, lambda *words: claim_folder(*words).__enter__()):
        with refuses(out, "mosa x"):
            claim(out, "mosa y")


def test_only_our_files_are_replaced_or_removed(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "letter").write_text("dear reader")
    with claim_folder(out, "mosa x") as own:
        for name in ("a", "one/b", "one/c", "two/d", "linked/e"):
            write_text(out / name, "ours")
        (out / "one" / "notes").write_text("mine")
        (out / "notes").write_text("mine")
        with refuses(out / "notes"):
            write_text(out / "notes", "ours")
        (out / "a").unlink()
        (out / "a").symlink_to(tmp_path / "letter")
        with refuses(out / "a"):
            write_text(out / "a", "ours")
        (out / "linked").rename(tmp_path / "moved")
        (out / "linked").symlink_to(tmp_path / "moved")
        with refuses(out / "linked" / "e"):
            write_text(out / "linked" / "e", "ours")
        own.discard("one")
        assert own.files == {"a", "two/d", "linked/e"}
        own.discard_all()
    assert (tmp_path / "letter").read_text() == "dear reader"
    assert (tmp_path / "moved" / "e").read_text() == "ours"
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there - {"linked/e", MARK} == {"a", "notes", "one/notes"}


def test_what_others_have_changed_is_not_ours_any_more(tmp_path):
    out = tmp_path / "out"
    large = "x" * (24 << 20)
    with claim_folder(out, "mosa x"):
        for name in ("a", "b", "one/c"):
            write_text(out / name, "ours")
        write_text(out / "large", large)
        write_text(out / "middle", large)
        with filling(out / "two") as part:
            (part / "d").write_text("ours")
    changed = {"a": "mine", "one/c": "ours, and mine", "two/d": "our", "large": f"{large[:-1]}y"}
    changed["middle"] = f"{large[: 12 << 20]}y{large[(12 << 20) + 1 :]}"
    for name, text in changed.items():
        (out / name).write_text(text)
    with claim_folder(out, "mosa x") as own:
        write_text(out / "b", "ours again")
        for name in changed:
            with refuses(out / name, "changed"):
                write_text(out / name, "ours again")
        with refuses(out / "two" / "d", "changed"), filling(out / "two") as part:
            (part / "d").write_text("ours again")
        own.discard_all()
        with refuses(out / "a", "not made by this command"):
            write_text(out / "a", "ours again")
    assert {name: (out / name).read_text() for name in changed} == changed
    assert not (out / "b").exists()


def test_results_of_several_files_are_all_replaced_or_none(tmp_path):
    out = tmp_path / "out"
    with claim_folder(out, "mosa x"), filling(out) as part:
        for name in "abc":
            write_text(part / name, "ours")
    (out / "c").write_text("mine")
    with refuses(out / "c", "changed"), claim_folder(out, "mosa x"), filling(out) as part:
        for name in ("a", "b", "c", "d"):
            write_text(part / name, "ours again")
        write_text(part / "new" / "e", "ours again")
    assert {path.name: path.read_text() for path in out.iterdir() if path.name != MARK} == {
        "a": "ours",
        "b": "ours",
        "c": "mine",
    }


def test_a_kill_between_the_mark_and_the_file_leaves_it_ours(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with claim_folder(out, "mosa x"):
        write_text(out / "a", "1")

    def kill(self, target):
        raise KeyboardInterrupt

    with claim_folder(out, "mosa x"), monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_text(out / "a", "2")
    for text in ("3", "4"):
        with claim_folder(out, "mosa x"):
            write_text(out / "a", text)
    assert (out / "a").read_text() == "4"


def test_a_file_that_grows_stays_ours(tmp_path):
    out = tmp_path / "out"
    log = out / "log"
    with claim_folder(out, "mosa x"):
        write_text(log, "")
        for line in ("one\n", "two\n", "three\n"):
            append_text(log, line)
    with log.open("a") as file:
        file.write("fo")  # a kill within an append
    with claim_folder(out, "mosa x"):
        append_text(log, "ur\n")
        assert log.read_text() == "one\ntwo\nthree\nfour\n"
        write_text(log, "")
        for line in ("1\n", "2\n"):
            append_text(log, line)
    with claim_folder(out, "mosa x"):
        append_text(log, "3\n")
        log.write_text("my own log, longer than ours\n")
        with refuses(log, "changed"):
            append_text(log, "4\n")
    assert log.read_text() == "my own log, longer than ours\n"


def test_a_damaged_folder_is_set_aside_whole(tmp_path):
    out = tmp_path / "out"
    with claim_folder(out, "mosa x") as own:
        for text in ("1", "2"):
            write_text(out / "deep" / "a", text)
            (out / "deep" / "a").write_text("damaged")
            (out / "deep" / "notes").write_text("mine")
            aside = own.set_aside("deep")
            assert (aside / "a").read_text() == "damaged"
            assert (aside / "notes").read_text() == "mine"
        assert own.files == set()
        (out / "theirs").mkdir()
        assert own.set_aside("theirs") == out / "theirs" and (out / "theirs").is_dir()
    assert sorted(path.name for path in out.glob("deep*")) == ["deep.damaged-1", "deep.damaged-2"]


def test_a_mark_that_a_kill_has_cut_is_read_up_to_there(tmp_path):
    out = tmp_path / "out"
    with claim_folder(out, "mosa x"):
        write_text(out / "a", "1")
    with (out / MARK).open("a") as mark:
        mark.write('{"file": "b')
    with claim_folder(out, "mosa x") as own:
        assert own.files == {"a"}
        write_text(out / "c", "1")
    with claim_folder(out, "mosa x") as own:
        assert own.files == {"a", "c"}


@pytest.mark.parametrize(
    "content",
    [
        "my letter",
        "my letter\n",
        '{"file": "a"}\n',
        '{"made_by": "mosa x"}\n{"file": "../letter", "size": 1, "digest": "", "grows": false}\n',
        '{"made_by": "mosa x"}\n{"file": "/etc/x", "size": 1, "digest": "", "grows": false}\n',
        '{"made_by": "mosa x"}\n{"file": "letter"}\n',
        '{"made_by": "mosa x"}\n[]\n',
        '{"made_by": 1}\n',
        "[" * 100_000 + "\n",
    ],
    ids=lambda content: content[:30],
)
def test_a_mark_of_others_is_refused_and_stays(tmp_path, content):
    (tmp_path / MARK).write_text(content)
    with refuses(tmp_path / MARK), claim_folder(tmp_path, "mosa x"):
        raise AssertionError("claimed")
    assert (tmp_path / MARK).read_text() == content


def test_filling_moves_every_file_into_place(tmp_path):
    """With the mode that the umask says, whatever the library's; on errors nothing is moved."""
    with claim_folder(tmp_path / "out", "mosa x") as own:
        with filling(tmp_path / "out") as part:
            for name in ("a", "b/c"):
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_text(name)
                (part / name).chmod(0o600)
        assert own.files == {"a", "b/c"}
        with refuses("full"), filling(tmp_path / "out") as part:
            (part / "d").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    umask = os.umask(0)
    os.umask(umask)
    for name in ("a", "b/c"):
        assert (tmp_path / "out" / name).read_text() == name
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o666 & ~umask
    assert names(tmp_path / "out") == [MARK, "a", "b"]


def test_a_file_is_claimed_by_its_seal(tmp_path):
    path = tmp_path / "new" / "page"
    with claim_file(path, "mosa x"):
        assert not path.parent.exists()
    assert names(tmp_path) == []  # a command that fails has made nothing
    with claim_file(path, "mosa x"):
        for text in ("1", "2"):
            write_sealed(path, f"<{seal('mosa x')}>\n{text}\n")
    ours = path.read_text()
    assert re.fullmatch(r"<mosa x sha256:[0-9a-f]{64}>\n2\n", ours)
    with claim_file(path, "mosa x"), claim_file(path, "mosa x"):
        assert len(names(path.parent)) == 2
        with refuses(path), claim_file(path):
            raise AssertionError("it replaces nothing")
    with refuses(path, "no earlier result"), claim_file(path, "mosa y"):
        raise AssertionError("it is of another command")
    assert path.read_text() == ours and names(path.parent) == ["page"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "my notes\n",
        lambda text: text[:-2] + "x\n",
        lambda text: " " + text,
        lambda text: text[:-1],
        lambda text: text.replace("sha256:", "sha256:0", 1),
        lambda text: re.sub("[0-9a-f]{64}", "0" * 64, text),
    ],
)
def test_a_sealed_file_that_somebody_has_changed_is_not_replaced(tmp_path, change):
    """Before the work, and where it is changed while a command works."""
    path = tmp_path / "page"
    with claim_file(path, "mosa x"):
        write_sealed(path, f"{seal('mosa x')}\n" + "text\n" * 10_000)
    sound = path.read_text()
    path.write_text(change(sound))
    with refuses(path, "changed"), claim_file(path, "mosa x"):
        raise AssertionError("claimed")
    path.write_text(sound)
    with claim_file(path, "mosa x"):
        path.write_text(change(sound))
        with refuses(path, "changed"):
            write_sealed(path, seal("mosa x"))
    assert path.read_text() == change(sound)


def test_what_comes_while_a_command_works_is_not_replaced(tmp_path):
    path = tmp_path / "answers"
    with claim_file(path):
        path.write_text("mine")
        with refuses(path), writing(path) as file:
            file.write("ours")
    assert path.read_text() == "mine"


def test_records_are_for_their_owner_alone(tmp_path):
    path = tmp_path / "new" / "records"
    make_private_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.write_text("kept")
    make_private_file(path)
    assert path.read_text() == "kept"
    os.mkfifo(tmp_path / "pipe")
    with refuses("pipe"):
        make_private_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1", "=cmd|' /C calc'!A0"],
)
def test_a_spreadsheet_runs_no_cell(cell):
    assert plain_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["word", "a-b", "'=1", "", None, -1, -0.5, True])
def test_other_cells_stay(cell):
    assert plain_cell(cell) is cell
