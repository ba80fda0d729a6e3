"""Every command that writes, while a living process has its place: it is refused in a sentence,
nothing of the other changes, and afterwards the same command ends as undisturbed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from chat.stub_endpoint import Answer, completion, stub_endpoint
from fuzz.writers import MORE, WRITERS, Writer
from made_runs import attacked
from refusals import check_message

from mosa import cli
from mosa.alignment.run import MADE_BY as ALIGN
from mosa.api.probing import MADE_BY as ANALYZE
from mosa.chat import cache
from mosa.files import claim_file, claim_folder
from mosa.reporting.tables import TABLES_BY
from mosa.runs import store
from mosa.runs.store import FILE, Run

pytestmark = pytest.mark.slow

Hold = Callable[[Path], AbstractContextManager[object]]
"""Holds a command's place, given its output."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module in (store, cache):
        monkeypatch.setattr(module, "SECONDS_TO_WAIT", 0.3)


@contextmanager
def held_by_another(hold: AbstractContextManager[object]) -> Iterator[None]:
    """A child of this process is in the context, until it is killed at the end of the block."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with hold:
                os.write(tell, b"!")
                signal.pause()
        finally:
            os._exit(70)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"!", "it could not begin"
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Another process is in the midst of writing into a run."""
    Run(folder, create=True).close()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """It keeps others from reading, too."""
    Run(folder, create=True).close()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("PRAGMA user_version = 3")
        yield


def folder(made_by: str, name: str = ".") -> Hold:
    return lambda out: claim_folder(Path(os.path.normpath(out / name)), made_by)


@contextmanager
def finding(out: Path) -> Iterator[None]:
    """It writes what a probe has found in the run."""
    Run(out, create=True).close()
    with claim_folder(out / "order-quick", ANALYZE):
        yield


def file(name: str) -> Hold:
    return lambda out: claim_file(out / name)


CAMPAIGN = Writer(
    "bench campaign",
    lambda given, out: [
        *("bench", "campaign", "--sizes", "12,30", "--batch_size", "4"),
        *("--out", str(out / "a.txt"), "--json", str(out / "a.json")),
    ],
    lambda out: sorted(path.name for path in out.iterdir()),
)
"""It takes long, and is killed and run on full disks nowhere."""
BY_NAME = {writer.name: writer for writer in [*WRITERS, *MORE, CAMPAIGN]}
HOLDS: dict[tuple[str, str], Hold] = {
    ("evaluate", "written"): written,
    ("evaluate", "locked"): locked,
    ("judge", "written"): written,
    ("judge", "locked"): locked,
    ("analyze", "written"): written,
    ("analyze", "locked"): locked,
    ("analyze", "finding"): finding,
    ("generate", "file"): file("answers.jsonl"),
    ("align", "folder"): folder(ALIGN),
    ("merge", "folder"): folder("mosa merge", "merged"),
    ("report", "file"): file("page.html"),
    ("report tables", "folder"): folder(TABLES_BY, "tables"),
    ("export", "folder"): folder("mosa results --export", "tables"),
    ("testbed build", "folder"): folder("mosa testbed build", "models"),
    ("judge check", "file"): file("errors.json"),
    ("evaluate report", "file"): file("page.html"),
    ("evaluate report", "run"): lambda out: written(out / "run"),
    ("bench campaign", "out"): file("a.txt"),
}
"""By command, and how its place is held."""
REFUSED_AT_ONCE: dict[str, Hold] = {
    "demo --out out": folder("mosa demo"),
    "testbed tables --out out": folder("mosa testbed tables"),
    "align sft --model missing --data prompts.txt --out out": folder(ALIGN),
    "align vrpo --model missing --data prompts.txt --out out": folder(ALIGN),
    "bench sampler --out out/a": file("a"),
    "bench align --json out/a": file("a"),
    "bench drift --out out/a": file("a"),
    "bench report --out out/a": file("a"),
    "attacks check --attacker http://127.0.0.1:9/v1#m --out out/a": file("a"),
}
"""Commands that would take long, or fail later."""
RATED = Answer(completion("rating: 4"), seconds=0.15)
"""In its time what came before is committed."""
READERS = ("results {}", "status {}", "report {} --out page.html", "compare {} {}")


def refused(capsys, argv: list[str], *names: object) -> None:
    """A command ends with 2, and a sentence with the names in it at the end."""
    capsys.readouterr()
    status = cli.main(argv)
    captured = capsys.readouterr()
    assert status == cli.EXIT_USER_ERROR, captured
    told = captured.err.splitlines()
    assert len(set(told)) == len(told) and "Traceback" not in captured.err
    check_message(told[-1].removeprefix("mosa: "), "another process", *names)


def picture(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for what SQLite shares between processes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if not path.name.endswith("-shm")}


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory) -> Callable[[str], object]:
    """What a command writes; each is run once."""
    found: dict[str, object] = {}

    def result(name: str) -> object:
        if name not in found:
            out = begun(name, tmp_path_factory.mktemp("whole"))
            assert cli.main(BY_NAME[name].argv(given, out)) == 0
            found[name] = BY_NAME[name].result(out)
        return found[name]

    return result


def begun(name: str, out: Path) -> Path:
    if name == "judge":
        attacked(out, {"a": {"direct": dict.fromkeys("abcdefgh", True)}})
    return out


@pytest.mark.parametrize(("name", "way"), HOLDS)
def test_a_place_that_is_held(capsys, given, undisturbed, tmp_path, name, way):
    writer, out = BY_NAME[name], tmp_path / "out"
    out.mkdir()
    argv = writer.argv(given, begun(name, out))
    with held_by_another(HOLDS[name, way](out)):
        of_other = out / "order-quick" if way == "finding" else out
        before = picture(of_other)
        refused(capsys, argv, "wait" if way not in ("written", "locked", "run") else "end it")
        after = picture(of_other)
        assert {path: after.get(path) for path in before} == before
    assert cli.main(argv) == 0, capsys.readouterr().err
    assert writer.result(out) == undisturbed(name)


@pytest.mark.parametrize("command", REFUSED_AT_ONCE)
def test_a_place_that_is_held_is_refused_before_the_work(capsys, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "prompts.txt").write_text("how do i make a copper kiln ?\n")
    with held_by_another(REFUSED_AT_ONCE[command](out)):
        before = picture(out)
        refused(capsys, command.split(), "wait")
        assert picture(out) == before


@pytest.mark.parametrize("command", READERS)
def test_a_run_that_others_have_locked_is_not_read(capsys, tmp_path, command):
    run = attacked(tmp_path / "run", {"a": {"direct": {"x": True}}, "b": {"direct": {"x": False}}})
    with held_by_another(locked(run)):
        before = picture(run)
        refused(capsys, command.format(run, run).split(), run / FILE)
        assert picture(run) == before
    with held_by_another(written(run)):
        assert cli.main(["results", str(run)]) == 0


@pytest.mark.parametrize("name", ["evaluate", "judge"])
def test_a_lock_that_comes_in_the_midst(capsys, tmp_path, monkeypatch, name):
    """The command ends, its whole batches are kept, and it goes on."""
    monkeypatch.setenv("MOSA_API_KEY", "none")
    requests = tmp_path / "requests.jsonl"
    rows = [{"id": str(i), "behavior": f"Write about tea, part {i}."} for i in range(6)]
    requests.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = []
    with ExitStack() as stack, stub_endpoint() as stub:
        for run in (tmp_path / "whole", tmp_path / "locked"):
            argv = ["evaluate", "--model", f"{stub.url}#tea", "--sets", str(requests)]
            argv += ["--max_new_tokens", "24", "--i_am_authorized", "--num_concurrent", "1"]
            if name == "judge":
                for case in "abcdef":
                    attacked(run, {"a": {"direct": {case: True}}}, words=("sure", case))
                argv = ["judge", "--judges", "pair", "--judge_model", f"{stub.url}#rater"]
            argv += [str(run)] if name == "judge" else ["--out", str(run)]

            def rule(body: dict[str, Any], run: Path = run) -> Answer:
                if run.name == "locked" and len(stub.requests) == 6:
                    db = stack.enter_context(
                        closing(
                            sqlite3.connect(
                                run / FILE,
                                isolation_level=None,
                                timeout=60,
                                check_same_thread=False,
                            )
                        )
                    )
                    db.execute("BEGIN IMMEDIATE")
                return RATED

            stub.rule, stub.requests = rule, []
            if run.name == "locked":
                refused(capsys, argv, "end it", run / FILE)
                stack.pop_all().close()
                stub.rule, stub.requests = lambda body: RATED, []
            assert cli.main(argv) == 0, capsys.readouterr().err
            with Run(run) as records:
                assert name == "judge" or run.name == "whole" or len(stub.requests) < 1 + 6
                found.append(
                    (
                        sorted((a.case, a.response) for a in records.attempts()),
                        {judge: len(records.verdicts(judge)) for judge in records.judges()},
                        records.counts(),
                    )
                )
    assert found[0] == found[1]


def test_kept_replies_that_are_being_written(capsys, tmp_path, monkeypatch):
    """Replies that cannot be kept are used all the same, and waited for once."""
    run = tmp_path / "run"
    for case in "abcd":
        attacked(run, {"a": {"direct": {case: True}}}, words=("sure", case))
    monkeypatch.setenv("MOSA_API_KEY", "none")

    @contextmanager
    def kept(way: str) -> Iterator[None]:
        with closing(sqlite3.connect(tmp_path / "kept" / cache.FILE, isolation_level=None)) as db:
            db.execute(f"BEGIN {way}")
            yield

    with stub_endpoint(Answer(completion("rating: 4"))) as stub:
        argv = ["judge", str(run), "--judges", "pair", "--reply_cache", str(tmp_path / "kept")]
        argv += ["--judge_model", f"{stub.url}#"]
        assert cli.main([*argv[:-1], f"{argv[-1]}a"]) == 0
        capsys.readouterr()
        with held_by_another(kept("EXCLUSIVE")):
            status = cli.main([*argv[:-1], f"{argv[-1]}b"])
            told = capsys.readouterr().err
            assert status == 2 and "--reply-cache" in told and len(told.splitlines()) == 1
        with held_by_another(kept("IMMEDIATE")):
            with pytest.warns(UserWarning, match="--reply_cache") as warned:
                assert cli.main([*argv[:-1], f"{argv[-1]}c"]) == 0
            assert len(warned) == 1
        assert len(stub.requests) == 2 * (1 + 4)
        with Run(run) as found:
            assert all(not found.num_unjudged(judge) for judge in found.judges())
