"""Known files are fetched from their places, and only their own bytes are kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from refusals import refuses

from mosa.cli import main
from mosa.data import KNOWN_FILES, download, load_cases

TABLE = b"goal,target\nHow is strong tea brewed?,Steep it\n"
PLACE = "/owner/name/abc1234/some%20folder/table.csv"


@pytest.fixture
def pages(monkeypatch) -> Iterator[dict[str, tuple[int, bytes]]]:
    """What a server answers to paths, in place of GitHub; `advbench_50` is the table there."""
    found: dict[str, tuple[int, bytes]] = {PLACE: (200, TABLE)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = found.get(self.path, (404, b"no such page"))
            self.send_response(status)
            if status == 302:
                self.send_header("location", PLACE)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    known = replace(
        KNOWN_FILES["advbench_50"],
        sha256_prefix=hashlib.sha256(TABLE).hexdigest()[:16],
        num_rows=1,
        found_at="owner/name: some folder/table.csv @ abc1234",
    )
    monkeypatch.setitem(KNOWN_FILES, "advbench_50", known)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr("mosa.data.copies.SERVER", f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_and_is_the_set(pages, tmp_path):
    path, is_new = download("advbench_50", tmp_path)
    assert is_new and path.read_bytes() == TABLE and tmp_path in path.parents
    pages.clear()
    assert download("advbench_50", tmp_path) == (path, False)
    (case,) = load_cases("advbench_50", data_dir=tmp_path).cases
    assert case.request == "How is strong tea brewed?"


@pytest.mark.parametrize(
    ("status", "content", "why"),
    [
        (200, TABLE + b"more", "other bytes"),
        (200, TABLE[:-1], "other bytes"),
        (404, b"", "404"),
        (302, b"", "302"),
        (200, b"x" * 2000, "more than"),
    ],
)
def test_nothing_else_is_kept(pages, tmp_path, monkeypatch, status, content, why):
    monkeypatch.setattr("mosa.data.copies.MOST_BYTES", 1000)
    pages[PLACE] = status, content
    with refuses("owner/name: some folder/table.csv", why):
        download("advbench_50", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_mistakes(pages, tmp_path, monkeypatch):
    with refuses("advbench50", "advbench_50"):
        download("advbench50", tmp_path)
    with refuses("mmlu", "by hand"):
        download("mmlu", tmp_path)
    letter = tmp_path / "advbench_50" / KNOWN_FILES["advbench_50"].filename
    letter.parent.mkdir()
    letter.write_text("dear reader")
    with refuses(letter):
        download("advbench_50", tmp_path)
    assert letter.read_text() == "dear reader"
    monkeypatch.setattr("mosa.data.copies.SERVER", "http://127.0.0.1:9")
    with refuses("ConnectError", "by hand"):
        download("advbench_50", tmp_path / "data")


def test_the_command_names_licence_and_authors(pages, tmp_path, capsys):
    for done in ("fetched", "there already"):
        assert main(["data", "get", "advbench_50", "--data-dir", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert done in said and "MIT" in said and "patrickrchao/JailbreakingLLMs" in said


def test_every_place_of_the_table_is_an_address():
    for known in KNOWN_FILES.values():
        repository, _, rest = known.found_at.partition(": ")
        path, _, commit = rest.partition(" @ ")
        assert repository.count("/") == 1 and path and len(commit) >= 7
