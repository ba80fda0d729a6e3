"""Replies kept on disk, so that another run does not ask (and pay) again for what was answered."""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path

from mosa.chat.base import ChatModel, ChatReply, ChatRequest
from mosa.types import UserError, as_plain, content_key

FILE = "replies.sqlite"
SECONDS_TO_WAIT = 60.0
"""How long to wait for another process that writes."""


@dataclass
class CachedChat:
    """A chat model whose replies are kept in a folder, by its name and the whole request.

    Draws that differ in their seed are kept apart; errors are not kept. The file holds replies and
    hashes of requests, and no key. Several processes may use one folder.
    """

    chat: ChatModel
    folder: Path
    num_found: int = 0
    """Replies that did not have to be asked for."""
    _db: sqlite3.Connection | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.chat.name

    @property
    def place(self) -> str:
        return self.chat.place

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The kept reply, or that of the chat model, which is then kept."""
        key = self._key(request)
        found = self._run("SELECT record FROM replies WHERE key = ?", key)
        if found is not None:
            self.num_found += 1
            return ChatReply(**json.loads(found))
        reply = await self.chat.complete(request)
        record = json.dumps(as_plain(reply), ensure_ascii=False)
        self._run("INSERT OR IGNORE INTO replies VALUES (?, ?)", key, record)
        return reply

    def forget(self, request: ChatRequest) -> None:
        """Drop the kept reply, which nothing could be made of."""
        self._run("DELETE FROM replies WHERE key = ?", self._key(request))

    def _key(self, request: ChatRequest) -> str:
        return content_key(chat=self.name, request=as_plain(request))

    def _run(self, statement: str, *values: str) -> str | None:
        """The first column of the first row, if there is one; UserError where the file is no cache
        or cannot be written."""
        with self._lock:
            try:
                if self._db is None:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    # Judges and attacks run in loops, and so perhaps in threads, of their own.
                    self._db = sqlite3.connect(
                        self.folder / FILE,
                        timeout=SECONDS_TO_WAIT,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                    self._db.execute(
                        "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, record TEXT)"
                    )
                row = self._db.execute(statement, values).fetchone()
            except (sqlite3.Error, OSError) as error:
                raise UserError(
                    f"replies cannot be kept in {self.folder / FILE} ({error}); name another "
                    "folder with --reply_cache, or leave it out"
                ) from error
        return None if row is None else row[0]
