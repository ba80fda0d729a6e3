"""Replies kept on disk, so that another run does not ask (and pay) for them again."""

from __future__ import annotations

import json
import sqlite3
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from mosa.chat.base import ChatModel, ChatReply, ChatRequest, reply_key
from mosa.files import make_private_file
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
        try:
            make_private_file(self.folder / FILE)
            self._db = sqlite3.connect(
                self.folder / FILE, timeout=SECONDS_TO_WAIT, isolation_level=None
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, record TEXT)"
            )
        except (sqlite3.Error, OSError) as error:
            raise UserError(self._trouble(error)) from error

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
        if found is not None:
            return ChatReply(**json.loads(found))
        reply = await self.chat.complete(request)
        record = json.dumps(as_plain(reply), ensure_ascii=False)
        try:
            self._run("INSERT OR IGNORE INTO replies VALUES (?, ?)", key, record)
        except UserError as error:
            # The reply may have been paid for and is still useful.
            if not self._is_full:
                warnings.warn(str(error), stacklevel=2)
            self._is_full = True
        return reply

    def forget(self, request: ChatRequest) -> None:
        """Delete the kept reply, which could not be used."""
        self._run("DELETE FROM replies WHERE key = ?", reply_key(self, request))

    def _run(self, statement: str, *values: str) -> str | None:
        """The first column of the first row, if there is one."""
        try:
            row = self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise UserError(self._trouble(error)) from error
        return None if row is None else row[0]

    def _trouble(self, error: Exception) -> str:
        return (
            f"replies cannot be kept in {self.folder / FILE} ({error}); name another folder with "
            "--reply_cache, or leave it out"
        )
