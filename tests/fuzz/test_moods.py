"""Every command that asks an endpoint, against one of many moods: it ends with a sentence, nothing
that was answered is asked again, and a better day leads to the same end."""

from __future__ import annotations

import functools
import gc
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacks.scripted_roles import said
from chat.stub_endpoint import Answer, Stub, stub_endpoint
from fuzz.moods import KEY, MOODS, NO_ANSWER, SECONDS, Moody
from made_runs import attacked
from refusals import check_sentence
from served_models import echo, usage

from mosa import cli
from mosa.api import training
from mosa.chat import ChatOptions, endpoint
from mosa.cli.evaluate import EXIT_STOPPED
from mosa.runs.judging import JudgeConfig
from mosa.runs.store import Run

pytestmark = pytest.mark.slow

SHORT = ("--max_new_tokens", "24", "--steps", "4")
ASKING = ("--max_retries", "0", "--timeout_seconds", str(SECONDS))
WHOLE_MIX = [name for name in MOODS if name not in ("slow", "headers that never end")]
"""Those that take long are each tried alone."""


UNSCORED = ("400 about a field", "not JSON", "JSON of another shape", "no choices", "a huge body")
"""What says nothing of other questions."""


@pytest.fixture(autouse=True)
def environment(request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("MOSA_API_KEY", "TEA_KEY"):
        monkeypatch.setenv(variable, KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    # Trainings and answers without a run have no options for it.
    impatient = functools.partial(JudgeConfig, chat=ChatOptions(SECONDS, max_retries=0))
    monkeypatch.setattr(training, "JudgeConfig", impatient)
    if "generate" in request.node.name:
        impatient = functools.partial(ChatOptions, SECONDS, max_retries=0)
        monkeypatch.setattr("mosa.chat.ChatOptions", impatient)


@pytest.fixture(autouse=True)
def quiet(caplog) -> Iterator[None]:
    """Nobody logs an error, not even of a task that nobody waits for any more."""
    yield
    gc.collect()
    assert not [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR]


def well(body: dict[str, Any]) -> Answer:
    """The served subject says its request back, as text that a judge can rate; the others play
    their roles, and the grader tells any two texts apart."""
    if body["model"] == "tea":
        return echo(body)
    if body["model"] == "grader":
        return Answer(usage(f"rating: {1 + zlib.crc32(str(body['messages']).encode()) % 10}"))
    return Answer(usage(said(body)))


@dataclass(frozen=True)
class Asker:
    """A command that asks an endpoint."""

    name: str
    argv: Callable[[Path, str], list[str]]
    """Of the folder that it reads from and writes to, and of the address."""
    result: Callable[[Path], object]
    """What it has found, without counts of tokens."""
    is_target: bool = False
    """Whether any text is an answer of the subject's."""
    again: tuple[str, ...] = ()
    """What is added to the command to go on, where something stands there already."""
    keeps: bool = True
    """Whether it records what was answered, and may be given again: a training has its checkpoints,
    and answers without a run are a file that is whole or not there."""


def recorded(folder: Path) -> object:
    """What a run has found: outcomes, attempts, verdicts."""
    with Run(folder / "run") as run:
        attempts = [
            (a.subject, a.attack, a.case, a.number, a.variant, a.response, a.details)
            for a in run.attempts()
        ]
        keys = {a.key: (a.attack, a.case, a.number) for a in run.attempts()}
        verdicts = {
            judge: {keys[key]: verdict for key, verdict in run.verdicts(judge).items()}
            for judge in run.judges()
        }
        outcomes = {(t.attack, t.case): o and (o.status, o.reason) for t, o in run.tasks()}
    return sorted(attempts, key=str), verdicts, outcomes


def requests(folder: Path) -> Path:
    rows = [{"id": str(i), "behavior": f"how do i make a copper lantern {i} ?"} for i in range(4)]
    (folder / "requests.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "requests.jsonl"


def labelled(folder: Path) -> Path:
    rows = [
        {"behavior": f"make lantern {i}", "response": ": you" if i % 2 else "no", "label": i % 2}
        for i in range(6)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "rows.jsonl"


def judged(folder: Path) -> Path:
    if not (folder / "run").exists():
        for case in "abcdef":
            attacked(folder / "run", {"a": {"direct": {case: True}}}, words=("sure", case))
    return folder / "run"


def by_request(found: dict[str, Any]) -> dict[str, Any]:
    """Replies are listed as they come, and the file's seal is a hash of its text."""
    del found["made_by"]
    for prompt in found["prompts"]:
        prompt["replies"].sort(key=str)
    return found


def harmful(folder: Path) -> Path:
    rows = [f"how do i make a copper {thing} ?\n" for thing in ("pump", "drum")]
    (folder / "prompts.txt").write_text("".join(rows))
    return folder / "prompts.txt"


ASKERS = [
    Asker(
        "evaluate with roles",
        lambda at, url: [
            *("evaluate", "--model", "testbed", "--sets", "testbed", "--limit", "1"),
            *("--attacks", "tap,speak_easy,aos", "--preset", "smoke", "--steps", "6"),
            *("--max_new_tokens", "48", "--attacker", f"{url}#writer"),
            *("--loop_judge", f"{url}#rater", "--translator", f"{url}#speaker"),
            *("--out", str(at / "run"), *ASKING),
        ],
        recorded,
    ),
    Asker(
        "evaluate a served subject",
        lambda at, url: [
            *("evaluate", "--model", f"{url}#tea@TEA_KEY", "--sets", str(requests(at))),
            *("--attacks", "direct,deep_inception", "--preset", "smoke", "--i_am_authorized"),
            *("--max_new_tokens", "24", "--judges", "pair", "--judge_model", f"{url}#rater"),
            *("--out", str(at / "run"), *ASKING),
        ],
        recorded,
        is_target=True,
    ),
    Asker(
        "judge",
        lambda at, url: [
            *("judge", str(judged(at)), "--judges", "pair", "--judge_model", f"{url}#rater"),
            *ASKING,
        ],
        recorded,
    ),
    Asker(
        "judge check",
        lambda at, url: [
            *("judge", "check", "--judges", "pair", "--judge_model", f"{url}#rater"),
            *("--data", str(labelled(at)), "--out", str(at / "errors.json")),
            *("--reply_cache", str(at / "cache"), *ASKING),
        ],
        lambda at: json.loads((at / "errors.json").read_text()),
    ),
    Asker(
        "attacks check",
        lambda at, url: [
            *("attacks", "check", "--attacks", "tap,speak_easy", "--limit", "2"),
            *("--attacker", f"{url}#writer", "--loop_judge", f"{url}#rater"),
            *("--translator", f"{url}#speaker", "--out", str(at / "replies.json")),
            *("--reply_cache", str(at / "cache"), *ASKING),
        ],
        lambda at: by_request(json.loads((at / "replies.json").read_text())),
    ),
    Asker(
        "analyze",
        lambda at, url: [
            *("analyze", "order", "--model", "testbed", "--sets", "testbed", "--limit", "2"),
            *("--max_new_tokens", "24", "--judges", "pair", "--judge_model", f"{url}#rater"),
            *("--out", str(at / "run"), *ASKING),
        ],
        lambda at: (recorded(at), (at / "run" / "order-quick" / "finding.md").read_text()),
    ),
    Asker(
        "align",
        lambda at, url: [
            *("align", "vrpo", "--config", "vrpo_testbed_rollouts", "--model", "testbed"),
            *("--data", str(harmful(at)), "--judge", f"pair={url}#grader", "--max_steps", "3"),
            *("--rollout_steps", "6", "--num_samples", "1", "--use_cpu", "true"),
            *("--num_rollouts", "2", "--per_device_train_batch_size", "2"),
            *("--save_strategy", "steps", "--save_steps", "1", "--out", str(at / "adapter")),
        ],
        lambda at: (at / "adapter" / "adapter_model.safetensors").read_bytes(),
        again=("--resume",),
        keeps=False,
    ),
    Asker(
        "generate",
        lambda at, url: [
            *("generate", "--model", f"{url}#tea@TEA_KEY", "--i_am_authorized"),
            *("--data", str(harmful(at)), "--max_new_tokens", "24", "--batch_size", "2"),
            *("--out", str(at / "answers.jsonl")),
        ],
        lambda at: [
            (row["prompt"], row["response"])
            for row in map(json.loads, (at / "answers.jsonl").read_text().splitlines())
        ],
        is_target=True,
        keeps=False,
    ),
]
BY_NAME = {asker.name: asker for asker in ASKERS}
NAMES = list(BY_NAME)


@dataclass(frozen=True)
class Ended:
    """How a command has ended."""

    status: int
    out: str
    err: str


def ended(capsys, argv: list[str]) -> Ended:
    """Run a command; whatever it says is in sentences, and holds no key."""
    capsys.readouterr()
    status = cli.main(argv)
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    for line in told:
        check_sentence(line)
    causes = [line for line in told if not re.match(r"^\S+ \d+%|.* of \d+", line)]
    assert len(set(causes)) == len(causes), captured.err
    shown = captured.out + captured.err
    assert "Traceback" not in shown and "\x1b" not in shown and KEY not in shown, shown
    if status == 2:
        assert told and told[-1].startswith("mosa: "), captured
    return Ended(status, captured.out, captured.err)


def keyless(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def asked(stub: Stub) -> set[str]:
    """What was asked, but for greetings."""
    turns = [(body["model"], body["messages"], body.get("seed")) for body in stub.requests]
    return {json.dumps(turn) for turn in turns if turn[1][-1]["content"] != "Hello"}


@pytest.fixture(scope="module")
def smooth(tmp_path_factory) -> Iterator[Callable[[str], object]]:
    """What a command finds when nothing goes wrong; each is run once."""
    found: dict[str, object] = {}

    def result(name: str) -> object:
        if name not in found:
            folder = tmp_path_factory.mktemp("smooth")
            with stub_endpoint(rule=well) as stub:
                assert cli.main(BY_NAME[name].argv(folder, stub.url)) == 0
            found[name] = BY_NAME[name].result(folder)
        return found[name]

    yield result


def through(capsys, tmp_path: Path, asker: Asker, moody: Moody) -> object:
    """A command under moods, and again on a better day; what it finds in the end."""
    is_no_answer = set(moody.moods) <= set(NO_ANSWER)
    with stub_endpoint(rule=moody) as stub:
        argv = asker.argv(tmp_path, stub.url)
        first = ended(capsys, argv)
        assert first.status in ((2, 3) if is_no_answer else (0, 2, 3)), first
        keyless(tmp_path)
        answered = moody.answered(asker.is_target)
        stub.rule, stub.requests = well, []
        if not asker.keeps and first.status == 0:  # it refuses to begin anew
            return asker.result(tmp_path)
        second = ended(capsys, argv)
        if second.status == 2 and asker.again:
            second = ended(capsys, [*argv, *asker.again])
        assert second.status == 0, (first, second)
        if asker.keeps:
            assert not asked(stub) & answered, "asked twice"
            stub.requests = []
            assert ended(capsys, argv).status == 0
            assert not asked(stub), "all was answered"
    keyless(tmp_path)
    return asker.result(tmp_path)


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("name", NAMES)
def test_each_mood_alone(capsys, tmp_path, smooth, name, mood):
    found = through(capsys, tmp_path, BY_NAME[name], Moody(well, mood))
    if mood in NO_ANSWER or mood == "right":
        assert found == smooth(name)


@pytest.mark.parametrize("mood", [mood for mood in NO_ANSWER if mood not in ("slow",)])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "align"])
def test_a_server_that_greets_and_answers_nothing_then(capsys, tmp_path, smooth, name, mood):
    moody = Moody(well, mood, begins_well=True)
    assert through(capsys, tmp_path, BY_NAME[name], moody) == smooth(name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_answers_that_do_not_come(capsys, tmp_path, smooth, name, seed):
    """Half of them come. A training takes single answers of another kind as unscored."""
    moods = [mood for mood in NO_ANSWER if mood in WHOLE_MIX]
    if name == "align":
        moods = [mood for mood in moods if mood not in UNSCORED]
    moody = Moody(well, *moods, *["right"] * len(moods), seed=seed, begins_well=True)
    assert through(capsys, tmp_path, BY_NAME[name], moody) == smooth(name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_any_mood(capsys, tmp_path, name, seed):
    """What is no use may have led elsewhere."""
    moods = [*WHOLE_MIX, *["right"] * len(WHOLE_MIX)]
    through(capsys, tmp_path, BY_NAME[name], Moody(well, *moods, seed=seed, begins_well=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_of_tokens(capsys, tmp_path, smooth, seed):
    """It ends the command with a status of its own, and a larger one goes on."""
    asker = BY_NAME["evaluate a served subject"]
    moody = Moody(well, "no choices", "right", "right", "right", seed=seed, begins_well=True)
    with stub_endpoint(rule=moody) as stub:
        argv = [*asker.argv(tmp_path, stub.url), "--num_concurrent", "1", "--max_tokens_total"]
        assert ended(capsys, [*argv, "25"]).status == EXIT_STOPPED
        stub.rule, stub.requests = well, []
        assert ended(capsys, [*argv, "100000"]).status == 0
        assert not asked(stub) & moody.answered(asker.is_target)
    keyless(tmp_path)
    assert asker.result(tmp_path) == smooth(asker.name)
