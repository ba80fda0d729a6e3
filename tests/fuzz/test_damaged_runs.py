"""Damaged and hostile records of a run under every command that reads them."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fuzz.surfaces import SLOW, changed_bytes, changed_json, comes_back
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import attacked, solved
from refusals import check_sentence

from mosa import cli
from mosa.runs.records import checksum
from mosa.runs.store import COLUMNS, FILE

pytestmark = pytest.mark.slow

NUM_INPUTS = int(os.environ.get("MOSA_FUZZ", "1000"))
many = settings(max_examples=NUM_INPUTS, deadline=None, database=None, suppress_health_check=SLOW)
QUICK = ("results", "status", "json", "csv", "harmbench", "compare", "judge")
COMMANDS = {
    "results": ["results", "RUN"],
    "status": ["status", "RUN"],
    "json": ["results", "RUN", "--export", "json", "--out", "OUT"],
    "csv": ["results", "RUN", "--export", "csv", "--out", "OUT"],
    "harmbench": ["results", "RUN", "--export", "harmbench", "--out", "OUT"],
    "compare": ["compare", "RUN", "RUN", "--subject_a", "a", "--subject_b", "b"],
    "judge": ["judge", "RUN", "--judges", "refusal"],
    "report": ["report", "RUN", "--out", "OUT/page.html"],
    "inspect": ["results", "RUN", "--export", "inspect", "--out", "OUT"],
}
TABLES = [name for name in COLUMNS if name != "steps"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    outcomes = {"direct": {"x1": True, "x2": False}, "prefill": {"x1": True, "x2": None}}
    attacked(folder, {"a": outcomes, "b": outcomes}, native={"grade": 4})
    solved(folder, {"a": {"sums": {"y1": 1.0, "y2": 0.0}}})
    return folder


def runs(command: str, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command ends with a status of its own, and where it refuses, in one sentence."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = [w.replace("RUN", str(folder)).replace("OUT", str(out)) for w in COMMANDS[command]]
    with comes_back():
        status = cli.main(words)
    said = capsys.readouterr()
    assert status in (0, 1, 2, 3), (words, said)
    if status == 2:
        check_sentence(said.err.removesuffix("\n"))
    assert "Traceback" not in said.err + said.out


@pytest.mark.parametrize(
    "commands", [QUICK, ("report",), ("inspect",)], ids=["quick", "report", "inspect"]
)
def test_a_file_that_is_damaged_anywhere(sound, tmp_path, capsys, commands):
    content = (sound / FILE).read_bytes()
    folder, out = tmp_path / "run", tmp_path / "out"
    folder.mkdir()

    @many
    @given(changed_bytes(content), st.sampled_from(commands))
    def ends(damaged: bytes, command: str) -> None:
        for left in folder.iterdir():
            left.unlink()
        (folder / FILE).write_bytes(damaged)
        runs(command, folder, out, capsys)

    ends()


@pytest.mark.parametrize(
    "commands", [QUICK, ("report",), ("inspect",)], ids=["quick", "report", "inspect"]
)
def test_records_that_say_other_things(sound, tmp_path, capsys, commands):
    """With right checksums, as whoever wants to deceive would write them."""
    folder, out = tmp_path / "run", tmp_path / "out"

    @many
    @given(st.data(), st.sampled_from(TABLES), st.sampled_from(commands))
    def ends(data: st.DataObject, table: str, command: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        with closing(sqlite3.connect(folder / FILE)) as db:
            columns = COLUMNS[table]
            rows = db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            if not rows:
                return
            values = list(data.draw(st.sampled_from(rows)))
            values[-2] = data.draw(changed_json(values[-2].encode())).decode()
            values[-1] = checksum(*values[:-1])
            keys = " AND ".join(f"{name} IS ?" for name in columns[:-2]) or "TRUE"
            db.execute(
                f"UPDATE {table} SET record = ?, crc = ? WHERE {keys}",
                (values[-2], values[-1], *values[:-2]),
            )
            db.commit()
        runs(command, folder, out, capsys)

    ends()


def test_files_with_other_tables(sound, tmp_path, capsys):
    statements = (
        "DROP TABLE {}",
        "CREATE VIEW hostile AS SELECT load_extension('x')",
        "CREATE TRIGGER t AFTER INSERT ON verdicts BEGIN DELETE FROM attempts; END",
        "ALTER TABLE {} ADD COLUMN more",
        "PRAGMA user_version = {n}",
        "DELETE FROM {}",
        "CREATE TABLE more (a)",
        "DROP INDEX attempts_by_task",
    )
    numbers = random.Random(0)
    for n in range(200):
        folder = tmp_path / f"run{n}"
        shutil.copytree(sound, folder)
        statement = numbers.choice(statements).format(numbers.choice(TABLES), n=n % 5)
        with closing(sqlite3.connect(folder / FILE)) as db:
            db.execute(statement.replace("{n}", str(n % 5)))
            db.commit()
        runs(numbers.choice(QUICK), folder, tmp_path / "out", capsys)
        shutil.rmtree(folder)
