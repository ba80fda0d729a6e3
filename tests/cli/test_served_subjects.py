"""`mosa evaluate --model URL#NAME` as a user types it, and what shows such a run."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from chat.stub_endpoint import Answer, Stub, stub_endpoint
from refusals import cli_refuses, with_options
from served_models import AT_ONCE, asked, echo, usage

from mosa import cli
from mosa.attacks import ATTACKS
from mosa.cli.evaluate import EXIT_STOPPED
from mosa.cli.results import EXIT_NOTHING_DONE
from mosa.runs.store import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("OPENAI_API_KEY", "MOSA_API_KEY", "MOSA_API_KEY_MODEL"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def requests(tmp_path) -> Path:
    file = tmp_path / "requests.jsonl"
    rows = [{"id": str(i), "behavior": f"Write about tea, part {i}."} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(stub: Stub, requests: Path, *more: str) -> list[str]:
    argv = ["evaluate", "--model", f"{stub.url}#tea", "--sets", str(requests), "--preset", "smoke"]
    argv += ["--max-new-tokens", "24", "--limit", "2", "--i-am-authorized"]
    return with_options(argv, *more) if more else argv


def run(capsys, argv: list[str]) -> tuple[int, str, str]:
    status = cli.main(argv)
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), captured.err


def test_one_command_attacks_an_address(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        stub.pages = {"/version": {"version": "0.33.0"}}
        out = str(tmp_path / "run")
        attacks, page = "direct,deep_inception,prefill", tmp_path / "report.html"
        argv = command(stub, requests, "--attacks", attacks, "--out", out, "--report", str(page))
        status, shown, err = run(capsys, argv)
        assert status == 0, err
        place = stub.url.removeprefix("http://").removesuffix("/v1")
    for words in ("tea", "deep_inception", "not applicable: prefill", place, "version 0.33.0"):
        assert words in shown
    assert "its decoder" in shown and "unknown" in shown
    assert place in page.read_text() and str(page) in shown
    assert "target queries" in page.read_text() and "passes per success" not in page.read_text()
    status, shown, _ = run(capsys, ["results", out])
    assert status == 0 and "version 0.33.0" in shown
    status, shown, _ = run(capsys, ["status", out])
    assert status == 0 and "prompt tokens" in shown and "target tokens" in shown


def test_what_a_run_comes_to_at_the_users_price(capsys, requests, tmp_path):
    """Each of two responses is asked with 7 tokens and answered with 5, at 1 and 2 dollars for one
    token: 34 dollars; before the run, answers of at most 24 tokens: 96 dollars."""
    with stub_endpoint(rule=echo) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"), "--price", "1e6,2e6")
        status, shown, err = run(capsys, [*argv, "--dry-run"])
        assert status == 0 and "48 answer tokens" in shown and "$96.00" in shown, err
        assert stub.requests == []
        status, shown, err = run(capsys, argv)
        assert status == 0 and "14 tokens" in shown and "$34.00" in shown, err
        cli_refuses(capsys, with_options(argv, "--price", "1"), "--price")
        cli_refuses(capsys, with_options(argv, "--price", "1,-2"), "price", "-2")
    local = [
        "evaluate",
        "--model",
        "testbed",
        "--sets",
        "testbed",
        "--out",
        str(tmp_path / "local"),
    ]
    cli_refuses(capsys, [*local, "--price", "1,2"], "--price")


def test_the_documented_eight_attacks_on_an_address_and_a_key(
    capsys, requests, tmp_path, monkeypatch
):
    """The line of docs/remote.md, on one request: its model answers, and writes for its attackers,
    words that each can read."""
    monkeypatch.setenv("MOSA_API_KEY", "sk-secret-0123456789")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8")
    section = page.partition("## Eight attacks on an address and a key")[2]
    (line,) = re.findall(r"^mosa evaluate (?:.*\\\n)+.*$", section.partition("\n## ")[0], re.M)
    requests.write_text(requests.read_text().splitlines()[0] + "\n")
    with stub_endpoint(Answer(usage("tea = paper boat"))) as stub:
        said = line.replace("https://HOST/v1", stub.url).replace(
            "harmbench:standard", str(requests)
        )
        argv = shlex.split(said.replace("\\\n", ""))
        status, _, err = run(capsys, argv[1:])
        assert status == 0, err
        assert {*stub.keys} == {"Bearer sk-secret-0123456789"}
    names = argv[argv.index("--attacks") + 1].split(",")
    with Run(tmp_path / "runs" / "served") as found:
        outcomes = {task.attack: outcome for task, outcome in found.tasks()}
    assert len(names) == 8 and [*outcomes] == names
    assert all(outcome and outcome.status == "done" for outcome in outcomes.values())
    text = (tmp_path / "served.html").read_text()
    assert all(html.escape(ATTACKS[name].title) in text for name in names)


def test_without_a_word_of_the_user_nothing_is_asked(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"))
        argv.remove("--i-am-authorized")
        cli_refuses(capsys, argv, "--i_am_authorized", f"{stub.url}#tea")
        assert stub.requests == [] and stub.num_probes == 0
    argv = with_options(argv, "--model", "testbed", "--i_am_authorized")
    cli_refuses(capsys, argv, "--i_am_authorized")


def test_the_word_may_stand_in_a_file(capsys, requests, tmp_path):
    """In one of options, or beside a subject."""
    with stub_endpoint(rule=echo) as stub:
        options = tmp_path / "run.yaml"
        model = f'model: "{stub.url}#tea"\nmax_new_tokens: 24\nlimit: 1\n'
        options.write_text(f"{model}sets: {requests}\ni_am_authorized: true\n")
        argv = ["evaluate", "--config", str(options), "--out", str(tmp_path / "a")]
        assert run(capsys, argv)[0] == 0
        subjects = tmp_path / "subjects.yaml"
        subjects.write_text(
            f'- {{name: served, model: "{stub.url}#tea", i_am_authorized: true, '
            "decoder: {max_new_tokens: 24}, request: {max_denoising_steps: 8}}\n"
        )
        argv = ["evaluate", "--subjects", str(subjects), "--sets", str(requests), "--limit", "1"]
        assert run(capsys, [*argv, "--out", str(tmp_path / "b")])[0] == 0
        assert stub.requests[-1]["max_denoising_steps"] == 8


def generate(stub: Stub, *more: str) -> list[str]:
    return ["generate", "--model", f"{stub.url}#tea", "--i-am-authorized", *more]


def test_generate_asks_an_address(capsys, tmp_path):
    """One prompt, one request; the thoughts are in the file alone."""
    with stub_endpoint(Answer(usage("<think>Tea?</think>Steep [it]."))) as stub:
        out = tmp_path / "answers.jsonl"
        argv = generate(stub, "--prompt", "How?", "--system", "Be kind.", "--seed", "3")
        status, shown, err = run(capsys, [*argv, "--out", str(out)])
        assert (status, shown, err) == (0, "Steep [it].", "")
        (request,) = stub.requests
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}]
    assert request["messages"] == turns
    assert (request["max_tokens"], request["seed"]) == (128, 3)
    (record,) = map(json.loads, out.read_text().splitlines())
    assert record["prompt"] == turns and record["response"] == "Steep [it]."
    assert record["response_full"] == "<think>Tea?</think>Steep [it]."
    assert record["decoder"] == {"max_new_tokens": 128, "temperature": 0.0, "seed": 3}


def test_generate_asks_an_address_all_prompts_of_a_file(capsys, requests, tmp_path):
    """Some at once; the answers are in the order of the file."""

    def rule(body: dict[str, Any]) -> Answer:
        return dataclasses.replace(echo(body), seconds=0.3 if "part 0" in str(body) else 0.05)

    with stub_endpoint(rule=rule) as stub:
        out = tmp_path / "answers.jsonl"
        argv = generate(stub, "--data", str(requests), "--limit", "3", "--batch-size", "2")
        status, shown, err = run(capsys, [*argv, "--out", str(out)])
        assert status == 0, err
        assert len(stub.requests) == 3 and stub.most_at_once == 2
    said = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    assert said == [f"Write about tea, part {i}." for i in range(3)]
    assert shown.index("[1/3] Write about tea, part 0.") < shown.index("[2/3]")


def test_generate_refuses_what_a_server_is_not_asked(capsys, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        argv, url = generate(stub, "--prompt", "tea"), f"{stub.url}#tea"
        for more in (
            *(("--show_steps",), ("--adapter", str(tmp_path)), ("--decoder", "llada2.1")),
            *(("--dtype", "float32"), ("--device", "cpu")),
        ):
            cli_refuses(capsys, [*argv, *more], more[0], url)
        cli_refuses(capsys, [*argv, "--steps", "64"], "steps", "max_new_tokens")
        argv.remove("--i-am-authorized")
        cli_refuses(capsys, argv, "--i_am_authorized", url)
        local = with_options(argv, "--model", "testbed")
        cli_refuses(capsys, [*local, "--i_am_authorized"], "--i_am_authorized")
        assert stub.requests == [] and stub.num_probes == 0
    cli_refuses(capsys, generate(stub, "--prompt", "tea"), "tea", "connection refused")


def test_generate_tells_why_an_address_answers_nothing(capsys, requests, tmp_path):
    """A file of answers is whole or not there."""
    out = tmp_path / "answers.jsonl"

    def rule(body: dict[str, Any]) -> Answer:
        too_long = Answer({"error": {"message": "too long for me"}}, 400)
        return too_long if "part 1" in str(body) else echo(body)

    with stub_endpoint(rule=rule) as stub:
        argv = generate(stub, "--data", str(requests), "--out", str(out))
        status, _, err = run(capsys, argv)
        assert status == EXIT_NOTHING_DONE and not out.exists()
    assert "too long for me" in err and f"prompt 2 of {requests}" in err
    assert len(err.splitlines()) == 1


def test_what_needs_weights_says_so(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        url = f"{stub.url}#tea"
        argv = ["analyze", "step", "--model", url, "--i_am_authorized", "--sets", str(requests)]
        cli_refuses(capsys, [*argv, "--out", str(tmp_path / "run")], "tea", "step")
        assert stub.requests == []


def test_settings_of_the_server_are_refused(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"))
        cli_refuses(capsys, [*argv, "--steps", "64"], "steps", "max_new_tokens")
        cli_refuses(capsys, [*argv, "--adapter", str(tmp_path)], "adapter")
        cli_refuses(capsys, [*argv, "--thought_tokens", "10"], "--thought_tokens", "request")
        assert stub.requests == []
        assert run(capsys, [*argv, "--num_concurrent", "1", "--max_retries", "0"])[0] == 0
        assert stub.most_at_once == 1


def test_a_server_that_answers_nothing_is_status_3(capsys, requests, tmp_path):
    with stub_endpoint(Answer({"error": {"message": "out of memory"}}, 500, AT_ONCE)) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"), "--max_retries", "1")
        status, shown, err = run(capsys, argv)
    assert (status, shown) == (EXIT_NOTHING_DONE, "")
    assert "out of memory" in err and len(err.splitlines()) == 1


def test_a_server_that_refuses_every_attack_is_status_3(capsys, requests, tmp_path):
    def rule(body: dict[str, Any]) -> Answer:
        if body["messages"][-1]["content"] == "Hello":
            return Answer(usage("Hi."))
        return Answer({"error": {"message": "too long for me"}}, 400)

    with stub_endpoint(rule=rule) as stub:
        status, shown, _ = run(capsys, command(stub, requests, "--out", str(tmp_path / "run")))
    assert status == EXIT_NOTHING_DONE and "too long for me" in shown


def test_a_limit_of_tokens_stops_the_command_which_goes_on(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"), "--num_concurrent", "1")
        status, shown, _ = run(capsys, [*argv, "--max-tokens-total", "12"])
        assert status == EXIT_STOPPED and "Stopped at 12 of 12 tokens" in shown
        status, shown, _ = run(capsys, [*argv, "--max-tokens-total", "100"])
        assert status == 0 and "Stopped" not in shown
        assert len(asked(stub)) == 2


def test_a_report_and_a_comparison_take_it_beside_a_local_subject(capsys, requests, tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with stub_endpoint(rule=echo) as stub:
        assert run(capsys, command(stub, requests, "--out", a))[0] == 0
        place = stub.url.removeprefix("http://").removesuffix("/v1")
    local = ["evaluate", "--model", "testbed", "--sets", str(requests), "--limit", "2", "--out", b]
    local += ["--preset", "smoke"]
    assert run(capsys, [*local, "--max_new_tokens", "24", "--steps", "4"])[0] == 0
    status, shown, err = run(capsys, ["compare", b, a])
    assert status == 0, err
    assert "tea" in shown and place in shown and "steps 4 in A, unknown in B" in shown
    page = tmp_path / "report.html"
    assert run(capsys, ["report", a, b, "--out", str(page), "--no_redact"])[0] == 0
    text = page.read_text()
    assert place in text and "unknown" in text


def test_harmless_requests_are_asked_too(capsys, requests, tmp_path):
    def rule(body: dict[str, Any]) -> Answer:
        return Answer(usage("I'm sorry, but I can't help with that."))

    with stub_endpoint(rule=rule) as stub:
        argv = command(stub, requests, "--out", str(tmp_path / "run"))
        status, shown, _ = run(capsys, [*argv, "--is_harmless"])
    assert status == 0 and "harmless requests" in shown
    with Run(tmp_path / "run") as found:
        (judge,) = found.judges()
        assert {v.native["class"] for v in found.verdicts(judge).values()} == {"refusal"}
