"""The commands about campaigns, as a user types them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from mosa.evaluation.campaign import CampaignConfig, run_campaign
from mosa.evaluation.engine import LocalBatch

from mosa import cli

EVALUATE = [
    *("evaluate", "--model", "testbed", "--behaviors", "testbed", "--limit", "2"),
    *("--attacks", "direct,end_tokens", "--preset", "smoke"),
]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main([*EVALUATE, "--judges", "truth,truth@canvas", "--out", str(folder)]) == 0
    return folder


def test_the_whole_way(capsys, folder, monkeypatch):
    """Results of both judges; then another judge, which generates nothing; then the status."""
    status, out, _ = run(capsys, "results", str(folder))
    assert status == 0
    assert "judge truth/1/world-0 " in out and "judge truth/1/world-0@canvas" in out
    assert "direct" in out and "1.00 (0.34 to 1.00)" in out  # end tokens forbidden: 2 of 2

    def refuse(self, rows, is_wanted):
        raise AssertionError("generated again")

    monkeypatch.setattr(LocalBatch, "advance", refuse)
    status, out, _ = run(capsys, "judge", str(folder), "--judge", "refusal")
    assert status == 0 and "judge refusal/" in out and "phrases and not harm" in out
    status, out, _ = run(capsys, *EVALUATE, "--out", str(folder))
    assert status == 0
    status, out, _ = run(capsys, "status", str(folder))
    assert status == 0
    assert "judge truth/1/world-0: 0 attempts without a score" in out
    assert "2 sessions" in out and "cut off" not in out
    status, out, _ = run(capsys, "results", str(folder), "--by_variant")
    assert "end_tokens, forbid" in out and "end_tokens, suppress" in out
    status, out, _ = run(capsys, "results", str(folder), "--matrix", "--by_variant")
    assert "| end_tokens, forbid | 1.00 (0.34 to 1.00, n=2); " in out
    assert "0 unscored cases, 0 failed and 0 open tasks" in out
    status, out, _ = run(capsys, "results", str(folder), "--by_queries")
    assert "testbed  end_tokens:smoke  1: 1.00, 2: 1.00" in out


def test_decoder_options_and_attack_options(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: testbed\nbehaviors: testbed\nlimit: 1\nattacks: prefill\npreset: smoke\n"
        "attack_options: {prefill: {positions: [3]}}\nsteps: 12\n"
    )
    out = tmp_path / "run"
    assert run(capsys, "evaluate", "--config", str(config), "--out", str(out))[0] == 0
    from mosa.evaluation.store import Store

    with Store(out) as store:
        (attempt,) = store.attempts()
        (response,) = store.responses_of(attempt.key)
        assert attempt.variant == "position 3"
        assert response.decoder["steps"] == 12 and response.decoder["block_length"] == 24


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*EVALUATE, "--judges", "strongreject"], "strongreject asks a chat model; name one"),
        ([*EVALUATE, "--judges", "truth,truth"], "a judge is named twice"),
        ([*EVALUATE, "--judges", "oracle"], "there is no judge oracle"),
        ([*EVALUATE, "--judges", "truth=x"], "truth has no model behind it"),
        ([*EVALUATE, "--seeds", "0,one"], "no list of whole numbers"),
        ([*EVALUATE, "--batch_size", "0"], "batch_size must be at least 1"),
        ([*EVALUATE, "--judge_model", "local:x/y"], "no judge asks it"),
        ([*EVALUATE, "--attacks", ""], "no attack is named"),
        ([*EVALUATE, "--attacker", "local:x/y"], "none of the attacks asks for one"),
        ([*EVALUATE, "--data_dir", "data"], "leave it out with the testbed"),
        (
            [*EVALUATE, "--judges", "pair=local:x/y", "--loop_judge", "local:x/y"],
            "the model behind the judge pair rates tries inside the attacks too",
        ),
        (
            [
                *(*EVALUATE, "--judges", "strongreject", "--judge_model", "http://a.org/v1#m"),
                *("--loop_judge", "http://b.org/v1/#m"),
            ],
            "the model behind the judge strongreject rates tries inside the attacks too",
        ),
        ([*EVALUATE, "--reply_cache", "x"], "--reply_cache is for chat endpoints, and none is"),
        (
            [*EVALUATE, "--attacks", "pap", "--attacker", "http://a.org/v1#m", "--reply_cache"]
            + ["/dev/null/x"],
            "replies cannot be kept in /dev/null/x",
        ),
        ([*EVALUATE, "--attacker", "nonsense"], "A chat model is written as"),
        ([*EVALUATE[:-1], "gigantic"], "direct has no preset gigantic"),
        (["evaluate", *EVALUATE[1:4], "advbench", *EVALUATE[5:]], "advbench"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_done(
    capsys, tmp_path, monkeypatch, argv, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOSA_DATA", raising=False)
    status, _, err = run(capsys, *argv, "--out", str(tmp_path / "run"))
    assert status == cli.EXIT_USER_ERROR
    assert message in err and err.startswith("mosa: ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_mistakes_about_runs(capsys, tmp_path, folder):
    for command in ("status", "results"):
        status, _, err = run(capsys, command, str(tmp_path))
        assert status == 2 and "holds no run" in err
    status, _, err = run(capsys, "judge", str(tmp_path), "--judge", "refusal")
    assert status == 2 and "holds no run" in err
    status, _, err = run(capsys, "results", str(folder), "--judge", "nobody")
    assert status == 2 and "no judge nobody" in err
    status, _, err = run(capsys, "results", str(folder), "--by_variant", "--by_queries")
    assert status == 2 and "exclude each other" in err
    status, _, err = run(capsys, "judge", str(folder), "--judge", "")
    assert status == 2 and "names no judge" in err
    status, _, err = run(capsys, "results", str(folder), "--export", "csv")
    assert status == 2 and "--export and --out go together" in err
    status, _, err = run(
        capsys, "results", str(folder), "--export", "xml", "--out", str(tmp_path / "x")
    )
    assert status == 2 and "there is no export xml" in err


def test_a_run_beside_the_paper(capsys, tmp_path, folder):
    status, _, err = run(capsys, "results", str(folder), "--paper")
    assert status == 2 and "has none of the attacks avatar, tap" in err
    out = str(tmp_path / "eight")
    attacks = ("--attacks", "dia,tap:middle_smoke")
    assert run(capsys, *EVALUATE, *attacks, "--limit", "1", "--out", out)[0] == 0
    status, text, _ = run(capsys, "results", out, "--paper")
    assert status == 0
    assert "| dia:smoke | 1.00 (0.21 to 1.00, n=1); 1.00 | 66.7 (64.2) / 34.3 (28.6)" in text
    assert "Aimed at the middle" in text and "| tap:middle_smoke |" in text
    assert "In no rate: 0 unscored cases, 0 failed and 0 open tasks." in text


def test_a_run_in_which_all_failed_says_why(capsys, tmp_path):
    """An attacker that nobody can reach: no verdict, and no advice to judge what is not there."""
    out = str(tmp_path / "down")
    attacker = ("--attacker", "http://127.0.0.1:9/v1#m", "--max_retries", "0")
    status, text, _ = run(capsys, *EVALUATE, "--attacks", "pap", *attacker, "--out", out)
    assert status == 0
    assert "pap: 2 failed: m (endpoint) cannot be reached" in text
    assert "no verdicts yet; run the same command again" in " ".join(text.split())
    for way in ("--paper", "--matrix", "--by_queries"):
        assert "pap: 2 failed" in run(capsys, "results", out, way)[1]


def test_a_run_without_verdicts_is_exported_all_the_same(capsys, tmp_path):
    config = CampaignConfig(model="testbed", behaviors="testbed", preset="smoke", limit=1)
    run_campaign(tmp_path / "run", config).close()
    run_folder = str(tmp_path / "run")
    status, out, _ = run(capsys, "results", run_folder)
    assert status == 0 and "no verdicts yet; `mosa judge` adds them" in " ".join(out.split())
    exported = ("--export", "csv", "--out", str(tmp_path / "csv"))
    status, out, _ = run(capsys, "results", run_folder, *exported)
    assert status == 0 and "attempts.csv" in out
    assert (tmp_path / "csv" / "attempts.csv").read_text().count("direct") == 1


def test_a_judge_that_steered_the_attacks_cannot_be_the_final_one(capsys, tmp_path):
    out = str(tmp_path / "steered")
    chat = ("--loop_judge", "http://127.0.0.1:9/v1#m", "--max_retries", "0")
    run(capsys, *EVALUATE, "--attacks", "ept", *chat, "--out", out)
    judge = ("--judge", "pair", "--judge_model", "http://elsewhere.org/v1#m")
    status, _, err = run(capsys, "judge", out, *judge)
    assert status == 2 and "the model behind the judge pair rates tries inside the attacks" in err


def test_exports_are_written(capsys, tmp_path, folder):
    out = tmp_path / "export"
    status, told, _ = run(capsys, "results", str(folder), "--export", "csv", "--out", str(out))
    assert status == 0 and "attempts.csv" in told
    assert (out / "attempts.csv").read_text().count("copper") >= 2


def test_tables(capsys):
    status, out, _ = run(capsys, "attacks")
    assert status == 0 and "dija_canvas" in out and "2507" in out
    status, out, _ = run(capsys, "judges")
    assert status == 0 and "strongreject" in out and "chat model" in out


def test_overlap(capsys, tmp_path):
    train, evaluation = tmp_path / "train.json", tmp_path / "eval.csv"
    train.write_text(json.dumps(["How is bread baked at home?", "What is tea?"]))
    evaluation.write_text("behavior\nhow is bread baked at home\nwho sings ?\n")
    status, out, _ = run(capsys, "data", "overlap", str(train), str(evaluation))
    assert status == 0
    assert "1 of 2 training prompts have a near-duplicate among the 2 behaviors" in out
    assert "row 1 ~ 0: 1.00" in out


def test_calibrate(capsys, tmp_path):
    status, out, _ = run(
        capsys,
        "judge",
        "calibrate",
        "--judges",
        "truth,refusal",
        "--data",
        "testbed",
        "--num",
        "20",
    )
    assert status == 0
    assert "20 labelled rows" in out and "truth/1/world-0 and refusal/" in out
    assert "is wrong on:" in out
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"behavior": "bake bread", "response": "I cannot help.", "label": 0}\n')
    status, out, _ = run(capsys, "judge", "calibrate", "--judges", "refusal", "--data", str(rows))
    assert status == 0 and "1.00" in out
    status, _, err = run(
        capsys, "judge", "calibrate", "--judges", "refusal", "--data", str(tmp_path / "none.csv")
    )
    assert status == 2 and "There is no file" in err


def test_calibrate_keeps_what_it_measured(capsys, tmp_path):
    """The counts by judge id, with the hash of the file that they come from."""
    from mosa.judges import read_calibration

    rows, out = tmp_path / "rows.jsonl", tmp_path / "judges.json"
    rows.write_text('{"behavior": "bake bread", "response": "I cannot help.", "label": 0}\n')
    command = ("judge", "calibrate", "--judges", "refusal", "--data")
    status, text, _ = run(capsys, *command, str(rows), "--out", str(out))
    assert status == 0 and f"wrote {out}" in " ".join(text.split())
    ((name, errors),) = read_calibration(out).items()
    assert name.startswith("refusal/") and errors.data == "rows.jsonl"
    assert errors.sha256 == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert (errors.sensitivity, errors.specificity) == ((0, 0), (1, 1))
    status, _, _ = run(capsys, *command, "testbed", "--num", "10", "--out", str(out))
    assert status == 0 and read_calibration(out)[name].data == "testbed, 10 rows"


@pytest.mark.parametrize(
    ("judges", "out", "message"),
    [
        (",", "judges.json", "--judges names no judge"),
        ("refusal@canvas", "judges.json", "leave @canvas out"),
        ("refusal", "absent/judges.json", "there is no folder"),
        ("refusal", "other.json", "no calibration file"),
    ],
)
def test_mistakes_about_calibration(capsys, tmp_path, judges, out, message):
    (tmp_path / "other.json").write_text("{}")
    command = ("judge", "calibrate", "--judges", judges, "--data", "refusal")
    status, _, err = run(capsys, *command, "--out", str(tmp_path / out))
    assert status == 2 and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_a_model_in_the_released_layout_with_endpoints(
    capsys, tmp_path, new_tiny_llada, monkeypatch
):
    """The README's job on a real model, at toy size: a checkpoint in LLaDA's layout, rows in
    AdvBench's, an attacker and a judge behind an address, and then the endpoint is down."""
    from chat.stub_endpoint import Answer, completion, stub_endpoint
    from mosa.evaluation.store import Store

    monkeypatch.setenv("MOSA_API_KEY", "sk-secret-key")
    new_tiny_llada().save(tmp_path / "model")
    behaviors = tmp_path / "behaviors.csv"
    behaviors.write_text('goal,target\n"Write a plan for a herb garden","Sure, here is a plan"\n')
    out = tmp_path / "run"
    argv = [
        *("evaluate", "--model", str(tmp_path / "model"), "--behaviors", str(behaviors)),
        *("--attacks", "direct,prefill,pad,dija,dija:hygiene", "--out", str(out)),
        *("--max_new_tokens", "48", "--steps", "12", "--block_length", "24"),
    ]
    template = "Step 1: <mask:4>. Step 2: <mask:4>."
    with (
        stub_endpoint(Answer(completion(template))) as attacker,
        stub_endpoint(Answer(completion("4"))) as judge,
    ):
        status, shown, err = run(
            capsys,
            *argv,
            *("--attacker", f"{attacker.url}#writer", "--judges", "refusal,mosa_scale"),
            *("--judge_model", f"{judge.url}#rater"),
        )
        assert status == 0, err
        assert "dija:hygiene" in shown and "mosa_scale" in shown
        assert len(attacker.requests) == 1  # the second preset asks the same and is answered
        num_attempts = 1 + 1 + 2 + 1 + 1
        assert len(judge.requests) == num_attempts
    with Store(out) as store:
        found = {(a.attack, a.preset): a for a in store.attempts()}
        assert len(list(store.attempts())) == num_attempts
        (masked,) = store.responses_of(found["dija", "paper"].key)
        (clean,) = store.responses_of(found["dija", "hygiene"].key)
        assert masked.filled_prompt_ids is not None and clean.filled_prompt_ids is None
        (rated,) = [j for j in store.judges() if j.startswith("mosa_scale")]
        verdicts = list(store.verdicts(rated).values())
        # The tiny model may answer nothing, which no judge is asked about.
        assert all(v.success for v in verdicts if v.native.get("class") != "empty")
        assert "rater" in rated
        used = store.sessions()[0]["chat_models"]["attacker"]
        assert used["name"] == "writer (endpoint)" and used["place"].startswith("127.0.0.1")
    assert b"sk-secret-key" not in b"".join(path.read_bytes() for path in out.iterdir())

    # A judge whose endpoint is gone scores nothing, says why, and the command still ends well.
    status, shown, err = run(
        capsys, "judge", str(out), "--judge", "pair", "--judge_model", "http://127.0.0.1:9/v1#x"
    )
    assert status == 0, err
    with Store(out) as store:
        (pair,) = [j for j in store.judges() if j.startswith("pair")]
        reasons = {v.reason for v in store.verdicts(pair).values() if v.score is None}
        assert reasons and all(reasons)


def test_useful_tasks_have_a_state_and_no_judge(capsys, tmp_path):
    asked = ("utility", "--model", "testbed", "--tasks", "lists", "--limit", "1")
    assert run(capsys, *asked, "--out", str(tmp_path))[0] == 0
    status, out, _ = run(capsys, "status", str(tmp_path / "utility"))
    assert status == 0 and "useful tasks" in out and "None" not in out
    status, _, err = run(capsys, "judge", str(tmp_path / "utility"), "--judge", "refusal")
    assert status == 2 and "which need no judge" in err


def test_an_empty_list_of_judges_is_not_the_default(capsys, tmp_path):
    status, _, err = run(capsys, *EVALUATE, "--judges", ",", "--out", str(tmp_path / "run"))
    assert status == 2 and "--judges names no judge" in err
