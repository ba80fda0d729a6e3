"""Replies of endpoints that are kept on disk: what is asked again, and what is not."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from chat.stub_endpoint import Answer, completion, stub_endpoint
from refusals import refuses

from mosa.chat import CachedChat, ChatError, ChatOptions, ChatRequest, cache, chat_model
from mosa.chat.cache import FILE
from mosa.types import Message

KEY = "sk-secret-of-the-cache"
REQUEST = ChatRequest((Message("user", "two and two?"),), "test", temperature=1.0)


def asked(url: str, folder, *requests: ChatRequest, model: str = "m", **options):
    """The replies, through a chat model of its own as in another run."""
    chat = chat_model(f"{url}#{model}", ChatOptions(reply_cache=folder, **options))

    async def all_of_them():
        return [await chat.complete(request) for request in requests]

    return asyncio.run(all_of_them())


def test_a_reply_is_asked_for_once_in_all_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSA_API_KEY", KEY)
    answers = (Answer(completion("one", finish="length")), Answer(completion("two")))
    with stub_endpoint(*answers) as stub:
        first = asked(stub.url, tmp_path / "new", REQUEST)
        again = asked(stub.url, tmp_path / "new", REQUEST)
        assert first == again and first[0].text == "one" and first[0].is_cut
        assert first[0].num_tokens == 9 and len(stub.requests) == 1
        # Another draw, another question and another model are other requests.
        asked(stub.url, tmp_path / "new", replace(REQUEST, seed=1))
        asked(stub.url, tmp_path / "new", replace(REQUEST, max_tokens=7))
        (other,) = asked(stub.url, tmp_path / "new", REQUEST, model="n")
        assert other.text == "two" and len(stub.requests) == 4
    assert (tmp_path / "new" / FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    # No server is needed for what is kept.
    assert asked(stub.url, tmp_path / "new", REQUEST)[0].text == "one"
    assert KEY.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "new").iterdir())


def test_a_forgotten_reply_is_asked_for_again(tmp_path):
    with stub_endpoint(Answer(completion("one")), Answer(completion("two"))) as stub:
        asked(stub.url, tmp_path, REQUEST)
        chat = chat_model(f"{stub.url}#m", ChatOptions(reply_cache=tmp_path))
        assert isinstance(chat, CachedChat)
        chat.forget(REQUEST)
        assert asked(stub.url, tmp_path, REQUEST)[0].text == "two"


def test_a_lock_of_others_is_waited_for_once_and_costs_no_reply(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SECONDS_TO_WAIT", 0.1)
    with stub_endpoint(Answer(completion("one"))) as stub:
        chat = chat_model(f"{stub.url}#m", ChatOptions(reply_cache=tmp_path))
        assert isinstance(chat, CachedChat)
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.warns(UserWarning, match="--reply_cache") as warned:
                for seed in range(3):
                    request = replace(REQUEST, seed=seed)
                    assert asyncio.run(chat.complete(request)).text == "one"
                    chat.forget(request)
            assert len(warned) == 1
            assert chat._db.execute("PRAGMA busy_timeout").fetchone() == (0,)
        for _ in range(2):
            asyncio.run(chat.complete(REQUEST))
        assert len(stub.requests) == 3 + 1, "kept again since it is free"


def test_errors_are_not_kept(tmp_path):
    with stub_endpoint(Answer({"error": {"message": "no"}}, status=400), Answer()) as stub:
        with refuses("m", 400, error=ChatError):
            asked(stub.url, tmp_path, REQUEST, max_retries=0)
        assert asked(stub.url, tmp_path, REQUEST)[0].text == "four"


@pytest.mark.parametrize(
    "record",
    [
        "garbage",
        "[1]",
        '{"text": 5}',
        '{"text": "x", "evil": 1}',
        "{}",
        "null",
        '{"text": "x", "num_tokens": "x"}',
        '{"text": "x", "num_tokens": -1, "is_cut": false}',
        '{"text": "x", "num_tokens": true, "is_cut": false}',
        '{"text": "\\ud83d", "num_tokens": 1, "is_cut": false}',
        "[" * 10_000,
        b"\xff",
        7,
        None,
    ],
)
def test_a_damaged_entry_is_asked_for_again_and_replaced(tmp_path, record):
    with stub_endpoint(Answer(completion("one"))) as stub:
        asked(stub.url, tmp_path, REQUEST)
        with sqlite3.connect(tmp_path / FILE) as db:
            db.execute("UPDATE replies SET record = ?", (record,))
        db.close()
        assert asked(stub.url, tmp_path, REQUEST)[0].text == "one"
        assert asked(stub.url, tmp_path, REQUEST)[0].text == "one"
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW replies AS SELECT 'k' AS key, '{}' AS record",
        "CREATE TABLE replies (key TEXT PRIMARY KEY, record TEXT);"
        "CREATE TRIGGER t AFTER INSERT ON replies BEGIN DELETE FROM replies; END",
        "CREATE TABLE replies (other TEXT)",
    ],
)
def test_a_database_of_others_is_none(tmp_path, made):
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.executescript(made)
    with stub_endpoint() as stub, refuses("replies.sqlite", "--reply_cache"):
        asked(stub.url, tmp_path, REQUEST)


def test_without_a_folder_nothing_is_kept():
    assert not isinstance(chat_model("http://localhost:1/v1#m"), CachedChat)


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / FILE).write_text("a long text that is no database at all " * 50)
    with stub_endpoint() as stub, refuses("replies.sqlite", "--reply_cache"):
        asked(stub.url, tmp_path, REQUEST)
