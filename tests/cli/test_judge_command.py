"""`mosa judge` and `mosa judge check` as a user types them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from chat.stub_endpoint import Answer, after_hello, completion, stub_endpoint
from made_runs import attacked, begun, session, solved, subject
from refusals import cli_refuses

from mosa import cli
from mosa.judges.calibrate import read_calibration
from mosa.runs.store import Run


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path) -> Path:
    return attacked(tmp_path / "run", {"m": {"tap": {"a": True, "b": False}}})


def test_another_judge_is_added_and_tells_what_it_sees(capsys, folder):
    status, out, _ = run(capsys, "judge", str(folder), "--judges", "refusal,refusal@canvas")
    assert status == 0 and "attacks, judge refusal/" in out
    with Run(folder) as found:
        added = [judge for judge in found.judges() if judge.startswith("refusal/")]
        assert len(added) == 2 and added[1] == f"{added[0]}@canvas"
        assert all(found.num_unjudged(judge) == 0 for judge in added)


def test_the_refusal_judge_sees_what_a_recorded_training_calls_a_refusal(capsys, tmp_path):
    """The responses read "sure here you are"; the adapter's folder is not needed any more."""
    for name, refusals, refused in (("plain", [], 0), ("aligned", ["here you are"], 2)):
        folder = tmp_path / name
        with Run(folder, create=True) as made:
            made.add_subject(subject("m", refusals=refusals))
        attacked(folder, {"m": {"tap": {"a": True, "b": False}}})
        assert run(capsys, "judge", str(folder), "--judges", "refusal")[0] == 0
        with Run(folder) as found:
            (judge,) = [j for j in found.judges() if j.startswith("refusal/")]
            said = [v.native["refused"] for v in found.verdicts(judge).values()]
        assert said.count(True) == refused and len(said) == 2


def test_a_judge_whose_endpoint_is_no_use_scores_nothing(capsys, folder):
    argv = ("judge", str(folder), "--judges", "pair", "--max_retries", "0", "--judge_model")
    cli_refuses(capsys, [*argv, "http://127.0.0.1:9/v1#x"], "x", "connection refused")
    with stub_endpoint(rule=after_hello(Answer({}, 500))) as stub:
        status, out, _ = run(capsys, *argv, f"{stub.url}#x")
    assert status == 3 and "2 unscored: The judge's model gave no answer" in " ".join(out.split())
    with stub_endpoint(Answer(completion("rating: 4"))) as stub:  # what another one said is past
        assert run(capsys, *argv, f"{stub.url}#y")[0] == 0
    with Run(folder) as found:
        (pair,) = [judge for judge in found.judges() if judge.endswith("x (endpoint)")]
        verdicts = found.verdicts(pair).values()
        assert len(verdicts) == 2 and all(v.score is None and v.reason for v in verdicts)


def test_mistakes(capsys, folder, tmp_path):
    solved(tmp_path / "useful", {"m": {"sums": {"a": 1.0}}})
    steered = attacked(tmp_path / "steered", {"m": {"ept": {"a": True}}})
    with begun(steered, ["m"]) as found:
        found.begin_session(session(chat_models={"judge": {"name": "m (endpoint)"}}))
    pair = ("--judges", "pair", "--judge_model", "http://elsewhere.org/v1#m")
    for where, argv, names in (
        (tmp_path, ("--judges", "refusal"), [tmp_path]),
        (folder, ("--judges", ""), ["--judges"]),
        (folder, ("--judges", "oracle"), ["judge", "oracle"]),
        (folder, ("--judges", "truth"), ["truth"]),
        (folder, ("--judges", "pair"), ["pair", "--judge_model"]),
        (tmp_path / "useful", ("--judges", "refusal"), ["refusal", "sums"]),
        (steered, pair, ["pair"]),
    ):
        cli_refuses(capsys, ["judge", str(where), *argv], *names)


def test_check(capsys, tmp_path):
    argv = ("judge", "check", "--judges", "truth,refusal", "--data", "testbed")
    status, out, _ = run(capsys, *argv, "--num_rows", "20")
    assert status == 0
    assert "20 labelled rows" in out and "20 of 20" in out and "truth/2/world-0 and refusal/" in out


def test_a_check_keeps_what_it_measured(capsys, tmp_path):
    """The counts by judge id, with the hash of the file that they come from."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "judges.json"
    rows.write_text('{"behavior": "bake bread", "response": "I cannot help.", "label": 0}\n')
    command = ("judge", "check", "--judges", "refusal", "--data")
    status, text, _ = run(capsys, *command, str(rows), "--out", str(out))
    assert status == 0 and f"wrote {out}" in " ".join(text.split())
    ((name, errors),) = read_calibration(out).items()
    assert name.startswith("refusal/") and errors.data == "rows.jsonl"
    assert errors.sha256 == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert (errors.sensitivity, errors.specificity) == ((0, 0), (1, 1))
    status, _, _ = run(capsys, *command, "testbed", "--num_rows", "10", "--out", str(out))
    assert status == 0 and read_calibration(out)[name].data == "testbed, 10 rows"


@pytest.mark.parametrize(
    ("judges", "data", "out", "name"),
    [
        (",", "refusal", "judges.json", "--judges"),
        ("refusal@canvas", "refusal", "judges.json", "@canvas"),
        ("refusal", "refusal", "absent/judges.json", "absent"),
        ("refusal", "refusal", "other.json", "other.json"),
        ("refusal", "none.csv", "judges.json", "none.csv"),
    ],
)
def test_mistakes_about_calibration(capsys, tmp_path, judges, data, out, name):
    (tmp_path / "other.json").write_text("{}")
    command = ("judge", "check", "--judges", judges, "--data", data)
    cli_refuses(capsys, [*command, "--out", str(tmp_path / out)], name)
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
