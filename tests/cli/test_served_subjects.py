"""`mosa evaluate --model URL#NAME` as a user types it, and what shows such a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat.stub_endpoint import Answer, Stub, stub_endpoint
from refusals import cli_refuses, with_options
from served_models import AT_ONCE, asked, echo, usage

from mosa import cli
from mosa.cli.evaluate import EXIT_STOPPED
from mosa.cli.results import EXIT_NOTHING_DONE
from mosa.runs.store import Run


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
    status, shown, _ = run(capsys, ["results", out])
    assert status == 0 and "version 0.33.0" in shown
    status, shown, _ = run(capsys, ["status", out])
    assert status == 0 and "prompt tokens" in shown and "target tokens" in shown


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


def test_what_needs_weights_says_so(capsys, requests, tmp_path):
    with stub_endpoint(rule=echo) as stub:
        url = f"{stub.url}#tea"
        cli_refuses(capsys, ["generate", "--model", url, "--prompt", "tea"], url)
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
