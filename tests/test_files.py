"""Files are written whole or not at all, and nothing but a file is ever replaced."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from refusals import refuses

from mosa.files import make_folder, replacing, write_bytes, write_json, write_text, writing


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
    for write in (
        lambda: write_text(tmp_path / "file" / "a", ""),
        lambda: make_folder(tmp_path / "file"),
    ):
        with refuses(tmp_path / "file"):
            write()
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
