"""A run's records: whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mosa.evaluation import store as store_module
from mosa.evaluation.store import FILE, Measurement, Store, Task

from mosa.types import Attempt, Behavior, Budget, Response, UserError, Verdict


def response(key: str, text: str = "tea") -> Response:
    return Response(key, [{"role": "user", "content": "how?"}], text, text, [1, 2], ["t", "ea"])


def attempt(key: str, *responses: Response, number: int = 0) -> Attempt:
    return Attempt(
        key, "m", "b0", "direct", list(responses), "tea", "tea", number=number, variant="v",
        budget=Budget(target_queries=number + 1), details={"loss": 0.5},
    )  # fmt: skip


def task(key: str, status: str = "todo") -> Task:
    return Task(key, "m", "direct", "paper", 0, "b0", {"x": [1]})


def filled(folder: Path) -> Store:
    store = Store(folder, create=True)
    store.add_behaviors([Behavior("b0", "how is tea made?", target="Sure")])
    store.add_model("m", {"weights": "1f", "special_tokens": []})
    store.add_tasks([task("t0"), task("t1")])
    store.add_response(response("r0"))
    store.add_attempt("t0", attempt("a0", response("r0")))
    store.end_task("t0", Budget(target_queries=1))
    store.commit()
    return store


def test_what_is_written_is_read_back(tmp_path):
    with filled(tmp_path) as store:
        assert store.behaviors() == {"b0": Behavior("b0", "how is tea made?", target="Sure")}
        (read,) = store.attempts()
        assert store.responses_of("a0") == [response("r0")]
        assert read == attempt("a0")
        assert [t.status for t in store.tasks()] == ["done", "todo"]
        assert store.tasks()[0].budget == Budget(target_queries=1)
        assert store.tasks(status="todo") == [task("t1")]
        assert store.is_done("t0") and not store.is_done("t1")
        assert sorted(store.counts()) == [
            ("m", "direct", "paper", "done", 1),
            ("m", "direct", "paper", "todo", 1),
        ]
    with Store(tmp_path) as again:
        assert again.response("r0") == response("r0") and again.response("r1") is None


def test_what_is_not_committed_is_seen_here_alone(tmp_path):
    with filled(tmp_path) as store, Store(tmp_path) as other:
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
        store.end_task("t1", Budget(), reason="it broke")
        store.commit()
        assert [a.key for a in store.attempts()] == ["a0"]
        assert store.failures() == [("direct", "it broke", 1)]
        # A reason may be empty, and a failure stays one.
        store.end_task("t1", Budget(), reason="")
        store.drop_task("t0")  # done: kept
        store.commit()
        assert [(t.key, t.status) for t in store.tasks()] == [("t0", "done"), ("t1", "failed")]
        store.end_task("t1", Budget())
        store.commit()
        assert [a.key for a in store.attempts()] == ["a0", "a1"]
        assert store.failures() == []


def test_a_task_that_is_run_again_has_the_attempts_of_its_last_run(tmp_path):
    """A failed run of three tries, one with other replies of two; then it is done, and stays so,
    whatever another process that was late says."""
    with filled(tmp_path) as store:

        def run(words: str, num: int, reason: str | None) -> None:
            for number in range(num):
                of = attempt(f"n{number}", response("r0"), number=number)
                store.add_attempt("t1", replace(of, response=words))
            store.end_task("t1", Budget(), reason, num_attempts=num)
            store.commit()

        run("first", 3, "the attacker wrote nothing")
        run("second", 2, None)
        found = [(a.key, a.response) for a in store.attempts() if a.key != "a0"]
        assert found == [("n0", "second"), ("n1", "second")]
        store.add_verdict("n0", "j", Verdict(1.0, True))
        run("late", 1, "the attacker wrote nothing")
        assert [(a.key, a.response) for a in store.attempts() if a.key != "a0"] == found
        assert {t.key: t.status for t in store.tasks()}["t1"] == "done"


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


def test_half_a_character_can_be_kept(tmp_path):
    """A model's reply that was cut within an emoji."""
    with filled(tmp_path) as store:
        store.add_step("s1", {"text": "step \ud83d"})
        store.commit()
        assert store.step("s1") == {"text": "step \ud83d"}


def test_a_full_disk_is_told_of_and_nothing_is_lost(tmp_path):
    """SQLite's own limit stands in for the disk: the same error, from the same place."""
    with filled(tmp_path) as store:
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        for i in range(50):
            store.add_response(response(f"big{i}", "x" * 5000))
        with pytest.raises(UserError, match="full; free some space and run the same command again"):
            store.commit()
        assert [a.key for a in store.attempts()] == ["a0"]
        # Room again: what was held back goes through.
        store._db.execute("PRAGMA max_page_count = 100000")
        store.commit()
    with Store(tmp_path) as again:
        assert again.response("big49") is not None


def test_one_commit_is_whole_or_not_at_all(tmp_path):
    with filled(tmp_path) as store:
        store.add_response(response("r1"))
        store._write("INSERT INTO no_such_table VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="no_such_table"):
            store.commit()
        with Store(tmp_path) as other:
            assert other.response("r1") is None
        store._open_writes.clear()


def _begin(folder: Path, queue) -> None:
    try:
        with Store(folder, create=True) as store:
            store.add_response(response(str(os.getpid())))
        queue.put("")
    except UserError as error:
        queue.put(str(error))


def test_several_processes_may_begin_one_run(tmp_path):
    """Whoever comes first writes the tables, and nobody is turned away."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_begin, args=(tmp_path / "run", queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [""] * 4
    for process in processes:
        process.join()
    with Store(tmp_path / "run") as store:
        assert list(store._rows("SELECT count(*) FROM responses")) == [(4,)]


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
    with Store(tmp_path) as again:
        assert again.response("r1") is not None


def test_a_folder_whose_name_says_full_is_not_a_full_disk(tmp_path):
    (tmp_path / "full-locked").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        Store(tmp_path / "full-locked", create=True)


def _write_for_ever(folder: Path, name: str) -> None:
    with Store(folder) as store:
        i = 0
        while True:
            for _ in range(5):
                store.add_response(response(f"{name}-{i}"))
                i += 1
            store.commit()


def test_two_writers_and_a_kill_leave_whole_batches(tmp_path):
    """Two processes write batches of five; both are killed; every batch is there or is not."""
    filled(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, n)) for n in ("x", "y")]
    for writer in writers:
        writer.start()

    def counts() -> dict[str, int]:
        with Store(tmp_path) as store:
            rows = store._rows(
                "SELECT substr(key, 1, 1), count(*) FROM responses WHERE key LIKE '_-%' GROUP BY 1"
            )
            return dict(rows)  # pyright: ignore

    deadline = time.monotonic() + 60
    while min(counts().get("x", 0), counts().get("y", 0)) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    found = counts()
    assert found["x"] % 5 == 0 and found["y"] % 5 == 0
    with Store(tmp_path) as store:
        assert list(store._rows("PRAGMA integrity_check")) == [("ok",)]
        assert [a.key for a in store.attempts()] == ["a0"]


def test_a_measurement_with_a_value_takes_the_place_of_one_without(tmp_path):
    open_case = Measurement("m", "sums", "accuracy", "1", None, "no number in the reply")
    solved = Measurement("m", "sums", "accuracy", "1", 1.0, details={"response": "r0"})
    with Store(tmp_path, create=True) as store:
        for measurement in (open_case, solved, open_case):
            store.add_measurement(measurement)
            store.commit()
        assert list(store.measurements()) == [solved]


def test_a_run_of_layout_1_is_brought_up_to_date(tmp_path):
    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DROP TABLE measurements")
        database.execute("PRAGMA user_version = 1")
    with Store(tmp_path) as store:
        assert [a.key for a in store.attempts()] == ["a0"]
        store.add_measurement(Measurement("m", "sums", "accuracy", "1", 0.0))
        store.commit()
        assert len(list(store.measurements())) == 1


def test_folders_that_are_no_run_are_told_of(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        Store(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="damaged or no run"):
        Store(tmp_path / "other")
    filled(tmp_path / "old").close()
    with sqlite3.connect(tmp_path / "old" / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="another version"):
        Store(tmp_path / "old")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        Store(tmp_path / "file", create=True)
