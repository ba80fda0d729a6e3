"""The records of a campaign: one SQLite file, written in transactions, read by everything else.

    responses   what a target answered, by the hash of all that determines it
    steps       other work that an attack waited for: chat replies, searches with gradients
    tasks       one attack on one behavior with one model and seed: todo, done or failed (and why)
    attempts    what a task yielded; names the responses it rests on
    verdicts    what each judge says of each attempt
    measurements  figures that need no judge: how a useful task was solved, case by case
    sessions    when, with which versions, on what, how long

Attacks are functions of the answers they get, so responses and steps are all that has to survive:
a task that was cut off is run again and finds its answers recorded. Why SQLite and not JSON lines:
one commit takes a batch whole or not at all, even when the power goes (`synchronous=FULL`), two
processes may write to one run, and a key is found among 100,000 without reading the rest.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mosa.types import Attempt, Behavior, Budget, Response, UserError, Verdict, as_plain

FILE = "run.sqlite"
SCHEMA_VERSION = 2
SECONDS_TO_WAIT = 60.0
"""How long to wait for another process's transaction."""

ROWS_PER_PAGE = 500
"""Attempts that are read together."""

NOT_SCORED = (
    " AND NOT EXISTS (SELECT 1 FROM verdicts WHERE attempt = attempts.key AND judge = ? AND scored)"
)

ANSWERS = "(key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID"
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE models (name TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE behaviors (id TEXT PRIMARY KEY, place INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE tasks (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, attack TEXT NOT NULL, preset TEXT NOT NULL,
    seed INTEGER NOT NULL, behavior TEXT NOT NULL, config TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'todo', reason TEXT NOT NULL DEFAULT '', budget TEXT
);
CREATE INDEX tasks_by_status ON tasks (status);
CREATE TABLE responses {ANSWERS};
CREATE TABLE steps {ANSWERS};
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, task TEXT NOT NULL, record TEXT NOT NULL
);
CREATE INDEX attempts_by_task ON attempts (task);
CREATE TABLE verdicts (
    attempt TEXT NOT NULL, judge TEXT NOT NULL, scored INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (attempt, judge)
) WITHOUT ROWID;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""

MEASUREMENTS = """
CREATE TABLE measurements (
    model TEXT NOT NULL, task TEXT NOT NULL, metric TEXT NOT NULL, case_id TEXT NOT NULL,
    value REAL, reason TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (model, task, metric, case_id)
) WITHOUT ROWID
"""
"""Since layout 2; a run of layout 1 gets it when it is opened."""

DROPPED = "CREATE TABLE dropped (key TEXT PRIMARY KEY) WITHOUT ROWID"
"""In parts of a run alone: steps that the run may have on record and that are to be forgotten."""

MERGE = """
DELETE FROM main.steps WHERE key IN (SELECT key FROM part.dropped);
INSERT OR IGNORE INTO main.responses SELECT key, record FROM part.responses;
INSERT OR IGNORE INTO main.steps SELECT key, record FROM part.steps;
DELETE FROM main.attempts WHERE task IN (SELECT key FROM part.tasks WHERE status != 'todo')
    AND task NOT IN (SELECT key FROM main.tasks WHERE status = 'done')
    AND key NOT IN (SELECT key FROM part.attempts);
INSERT INTO main.attempts (key, task, record)
    SELECT key, task, record FROM part.attempts WHERE TRUE ORDER BY id
    ON CONFLICT (key) DO UPDATE SET record = excluded.record
    WHERE attempts.task NOT IN (SELECT key FROM main.tasks WHERE status = 'done');
UPDATE main.tasks SET status = done.status, reason = done.reason, budget = done.budget
    FROM part.tasks AS done
    WHERE tasks.key = done.key AND done.status != 'todo' AND tasks.status != 'done'
"""
"""What a run takes from a part, by the same rules as what one process adds to it itself."""


@dataclass(frozen=True)
class Task:
    """One attack on one behavior with one model and seed."""

    key: str
    model: str
    attack: str
    preset: str
    seed: int
    behavior: str
    config: dict[str, Any]
    """The attack's settings."""
    status: Literal["todo", "done", "failed"] = "todo"
    reason: str = ""
    """Why it failed."""
    budget: Budget | None = None
    """What it spent, once it is done."""


@dataclass(frozen=True)
class Measurement:
    """How one model did on one case of a useful task."""

    model: str
    task: str
    metric: str
    """What was measured, for example `accuracy`."""
    case: str
    """The case's name in its task."""
    value: float | None
    """From 0 to 1, more is better; None: it could not be scored."""
    reason: str = ""
    """Why there is no value."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is known, for example the key of the response."""

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason)


class Store:
    """A run's records. Reads see what this process has added but not yet committed."""

    def __init__(self, folder: Path, *, create: bool = False, base: Path | None = None) -> None:
        """Opens the run in a folder; with `create`, makes one where there is none.

        With `base`, a file of `write_base`, it is a part of a run: answers that are on record there
        count as its own, and no other process can read it before it is closed. Raises UserError for
        a folder without a run, or with one of another version.
        """
        self.folder = folder
        self._base = None if base is None else sqlite3.connect(base, timeout=SECONDS_TO_WAIT)
        path = folder / FILE
        if not path.exists() and not create:
            raise UserError(f"{folder} holds no run; `mosa evaluate ... --out {folder}` makes one")
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=SECONDS_TO_WAIT, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")
            if base is not None:
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            version = self._version()
            if version == 0:
                version = self._make()
            elif version == 1:
                version = self._add_measurements()
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path} was written by another version of mosa (layout {version}, not "
                f"{SCHEMA_VERSION}); go on with that version or name a new folder"
            )
        self._open_writes: list[tuple[str, tuple[Any, ...]]] = []
        self._new: dict[tuple[str, str], dict[str, Any]] = {}
        self._dropped: set[str] = set()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _make(self) -> int:
        """Write the tables, unless another process does so first."""
        # A part has one process, perhaps on another machine than those that merge it, and a
        # write-ahead log is for processes of one machine.
        if self._base is None:
            self._begin_log()
        with self._transaction():
            if self._version() == 0:
                for statement in (*SCHEMA.split(";"), MEASUREMENTS):
                    self._db.execute(statement)
                if self._base is not None:
                    self._db.execute(DROPPED)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return self._version()

    def _begin_log(self) -> None:
        """Let others read while one writes."""
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while True:
            try:  # SQLite itself does not wait for others when the journal is changed
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _add_measurements(self) -> int:
        """Bring a run of layout 1 to layout 2, unless another process does so first."""
        with self._transaction():
            if self._version() == 1:
                self._db.execute(MEASUREMENTS)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return self._version()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:  # an interruption too must not leave it open
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Commit what is open and close the file."""
        try:
            self.commit()
        finally:
            self._db.close()
            if self._base is not None:
                self._base.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- writing

    def commit(self) -> None:
        """Everything added so far goes to the disk, in one transaction, or nothing does.

        After an error it can be tried again: nothing that was added is forgotten.
        """
        if not self._open_writes:
            return
        with _told(self.folder), self._transaction():
            for statement, values in self._open_writes:
                self._db.execute(statement, values)
        self._open_writes.clear()
        self._new.clear()

    @property
    def num_open_writes(self) -> int:
        """How many rows wait for the next commit."""
        return len(self._open_writes)

    def _write(self, statement: str, *values: Any) -> None:
        self._open_writes.append((statement, values))

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a fact about the run."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, _json(value))

    def add_model(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep what a model's name stands for."""
        self._write("INSERT OR REPLACE INTO models VALUES (?, ?)", name, _json(record))

    def add_behaviors(self, behaviors: Iterable[Behavior]) -> None:
        """Keep the behaviors, in their order."""
        for place, behavior in enumerate(behaviors):
            self._write(
                "INSERT OR IGNORE INTO behaviors VALUES (?, ?, ?)",
                behavior.id,
                place,
                _json(as_plain(behavior)),
            )

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Plan tasks; those that are there already stay as they are."""
        for task in tasks:
            self._write(
                "INSERT OR IGNORE INTO tasks (key, model, attack, preset, seed, behavior, config)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                task.key,
                task.model,
                task.attack,
                task.preset,
                task.seed,
                task.behavior,
                _json(task.config),
            )

    def drop_task(self, key: str) -> None:
        """Forget a task that is not done."""
        self._write("DELETE FROM tasks WHERE key = ? AND status != 'done'", key)

    def end_task(
        self,
        key: str,
        budget: Budget,
        reason: str | None = None,
        *,
        num_attempts: int | None = None,
    ) -> None:
        """A task is done, or has failed for a reason; one that is done stays as it is.

        Attempts from number `num_attempts` on are those of an earlier, longer run of it, and go.
        """
        if num_attempts is not None:
            self._write(
                "DELETE FROM attempts WHERE task = ? AND json_extract(record, '$.number') >= ?"
                # Not `NOT IN`, which would go through all tasks that are done.
                " AND NOT EXISTS (SELECT 1 FROM tasks"
                " WHERE tasks.key = attempts.task AND status = 'done')",
                key,
                num_attempts,
            )
        self._write(
            "UPDATE tasks SET status = ?, reason = ?, budget = ?"
            " WHERE key = ? AND status != 'done'",
            "done" if reason is None else "failed",
            reason or "",
            _json(as_plain(budget)),
            key,
        )

    def add_response(self, response: Response) -> None:
        """Keep a response."""
        record = as_plain(response)
        self._new["responses", response.key] = record
        self._write("INSERT OR IGNORE INTO responses VALUES (?, ?)", response.key, _json(record))

    def add_step(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep the outcome of a piece of work."""
        self._new["steps", key] = dict(record)
        self._write("INSERT OR IGNORE INTO steps VALUES (?, ?)", key, _json(record))

    def drop_step(self, key: str) -> None:
        """Forget a piece of work; whoever has read it already has it."""
        self._new.pop(("steps", key), None)
        self._write("DELETE FROM steps WHERE key = ?", key)
        if self._base is not None:
            self._dropped.add(key)
            self._write("INSERT OR IGNORE INTO dropped VALUES (?)", key)

    def add_attempt(self, task: str, attempt: Attempt) -> None:
        """Keep an attempt; its responses are kept by themselves.

        The latest one of a key counts: a task that failed may have been given other replies since.
        """
        record = {k: v for k, v in vars(attempt).items() if k not in ("responses", "budget")}
        record["responses"] = [response.key for response in attempt.responses]
        record["budget"] = as_plain(attempt.budget)
        self._write(
            "INSERT INTO attempts (key, task, record) VALUES (?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET record = excluded.record"
            " WHERE NOT EXISTS (SELECT 1 FROM tasks"
            " WHERE tasks.key = attempts.task AND status = 'done')",
            attempt.key,
            task,
            _json(record),
        )

    def add_verdict(self, attempt: str, judge: str, verdict: Verdict) -> None:
        """Keep a verdict; one that scores takes the place of one that did not."""
        self._write(
            "INSERT INTO verdicts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " scored = excluded.scored, record = excluded.record WHERE NOT verdicts.scored",
            attempt,
            judge,
            verdict.score is not None,
            _json(as_plain(verdict)),
        )

    def add_measurement(self, measurement: Measurement) -> None:
        """Keep a measurement; one with a value takes the place of one without."""
        self._write(
            "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " value = excluded.value, reason = excluded.reason, details = excluded.details"
            " WHERE measurements.value IS NULL",
            measurement.model,
            measurement.task,
            measurement.metric,
            measurement.case,
            measurement.value,
            measurement.reason,
            _json(measurement.details),
        )

    def begin_session(self, record: Mapping[str, Any]) -> int:
        """Keep what this process is and does; returns the session's number."""
        self.commit()
        with _told(self.folder):
            cursor = self._db.execute("INSERT INTO sessions (record) VALUES (?)", (_json(record),))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update_session(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep how far this process has come."""
        self._write("UPDATE sessions SET record = ? WHERE id = ?", _json(record), number)

    # --------------------------------------------------------------------------------- parts

    def write_base(self, file: Path) -> None:
        """Write what answers are on record into a new file, which parts of the run read."""
        self.commit()
        with _told(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            self._db.execute("ATTACH ? AS base", (str(file),))
            try:
                with self._transaction():
                    for table in ("responses", "steps"):
                        self._db.execute(f"CREATE TABLE base.{table} {ANSWERS}")
                        self._db.execute(f"INSERT INTO base.{table} SELECT * FROM main.{table}")
            finally:
                self._db.execute("DETACH base")

    def merge(self, part: Path) -> None:
        """Take in what another process has recorded in a part, which may be taken in twice.

        Raises UserError where that process is still at work.
        """
        self.commit()
        if not (part / FILE).exists():
            return
        with _told(part):
            self._db.execute("ATTACH ? AS part", (str(part / FILE),))
            try:
                # A process that was killed early has left a file without tables.
                if self._db.execute("PRAGMA part.user_version").fetchone()[0] != 0:
                    with self._transaction():
                        for statement in MERGE.split(";"):
                            self._db.execute(statement)
            finally:
                self._db.execute("DETACH part")

    # ------------------------------------------------------------------------------- reading

    def _rows(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with _told(self.folder):
            yield from self._db.execute(statement, values)

    def meta(self, name: str) -> Any:
        """A fact about the run; None where it is not kept."""
        for (record,) in self._rows("SELECT record FROM meta WHERE name = ?", name):
            return json.loads(record)
        return None

    def models(self) -> dict[str, dict[str, Any]]:
        """What each model's name stands for, in the order of their first use."""
        rows = self._rows("SELECT name, record FROM models ORDER BY rowid")
        return {name: json.loads(record) for name, record in rows}

    def behaviors(self) -> dict[str, Behavior]:
        """The behaviors by id, in the order of their file."""
        rows = self._rows("SELECT id, record FROM behaviors ORDER BY place")
        return {id: Behavior(**json.loads(record)) for id, record in rows}

    def tasks(self, *, status: str | None = None, model: str | None = None) -> list[Task]:
        """The tasks in the order in which they were planned, of a status or a model alone."""
        chosen = {"status": status, "model": model}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        where = f" WHERE {' AND '.join(f'{name} = ?' for name in chosen)}" if chosen else ""
        values = tuple(chosen.values())
        columns = ("key", "model", "attack", "preset", "seed", "behavior", "status", "reason")
        rows = self._rows(
            f"SELECT config, budget, {', '.join(columns)} FROM tasks{where} ORDER BY rowid", *values
        )
        return [
            Task(
                config=json.loads(config),
                budget=None if budget is None else Budget(**json.loads(budget)),
                **dict(zip(columns, rest, strict=True)),
            )
            for config, budget, *rest in rows
        ]

    def is_done(self, task: str) -> bool:
        """Whether a task is done, by this process or another."""
        rows = self._rows("SELECT 1 FROM tasks WHERE key = ? AND status = 'done'", task)
        return next(rows, None) is not None

    def response(self, key: str) -> Response | None:
        """A recorded response."""
        record = self._find("responses", key)
        return None if record is None else Response(**record)

    def step(self, key: str) -> dict[str, Any] | None:
        """The recorded outcome of a piece of work."""
        return self._find("steps", key)

    def _find(self, table: str, key: str) -> dict[str, Any] | None:
        if (table, key) in self._new:
            return self._new[table, key]
        for (record,) in self._rows(f"SELECT record FROM {table} WHERE key = ?", key):
            return json.loads(record)
        if self._base is not None and key not in self._dropped:
            with _told(self.folder):
                found = self._base.execute(f"SELECT record FROM {table} WHERE key = ?", (key,))
                for (record,) in found:
                    return json.loads(record)
        return None

    def attempts(self, *, unjudged_by: str | None = None) -> Iterator[Attempt]:
        """The attempts of finished tasks, without their responses (`responses_of`): in the order in
        which the tasks were planned, whichever was finished first.

        With `unjudged_by` those alone that this judge has not scored.
        """
        where, values = ("", ()) if unjudged_by is None else (NOT_SCORED, (unjudged_by,))
        last = (0, 0)
        # Page by page, so that no read stays open while the caller writes.
        while page := list(
            self._rows(
                "SELECT tasks.rowid, attempts.id, attempts.record FROM tasks"
                # CROSS JOIN: tasks in their order, each with its attempts, and not the other way.
                " CROSS JOIN attempts ON attempts.task = tasks.key"
                " WHERE tasks.status = 'done' AND tasks.rowid >= ?"
                f" AND (tasks.rowid, attempts.id) > (?, ?){where}"
                f" ORDER BY tasks.rowid, attempts.id LIMIT {ROWS_PER_PAGE}",
                last[0],
                *last,
                *values,
            )
        ):
            last = page[-1][:2]
            for _, _, text in page:
                record = json.loads(text)
                del record["responses"]
                yield Attempt(**{**record, "responses": [], "budget": Budget(**record["budget"])})

    def num_unjudged(self, judge: str) -> int:
        """How many attempts of finished tasks this judge has not scored."""
        rows = self._rows(
            "SELECT count(*) FROM attempts CROSS JOIN tasks ON tasks.key = attempts.task"
            f" WHERE tasks.status = 'done'{NOT_SCORED}",
            judge,
        )
        return next(rows)[0]

    def responses_of(self, attempt: str) -> list[Response]:
        """The responses that an attempt rests on."""
        for (text,) in self._rows("SELECT record FROM attempts WHERE key = ?", attempt):
            found = [self.response(key) for key in json.loads(text)["responses"]]
            return [response for response in found if response is not None]
        return []

    def verdicts(self, judge: str) -> dict[str, Verdict]:
        """A judge's verdicts by attempt."""
        rows = self._rows("SELECT attempt, record FROM verdicts WHERE judge = ?", judge)
        return {attempt: Verdict(**json.loads(record)) for attempt, record in rows}

    def measurements(self) -> Iterator[Measurement]:
        """Every measurement, by model, task, metric and case."""
        rows = self._rows(
            "SELECT model, task, metric, case_id, value, reason, details FROM measurements"
        )
        for *rest, details in rows:
            yield Measurement(*rest, details=json.loads(details))

    def judged(self, judge: str) -> Iterator[tuple[Attempt, Verdict | None]]:
        """Every attempt of a finished task with a judge's verdict, None where there is none."""
        for attempt in self.attempts():
            verdict = None
            for (record,) in self._rows(
                "SELECT record FROM verdicts WHERE attempt = ? AND judge = ?", attempt.key, judge
            ):
                verdict = Verdict(**json.loads(record))
            yield attempt, verdict

    def judges(self) -> list[str]:
        """The ids of the judges that have said anything."""
        return [judge for (judge,) in self._rows("SELECT DISTINCT judge FROM verdicts ORDER BY 1")]

    def sessions(self) -> list[dict[str, Any]]:
        """Every session, in their order."""
        return [json.loads(r) for (r,) in self._rows("SELECT record FROM sessions ORDER BY id")]

    def counts(self) -> list[tuple[str, str, str, str, int]]:
        """(model, attack, preset, status, number of tasks), in the order of planning."""
        rows = self._rows(
            "SELECT model, attack, preset, status, count(*) FROM tasks"
            " GROUP BY model, attack, preset, status ORDER BY min(rowid)"
        )
        return [(model, attack, preset, status, n) for model, attack, preset, status, n in rows]

    def failures(self) -> list[tuple[str, str, int]]:
        """(attack, reason, number of tasks) of what failed."""
        rows = self._rows(
            "SELECT attack, reason, count(*) FROM tasks WHERE status = 'failed'"
            " GROUP BY attack, reason ORDER BY min(rowid)"
        )
        return [(attack, reason, n) for attack, reason, n in rows]


_FULL = (
    "the disk of {folder} is full; free some space and run the same command again; what was "
    "recorded is kept"
)


def _json(value: Any) -> str:
    return json.dumps(value)  # as ASCII: no text of a model can fail to be written


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns what users can mend (a full disk, a folder they may not write to) into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(_FULL.format(folder=folder)) from error
        raise UserError(f"{folder} cannot be written to ({error}); name another") from error
    except sqlite3.DatabaseError as error:
        # Python's own errors have no code; the extended codes say more in their upper bits.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            raise UserError(_FULL.format(folder=folder)) from error
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise UserError(
                f"another process has kept {folder / FILE} locked for {SECONDS_TO_WAIT:.0f} s; "
                "end it, or name another folder"
            ) from error
        if kind in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR):
            raise UserError(
                f"{folder} cannot be read or written ({error}); check the disk, or name another"
            ) from error
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise UserError(
                f"{folder / FILE} is damaged or no run ({error}); restore it or name a new folder"
            ) from error
        raise
