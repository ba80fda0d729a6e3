"""`mosa evaluate` as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chat.stub_endpoint import Answer, after_hello, completion, stub_endpoint
from refusals import cli_refuses, with_options

from mosa import cli
from mosa.cli.results import EXIT_NOTHING_DONE
from mosa.runs import evaluate as evaluate_module
from mosa.runs.store import FILE, Run

QUICK = ("--max_new_tokens", "24", "--steps", "8", "--block_length", "24")
EVALUATE = [
    *("evaluate", "--model", "testbed", "--sets", "testbed", "--limit", "1"),
    *("--attacks", "direct", "--preset", "smoke", *QUICK),
]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_sets_of_every_kind_have_a_table_each(capsys, tmp_path):
    sets = ("--sets", "testbed,testbed:benign,testbed:arithmetic")
    status, out, _ = run(capsys, *with_options(EVALUATE, *sets, "--out", str(tmp_path)))
    assert status == 0
    for words in ("attacks, judge truth/2/world-0", "harmless requests, judge", "useful tasks"):
        assert words in out
    with Run(tmp_path) as found:
        assert {s.kind for s in found.sets().values()} == {"harmful", "harmless", "useful"}
    status, out, _ = run(capsys, "status", str(tmp_path))
    assert status == 0 and "judge truth/2/world-0: 0 attempts without a score" in out
    assert "1 session," in out and "cut off" not in out


def test_settings_from_a_file_and_from_options(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: testbed\nsets: testbed\nlimit: 1\nattacks: prefill\npreset: smoke\n"
        "attack_options: {prefill: {positions: [3]}}\nmax_new_tokens: 24\nsteps: 12\n"
    )
    out = tmp_path / "run"
    argv = ("evaluate", "--config", str(config), "--steps", "6", "--out", str(out))
    assert run(capsys, *argv)[0] == 0
    with Run(out) as found:
        (attempt,) = found.attempts()
        (response,) = found.responses_of(attempt.key)
    assert attempt.variant == "position 3"
    decoder = response.decoder
    assert (decoder["max_new_tokens"], decoder["steps"], decoder["block_length"]) == (24, 6, 24)


def test_subjects_from_a_file(capsys, tmp_path):
    """Each with its decoder and grants; what is not granted is said to be not applicable."""
    file = tmp_path / "subjects.yaml"
    decoder = "{max_new_tokens: 24, steps: 8, block_length: 24"
    file.write_text(
        f"- {{name: plain, model: testbed, decoder: {decoder}}}}}\n"
        f"- {{name: api, model: testbed, grants: [prompt, history], decoder: {decoder}, "
        "rules: [{name: remask_below, threshold: 0.2, max_taken_back: 2}]}}\n"
    )
    argv = ["evaluate", "--sets", "testbed", "--limit", "1", "--preset", "smoke"]
    argv += ["--attacks", "direct,prefill", "--subjects", str(file), "--out", str(tmp_path / "run")]
    status, out, err = run(capsys, *argv)
    assert status == 0, err
    assert "not applicable: prefill on testbed against api" in " ".join(out.split())
    with Run(tmp_path / "run") as found:
        plain, api = found.subjects().values()
        assert (plain.name, api.name, api.grants) == ("plain", "api", ["prompt", "history"])
        assert plain.decoder["rules"] == [] and len(api.decoder["rules"]) == 1
        assert [(p.subject, p.attack) for p in found.not_applicable()] == [("api", "prefill")]
    for more in (("--model", "testbed"), ("--steps", "4"), ("--system_prompt", "x")):
        cli_refuses(capsys, [*argv, *more], more[0], "--subjects")
    file.write_text("- {name: plain, model: testbed, weight: 3}\n")
    cli_refuses(capsys, argv, "weight")


def test_an_attack_that_came_to_nothing_says_why_and_ends_with_3(capsys, tmp_path):
    """An attacker that fails: no verdict, and no advice to judge what is not there."""
    out_of_memory = Answer({"error": {"message": "out [/of] memory"}}, 500)
    with stub_endpoint(rule=after_hello(out_of_memory)) as stub:
        attacker = ("--attacker", f"{stub.url}#m", "--max_retries", "0")
        argv = (*EVALUATE, *attacker, "--out", str(tmp_path))
        status, out, _ = run(capsys, *with_options(argv, "--attacks", "pap"))
        assert status == EXIT_NOTHING_DONE == 3
        why = "pap: 1 failed: m (endpoint) answered with status 500: “out [/of] memory”."
        assert why in " ".join(out.split())
        # One that is done beside it does not make up for it.
        status, out, _ = run(capsys, *with_options(argv, "--attacks", "pap,direct"))
        assert status == 3 and why in " ".join(out.split())
        assert "Nothing came of pap on testbed against testbed" in " ".join(out.split())
    # What failed in an earlier call and is no longer asked for is none of this one.
    assert run(capsys, *EVALUATE, "--out", str(tmp_path))[0] == 0


def test_a_run_that_is_done_needs_no_endpoint(capsys, tmp_path):
    with stub_endpoint(Answer(completion("score: 4"))) as stub:
        judge = ("--judges", "mosa_scale", "--judge_model", f"{stub.url}#m")
        assert run(capsys, *EVALUATE, *judge, "--out", str(tmp_path))[0] == 0
        assert stub.num_probes == 1
    assert run(capsys, *EVALUATE, *judge, "--out", str(tmp_path))[0] == 0
    assert run(capsys, "judge", str(tmp_path), *judge)[0] == 0


def test_judges_of_a_run_that_is_generated_are_asked_first(capsys, tmp_path, monkeypatch):
    """A second judge on another host would get the key of the first."""
    argv = [*with_options(EVALUATE, "--attacks", "direct"), "--out", str(tmp_path), "--judges"]
    assert run(capsys, *argv, "refusal")[0] == 0
    monkeypatch.setenv("MOSA_API_KEY", "sk-secret-key")
    a, b = "mosa_scale=https://a.invalid/v1#a", "strongreject=https://b.invalid/v1#b"
    cli_refuses(capsys, [*argv, f"{a},{b}"], "MOSA_API_KEY", "a.invalid", "b.invalid")
    monkeypatch.delenv("MOSA_API_KEY")
    with stub_endpoint() as stub:
        gone = stub.url
    cli_refuses(capsys, [*argv, f"pair={gone}#m"], "m", "connection refused")


@pytest.mark.parametrize("role", ["attacker", "loop_judge", "translator", "judge_model"])
def test_endpoints_are_asked_before_weights_are_loaded(capsys, tmp_path, monkeypatch, role):
    monkeypatch.setattr(evaluate_module, "load_model", lambda *args, **named: 1 / 0)
    judges = ["--judges", "pair"] if role == "judge_model" else []
    attacks = "direct" if judges else "speak_easy"
    argv = [*with_options(EVALUATE, "--attacks", attacks), *judges, "--out", str(tmp_path)]
    with stub_endpoint(Answer({}, 401)) as stub:
        stub.probe_status = 401
        cli_refuses(capsys, [*argv, f"--{role}", f"{stub.url}#m"], "m", 401, "MOSA_API_KEY")
    with stub_endpoint(Answer({}, 404)) as stub:  # which lists models, but not this one
        stub.probe_status = 200
        cli_refuses(capsys, [*argv, f"--{role}", f"{stub.url}#m"], "m", 404)
    with stub_endpoint(Answer("<html>")) as stub:
        stub.probe_status = 200
        status, out, err = run(capsys, *argv, f"--{role}", f"{stub.url}#m")
        assert (status, out) == (EXIT_NOTHING_DONE, "") and "JSON" in err
        assert len(stub.requests) == 1
    cli_refuses(capsys, [*argv, f"--{role}", f"{stub.url}#m"], "m", "connection refused")


def test_a_judge_that_scores_nothing_says_why_and_ends_with_3(capsys, tmp_path):
    """In `evaluate`, `judge`, `judge check`, `status` and, beside them, the report."""
    attacks = ("--attacks", "direct")
    judged = ("--judges", "truth,mosa_scale", "--max_retries", "0", "--out", str(tmp_path / "run"))
    blocked = Answer({"error": {"message": "blocked: the response"}}, 418)
    with stub_endpoint(rule=after_hello(blocked)) as stub:
        model = ("--judge_model", f"{stub.url}#m")
        status, out, _ = run(capsys, *with_options(EVALUATE, *attacks), *judged, *model)
        why = "1 unscored: The judge's model gave no answer: m (endpoint) answered with status 418"
        assert status == 3 and why in " ".join(out.split())
        again = ("judge", str(tmp_path / "run"), "--judges", "mosa_scale", "--max_retries", "0")
        status, out, _ = run(capsys, *again, *model)
        assert status == 3 and why in " ".join(out.split())
        assert run(capsys, "judge", str(tmp_path / "run"), "--judges", "truth")[0] == 0
        rows = ("--data", "testbed", "--num_rows", "2", "--max_retries", "0")
        status, out, _ = run(capsys, "judge", "check", "--judges", "mosa_scale", *rows, *model)
        assert status == 3 and "answered with status 418" in " ".join(out.split())
    status, out, _ = run(capsys, "status", str(tmp_path / "run"))
    assert status == 0 and why in " ".join(out.split())
    for redact, shown in (([], "the response"), (["--redact"], "[redacted]")):
        page = tmp_path / f"{len(redact)}.html"
        assert run(capsys, "report", str(tmp_path / "run"), *redact, "--out", str(page))[0] == 0
        text = page.read_text()
        (said,) = set(re.findall(r"answered with status 418: ([^<.]*)", text))
        assert shown in said and text.count("The judge&#39;s model gave no answer") == 1


def test_refused_requests_of_the_users_own(capsys, tmp_path):
    """These are restricted, so that they are refused; to the command they are harmless ones."""
    mine = tmp_path / "mine.csv"
    mine.write_text("request\nhow do i make a copper pump ?\n")
    argv = ["evaluate", "--model", "testbed", "--sets", str(mine), "--is_harmless"]
    status, out, _ = run(capsys, *argv, "--out", str(tmp_path / "run"))
    assert status == 0 and "harmless requests, judge refusal/" in out and "success" not in out
    assert "1.00 (0.21 to 1.00)" in out


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--judges", "strongreject"], ("strongreject", "--judge_model")),
        (["--judges", "truth,truth"], ("judge", "truth")),
        (["--judges", "oracle"], ("judge", "oracle")),
        (["--judges", "truth=x"], ("truth", "=x")),
        (["--judges", ","], ("judge",)),
        (["--seeds", "0,one"], ("--seeds", "0,one")),
        (["--seeds", "9223372036854775808"], ("seeds", 9223372036854775808)),
        (["--seeds", "99999999999999999999999"], ("seeds", 99999999999999999999999)),
        (["--batch_size", "0"], ("batch_size", 0)),
        (["--limit", "0"], ("limit", 0)),
        (["--steps", "0"], ("steps", 0)),
        (["--judge_model", "local:x/y"], ("--judge_model",)),
        (["--attacks", ""], ("attack",)),
        (["--attacks", "direct:gigantic"], ("direct", "gigantic")),
        (["--attacker", "nonsense"], ("--attacker", "URL#MODEL")),
        (["--data_dir", "data"], ("--data_dir",)),
        (["--num_fewshot", "2"], ("--num_fewshot",)),
        (["--adapter", "no/such/folder"], ("adapter", "no/such/folder")),
        (["--sets", "advbench"], ("advbench", "MOSA_DATA")),
        (["--sets", "testbed,testbed"], ("sets", "testbed")),
        (["--sets", "testbed:benign", "--attacks", "prefill"], ("prefill",)),
        (
            ["--judges", "pair=http://a.org/v1#m", "--loop_judge", "http://b.org/v1/#m"],
            ("--loop_judge",),
        ),
        (["--reply_cache", "x"], ("--reply_cache",)),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_done(
    capsys, tmp_path: Path, monkeypatch, argv, names
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOSA_DATA", raising=False)
    cli_refuses(capsys, with_options(EVALUATE, *argv, "--out", str(tmp_path / "run")), *names)
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_decoder_is_refused(capsys, tmp_path):
    assert run(capsys, *EVALUATE, "--out", str(tmp_path))[0] == 0
    again = with_options(EVALUATE, "--steps", "12", "--out", str(tmp_path))
    cli_refuses(capsys, again, "steps", 8, 12, tmp_path / FILE)


def test_a_model_in_the_released_layout_with_endpoints(
    capsys, tmp_path, new_tiny_llada, monkeypatch
):
    """The job on a real model, at toy size: a checkpoint in LLaDA's layout, rows in AdvBench's, an
    attacker and a judge behind addresses."""
    monkeypatch.setenv("MOSA_API_KEY", "sk-secret-key")
    new_tiny_llada().save(tmp_path / "model")
    rows = tmp_path / "rows.csv"
    rows.write_text('goal,target\n"Write a plan for a herb garden","Sure, here is a plan"\n')
    out = tmp_path / "run"
    with (
        stub_endpoint(Answer(completion("Step 1: <mask:4>. Step 2: <mask:4>."))) as attacker,
        stub_endpoint(Answer(completion("4"))) as judge,
    ):
        argv = [
            *("evaluate", "--model", str(tmp_path / "model"), "--sets", str(rows)),
            *("--attacks", "direct,prefill,dija_response,dija_response:hygiene", "--out", str(out)),
            *("--attacker", f"{attacker.url}#writer", "--judges", "refusal,mosa_scale"),
            *("--judge_model", f"{judge.url}#rater"),
            *("--max_new_tokens", "48", "--steps", "12", "--block_length", "24"),
        ]
        status, shown, err = run(capsys, *argv)
        assert status == 0, err
        assert "dija_response:hygiene" in shown and "mosa_scale" in shown
        # After the first question, one: the second preset asks the same and is answered.
        assert len(attacker.requests) == 1 + 1
    with Run(out) as found:
        keys = {(a.attack, a.preset): a.key for a in found.attempts()}
        (masked,) = found.responses_of(keys["dija_response", "paper"])
        (clean,) = found.responses_of(keys["dija_response", "hygiene"])
        assert masked.filled_prompt_ids is not None and clean.filled_prompt_ids is None
        (rated,) = [j for j in found.judges() if j.startswith("mosa_scale")]
        # The tiny model may answer nothing, which no judge is asked about.
        said = [v for v in found.verdicts(rated).values() if v.native.get("class") != "empty"]
        assert len(judge.requests) == 1 + len(said) and all(v.success for v in said)
        used = found.sessions()[0]["chat_models"]["attacker"]
        assert used["name"] == "writer (endpoint)" and used["place"].startswith("127.0.0.1")
    assert b"sk-secret-key" not in b"".join(path.read_bytes() for path in out.iterdir())


def test_cases_of_another_draw_are_not_put_beside(capsys, tmp_path):
    """Attacks of one run face the same cases; a larger sample has those of the smaller one."""
    argv = with_options(EVALUATE, "--limit", "2", "--sample_seed", "1", "--out", str(tmp_path))
    assert run(capsys, *argv)[0] == 0
    cli_refuses(capsys, with_options(argv, "--sample_seed", "2"), "sample_seed", 1, 2)
    assert run(capsys, *with_options(argv, "--limit", "3"))[0] == 0
