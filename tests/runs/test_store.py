"""A run's records: whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refuses

from mosa.runs import store as store_module
from mosa.runs.records import NotApplicable, Outcome, SubjectRecord, Task, TaskCell
from mosa.runs.store import FILE, DamagedRun, Run
from mosa.types import (
    Attempt,
    Behavior,
    Budget,
    CaseSet,
    RecordedTurn,
    Response,
    UserError,
    Verdict,
)

SUBJECT = SubjectRecord("m", "base", None, "1f", None, {"steps": 4}, ["prompt"], ["seed"], [])
SET = CaseSet("tea", "harmful", (Behavior("b0", "how is tea made?", target="Sure"),))


def response(key: str, text: str = "tea") -> Response:
    turn: RecordedTurn = {"role": "user", "content": "how?"}
    return Response(key, [turn], text, text, [1, 2], ["t", "ea"], [0, 1], [], [0])


def attempt(key: str, *responses: Response, number: int = 0) -> Attempt:
    return Attempt(
        key, "m", "tea", "b0", "direct", list(responses), "tea", "tea", number=number, variant="v",
        preset="paper", budget=Budget(target_queries=number + 1), details={"loss": 0.5},
    )  # fmt: skip


def task(key: str) -> Task:
    return Task(key, "m", "tea", "b0", "direct", "paper", 0, "prompt", {"x": [1]})


def done(num_attempts: int = 1) -> Outcome:
    return Outcome("done", num_attempts, Budget(target_queries=num_attempts))


def failed(reason: str, num_attempts: int = 0) -> Outcome:
    return Outcome("failed", num_attempts, Budget(), reason)


def filled(folder: Path) -> Run:
    store = Run(folder, create=True)
    store.add_set(SET)
    store.add_subject(SUBJECT)
    store.add_tasks([task("t0"), task("t1")])
    store.add_response(response("r0"))
    store.add_attempt("t0", attempt("a0", response("r0")))
    store.end_task("t0", done())
    store.commit()
    return store


def test_what_is_written_is_read_back(tmp_path):
    with filled(tmp_path) as store:
        assert store.cases("tea") == {"b0": Behavior("b0", "how is tea made?", target="Sure")}
        assert store.subjects() == {"m": SUBJECT} and store.sets()["tea"].kind == "harmful"
        (read,) = store.attempts()
        assert store.responses_of("a0") == [response("r0")]
        assert read == attempt("a0")
        assert store.tasks() == [(task("t0"), done()), (task("t1"), None)]
        assert store.tasks(status="todo") == [(task("t1"), None)]
        assert store.tasks(subject="nobody") == []
        assert store.is_done("t0") and not store.is_done("t1")
        cell = TaskCell("m", "tea", "direct", "paper", "prompt")
        assert store.counts() == {cell: {"done": 1, "todo": 1}}
    with Run(tmp_path) as again:
        assert again.response("r0") == response("r0") and again.response("r1") is None


def test_what_is_not_committed_is_seen_here_alone(tmp_path):
    with filled(tmp_path) as store, Run(tmp_path) as other:
        store.add_response(response("r1"))
        store.add_step("s1", {"text": "hello"})
        assert store.response("r1") == response("r1") and other.response("r1") is None
        assert store.step("s1") == {"text": "hello"} and other.step("s1") is None
        store.commit()
        assert other.response("r1") == response("r1") and other.step("s1") == {"text": "hello"}


def test_attempts_of_unfinished_tasks_are_not_read(tmp_path):
    """A task that was cut off, or failed half-way, has no result yet."""
    with filled(tmp_path) as store:
        store.add_attempt("t1", attempt("a1", response("r0")))
        store.end_task("t1", failed("no answer", 1))
        store.commit()
        assert [a.key for a in store.attempts()] == ["a0"]
        assert store.failures() == [("direct", "no answer", 1)]
        store.add_tasks([task("t2"), task("t3")])
        for key, said in (("t2", "no"), ("t3", "never")):
            store.end_task(key, failed(f"no reply, the first “{said}”", 1))
        store.commit()
        said_otherwise = ("direct", "no reply, the first “no”", 2)
        assert store.failures() == [said_otherwise, ("direct", "no answer", 1)]
        for key in ("t2", "t3"):
            store.drop_task(key)
        store.drop_task("t0")  # done: kept
        store.commit()
        assert [t.key for t, _ in store.tasks(status="done")] == ["t0"]
        assert [t.key for t, _ in store.tasks(status="failed")] == ["t1"]
        store.end_task("t1", done())
        store.commit()
        assert [a.key for a in store.attempts()] == ["a0", "a1"]
        assert store.failures() == []


def test_a_task_that_is_run_again_has_the_attempts_of_its_last_run(tmp_path):
    """A failed run of three tries, one with other replies of two; then it is done, and stays so,
    whatever another process that was late says."""
    with filled(tmp_path) as store:

        def run(words: str, outcome: Outcome) -> None:
            for number in range(outcome.num_attempts):
                of = attempt(f"n{number}", response("r0"), number=number)
                store.add_attempt("t1", replace(of, response=words))
            store.end_task("t1", outcome)
            store.commit()

        run("first", failed("the attacker wrote nothing", 3))
        run("second", done(2))
        found = [(a.key, a.response) for a in store.attempts() if a.key != "a0"]
        assert found == [("n0", "second"), ("n1", "second")]
        store.add_verdict("n0", "j", Verdict(1.0, True))
        run("late", failed("the attacker wrote nothing", 1))
        assert [(a.key, a.response) for a in store.attempts() if a.key != "a0"] == found
        assert {t.key: o for t, o in store.tasks()}["t1"] == done(2)


def test_a_step_that_is_dropped_is_not_there_any_more(tmp_path):
    with filled(tmp_path) as store:
        store.add_step("s", {"text": "no"})
        store.drop_step("s")
        assert store.step("s") is None
        store.commit()
        store.add_step("s", {"text": "yes"})
        store.commit()
        assert store.step("s") == {"text": "yes"}


def test_a_score_takes_the_place_of_none_and_stays(tmp_path):
    with filled(tmp_path) as store:
        assert store.num_unjudged("j") == 1
        store.add_verdict("a0", "j", Verdict.unscored("nonsense", raw="?"))
        store.commit()
        assert store.num_unjudged("j") == 1
        assert [a.key for a in store.attempts(unjudged_by="j")] == ["a0"]
        store.add_verdict("a0", "j", Verdict(1.0, True, {"n": 5}))
        store.add_verdict("a0", "j", Verdict(0.0, False))
        store.add_verdict("a0", "j", Verdict.unscored("late nonsense"))
        store.commit()
        assert store.verdicts("j") == {"a0": Verdict(1.0, True, {"n": 5})}
        assert list(store.attempts(unjudged_by="j")) == [] and store.judges() == ["j"]


def test_attempts_come_in_pages_while_others_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ROWS_PER_PAGE", 3)
    with filled(tmp_path) as store:
        for i in range(1, 8):
            store.add_attempt("t0", attempt(f"a{i}", response("r0"), number=i))
        store.commit()
        seen = []
        for found in store.attempts(unjudged_by="j"):
            seen.append(found.key)
            verdict = Verdict.unscored("?") if found.number % 2 else Verdict(0.0, False)
            store.add_verdict(found.key, "j", verdict)
            store.commit()
        assert seen == [f"a{i}" for i in range(8)]


def test_half_a_character_becomes_a_question_mark_before_and_after_the_commit(tmp_path):
    """A model's reply that was cut within an emoji, which no file can hold."""
    with filled(tmp_path) as store:
        store.add_step("s1", {"text": "step \ud83d"})
        assert store.step("s1") == {"text": "step ?"}
        store.commit()
        assert store.step("s1") == {"text": "step ?"}


def test_what_is_not_applicable_is_kept_once(tmp_path):
    pair = NotApplicable("m", "tea", "gcg", "paper", "open", "needs gradients")
    with filled(tmp_path) as store:
        for _ in range(2):
            store.add_not_applicable(pair)
            store.commit()
        assert store.not_applicable() == [pair]


def test_a_full_disk_is_told_of_and_nothing_is_lost(tmp_path):
    """SQLite's own limit stands in for the disk: the same error, from the same place."""
    with filled(tmp_path) as store:
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        for i in range(50):
            store.add_response(response(f"big{i}", "x" * 5000))
        with refuses(tmp_path):
            store.commit()
        assert [a.key for a in store.attempts()] == ["a0"]
        # Room again: what was held back goes through.
        store._db.execute("PRAGMA max_page_count = 100000")
        store.commit()
    with Run(tmp_path) as again:
        assert again.response("big49") is not None


def test_one_commit_is_whole_or_not_at_all(tmp_path):
    with filled(tmp_path) as store:
        store.add_response(response("r1"))
        store._write("INSERT INTO no_such_table VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="no_such_table"):
            store.commit()
        with Run(tmp_path) as other:
            assert other.response("r1") is None
        store._open_writes.clear()


def _begin(folder: Path, queue) -> None:
    try:
        with Run(folder, create=True) as store:
            store.add_response(response(str(os.getpid())))
        queue.put("")
    except UserError as error:
        queue.put(str(error))


@pytest.mark.integration
def test_several_processes_may_begin_one_run(tmp_path):
    """Whoever comes first writes the tables, and nobody is turned away."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_begin, args=(tmp_path / "run", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=300) for _ in processes] == [""] * 3
    for process in processes:
        process.join()
    with Run(tmp_path / "run") as store:
        assert list(store._rows("SELECT count(*) FROM responses")) == [(3,)]


def test_an_interruption_within_a_commit_can_be_gone_on_from(tmp_path, monkeypatch):
    with filled(tmp_path) as store:
        store.add_response(response("r1"))

        class Interrupted:
            """A database whose user presses Ctrl-C at the first insertion."""

            def __init__(self, database):
                self.database = database

            def execute(self, statement, values=()):
                if statement.startswith("INSERT"):
                    raise KeyboardInterrupt
                return self.database.execute(statement, values)

            def __getattr__(self, name):
                return getattr(self.database, name)

        database, store._db = store._db, Interrupted(store._db)  # pyright: ignore
        with pytest.raises(KeyboardInterrupt):
            store.commit()
        store._db = database
        store.commit()
    with Run(tmp_path) as again:
        assert again.response("r1") is not None


def test_a_folder_whose_name_says_full_is_not_a_full_disk(tmp_path):
    (tmp_path / "full-locked").write_text("")
    with refuses(tmp_path / "full-locked"):
        Run(tmp_path / "full-locked", create=True)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE])
def test_a_full_disk_is_told_of_at_once(tmp_path, monkeypatch, code):
    """Only a lock is waited for; a disk that is full from the start will not empty itself."""
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        """A database on a disk on which the write-ahead log finds no room."""

        def execute(self, statement, values=()):
            if "journal_mode" in statement:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = code
                raise error
            return super().execute(statement, values)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Full, **k))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with refuses("full", tmp_path / "run"):
        Run(tmp_path / "run", create=True)


def test_records_are_for_their_owner_alone(tmp_path):
    with filled(tmp_path / "run"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert set(modes.values()) == {0o600} and FILE in modes and f"{FILE}-wal" in modes
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_run_is_not_begun_among_things_of_others(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with refuses(tmp_path, "thesis.txt"):
        Run(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with filled(tmp_path / "run"):
        (tmp_path / "run" / "notes.txt").write_text("mine")
    Run(tmp_path / "run", create=True).close()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_file_alone_holds_the_plan(tmp_path):
    """Without its log: the tables from the first moment, the plan from the checkpoint behind it."""
    with Run(tmp_path / "run", create=True) as run:
        for name, is_planned in (("before", False), ("after", True)):
            (tmp_path / name).mkdir()
            (tmp_path / name / FILE).write_bytes((tmp_path / "run" / FILE).read_bytes())
            with Run(tmp_path / name) as copy:
                assert bool(copy.tasks()) == bool(copy.sets()) == is_planned
            run.add_subject(SUBJECT)
            run.add_set(SET)
            run.add_tasks([task("t0")])
            run.checkpoint()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / FILE).touch()
    with refuses(tmp_path / "empty" / FILE):
        Run(tmp_path / "empty")
    assert (tmp_path / "empty" / FILE).read_bytes() == b""


def _write_for_ever(folder: Path, name: str) -> None:
    with Run(folder) as store:
        i = 0
        while True:
            for _ in range(5):
                store.add_response(response(f"{name}-{i}"))
                i += 1
            store.commit()


@pytest.mark.integration
def test_two_writers_and_a_kill_leave_whole_batches(tmp_path):
    """Two processes write batches of five; both are killed; every batch is there or is not."""
    filled(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, n)) for n in ("x", "y")]
    for writer in writers:
        writer.start()

    def counts() -> dict[str, int]:
        with Run(tmp_path) as store:
            rows = store._rows(
                "SELECT substr(key, 1, 1), count(*) FROM responses WHERE key LIKE '_-%' GROUP BY 1"
            )
            return dict(rows)  # pyright: ignore

    deadline = time.monotonic() + 300
    while min(counts().get("x", 0), counts().get("y", 0)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    found = counts()
    assert found["x"] % 5 == 0 and found["y"] % 5 == 0
    with Run(tmp_path) as store:
        assert list(store._rows("PRAGMA integrity_check")) == [("ok",)]
        assert [a.key for a in store.attempts()] == ["a0"]


# --- damage ---------------------------------------------------------------------------------------

READERS = {
    "subjects": lambda run: run.subjects(),
    "sets": lambda run: run.sets(),
    "cases": lambda run: run.cases("tea"),
    "tasks": lambda run: run.tasks(),
    "outcomes": lambda run: run.tasks(),
    "responses": lambda run: run.response("r0"),
    "attempts": lambda run: list(run.attempts()),
    "verdicts": lambda run: run.verdicts("j"),
    "sessions": lambda run: run.sessions(),
}
"""What reads each table."""


def whole(folder: Path) -> Path:
    """A run with a row in every table that is read, closed; its file."""
    with filled(folder) as store:
        store.add_verdict("a0", "j", Verdict(1.0, True))
        store.begin_session({"started": "2026-01-01T00:00:00+00:00", "settings": {}})
    return folder / FILE


@pytest.mark.parametrize("table", READERS)
@pytest.mark.parametrize("text", ["null", "[]", "{}", "[" * 50_000, "not JSON", '{"key": 1}'])
def test_a_record_that_is_not_what_was_written_is_damage(tmp_path, table, text):
    """With the right checksum too: then the schema finds it."""
    file = whole(tmp_path)
    columns = store_module.COLUMNS[table]
    with sqlite3.connect(file) as database:
        row = database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchone()
        values = list(row)
        values[-2] = text
        values[-1] = store_module.checksum(*values[:-1])
        database.execute(
            f"UPDATE {table} SET record = ?, crc = ? WHERE crc = ?", (text, values[-1], row[-1])
        )
    with refuses(tmp_path / FILE, table, error=DamagedRun), Run(tmp_path) as run:
        READERS[table](run)


@pytest.mark.parametrize(
    "turn", [{"role": "tool", "content": "x"}, {"role": "user"}, {"role": "user", "content": 1}]
)
def test_turns_that_are_none_are_damage(tmp_path, turn):
    """Exports and pages build on role and content."""
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        key, record = database.execute("SELECT key, record FROM responses").fetchone()
        text = json.dumps({**json.loads(record), "prompt": [turn]})
        database.execute(
            "UPDATE responses SET record = ?, crc = ? WHERE key = ?",
            (text, store_module.checksum(key, text), key),
        )
    with refuses(tmp_path / FILE, "responses", error=DamagedRun), Run(tmp_path) as run:
        run.response(key)


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("responses", {"tokens": ["tea"]}),
        ("responses", {"commit_step": []}),
        ("responses", {"commit_step": [0, -2]}),
        ("responses", {"commit_step": [0, 1 << 31]}),
        ("responses", {"token_ids": [], "tokens": [], "commit_step": []}),
        ("responses", {"end_positions": [2]}),
        ("responses", {"block_starts": [1, 0]}),
        ("responses", {"block_starts": []}),
        ("responses", {"block_starts": [0, 2]}),
        ("responses", {"replaced": [{"position": 9, "token": "x", "written": 0, "until": 1}]}),
        ("responses", {"decoder": {"steps": "4"}}),
        ("responses", {"served": {"prompt_tokens": -1}}),
        ("responses", {"decoder": {"max_new_tokens": [4]}}),
        ("subjects", {"decoder": {"steps": "4"}}),
        ("subjects", {"decoder": {"rules": ["none of ours"]}}),
        ("verdicts", {"native": {"class": []}}),
        ("verdicts", {"native": {"harm": "high", "refused": True, "coherent": True}}),
        ("verdicts", {"native": {"refused": "no"}}),
        ("sessions", {"started": ""}),
        ("sessions", {"ended": "2026-01-01T00:00:00"}),
    ],
)
def test_parts_that_do_not_fit_each_other_are_damage(tmp_path, table, changes):
    """Pages, tables and exports count on them."""
    file = whole(tmp_path)
    columns = store_module.COLUMNS[table]
    with sqlite3.connect(file) as database:
        row = database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchone()
        text = json.dumps(json.loads(row[-2]) | changes)
        values = text, store_module.checksum(*row[:-2], text), row[-1]
        database.execute(f"UPDATE {table} SET record = ?, crc = ? WHERE crc = ?", values)
    with refuses(file, table, error=DamagedRun), Run(tmp_path) as run:
        READERS[table](run)


@pytest.mark.parametrize(
    "record", [{"text": 1}, {"num_tokens": 2}, {"text": "x", "num_tokens": "2"}]
)
def test_a_reply_that_is_none_is_damage(tmp_path, record):
    """Attacks read its text."""
    with filled(tmp_path) as run:
        run.add_step("r", record)
    with refuses(tmp_path / FILE, "steps, r", error=DamagedRun), Run(tmp_path) as run:
        run.reply("r")


@pytest.mark.parametrize("num_tokens", ["2", 1.5, -1, 10**10])
def test_tokens_that_cannot_be_are_damage(tmp_path, num_tokens):
    """They would move the limit of a run, or lift it."""
    with filled(tmp_path) as run:
        run.add_step("r", {"text": "x", "num_tokens": num_tokens})
    with refuses(tmp_path / FILE, "steps, r", error=DamagedRun), Run(tmp_path) as run:
        run.num_tokens()


def test_a_file_whose_damage_has_no_words_is_damage(tmp_path):
    """SQLite repeats the damaged statement in its message, which is then no UTF-8."""
    file = whole(tmp_path)
    content = file.read_bytes()
    assert content.count(b"CREATE TABLE subjects (name") == 1
    file.write_bytes(
        content.replace(b"CREATE TABLE subjects (name", b"CREATE TABLE subjects \x80name")
    )
    with refuses(file, error=DamagedRun):
        Run(tmp_path)


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("attempts", "subject", "n"),
        ("attempts", "case_set", "coffee"),
        ("attempts", "case", "b1"),
        ("attempts", "attack", "prefill"),
        ("attempts", "preset", "smoke"),
        ("attempts", "seed", 1),
        ("attempts", "key", "a1"),
        ("tasks", "case", "b1"),
        ("tasks", "subject", "n"),
        ("sets", "name", "coffee"),
        ("subjects", "name", "n"),
        ("cases", "id", "b1"),
        ("outcomes", "status", "failed"),
    ],
)
def test_a_record_that_does_not_belong_where_it_stands_is_damage(tmp_path, table, name, value):
    """With the right checksum; otherwise it would be read as one of something else."""
    file = whole(tmp_path)
    columns = store_module.COLUMNS[table]
    with sqlite3.connect(file) as database:
        row = database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchone()
        record = json.loads(row[-2]) | {name: value}
        text = json.dumps(record)
        values = text, store_module.checksum(*row[:-2], text), row[-1]
        database.execute(f"UPDATE {table} SET record = ?, crc = ? WHERE crc = ?", values)
    with refuses(file, table, error=DamagedRun), Run(tmp_path) as run:
        READERS[table](run)


@pytest.mark.parametrize(
    ("table", "left"),
    [("subjects", "tasks"), ("sets", "tasks"), ("cases", "tasks"), ("tasks", "attempts")],
)
def test_a_row_whose_other_row_is_missing_is_damage(tmp_path, table, left):
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        database.execute(f"DELETE FROM {table}")
    with refuses(file, left, error=DamagedRun):
        Run(tmp_path)


@pytest.mark.parametrize("table", READERS)
def test_a_changed_letter_is_damage(tmp_path, table):
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        (text,) = database.execute(f"SELECT record FROM {table}").fetchone()
        database.execute(f"UPDATE {table} SET record = ?", (text.replace(":", ": ", 1),))
    with Run(tmp_path) as run, refuses(tmp_path / FILE, table, error=DamagedRun):
        READERS[table](run)


def test_a_verdict_without_a_truth_value_is_damage(tmp_path):
    """ "success": "false" would count as a success."""
    file = whole(tmp_path)
    for success in ('"false"', "-1", "1", "[]"):
        record = f'{{"score": 0.0, "success": {success}, "native": {{}}, "raw": "", "reason": ""}}'
        crc = store_module.checksum("a0", "j", 1, record)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE verdicts SET record = ?, crc = ?", (record, crc))
        with Run(tmp_path) as run, refuses(tmp_path / FILE, "verdicts", "a0", error=DamagedRun):
            run.verdicts("j")


def test_a_damaged_index_is_found_when_the_run_is_opened(tmp_path):
    """One bit of one key in an index: rows would be left out of the rates without a word."""
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        (page,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'attempts_by_task'"
        ).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    content = bytearray(file.read_bytes())
    begin = (page - 1) * size
    place = content.index(b"t0", begin, begin + size)
    content[place] ^= 1
    file.write_bytes(bytes(content))
    with refuses(file, "attempts_by_task", error=DamagedRun):
        Run(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE verdicts",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER t AFTER INSERT ON verdicts BEGIN DELETE FROM attempts; END",
        "CREATE TABLE more (x)",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = 99",
    ],
)
def test_a_file_with_other_tables_is_refused(tmp_path, statement):
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        database.execute(statement)
    before = file.read_bytes()
    for create in (False, True):
        with refuses(file):
            Run(tmp_path, create=create)
    assert file.read_bytes() == before


def test_the_file_alone_is_a_run_from_its_first_moment(tmp_path):
    """A process that is killed leaves a log beside the file; whoever copies the file alone has the
    tables, and after planning the plan."""
    with Run(tmp_path / "run", create=True) as run:
        run.add_subject(SUBJECT)
        run.checkpoint()
        run.add_set(SET)
        run.commit()  # in the log
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / FILE).write_bytes((tmp_path / "run" / FILE).read_bytes())
        with Run(copy) as other:
            assert other.subjects() == {"m": SUBJECT} and other.sets() == {}


def test_reading_a_file_without_tables_writes_nothing(tmp_path):
    (tmp_path / FILE).write_bytes(b"")
    with refuses(tmp_path / FILE):
        Run(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_run_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    """A colleague's folder, a read-only disk: nothing is made beside the file, nothing written."""
    with Run(tmp_path, create=True) as run:
        run.add_subject(SUBJECT)
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("mosa.runs.store.os.access", lambda path, mode: False)
    with Run(tmp_path) as run:
        assert run.subjects() == {"m": SUBJECT}
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
        run.add_set(SET)
        with refuses(tmp_path):
            run.commit()
        run._open_writes.clear()
    assert (tmp_path / FILE).read_bytes() == before


def test_a_run_that_is_being_written_is_read_by_who_may_not_write(tmp_path, monkeypatch):
    with Run(tmp_path, create=True) as run:
        run.add_subject(SUBJECT)
        run.commit()  # in the log
        monkeypatch.setattr("mosa.runs.store.os.access", lambda path, mode: False)
        with Run(tmp_path) as reader:
            assert reader.subjects() == {"m": SUBJECT}


def test_a_folder_with_signs_of_an_address_in_its_name(tmp_path):
    folder = tmp_path / "a?b#c%20d \u00f6 &mode=ro"
    with Run(folder, create=True) as run:
        run.add_subject(SUBJECT)
    with Run(folder) as run:
        assert run.subjects() == {"m": SUBJECT}
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_folders_that_are_no_run_are_refused(tmp_path):
    with refuses(tmp_path / "nothing"):
        Run(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_bytes(b"not a database" * 100)
    with refuses(tmp_path / "other" / FILE, error=DamagedRun):
        Run(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with refuses(tmp_path / "file"):
        Run(tmp_path / "file", create=True)


@pytest.mark.parametrize("column", ["preset", "threat", "record"])
def test_a_plan_that_is_no_text_is_damage(tmp_path, column):
    file = whole(tmp_path)
    with sqlite3.connect(file) as database:
        database.execute(f"UPDATE tasks SET {column} = ?", (b"\xff\x00",))
    with refuses(file, "tasks", error=DamagedRun):
        Run(tmp_path)
