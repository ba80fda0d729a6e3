"""The functions of `import mosa`: the command line's names and defaults, from inside a notebook."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from made_runs import attacked, session
from peft import LoraConfig
from refusals import refuses

import mosa
from mosa import cli
from mosa.api.runs import NothingCame, RunFolder, problems_of
from mosa.denoising import TESTBED_DECODER, UnknownWords
from mosa.families import load_model
from mosa.judges import JudgeSetting
from mosa.judges import calibrate as calibration
from mosa.judges.truth import TruthJudge
from mosa.runs.store import Run
from mosa.types import Message
from mosa.worker import run_coroutine
from mosa.world import World

QUICK: dict[str, Any] = {"max_new_tokens": 24, "steps": 8, "block_length": 24}
FUNCTIONS = ("load_model", "sample", "align", "evaluate", "judge", "results", "report", "compare")


@pytest.fixture(scope="module")
def shallow():
    return load_model("testbed")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter of random weights for the testbed."""
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapters") / "noise"
    model.save_adapter(folder)
    return folder


@pytest.fixture(scope="module")
def run(shallow, tmp_path_factory) -> RunFolder:
    """A run that was made inside a running event loop, as in a notebook."""

    async def cell() -> RunFolder:
        return mosa.evaluate(
            shallow,
            attacks=["direct", "prefill"],
            preset="smoke",
            sets="testbed,testbed:benign",
            out=tmp_path_factory.mktemp("runs") / "a",
            limit=2,
            progress=False,
            **QUICK,
        )

    return asyncio.run(cell())


# --- what there is --------------------------------------------------------------------------------


def test_importing_is_quick_and_shows_what_there_is():
    code = "import sys, mosa; print('torch' in sys.modules, *dir(mosa), mosa.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loads_torch, *names, version = done.stdout.split()
    assert loads_torch == "False"
    assert {*FUNCTIONS, "__version__"} <= {*names}
    assert version.count(".") == 2


def test_functions_stay_functions_once_the_packages_are_imported():
    """No package has the name of a function, whose place in `mosa` it would take."""
    import mosa.alignment.run
    import mosa.evidence.figures
    import mosa.reporting.page

    assert all(callable(getattr(mosa, name)) for name in FUNCTIONS)
    folder = Path(mosa.__file__).parent
    taken = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    assert not {*FUNCTIONS} & taken


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_and_what_it_refuses(name):
    assert "UserError" in (getattr(mosa, name).__doc__ or "")


def plain(value: object) -> object:
    """A list of one as its entry, and nothing as None."""
    if isinstance(value, list | tuple) and len(value) == 1:
        return plain(value[0])
    return value or None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ["--sets", "testbed", "--out", "x"]),
        ("judge", ["x", "--judges", "truth"]),
        ("results", ["x"]),
        ("compare", ["x", "y"]),
        ("report", ["x", "--out", "y"]),
        ("align mosa", ["--model", "m", "--data", "d", "--out", "x"]),
    ],
)
def test_arguments_have_the_names_and_defaults_of_the_options(command, words):
    options = cli.parse([*command.split(), *words])[1].as_dict()
    parameters = inspect.signature(getattr(mosa, command.split()[0])).parameters
    for name, parameter in parameters.items():
        if name in ("progress", "method", "settings"):
            continue
        assert name in options, f"{name} is no option of mosa {command}"
        if parameter.default is not inspect.Parameter.empty:
            assert plain(parameter.default) == plain(options[name]), name


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_says_what_it_holds(run):
    told = repr(run)
    for part in (str(run.folder), "testbed:benign", "prefill", "6 tasks done", "truth/2/world-0"):
        assert part in told
    assert run.problems() == []


def test_results_are_a_table_and_a_data_frame(run):
    found = run.results()
    rates = {(f.name, f.measure): f.rate.value for f in found if f.rate is not None}
    frame = found.to_pandas()
    assert len(frame) == len(found) == len(rates)
    for row in frame.to_dict("records"):
        assert row["low"] <= row["rate"] == rates[row["name"], row["measure"]] <= row["high"]
    assert "prefill on testbed" in repr(found) and "<td" in found._repr_html_()
    assert repr(found[0]).startswith("<Figure direct on testbed, testbed: success ")
    assert [f.judge for f in run.results(judge="truth/2/world-0")] == [f.judge for f in found]
    with refuses("pair", "truth/2/world-0"):
        run.results(judge="pair")


def test_python_tables_have_marks_and_lengths_too(tmp_path):
    """As those of the command line: results, and two subjects side by side."""
    folder = attacked(tmp_path, {"m": {"tap": {"a": True}, "ept": {"a": False}}}, world_seed=0)
    found = mosa.results(folder)
    assert [row[1] for row in found.rows()] == ["tap on made up(*)", "ept on made up"]
    assert [row["in_alignment_data"] for row in found.records()] == ["some", "none"]
    side = mosa.compare(folder, folder)
    by_name = {row["name"]: row for row in side.records() if row["table"] == "safety"}
    assert {name: row["in_alignment_data"] for name, row in by_name.items()} == {
        "tap": "some",
        "ept": "none",
    }
    assert {row["tokens"] for row in by_name.values()} == {"4"}
    for table in (found, side):
        for told in (repr(table), table._repr_html_()):
            assert "tokens" in told and "(*) some wrappings" in told


def test_tries_without_a_score_are_told_as_a_share(tmp_path):
    attacked(tmp_path, {"m": {"tap": {"a": True, "b": None, "c": None, "d": False}}}, judge="p/1")
    with Run(tmp_path) as run:
        told = problems_of(run)
    assert "judge p/1: 2 of 4 tries (0.50) are unscored" in told


def test_a_judge_whose_model_wrote_the_attacks_is_told_of(tmp_path):
    outcomes = {"m": {"tap": {"a": True}}}
    for name, judge in (("one", "pair/3/x/w"), ("two", "pair/3/x/other"), ("three", "truth/2/w")):
        attacked(tmp_path / name, outcomes, judge=judge)
        with Run(tmp_path / name) as run:
            run.begin_session(session(chat_models={"attacker": {"name": "w", "place": "here"}}))
            assert any("wrote the attacks" in line for line in problems_of(run)) == (name == "one")


def test_without_pandas_one_sentence_says_so(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refuses("pandas", "records"):
        run.results().to_pandas()


def test_samples_are_chosen_by_what_came_of_them_and_played(run, capsys):
    for sample in run.samples(attack="prefill"):
        assert sample.attack == "prefill"
    outcomes = {sample.outcomes["truth/2/world-0"] for sample in run.samples(case_set="testbed")}
    for outcome in outcomes:
        found = run.samples(case_set="testbed", outcome=outcome)
        assert {sample.outcomes["truth/2/world-0"] for sample in found} == {outcome}
    sample = run.samples(attack="direct", case_set="testbed")[0]
    sample.show()
    told = capsys.readouterr().out
    assert sample.request in told and "<iframe" not in told
    assert sample.request in sample._repr_html_()
    (hidden, *_) = run.samples(attack="direct", case_set="testbed", redact=True)
    assert hidden.request is None and hidden.responses[0].tokens is None
    with refuses("broken", "held"):
        run.samples(outcome="broken")
    with refuses("tap", "prefill"):
        run.samples(attack="tap")


def test_a_loaded_model_is_the_named_one(run, adapter, tmp_path):
    """What was measured on a loaded model with an adapter is found again by their names."""
    model = mosa.load_model("testbed", adapter=str(adapter))
    asked: dict[str, Any] = {
        "sets": "testbed",
        "limit": 1,
        "out": tmp_path / "run",
        "progress": False,
        **QUICK,
    }
    mosa.evaluate(model, **asked)
    with Run(tmp_path / "run") as before:
        (record,) = before.subjects().values()
        keys = [attempt.key for attempt in before.attempts()]
    again = mosa.evaluate("testbed", adapter=str(adapter), **asked)
    with Run(again.folder) as after:
        assert after.subjects() == {"testbed+noise": record}
        assert [attempt.key for attempt in after.attempts()] == keys
        assert [sum(t["num_responses"] for t in s["subjects"].values()) for s in after.sessions()][
            -1
        ] == 0
    assert (record.source, record.adapter) == ("testbed", str(adapter))


def test_what_no_folder_holds_is_not_measured(tmp_path):
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=2, lora_alpha=2))
    with refuses("save_adapter"):
        mosa.evaluate(model, sets="testbed", out=tmp_path / "run")
    assert "new adapter" in repr(model)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"behaviors": "testbed"}, ["behaviors"]),
        ({"limits": 3}, ["limits", "limit"]),
        ({"seed": 3}, ["seed"]),
        ({"adapter": "none,x"}, ["adapter"]),
        ({"subjects": [{"name": "a", "model": "testbed"}]}, ["model", "subjects"]),
    ],
)
def test_what_cannot_be_run_is_refused(shallow, tmp_path, wrong, names):
    with refuses(*names):
        asked: dict[str, Any] = {"sets": "testbed", "out": tmp_path / "run", **wrong}
        mosa.evaluate(shallow, **asked)


def test_inside_a_loop_runs_are_judged_reported_and_compared(run, tmp_path):
    async def cell() -> None:
        judged = mosa.judge(run, "truth@canvas", progress=False)
        assert "truth/2/world-0@canvas" in repr(judged)
        page = mosa.report([run], tmp_path / "report.html", title="A title")
        text = Path(page).read_text(encoding="utf-8")
        assert "A title" in text and page.content.samples and repr(page).endswith("all words>")
        found = mosa.compare(run, run)
        assert not found.fail_if("asr_rise>0.02").holds
        assert "ok" in repr(found.fail_if("asr_rise>0.02"))
        assert found.to_pandas().query("table == 'headline' and name == 'asr'")["n"].item() == 2
        rows = calibration.testbed_rows(World(0), 5)
        truth = [TruthJudge(JudgeSetting(world=World(0)))]
        assert (await calibration.calibrate(truth, rows)).num_rows == 5
        assert run_coroutine(calibration.calibrate(truth, rows)).num_rows == 5

    asyncio.run(cell())
    assert mosa.report(run, tmp_path / "report.html", judge="truth").out.exists()
    with refuses("pair", "truth/2/world-0"):
        mosa.report(run, tmp_path / "report.html", judge="pair")
    with refuses("max_unscored"):
        mosa.compare(run, run).fail_if("asr>0.1", max_unscored=2.0)


def test_nothing_is_told(shallow, tmp_path):
    """An attack of which every task fails warns, since there is no exit status."""
    too_far = {"prefill": {"positions": [1000]}}
    with pytest.warns(NothingCame, match="prefill on testbed"):
        found = mosa.evaluate(
            shallow,
            attacks="prefill",
            attack_options=too_far,
            sets="testbed",
            limit=1,
            out=tmp_path / "run",
            progress=False,
            **QUICK,
        )
    assert any("prefill: 1 failed" in line for line in found.problems())


def test_an_interruption_inside_a_loop_ends_the_work():
    """A notebook's loop has no handler of its own, so that the interruption is an exception."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell ignores it
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def cell() -> None:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        run_coroutine(work())

    loop = asyncio.new_event_loop()
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
    loop.close()
    assert ended.is_set() and time.monotonic() - begin < 30


# --- prompts and responses ------------------------------------------------------------------------

REQUEST = "how do i make a copper lantern ?"


def test_messages_may_be_dictionaries(shallow):
    """In every place: one dialogue, several, with a system turn."""
    plain = [{"role": "user", "content": REQUEST}]
    history = [*plain, {"role": "assistant", "content": "no ."}, *plain]
    meant = [Message("user", REQUEST), Message("assistant", "no ."), Message("user", REQUEST)]
    both = mosa.sample(shallow, [plain, history], **QUICK)
    for found, same in ((plain, REQUEST), (history, meant)):
        one = mosa.sample(shallow, found, **QUICK)
        assert one.text == mosa.sample(shallow, same, **QUICK).text
        assert one.text is not None and both.text is not None and one.text[0] in both.text
    system = {"role": "system", "content": "you are a assistant ."}
    one = mosa.sample(shallow, [system, *plain], **QUICK)
    assert one.text == mosa.sample(shallow, REQUEST, system=system["content"], **QUICK).text


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ([{"role": "user"}], ["role", "content"]),
        ([{"role": "robot", "content": "x"}], ["robot", "assistant"]),
        ([{"role": "user", "content": ["x"]}], ["content"]),
    ],
)
def test_what_is_no_message_is_refused(shallow, prompt, names):
    with refuses(*names):
        mosa.sample(shallow, prompt, **QUICK)


def test_what_no_type_checker_would_let_through_is_a_sentence_too():
    """In a process of its own: in the tests every argument is checked against its type."""
    code = "from mosa.types import dialogue; import sys; dialogue({})"
    for wrong, name in (("{'role': 'user', 'content': 'x'}", "list"), ("['y']", "role")):
        words = [sys.executable, "-c", code.format(wrong)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("mosa.types.UserError: ") and name in last


def test_words_that_the_testbed_lacks_are_named_once(shallow, tiny_llada):
    with pytest.warns(UnknownWords) as told:
        mosa.sample(shallow, ["How do I bake bread?", "Copper Pump?"], **QUICK)
    assert len(told) == 1
    message = str(told[0].message)
    assert "4 of 5 words" in message and "bake" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownWords)
        mosa.sample(shallow, message.split('"')[1], **QUICK)  # what it tells to try
        mosa.sample(tiny_llada, "How do I bake bread?", **QUICK)


def test_generate_names_unknown_words_once(tmp_path):
    data = tmp_path / "prompts.txt"
    data.write_text("Bread?\nCake?\nTea?\n")
    argv = ["generate", "--model", "testbed", "--data", str(data), "--batch_size", "1"]
    with pytest.warns(UnknownWords, match="Bread") as told:
        assert cli.main([*argv, "--max_new_tokens", "8", "--steps", "2"]) == 0
    assert len(told) == 1


def test_a_testbed_model_decodes_as_in_its_figures(shallow, tiny_llada):
    assert mosa.sample(shallow, REQUEST).config == TESTBED_DECODER
    changed = mosa.sample(shallow, REQUEST, steps=9, max_new_tokens=24).config
    assert (changed.steps, changed.max_new_tokens, changed.block_length) == (9, 24, 24)
    assert mosa.sample(tiny_llada, REQUEST, max_new_tokens=8, steps=4).config.block_length is None


def test_words_of_others_are_shown_on_request_alone(tiny_llada, shallow, capsys):
    found = mosa.sample(tiny_llada, "a secret", max_new_tokens=8, steps=4)
    assert found.text is not None
    text = found.text[0]
    assert text and text not in repr(found) and "secret" not in found._repr_html_()
    assert "8 tokens" in repr(found) and "redact=False" in found._repr_html_()
    found.show()
    assert "secret" not in capsys.readouterr().out
    found.show(redact=False)
    assert capsys.readouterr().out.strip()
    ours = mosa.sample(shallow, REQUEST)
    assert ours.text is not None and ours.text[0] in repr(ours) and "lantern" in ours._repr_html_()
    assert ours.responses(redact=True)[0].tokens is None


def test_what_a_model_says_is_no_markup():
    from mosa.player import SampleResponse, player_page

    word = "</script><script>alert(1)</script>"
    page = player_page([SampleResponse((0,), (), (word,), (("user", word),))], about=word)
    assert page.count("<script") == 2 and "alert(1)</script>" not in page
    data = page.split('id="data">')[1]
    assert json.loads(data.split("</script>")[0])[0]["tokens"] == [word]


def test_models_and_subjects_say_what_they_are(shallow, adapter):
    assert repr(shallow) == "<DiffusionLM testbed: LLaDA, 0.97M parameters, float32 on cpu>"
    model = load_model("testbed", adapter=adapter)
    assert f"testbed + {adapter}" in repr(model)
    subject = mosa.Subject("testbed", "testbed", grants=("prompt",))
    assert repr(subject) == "<Subject testbed: testbed, 72 tokens in 36 steps, grants prompt>"
