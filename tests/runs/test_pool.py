"""Several processes as one responder: over a connection here, and as launches of `mosa`."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from chat.tiny_causal import causal_tokenizer, saved, tiny_llama
from peft import LoraConfig
from refusals import refuses, with_options
from run_contents import contents
from run_stand_ins import EchoResponder

from mosa import cli
from mosa.alignment.config import PRESET_FOLDER
from mosa.attacks import Query
from mosa.denoising import DecoderConfig
from mosa.families import DiffusionLM, load_model
from mosa.responder import LocalResponder, Prepared, ResponderGone
from mosa.runs.pool import Pool, RemoteResponder, _answer
from mosa.runs.processes import Processes
from mosa.runs.store import FILE, Run
from mosa.types import UserError
from mosa.worker import Work

pytestmark = pytest.mark.integration

DECODER = DecoderConfig(max_new_tokens=8, steps=4)
LONG = DecoderConfig(max_new_tokens=256, steps=256)

# --- over a connection ----------------------------------------------------------------------------


class OddError(Exception):
    """An error that another process cannot make again from its words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} {code}")


def measure(model: DiffusionLM, states: Sequence[Any]) -> list[dict[str, Any]]:
    """Work: how long the ids of a text are, or an error."""
    for state in states:
        if state["text"] == "mistake":
            raise UserError("mend this so")
        if state["text"] == "odd":
            raise OddError(7, "odd")
    return [{"length": len(model.encode(state["text"]))} for state in states]


@pytest.fixture
def remote(tiny_llada) -> Iterator[tuple[RemoteResponder, LocalResponder, Any]]:
    """A responder at one end of a connection, with a model at the other; and that end."""
    here, there = Pipe()
    local = LocalResponder(tiny_llada, "hash", batch_size=2)

    def answer() -> None:
        with there:
            asyncio.run(_answer(there, local))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    responder = RemoteResponder(here)
    yield responder, local, there
    responder.close()
    thread.join(30)
    assert not thread.is_alive()
    local.close()


def prepared(local: LocalResponder, text: str, decoder: DecoderConfig = DECODER) -> Prepared:
    return local.prepare(Query(text), decoder)


def test_an_answer_is_that_of_the_model_at_the_other_end(remote, tiny_llada):
    responder, local, _ = remote
    queries = [prepared(local, f"how is tea {i} made?") for i in range(5)]

    async def ask(who: Any) -> list[Any]:
        return list(await asyncio.gather(*(who.submit(query) for query in queries)))

    assert responder.capacity == 2
    alone = LocalResponder(tiny_llada, "hash", batch_size=2)
    assert asyncio.run(ask(responder)) == asyncio.run(ask(alone))
    alone.close()
    responder.close()
    assert responder.tally.num_responses == local.tally.num_responses == 5


def test_steps_are_heard(remote):
    responder, local, _ = remote
    heard: list[Any] = []

    async def ask() -> Any:
        return await responder.submit(prepared(local, "tea?"), on_step=heard.append)

    response = asyncio.run(ask())
    assert len(heard) == len(set(response.commit_step)) == 4


def test_work_is_done_and_its_errors_come_back(remote):
    responder, local, _ = remote
    length = len(local.model.encode("tea?"))

    async def compute(text: str) -> dict[str, Any]:
        return await responder.compute(Work(measure, {"text": text}))

    assert asyncio.run(compute("tea?")) == {"length": length}
    with refuses("mend this so"):
        asyncio.run(compute("mistake"))
    with pytest.raises(RuntimeError, match="OddError: odd 7"):
        asyncio.run(compute("odd"))
    assert asyncio.run(compute("tea?")) == {"length": length}


def test_a_query_that_nobody_waits_for_leaves_the_batch(remote):
    responder, local, _ = remote

    async def ask() -> Any:
        long = [
            asyncio.ensure_future(responder.submit(prepared(local, f"{i}", LONG))) for i in range(2)
        ]
        await asyncio.sleep(0.05)
        for task in long:
            task.cancel()
        # Both rows were taken, so this one is answered only if they are given back.
        response = await responder.submit(prepared(local, "tea?"))
        await asyncio.gather(*long, return_exceptions=True)
        return response

    response = asyncio.run(ask())
    assert len(response.tokens) == 8
    assert local.tally.num_responses == 1


def test_an_end_that_is_gone_is_told_to_all_who_wait_and_who_come_later(tiny_llada):
    here, there = Pipe()
    there.send(4)
    responder = RemoteResponder(here)
    local = LocalResponder(tiny_llada, "hash")
    query = prepared(local, "tea?")
    local.close()

    async def ask() -> list[Any]:
        waiting = [asyncio.ensure_future(responder.submit(query)) for _ in range(2)]
        await asyncio.sleep(0)
        there.close()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        with refuses("process", error=ResponderGone):
            await responder.submit(query)
        return found

    assert [type(error) for error in asyncio.run(ask())] == [ResponderGone] * 2
    responder.close()


def test_the_least_busy_is_asked(tiny_llada):
    """Of 8 queries at once a responder with room for 3 gets three times what one for 1 gets."""
    small, large = EchoResponder(tiny_llada, capacity=1), EchoResponder(tiny_llada, capacity=3)
    pool = Pool(small, [large])
    assert pool.capacity == 4

    async def ask() -> None:
        queries = [pool.prepare(Query(f"tea {i}?"), DECODER) for i in range(8)]
        await asyncio.gather(*(pool.submit(query) for query in queries))

    asyncio.run(ask())
    assert (len(small.asked), len(large.asked)) == (2, 6)
    assert [tally.num_responses for tally in pool.tallies] == [2, 6]
    assert pool.tally.num_responses == 8


def test_one_process_agrees_with_itself():
    processes = Processes()
    assert processes.is_main and processes.gather(3) == [3]
    assert processes.agree(lambda: 4) == 4

    def fail() -> None:
        raise UserError("no")

    with refuses("no"):
        processes.agree(fail)


# --- launches -------------------------------------------------------------------------------------

COMMAND = [
    *("evaluate", "--model", "testbed", "--sets", "testbed,testbed:benign,testbed:arithmetic"),
    *("--attacks", "direct,best_of_n,pad", "--preset", "smoke", "--limit", "3"),
    *("--max_new_tokens", "48", "--steps", "24", "--block_length", "24", "--batch_size", "2"),
]
PROBE = [
    *("evaluate", "--model", "testbed", "--sets", "testbed,testbed:benign", "--limit", "2"),
    *("--attacks", "position:quick,prefill:smoke", "--batch_size", "2"),
    *("--attack_options", '{"position": {"phrase_types": ["none"], "end_tokens": ["allow"]}}'),
    *("--max_new_tokens", "24", "--steps", "8", "--block_length", "24"),
]


class Launch:
    """Two processes as a launcher starts them, each with a command."""

    def __init__(self, *commands: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mosa", *command],
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(len(commands)), "RANK": str(rank)}
                | {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]

    def end(self) -> list[tuple[int, str, str]]:
        """Status, output and errors of each; a launch that hangs fails the test."""
        found = []
        try:
            for process in self.processes:
                out, errors = process.communicate(timeout=240)
                found.append((process.returncode, out, errors))
        finally:
            for process in self.processes:
                process.kill()
        return found


def num_responses(folder: Path) -> int:
    if not (folder / FILE).exists():
        return 0
    with sqlite3.connect(folder / FILE, timeout=30) as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
        if ("responses",) not in tables:
            return 0
        return database.execute("SELECT count(*) FROM responses").fetchone()[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert cli.main([*COMMAND, "--out", str(folder)]) == 0
    return folder


def test_two_processes_find_what_one_finds(tmp_path, alone):
    """Attacks, harmless requests and a useful task; each process answers a fair share."""
    out = tmp_path / "run"
    command = [*COMMAND, "--out", str(out)]
    (status, shown, errors), (other_status, other_shown, _) = Launch(command, command).end()
    assert (status, other_status) == (0, 0), errors
    assert contents(out) == contents(alone)
    assert [path.name for path in out.iterdir()] == [FILE]
    ((one, other),) = re.findall(r"responses by process: (\d+) \+ (\d+)", shown)
    with Run(out) as run, Run(alone) as expected:
        (session,), (usual,) = run.sessions(), expected.sessions()
    total = usual["subjects"]["testbed"]["num_responses"]
    assert int(one) + int(other) == session["subjects"]["testbed"]["num_responses"] == total
    assert min(int(one), int(other)) >= total / 4
    assert (session["processes"], usual["processes"]) == (2, 1)
    assert not other_shown


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A folder with a tiny classifier of the HarmBench kind, and a prompt for it."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = causal_tokenizer(["yes", "no"])
    model = tiny_llama(tokenizer)
    ids = [tokenizer.get_vocab()[word] for word in ("yes", "no")]
    with torch.no_grad():
        rows = model.lm_head.weight[ids].abs()
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids] = 5 * rows
    saved(folder / "model", model, tokenizer)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "harmbench.txt").write_text("{behavior} | {generation}")
    return folder


def local_verdicts(folder: Path) -> dict[str, Any]:
    """What the classifier said of each attempt, and its scores but for rounding."""
    ((_, found),) = (
        pair for pair in contents(folder).verdicts.items() if pair[0].startswith("harmbench")
    )
    return {key: (v.raw, pytest.approx(v.score, abs=1e-5)) for key, v in found.items()}


@pytest.mark.slow
def test_a_local_judge_works_in_both_processes(tmp_path, classifier, alone):
    """Judged with the run and afterwards: the verdicts are those of one process."""
    judge = f"harmbench={classifier / 'model'}"
    options = ["--judge_templates", str(classifier / "prompts"), "--device", "cpu"]
    judging = ["judge", "--judges", judge, *options]
    shutil.copytree(alone, tmp_path / "alone")
    assert cli.main([judging[0], str(tmp_path / "alone"), *judging[1:]]) == 0
    expected = local_verdicts(tmp_path / "alone")
    assert len(expected) > 16, "more than one process judges at once"
    shutil.copytree(alone, tmp_path / "later")
    later = [judging[0], str(tmp_path / "later"), *judging[1:]]
    out = tmp_path / "at_once"
    at_once = [*COMMAND, "--out", str(out), "--judges", f"truth,{judge}", *options]
    for command, folder in ((later, tmp_path / "later"), (at_once, out)):
        for status, _, errors in Launch(command, command).end():
            assert status == 0, errors
        assert local_verdicts(folder) == expected


def test_probes_and_prefills_are_answered_by_two_processes_too(tmp_path):
    command = [*PROBE, "--out", str(tmp_path / "run")]
    for status, _, errors in Launch(command, command).end():
        assert status == 0, errors
    assert cli.main([*PROBE, "--out", str(tmp_path / "alone")]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


@pytest.mark.slow  # what a pool says of a process that is gone is tested without one, above
def test_a_process_that_is_killed_loses_nothing_and_the_main_one_says_so(tmp_path, alone):
    out = tmp_path / "run"
    command = [*COMMAND, "--out", str(out)]
    launch = Launch(command, command)
    deadline = time.monotonic() + 240
    while num_responses(out) < 4:
        assert launch.processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    launch.processes[1].send_signal(signal.SIGKILL)
    (status, _, errors), _ = launch.end()
    assert status == cli.EXIT_USER_ERROR, errors
    lines = [line for line in errors.splitlines() if line.startswith("mosa: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    kept = num_responses(out)
    with Run(out) as run:
        assert kept >= 4 and not run.failures()
    assert cli.main(command) == 0
    assert contents(out) == contents(alone)
    with Run(out) as run:
        again = run.sessions()[-1]["subjects"]["testbed"]["num_responses"]
    assert again == num_responses(out) - kept


@pytest.mark.slow
def test_mistakes_are_told_once_and_by_whom(tmp_path):
    """A mistake of both; then one of the second process alone: it has other weights."""
    out = str(tmp_path / "run")
    wrong = with_options(COMMAND, "--out", str(out), "--attacks", "nonsense")
    ends = Launch(wrong, wrong).end()
    assert [status for status, _, _ in ends] == [cli.EXIT_USER_ERROR] * 2
    assert [errors.count("mosa: ") for _, _, errors in ends] == [1, 0]
    assert not Path(out).exists()
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=2, lora_alpha=4))
    with torch.no_grad():
        for name, tensor in model.network.named_parameters():
            if "lora_B" in name:
                tensor.fill_(0.1)
    model.save_adapter(tmp_path / "adapter")
    right = [*COMMAND, "--out", out]
    other = [*right, "--adapter", str(tmp_path / "adapter")]
    ends = Launch(right, other).end()
    assert [status for status, _, _ in ends] == [cli.EXIT_USER_ERROR] * 2
    assert "different weights" in ends[0][2] and ends[0][2].count("mosa: ") == 1
    with Run(Path(out)) as run:
        assert not run.tasks()


PAGE = Path(__file__).parents[2] / "docs" / "several_devices.md"


def launches() -> list[list[str]]:
    """The words of every `accelerate launch` that the page shows, without those around it."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(accelerate launch --config-file .+? -m mosa .+)$", text, re.MULTILINE)
    return [shlex.split(line.removesuffix("'")) for line in found]


@pytest.mark.parametrize("words", launches(), ids=lambda words: words[words.index("mosa") + 1])
def test_launches_of_the_page_are_understood(words):
    """By accelerate up to `-m mosa`, and behind it by mosa."""
    line = re.sub(r"\$\(\([^)]*\)\)|\$SLURM_\w+", "2", shlex.join(words[2:]).replace("'", ""))
    parsed = launch_command_parser().parse_args(shlex.split(line))
    assert parsed.module and parsed.training_script == "mosa"
    assert Path(parsed.config_file.replace("$CONFIGS", str(PRESET_FOLDER / "accelerate"))).is_file()
    command, _ = cli.parse(parsed.training_script_args)
    assert command.runs_on_several_processes
