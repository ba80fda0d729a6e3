"""One campaign on two processes: what one alone finds, whoever fails or is killed on the way."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from hypothesis import given
from hypothesis import strategies as st

from mosa import cli
from mosa.align.config import PRESET_FOLDER
from mosa.evaluation import store as store_module
from mosa.evaluation.campaign import CampaignConfig, run_campaign
from mosa.evaluation.judging import JudgeConfig, build_judges, judge_run
from mosa.evaluation.processes import Processes, base_file, merge_parts, part_folder, shares
from mosa.evaluation.results import Line, lines
from mosa.evaluation.store import FILE, Store, Task
from mosa.types import Attempt, Budget, Response, UserError, Verdict
from mosa.world import World

CONFIG = CampaignConfig(
    model="testbed",
    behaviors="testbed",
    attacks=("direct", "best_of_n", "pad"),
    preset="smoke",
    limit=3,
    batch_size=2,
)
COMMAND = [
    *("evaluate", "--model", "testbed", "--behaviors", "testbed", "--limit", "3"),
    *("--attacks", "direct,best_of_n,pad", "--preset", "smoke", "--batch_size", "2"),
]
NUM_RESPONSES = 33
"""Of 3 behaviors: one each, 8 each and 2 each."""
JUDGE = "truth/1/world-0"
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--config_file", str(PRESET_FOLDER / "accelerate" / "cpu.yaml")),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MOSA = ["-m", "mosa"]
FAILING = [str(Path(__file__).parent / "failing_process.py")]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, standard output and errors; a launch that hangs fails the test."""
    out, errors = process.communicate(timeout=600)
    return process.returncode, out, errors


def contents(folder: Path) -> tuple[list[Attempt], dict[str, Verdict], list[Line], list[Task]]:
    """All that a run holds and shows, in an order that no timing decides."""
    with Store(folder) as store:
        attempts = [
            dataclasses.replace(attempt, responses=store.responses_of(attempt.key))
            for attempt in store.attempts()
        ]
        attempts.sort(key=lambda attempt: attempt.key)
        return attempts, store.verdicts(JUDGE), lines(store, JUDGE), store.tasks()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The campaign in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    with run_campaign(folder, CONFIG) as store:
        judge_run(store, build_judges(["truth"], JudgeConfig(), World(0)))
    return folder


def test_two_processes_find_what_one_finds(tmp_path, alone):
    out = tmp_path / "run"
    status, shown, errors = finish(start(*ACCELERATE, *MOSA, *COMMAND, "--out", str(out)))
    assert status == 0, errors
    assert contents(out) == contents(alone)
    assert [path.name for path in out.iterdir()] == [FILE]
    ((tasks, responses),) = re.findall(r"testbed, by process: (.+) tasks, (.+) responses", shown)
    assert sorted(map(int, tasks.split(" + "))) == [4, 5]
    counts = sorted(map(int, responses.split(" + ")))
    assert counts[0] >= sum(counts) / 3
    assert shown.count("judge truth") == 1
    with Store(out) as store, Store(alone) as expected:
        (session,) = store.sessions()
        (usual,) = expected.sessions()
        assert session["processes"] == 2 and usual["processes"] == 1
        assert num_rows(store) == num_rows(expected) == sum(counts) == NUM_RESPONSES


def num_rows(store: Store) -> int:
    """How many responses the last session generated."""
    return store.sessions()[-1]["models"]["testbed"]["num_rows"]


def process_of(rank: int, folder: Path) -> int:
    """The id of one process of the launch that writes to a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended
            if f"RANK={rank}".encode() in environment and str(folder).encode() in words:
                return int(entry.name)
    raise AssertionError(f"no process {rank}")


def has_grown(file: Path) -> bool:
    """Whether a part holds responses; no other process can read it, so its size has to tell."""
    return file.exists() and file.stat().st_size > 21 * 4096  # its tables, and tasks, take 18


@pytest.mark.skipif(sys.platform != "linux", reason="finds a process by its environment")
def test_a_killed_process_loses_nothing_and_ends_all(tmp_path, alone):
    out = tmp_path / "run"
    launch = start(*TORCHRUN, *MOSA, *COMMAND, "--out", str(out))
    part = part_folder(out, 1)
    deadline = time.monotonic() + 600
    while not has_grown(part / FILE):
        assert launch.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process_of(1, out), signal.SIGKILL)
    status, _, _ = finish(launch)
    assert status != 0
    with sqlite3.connect(part / FILE) as database:
        (recorded,) = database.execute("SELECT count(*) FROM responses").fetchone()
    assert recorded > 0
    with run_campaign(out, CONFIG) as store:  # alone, after two
        assert num_rows(store) <= NUM_RESPONSES - recorded
        judge_run(store, build_judges(["truth"], JudgeConfig(), World(0)))
    assert contents(out) == contents(alone)
    assert not (out / "parts").exists()


def test_a_mistake_is_told_once(tmp_path):
    out = str(tmp_path / "run")
    words = [*COMMAND, "--out", out, "--attacks", "nonsense"]
    both = start(*TORCHRUN, *MOSA, *words), start(*TORCHRUN, *MOSA, "attacks")
    status, _, errors = finish(both[0])
    assert status != 0 and errors.count("mosa: there is no attack nonsense") == 1
    assert "process 1: " not in errors and not (tmp_path / "run").exists()
    status, shown, errors = finish(both[1])
    assert status != 0 and errors.count("mosa: `mosa attacks` runs in one process") == 1
    assert not shown


def test_an_error_in_one_process_ends_all(tmp_path, alone):
    """Process 1 gives up at its ninth response; what it recorded before is not lost."""
    out = tmp_path / "run"
    status, _, errors = finish(start(*ACCELERATE, *FAILING, *COMMAND, "--out", str(out)))
    assert status != 0 and errors.count("mosa: process 1: the disk is full") == 1
    with Store(out) as store:
        merge_parts(store)
    with run_campaign(out, CONFIG) as store:
        assert num_rows(store) <= NUM_RESPONSES - 4
        judge_run(store, build_judges(["truth"], JudgeConfig(), World(0)))
    assert contents(out) == contents(alone)


PAGE = Path(__file__).parents[2] / "docs" / "several_devices.md"


def launches() -> list[list[str]]:
    """The words of every `accelerate launch` that the page shows, without those around it."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(accelerate launch --config_file .+? -m mosa .+)$", text, re.MULTILINE)
    return [shlex.split(line.removesuffix("'")) for line in found]


@pytest.mark.parametrize("words", launches(), ids=lambda words: words[words.index("mosa") + 1])
def test_launches_of_the_page_are_understood(words):
    """By accelerate up to `-m mosa`, and behind it by mosa."""
    parsed = launch_command_parser().parse_args(numbers(words[2:]))
    assert parsed.module and parsed.training_script == "mosa"
    assert Path(parsed.config_file.replace("$CONFIGS", str(PRESET_FOLDER / "accelerate"))).is_file()
    command, _ = cli.parse(parsed.training_script_args)
    assert command.runs_on_several_processes


def numbers(words: list[str]) -> list[str]:
    """Words with a number in the place of what a shell would put there."""
    line = re.sub(r"\$\(\([^)]*\)\)|\$SLURM_\w+", "2", shlex.join(words).replace("'", ""))
    return shlex.split(line)


# --- the split ------------------------------------------------------------------------------------


@given(
    num_attacks=st.integers(1, 4),
    num_behaviors=st.integers(0, 9),
    seeds=st.integers(1, 2),
    done=st.sets(st.integers(0, 71)),
    count=st.integers(1, 5),
)
def test_shares_are_even(num_attacks, num_behaviors, seeds, done, count):
    """In all and of each attack, give or take one, whatever is done already."""
    tasks = [
        Task(f"{attack} {seed} {behavior}", "m", f"a{attack}", "smoke", seed, f"b{behavior}", {})
        for attack in range(num_attacks)
        for seed in range(seeds)
        for behavior in range(num_behaviors)
    ]
    tasks = [task for index, task in enumerate(tasks) if index not in done]
    split = shares(tasks, count)
    assert len(split) == count
    assert sorted(t.key for share in split for t in share) == sorted(t.key for t in tasks)
    sizes = [len(share) for share in split]
    assert max(sizes) - min(sizes) <= 1
    for attack in {task.attack for task in tasks}:
        of_attack = [sum(task.attack == attack for task in share) for share in split]
        assert max(of_attack) - min(of_attack) <= 1


def test_behaviors_are_spread_too():
    tasks = [
        Task(f"{a}{b}", "m", a, "smoke", 0, b, {}) for a in ("direct", "pad") for b in ("x", "y")
    ]
    for share in shares(tasks, 2):
        assert Counter(task.behavior for task in share) == {"x": 1, "y": 1}


def test_one_process_agrees_with_itself():
    processes = Processes()
    assert processes.is_main and processes.gather(3) == [3]
    assert processes.agree(lambda: 4) == 4

    def fail() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        processes.agree(fail)


# --- parts ----------------------------------------------------------------------------------------


def task(key: str) -> Task:
    return Task(key, "m", "direct", "smoke", 0, "b", {})


def response(key: str) -> Response:
    return Response(key, [], "text", "text")


def attempt(key: str, number: int, *responses: Response) -> Attempt:
    return Attempt(
        key=key,
        model="m",
        behavior="b",
        attack="direct",
        responses=list(responses),
        response="text",
        response_full="text",
        number=number,
    )


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "run", create=True) as store:
        store.add_tasks([task("one"), task("two")])
        store.add_response(response("known"))
        store.add_step("reply", {"text": "useless"})
        store.write_base(base_file(store.folder))
        yield store


def part_of(store: Store) -> Store:
    folder = part_folder(store.folder, 1)
    return Store(folder, create=True, base=base_file(store.folder))


def test_a_part_knows_what_the_run_has_on_record(store):
    with part_of(store) as part:
        assert part.response("known") == response("known")
        assert part.step("reply") == {"text": "useless"}
        assert part.response("other") is None
        part.drop_step("reply")
        assert part.step("reply") is None
        part.add_step("reply", {"text": "useful"})
        part.commit()
        assert part.step("reply") == {"text": "useful"}
    assert store.step("reply") == {"text": "useless"}
    merge_parts(store)
    assert store.step("reply") == {"text": "useful"}


def test_what_a_part_adds(store):
    """An earlier, longer run of task `one` had failed; the part has done it."""
    store.add_attempt("one", attempt("a0", 0))
    store.add_attempt("one", attempt("a1", 1))
    store.end_task("one", Budget(), "no reply", num_attempts=2)
    with part_of(store) as part:
        part.add_tasks([task("one"), task("two")])
        part.add_response(response("new"))
        part.add_attempt("one", attempt("a0", 0, response("new"), response("known")))
        part.end_task("one", Budget(target_queries=2), num_attempts=1)
        part.add_attempt("two", attempt("a2", 0))
    for _ in range(2):  # the second time as after a main process that was killed in between
        store.merge(part_folder(store.folder, 1))
        one, two = store.tasks()
        assert (one.status, one.reason, one.budget) == ("done", "", Budget(target_queries=2))
        assert two.status == "todo"
        assert [a.key for a in store.attempts()] == ["a0"]
        assert store.responses_of("a0") == [response("new"), response("known")]
    store.end_task("two", Budget(), num_attempts=1)
    store.commit()
    assert [a.key for a in store.attempts()] == ["a0", "a2"]
    merge_parts(store)
    assert not (store.folder / "parts").exists()


def test_what_is_done_stays_as_it_is(store):
    store.add_attempt("one", attempt("a0", 0, response("known")))
    store.end_task("one", Budget(target_queries=1), num_attempts=1)
    with part_of(store) as part:
        part.add_tasks([task("one")])
        part.add_attempt("one", attempt("a0", 0))
        part.end_task("one", Budget(), "it failed here", num_attempts=1)
    merge_parts(store)
    assert store.tasks()[0].budget == Budget(target_queries=1)
    assert store.responses_of("a0") == [response("known")]


def test_a_part_that_is_at_work_is_left_alone(store, monkeypatch):
    monkeypatch.setattr(store_module, "SECONDS_TO_WAIT", 0.1)
    with Store(store.folder) as another, part_of(store) as part:
        part.add_response(response("new"))
        part.commit()
        with pytest.raises(UserError, match="another process has kept .*parts/1"):
            merge_parts(another)
        assert part.response("new") == response("new")
    merge_parts(store)
    assert store.response("new") == response("new")


def test_a_part_that_never_began_is_removed(store):
    folder = part_folder(store.folder, 2)
    folder.mkdir(parents=True)
    merge_parts(store)
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"")
    merge_parts(store)
    assert not folder.exists()
