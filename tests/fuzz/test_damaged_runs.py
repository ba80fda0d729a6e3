"""Damaged and hostile records of a run under every command that reads them."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fuzz.surfaces import changed_bytes, changed_json, comes_back, many, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from made_runs import attacked, solved
from probed_runs import probed_run, response_of, verdict
from refusals import check_sentence

from mosa import cli
from mosa.evidence.findings import findings_of
from mosa.runs.records import checksum
from mosa.runs.store import COLUMNS, FILE, Run

pytestmark = pytest.mark.slow

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


def change(data: st.DataObject, folder: Path, table: str) -> bool:
    """Changes a record of a table, with a right checksum, as whoever wants to deceive would; False
    where it has none."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        columns = COLUMNS[table]
        rows = db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        if not rows:
            return False
        values = list(data.draw(st.sampled_from(rows)))
        values[-2] = data.draw(changed_json(values[-2].encode())).decode()
        values[-1] = checksum(*values[:-1])
        keys = " AND ".join(f"{name} IS ?" for name in columns[:-2]) or "TRUE"
        db.execute(
            f"UPDATE {table} SET record = ?, crc = ? WHERE {keys}",
            (values[-2], values[-1], *values[:-2]),
        )
        db.commit()
    return True


@pytest.mark.parametrize(
    "commands", [QUICK, ("report",), ("inspect",)], ids=["quick", "report", "inspect"]
)
def test_records_that_say_other_things(sound, tmp_path, capsys, commands):
    folder, out = tmp_path / "run", tmp_path / "out"

    @many
    @given(st.data(), st.sampled_from(TABLES), st.sampled_from(commands))
    def ends(data: st.DataObject, table: str, command: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        if change(data, folder, table):
            runs(command, folder, out, capsys)

    ends()


def profiles(*shares: float) -> dict[str, Any]:
    profile = {"step": 0, "refusal": shares, "end": shares}
    return {"profiles": [profile], "num_packaged_refusals": 1, "num_trained_refusals": 1}


def placed(kind: str, position: int | None, **more: Any) -> dict[str, Any]:
    return {kind: "none" if position is None else "gcg", "position": position} | more


SIDES = {"text_before": "no", "text_after": "yes"}
FOUND = {"in_place": True, "in_whole_canvas": True, "anywhere": True}
FOUND |= {"best_loss": 1.0, "losses": [2.0, 1.0]}
PROBED = {
    "position": [
        placed(
            "phrase_type",
            p,
            end_tokens="allow",
            block_length=0,
            remasking="random",
            **SIDES if p else {},
        )
        for p in (None, 2)
    ],
    "step": [placed("span", p, step=p, **SIDES if p else {}) for p in (None, 2)],
    "suffix": [{"method": "none"}, placed("method", 2, **FOUND)],
    "order": [{"condition": "base"}, {"condition": "block 2"}],
    "depth": [profiles(0.5, 0.25), profiles(1.0, 0.0)],
}


@pytest.mark.parametrize("probe", PROBED)
def test_records_of_probes_that_say_other_things(tmp_path, probe):
    folder = tmp_path / "run"
    cells = []
    for subject, case, number in itertools.product("mn", "xy", range(2)):
        answer = response_of(f"{subject}{case}{number}", [1, 0, 2], [2], None)
        has_answer = probe != "depth"
        details = PROBED[probe][number]
        cells.append((subject, case, details, verdict(0.5), answer if has_answer else None))
    with probed_run(tmp_path / "sound", probe, cells) as run:
        assert findings_of(run)

    @many
    @given(st.data(), st.sampled_from(["attempts", "attempts", "tasks", "responses", "verdicts"]))
    def is_read_or_refused(data: st.DataObject, table: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", folder)
        if change(data, folder, table):
            read_or_refuse(found_in, folder)

    is_read_or_refused()


def found_in(folder: Path) -> None:
    with Run(folder) as run:
        findings_of(run)


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
