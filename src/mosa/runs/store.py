"""A run: one SQLite file that holds many subjects, case sets, attacks and verdicts.

    subjects, sets, cases   what the names mean
    tasks                   one attack on one case with one subject and seed, as planned
    outcomes                how a task ended: done or failed, and why
    not_applicable          attacks that need more than a subject grants
    responses               what a target answered, by the hash of all that determines it
    steps                   other work that an attack waited for: chat replies, searches
    attempts                what a task yielded, with the keys of its responses
    verdicts                each judge's verdict on each attempt, scorers of useful tasks included
    sessions                when, with which versions, on what, how long

Attacks are functions of the answers they get, so only responses and steps must survive: an
interrupted task is run again and finds its answers recorded. Why SQLite and not JSON lines:
one commit takes everything or nothing, even when the power goes (`synchronous=FULL`), two processes
may write to one run, and a key is found among 100,000 without reading the rest.

Every row has a checksum and every record a schema (records.py), the file's own tables are compared
with ours, and SQLite checks its pages and indexes when a run is opened: damage is an error that
names the file, never another number.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import msgspec

from mosa.chat.base import ChatReply, without_quotations
from mosa.files import check_folder, make_private_file
from mosa.inputs import is_file, one_line, shortened
from mosa.runs.records import (
    AttemptRecord,
    CountedTokens,
    NotApplicable,
    Outcome,
    SessionShape,
    SubjectRecord,
    Task,
    TaskCell,
    TaskStatus,
    checksum,
    decode,
    encode,
)
from mosa.types import Attempt, Behavior, CaseSet, Response, SetRecord, UserError, Verdict

T = TypeVar("T")

FILE = "run.sqlite"
LAYOUT = 3
"""Raised when the tables change; a run of another layout is refused."""
SECONDS_TO_WAIT = 60.0
"""How long to wait for another process's transaction."""
ROWS_PER_PAGE = 500
"""Attempts that are read together."""

SCHEMA = """
CREATE TABLE subjects (name TEXT PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE sets (name TEXT PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE cases (
    case_set TEXT NOT NULL, id TEXT NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL,
    crc INTEGER NOT NULL, PRIMARY KEY (case_set, id)
);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, subject TEXT NOT NULL,
    case_set TEXT NOT NULL, attack TEXT NOT NULL, preset TEXT NOT NULL, threat TEXT NOT NULL,
    record TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE INDEX tasks_by_subject ON tasks (subject);
CREATE TABLE outcomes (
    task TEXT PRIMARY KEY, status TEXT NOT NULL, record TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE not_applicable (
    subject TEXT NOT NULL, case_set TEXT NOT NULL, attack TEXT NOT NULL, preset TEXT NOT NULL,
    record TEXT NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (subject, case_set, attack, preset)
);
CREATE TABLE responses (key TEXT PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE steps (key TEXT PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, task TEXT NOT NULL, number INTEGER NOT NULL,
    record TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE INDEX attempts_by_task ON attempts (task);
CREATE TABLE verdicts (
    attempt TEXT NOT NULL, judge TEXT NOT NULL, scored INTEGER NOT NULL, record TEXT NOT NULL,
    crc INTEGER NOT NULL, PRIMARY KEY (attempt, judge)
) WITHOUT ROWID;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL)
"""

DONE = "EXISTS (SELECT 1 FROM outcomes WHERE outcomes.task = attempts.task AND status = 'done')"
NOT_SCORED = (
    " AND NOT EXISTS (SELECT 1 FROM verdicts WHERE attempt = attempts.key AND judge = ? AND scored)"
)
DANGLING = (
    ("tasks", "key", "NOT json_valid(record)", "its record is no JSON"),
    ("tasks", "key", "typeof(preset) || typeof(threat) != 'texttext'", "a column is no text"),
    ("tasks", "key", "subject NOT IN (SELECT name FROM subjects)", "its subject is missing"),
    ("tasks", "key", "case_set NOT IN (SELECT name FROM sets)", "its set is missing"),
    (
        "tasks",
        "key",
        "NOT EXISTS (SELECT 1 FROM cases WHERE cases.case_set = tasks.case_set"
        " AND cases.id = json_extract(tasks.record, '$.case'))",
        "its case is missing",
    ),
    ("attempts", "key", "task NOT IN (SELECT key FROM tasks)", "its task is missing"),
    ("outcomes", "task", "task NOT IN (SELECT key FROM tasks)", "its task is missing"),
)
"""Table, key, what is true of a row that cannot be or names one that is not there, and in words. In
this order: a later one relies on those before it."""
OF_A_TASK = ("subject", "case_set", "case", "attack", "preset", "seed")
"""What an attempt has of its task."""
REPLACED_WHERE = {
    "subjects": "TRUE",
    "sets": "TRUE",
    "not_applicable": "TRUE",
    "outcomes": "outcomes.status != 'done'",
    "attempts": f"NOT {DONE}",
    "verdicts": "NOT verdicts.scored",
}
"""When a later row replaces an earlier one of its key, at its position; in all other tables the
first stays."""


NO_PLACE = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
)
"""What SQLite says where it cannot make or change a file."""


class DamagedRun(UserError):
    """A run's file does not contain what mosa wrote into it."""


@final
class Run:
    """A run's records. Reads see what this process has added but not yet committed."""

    def __init__(self, folder: Path, *, adds: bool = False, create: bool = False) -> None:
        """Opens the run in a folder to read it; with `adds` to write into it, too; with `create`,
        makes one where there is none.

        Reading needs no room on the disk and no permission to write. Raises UserError for a folder
        without a run, or with one of another layout, for a folder of others, with `adds` for one
        that cannot be written, and DamagedRun.
        """
        self.folder = folder
        path = folder / FILE
        if not create and not is_file(path):
            place = shortened(folder)
            raise UserError(f"{place} holds no run; `mosa evaluate ... --out {place}` makes one")
        self._is_checked = False
        self._open_writes: list[tuple[str, tuple[Any, ...]]] = []
        self._new_responses: dict[str, Response] = {}
        self._new_steps: dict[str, dict[str, Any]] = {}
        if create and not is_file(path):
            check_folder(folder, "mosa evaluate")
        if adds or create:
            make_private_file(path)
        self._lying: _Lying | None = None
        with self._user_errors():
            self._open(path, is_read=not (adds or create), create=create)
        self._is_checked = True

    def _open(self, path: Path, *, is_read: bool, create: bool) -> None:
        """SQLite makes files beside one that it only reads. Where it cannot, on a full disk or in a
        folder that may not be written, the file is read as it lies: no lock is held, the log is
        read into memory, and who writes meanwhile is found at the end."""
        may_write = not is_read or all(os.access(p, os.W_OK) for p in (path, path.parent))
        if may_write or _lying(path).has_log:
            try:  # with the log that others write
                self._connect(path, "" if may_write else "?mode=ro", create=create)
                return
            except sqlite3.OperationalError as error:
                if not is_read or _kind_of(error) not in NO_PLACE:
                    raise
        self._lying = _lying(path)
        # Alone with the file, SQLite shares no index of its log; it can be so without locks, since
        # it writes nothing.
        way = "vfs=unix-none" if self._lying.has_log else "immutable=1"
        self._connect(path, f"?mode=ro&{way}", "PRAGMA locking_mode = EXCLUSIVE")

    def _connect(self, path: Path, how: str, *first: str, create: bool = False) -> None:
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}{how}",
            uri=True,
            timeout=SECONDS_TO_WAIT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for pragma in (*first, "PRAGMA trusted_schema = OFF", "PRAGMA synchronous = FULL"):
                self._db.execute(pragma)
            if create:
                self._make()
            self._check()
        except BaseException:
            self._db.close()
            raise

    def _make(self) -> None:
        """Write the tables, unless they are there or another process does so first.

        The write-ahead log is begun after them, so that the file by itself is a run.
        """
        with self._transaction():
            if not _tables_in(self._db):
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while True:
            try:  # SQLite itself does not wait for others when the journal is changed
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _check(self) -> None:
        """Raises UserError where the tables are not ours, DamagedRun where pages are damaged."""
        path = self.folder / FILE
        tables = _tables_in(self._db)
        if not tables:
            raise UserError(
                f"{path} holds nothing; copy {FILE}-wal with it, or name another folder"
            )
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout != LAYOUT or tables != EXPECTED_TABLES:
            raise UserError(
                f"{path} was not written by this version of mosa (layout {layout}, not {LAYOUT}, "
                "or other tables); use that version, or name a new folder"
            )
        (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise self.damage("", found)
        for table, key, fault, why in DANGLING:
            found = self._db.execute(f"SELECT {key} FROM {table} WHERE {fault} LIMIT 1").fetchone()
            if found:
                raise self.damage(f"{table}, {found[0]}", why)

    def damage(self, where: str, why: object) -> DamagedRun:
        """The error to raise for a row that is not what was written: `where` is table and key."""
        self._check_untouched()
        place = f"{where[:100]}: " if where else ""
        return DamagedRun(
            f"{self.folder / FILE} is damaged ({place}{one_line(why)}); restore "
            "it from a copy or name a new folder"
        )

    def _check_untouched(self) -> None:
        """UserError where somebody has written into a file that is read as it lies."""
        path = self.folder / FILE
        if self._lying not in (None, _lying(path)):
            raise UserError(
                f"another process has written into {path} while it was read; run the same command "
                "again"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:  # an interruption must not leave it open either
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turns what users can fix (a full disk, a folder without permission) into UserErrors."""
        folder, path = self.folder, self.folder / FILE
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError):
            raise  # bugs of ours
        except sqlite3.DatabaseError as error:
            # Python's own errors have no code; extended codes say more in their upper bits.
            code = getattr(error, "sqlite_errorcode", 0)
            kind = _kind_of(error)
            # The latter: no room for the file that processes share beside a log.
            if kind == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
                raise UserError(
                    f"the disk of {folder} is full; free some space and run the same command "
                    "again; what was recorded is kept"
                ) from error
            if _is_locked(error):
                raise UserError(
                    f"another process has kept {path} locked for {SECONDS_TO_WAIT:.0f} s; end it, "
                    "or name another folder"
                ) from error
            if kind in NO_PLACE:
                raise UserError(
                    f"{folder} cannot be read or written ({error}); check the disk, or name another"
                ) from error
            if kind == sqlite3.SQLITE_ERROR and self._is_checked:
                raise  # a statement of ours is wrong: the tables were compared
            raise self.damage("", error) from error
        except UnicodeDecodeError as error:  # of a name that a message of SQLite repeats
            raise self.damage("", error) from error

    def close(self) -> None:
        """Commit what is open and close the file."""
        try:
            self.commit()
        finally:
            self._db.close()
        self._check_untouched()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- writing

    def commit(self) -> None:
        """Write everything added so far to the disk, in one transaction, or nothing.

        It can be retried after an error: nothing that was added is lost.
        """
        if not self._open_writes:
            return
        with self._user_errors(), self._transaction():
            for statement, values in self._open_writes:
                self._db.execute(statement, values)
        self._open_writes.clear()
        self._new_responses.clear()
        self._new_steps.clear()

    def checkpoint(self) -> None:
        """Commit, and move everything from the write-ahead log into the file itself."""
        self.commit()
        with self._user_errors():
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @property
    def num_open_writes(self) -> int:
        """How many rows wait for the next commit."""
        return len(self._open_writes)

    def _write(self, statement: str, *values: Any) -> None:
        self._open_writes.append((statement, values))

    def _insert(self, table: str, *keys: str | int, record: Any) -> None:
        """Add a row: the columns that it is found by, its record, and their checksum."""
        values = (*keys, encode(record))
        self._write(_insertion(table), *values, checksum(*values))

    def add_subject(self, record: SubjectRecord) -> None:
        """Keep what a subject's name means."""
        self._insert("subjects", record.name, record=record)

    def add_set(self, cases: CaseSet) -> None:
        """Keep a set and its cases, in their order."""
        recorded = {of.name: getattr(cases, of.name) for of in dataclasses.fields(SetRecord)}
        self._insert("sets", cases.name, record=SetRecord(**recorded))
        for place, case in enumerate(cases.cases):
            self._insert("cases", cases.name, case.id, place, record=case)

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Plan tasks; existing ones stay as they are."""
        for task in tasks:
            self._insert("tasks", task.key, *task.cell, record=task)

    def drop_task(self, key: str) -> None:
        """Delete a task that is not done, with its attempts."""
        for table, column in (("tasks", "key"), ("attempts", "task"), ("outcomes", "task")):
            self._write(
                f"DELETE FROM {table} WHERE {column} = ? AND NOT EXISTS"
                " (SELECT 1 FROM outcomes WHERE task = ? AND status = 'done')",
                key,
                key,
            )

    def add_not_applicable(self, pair: NotApplicable) -> None:
        """Keep that an attack needs more than it is granted."""
        columns = pair.subject, pair.case_set, pair.attack, pair.preset
        self._insert("not_applicable", *columns, record=pair)

    def end_task(self, key: str, outcome: Outcome) -> None:
        """A task is done, or has failed; one that is done stays as it is.

        Attempts beyond the outcome's number are those of an earlier, longer run of it, and go.
        """
        self._write(
            f"DELETE FROM attempts WHERE task = ? AND number >= ? AND NOT {DONE}",
            key,
            outcome.num_attempts,
        )
        self._insert("outcomes", key, outcome.status, record=outcome)

    def add_response(self, response: Response) -> None:
        """Keep a response."""
        self._new_responses[response.key] = response
        self._insert("responses", response.key, record=response)

    def add_step(self, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the outcome of a piece of work, a JSON object; returns it as later reads see it:
        with lists, and no tuples."""
        self._insert("steps", key, record=record)
        self._new_steps[key] = decode(encode(record), dict)
        return self._new_steps[key]

    def drop_step(self, key: str) -> None:
        """Delete a piece of work."""
        self._new_steps.pop(key, None)
        self._write("DELETE FROM steps WHERE key = ?", key)

    def add_attempt(self, task: str, attempt: Attempt) -> None:
        """Keep an attempt; its responses are kept separately.

        The latest one of a key counts: a task that failed may have been given other replies since.
        """
        keys = [response.key for response in attempt.responses]
        record = AttemptRecord(**{**vars(attempt), "responses": keys})
        self._insert("attempts", attempt.key, task, attempt.number, record=record)

    def add_verdict(self, attempt: str, judge: str, verdict: Verdict) -> None:
        """Keep a verdict; one with a score replaces one without."""
        scored = int(verdict.score is not None)
        self._insert("verdicts", attempt, judge, scored, record=verdict)

    def begin_session(self, record: Mapping[str, Any]) -> int:
        """Keep what this process is and does; returns the session's number."""
        self.commit()
        text = encode(record)
        with self._user_errors():
            cursor = self._db.execute(_insertion("sessions"), (text, checksum(text)))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update_session(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep how far this process has come."""
        text = encode(record)
        self._write(
            "UPDATE sessions SET record = ?, crc = ? WHERE id = ?", text, checksum(text), number
        )

    # ------------------------------------------------------------------------------- reading

    def _rows(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self._user_errors():
            yield from self._db.execute(statement, values)

    def _records(
        self, kind: type[T], table: str, rest: str = "", *values: Any
    ) -> Iterator[tuple[tuple[Any, ...], T]]:
        """(columns, record) of a table's rows, each checked."""
        columns = ", ".join(COLUMNS[table])
        for row in self._rows(f"SELECT {columns} FROM {table} {rest}", *values):
            yield row, self._record(kind, table, row)

    def _record(self, kind: type[T], table: str, row: Sequence[Any]) -> T:
        """The record of a row. Raises DamagedRun where it is not what was written."""
        *columns, crc = row
        try:
            if checksum(*columns) != crc:
                raise ValueError("the checksum differs")
            record = decode(columns[-1], kind)
            for name, value in zip(COLUMNS[table], columns[:-1], strict=False):
                if getattr(record, name, value) != value:
                    raise ValueError(f"its record has another {name}")
            return record
        except (ValueError, TypeError) as error:
            # A session has no key, and its whole record stands in place of one.
            raise self.damage(f"{table}, {columns[0]}", error) from error

    def subjects(self) -> dict[str, SubjectRecord]:
        """What each subject's name means, in the order of first use."""
        found = self._records(SubjectRecord, "subjects", "ORDER BY rowid")
        return {record.name: record for _, record in found}

    def sets(self) -> dict[str, SetRecord]:
        """The sets by name, in the order of first use."""
        found = self._records(SetRecord, "sets", "ORDER BY rowid")
        return {record.name: record for _, record in found}

    def cases(self, case_set: str) -> dict[str, Behavior]:
        """The cases of a set by id, in the order of its source."""
        found = self._records(Behavior, "cases", "WHERE case_set = ? ORDER BY place", case_set)
        return {case.id: case for _, case in found}

    def tasks(
        self, *, status: TaskStatus | None = None, subject: str | None = None
    ) -> list[tuple[Task, Outcome | None]]:
        """The tasks as planned, in their order, of one status or subject where these are given."""
        where, values = ("", ()) if subject is None else ("WHERE subject = ?", (subject,))
        of_tasks = f"WHERE task IN (SELECT key FROM tasks {where})" if where else ""
        known = self._records(Outcome, "outcomes", of_tasks, *values)
        outcomes = {row[0]: found for row, found in known}
        found = []
        for _, task in self._records(Task, "tasks", f"{where} ORDER BY id", *values):
            outcome = outcomes.get(task.key)
            if status in (None, "todo" if outcome is None else outcome.status):
                found.append((task, outcome))
        return found

    def is_done(self, task: str) -> bool:
        """Whether a task is done, by this process or another."""
        rows = self._rows("SELECT 1 FROM outcomes WHERE task = ? AND status = 'done'", task)
        return next(rows, None) is not None

    def not_applicable(self) -> list[NotApplicable]:
        """The pairs of attack and subject that were left out, in the order of planning."""
        return [
            pair for _, pair in self._records(NotApplicable, "not_applicable", "ORDER BY rowid")
        ]

    def response(self, key: str) -> Response | None:
        """A recorded response."""
        if key in self._new_responses:
            return self._new_responses[key]
        found = self._records(Response, "responses", "WHERE key = ?", key)
        return next((response for _, response in found), None)

    def step(self, key: str) -> dict[str, Any] | None:
        """The recorded outcome of a piece of work."""
        if key in self._new_steps:
            return self._new_steps[key]
        return next((step for _, step in self._records(dict, "steps", "WHERE key = ?", key)), None)

    def reply(self, key: str) -> ChatReply | None:
        """The recorded reply of a chat model, which is a piece of work, too."""
        if key in self._new_steps:
            return ChatReply(**self._new_steps[key])
        found = self._records(ChatReply, "steps", "WHERE key = ?", key)
        return next((reply for _, reply in found), None)

    def num_tokens(self) -> int:
        """Tokens that servers and chat models have counted, asked and answered, in all sessions."""
        served = [one.served for _, one in self._records(Response, "responses")]
        steps = self._records(CountedTokens, "steps")
        return sum(
            (facts.prompt_tokens or 0) + (facts.completion_tokens or 0) for facts in served if facts
        ) + sum(step.num_tokens for _, step in steps)

    def attempts(
        self, *, unjudged_by: str | None = None, case_set: str | None = None
    ) -> Iterator[Attempt]:
        """The attempts of finished tasks, without their responses (`responses_of`), in the order in
        which the tasks were planned; with `unjudged_by` those that this judge has not scored."""
        where, values = _conditions(unjudged_by, case_set)
        columns = ", ".join(f"attempts.{name}" for name in COLUMNS["attempts"])
        of_the_task = ", ".join(f"json_extract(tasks.record, '$.{name}')" for name in OF_A_TASK)
        last = (0, 0)
        # Page by page, so that no read stays open while the caller writes.
        while page := list(
            self._rows(
                f"SELECT tasks.id, attempts.id, {of_the_task}, {columns} FROM tasks"
                # CROSS JOIN: tasks in their order, each with its attempts, and not the other way.
                " CROSS JOIN attempts ON attempts.task = tasks.key"
                " CROSS JOIN outcomes ON outcomes.task = tasks.key"
                " WHERE outcomes.status = 'done' AND tasks.id >= ?"
                f" AND (tasks.id, attempts.id) > (?, ?){where}"
                f" ORDER BY tasks.id, attempts.id LIMIT {ROWS_PER_PAGE}",
                last[0],
                *last,
                *values,
            )
        ):
            last = page[-1][:2]
            for _, _, *cell, key, task, number, text, crc in page:
                record = self._record(AttemptRecord, "attempts", (key, task, number, text, crc))
                if [getattr(record, name) for name in OF_A_TASK] != cell:
                    raise self.damage(f"attempts, {key}", "it is not of its task")
                yield Attempt(**{**vars(record), "responses": []})

    def num_unjudged(self, judge: str | None, case_set: str | None = None) -> int:
        """How many attempts of finished tasks this judge has not scored; all for None."""
        where, values = _conditions(judge, case_set)
        rows = self._rows(
            "SELECT count(*) FROM attempts CROSS JOIN tasks ON tasks.key = attempts.task"
            f" WHERE {DONE}{where}",
            *values,
        )
        return next(rows)[0]

    def unscored(self, judge: str) -> Counter[str]:
        """Why this judge could not score attempts of finished tasks, and how many for each."""
        of_done = f"attempt IN (SELECT key FROM attempts WHERE {DONE})"
        found = self._records(
            Verdict, "verdicts", f"WHERE judge = ? AND NOT scored AND {of_done}", judge
        )
        return Counter(verdict.reason for _, verdict in found)

    def responses_of(self, attempt: str) -> list[Response]:
        """The responses of an attempt. Raises DamagedRun where one is missing."""
        found = []
        for _, record in self._records(AttemptRecord, "attempts", "WHERE key = ?", attempt):
            for key in record.responses:
                response = self.response(key)
                if response is None:
                    raise self.damage("responses", f"{key} is missing")
                found.append(response)
        return found

    def verdicts(self, judge: str) -> dict[str, Verdict]:
        """A judge's verdicts by attempt."""
        found = self._records(Verdict, "verdicts", "WHERE judge = ?", judge)
        return {row[0]: verdict for row, verdict in found}

    def judged(
        self, judge: str, case_set: str | None = None
    ) -> Iterator[tuple[Attempt, Verdict | None]]:
        """Every attempt of a finished task with a judge's verdict, None where there is none."""
        for attempt in self.attempts(case_set=case_set):
            where = "WHERE attempt = ? AND judge = ?"
            found = self._records(Verdict, "verdicts", where, attempt.key, judge)
            yield attempt, next((verdict for _, verdict in found), None)

    def judges(self, case_set: str | None = None) -> list[str]:
        """The ids of the judges with verdicts, of one set where it is given."""
        if case_set is None:
            rows = self._rows("SELECT DISTINCT judge FROM verdicts ORDER BY 1")
        else:
            rows = self._rows(
                "SELECT DISTINCT judge FROM verdicts"
                " JOIN attempts ON attempts.key = verdicts.attempt"
                " JOIN tasks ON tasks.key = attempts.task WHERE tasks.case_set = ? ORDER BY 1",
                case_set,
            )
        return [judge for (judge,) in rows]

    def sessions(self) -> list[dict[str, Any]]:
        """Every session, in their order."""
        found = []
        for _, record in self._records(dict, "sessions", "ORDER BY id"):
            try:
                msgspec.convert(record, SessionShape)
            except msgspec.ValidationError as error:
                raise self.damage("sessions", error) from error
            found.append(record)
        return found

    def counts(self) -> dict[TaskCell, Counter[TaskStatus]]:
        """How many tasks of each status the cells have, in the order of planning."""
        rows = self._rows(
            "SELECT subject, case_set, attack, preset, threat, coalesce(status, 'todo'), count(*)"
            " FROM tasks LEFT JOIN outcomes ON outcomes.task = tasks.key"
            " GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY min(tasks.id)"
        )
        found: dict[TaskCell, Counter[TaskStatus]] = {}
        for *cell, status, count in rows:
            found.setdefault(TaskCell(*cell), Counter())[status] += count
        return found

    def failures(self) -> list[tuple[str, str, int]]:
        """(attack, reason, number of tasks) of what failed, the most frequent first; reasons that
        differ in what others said count as the first of them."""
        counts: Counter[tuple[str, str]] = Counter()
        first: dict[tuple[str, str], str] = {}
        for task, outcome in self.tasks(status="failed"):
            if outcome is not None:
                key = task.attack, without_quotations(outcome.reason, "")
                first.setdefault(key, outcome.reason)
                counts[key] += 1
        return [(key[0], first[key], count) for key, count in counts.most_common()]


def _kind_of(error: sqlite3.Error) -> int:
    """SQLite's code of an error; Python's own errors have none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_locked(error: sqlite3.Error) -> bool:
    """Whether another process works on the file."""
    return _kind_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Lying(NamedTuple):
    """A file and the logs beside it at one time: number, size and last change of each, None for one
    that is not there or empty."""

    file: tuple[int, int, int] | None
    log: tuple[int, int, int] | None
    journal: tuple[int, int, int] | None

    @property
    def has_log(self) -> bool:
        """Whether something waits to be written into the file."""
        return self.log is not None or self.journal is not None


def _lying(path: Path) -> _Lying:
    found: list[tuple[int, int, int] | None] = []
    for name in (path.name, f"{path.name}-wal", f"{path.name}-journal"):
        try:
            stat = path.with_name(name).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat.st_size else None)
    return _Lying(*found)


def _conditions(unjudged_by: str | None, case_set: str | None) -> tuple[str, tuple[str, ...]]:
    """What restricts attempts to those that a judge has not scored, and to a set."""
    parts = ((NOT_SCORED, unjudged_by), (" AND tasks.case_set = ?", case_set))
    given = [(where, value) for where, value in parts if value is not None]
    return "".join(where for where, _ in given), tuple(value for _, value in given)


def _tables_in(db: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
    """The tables and indexes of a file, with the statements that made them."""
    rows = db.execute(
        "SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"
    )
    return {name: (kind, sql) for name, kind, sql in rows}


def _read_schema() -> tuple[dict[str, tuple[str, str | None]], dict[str, tuple[str, ...]]]:
    """The tables and indexes of a run, and the columns that are written for a table's row."""
    with closing(sqlite3.connect(":memory:")) as db:
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        tables = _tables_in(db)
        columns = {
            name: tuple(
                column
                for _, column, kind, *_, key in db.execute(f"PRAGMA table_info({name})")
                if not (kind == "INTEGER" and key)  # which SQLite counts itself
            )
            for name, (kind, _) in tables.items()
            if kind == "table"
        }
    return tables, columns


EXPECTED_TABLES, COLUMNS = _read_schema()
"""Of a row's columns the record comes last but one, then the checksum."""


@functools.cache
def _insertion(table: str) -> str:
    """The statement that adds a row, or replaces the earlier one of its key where that is due."""
    columns = COLUMNS[table]
    values = f"INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    if table not in REPLACED_WHERE:
        return f"INSERT OR IGNORE {values}"
    latest = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return f"INSERT {values} ON CONFLICT DO UPDATE SET {latest} WHERE {REPLACED_WHERE[table]}"
