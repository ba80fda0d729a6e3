"""Replies kept on disk, so that another run does not ask (and pay) for them again."""

from __future__ import annotations

import json
import sqlite3
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosa.chat.base import MOST_TOKENS, ChatModel, ChatReply, ChatRequest, reply_key
from mosa.files import make_private_file
from mosa.inputs import checked, parse_json, plain_text, refusing
from mosa.types import UserError, as_plain

FILE = "replies.sqlite"
SECONDS_TO_WAIT = 60.0
"""How long to wait for another process that writes."""


@dataclass
class CachedChat:
    """A chat model whose replies are kept in a folder, by its name and the whole request.

    Draws that differ in their seed are kept apart; errors are not kept. The file holds replies and
    hashes of requests, and no key. Several processes may use one folder. Raises UserError where the
    folder cannot hold it.
    """

    chat: ChatModel
    folder: Path
    _db: sqlite3.Connection = field(init=False)
    _is_full: bool = False

    def __post_init__(self) -> None:
        with self._keeping():
            make_private_file(self.folder / FILE)
            self._db = sqlite3.connect(
                self.folder / FILE, timeout=SECONDS_TO_WAIT, isolation_level=None
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, record TEXT)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS chats (key TEXT PRIMARY KEY, chat TEXT)"  # whose reply
            )
            others = "SELECT 1 FROM sqlite_master WHERE type IN ('view', 'trigger')"
            if self._db.execute(others).fetchone():  # which run what their maker wrote
                raise sqlite3.DatabaseError("it holds a view or a trigger")

    @property
    def name(self) -> str:
        return self.chat.name

    @property
    def place(self) -> str:
        return self.chat.place

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The kept reply, or that of the chat model, which is then kept."""
        key = reply_key(self, request)
        found = self._run("SELECT record FROM replies WHERE key = ?", key)
        kept = _kept_reply(found)
        if kept is not None:
            return kept
        reply = await self.chat.complete(request)
        record = json.dumps(as_plain(reply), ensure_ascii=False)
        try:
            # What another process has kept meanwhile counts, and a damaged entry does not.
            self._run("DELETE FROM replies WHERE key = ? AND record IS ?", key, found)
            self._run("INSERT OR IGNORE INTO replies VALUES (?, ?)", key, record)
            self._run("INSERT OR IGNORE INTO chats VALUES (?, ?)", key, self.name)
        except UserError as error:
            self._go_on_without(error)  # the reply may have been paid for and is still useful
        return reply

    def _go_on_without(self, error: UserError) -> None:
        """Say once that nothing can be written, and work on."""
        if not self._is_full:
            warnings.warn(str(error), stacklevel=3)
            # A lock that was not let go is not waited for again: meanwhile nobody is answered.
            self._db.execute("PRAGMA busy_timeout = 0")
        self._is_full = True

    @property
    def has_replies(self) -> bool:
        """Whether any of this model are kept."""
        of_this = "SELECT 1 FROM replies JOIN chats USING (key) WHERE chat = ? LIMIT 1"
        return self._run(of_this, self.name) is not None

    def forget(self, request: ChatRequest) -> None:
        """Delete the kept reply, which could not be used; where nothing can be written it stays."""
        try:
            self._run("DELETE FROM replies WHERE key = ?", reply_key(self, request))
        except UserError as error:
            self._go_on_without(error)

    def _run(self, statement: str, *values: object) -> Any:
        """The first column of the first row, if there is one."""
        with self._keeping():
            row = self._db.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def _keeping(self) -> AbstractContextManager[None]:
        return refusing(
            (sqlite3.Error, OSError),
            f"replies cannot be kept in {self.folder / FILE}",
            "name another folder with --reply_cache, or leave it out",
        )


def _kept_reply(record: object) -> ChatReply | None:
    """The reply in a record; None where it is not as `CachedChat` writes it."""
    try:
        fields = parse_json(record, FILE) if isinstance(record, str) else None
        reply = checked(fields, ChatReply, FILE)
        plain_text(reply.text, FILE)
    except UserError:
        return None
    return reply if as_plain(reply) == fields and 0 <= reply.num_tokens <= MOST_TOKENS else None
