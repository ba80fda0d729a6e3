"""`mosa utility` as a user types it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_runs import solved

from mosa import cli
from mosa.evaluation.engine import LocalResponder
from mosa.evaluation.store import Measurement, Store
from mosa.evaluation.utility.results import figures_name

COMMAND = ["utility", "--model", "testbed", "--limit", "2", "--steps", "12"]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main([*COMMAND, "--tasks", "arithmetic,lists", "--out", str(folder)]) == 0
    return folder


def test_decoder_first_then_the_table(capsys, folder, monkeypatch):
    """And the same command again, which generates nothing."""

    def refuse(self, rows):
        raise AssertionError("generated again")

    monkeypatch.setattr(LocalResponder, "respond", refuse)
    status, out, _ = run(capsys, *COMMAND, "--tasks", "arithmetic,lists", "--out", str(folder))
    assert status == 0
    assert out.startswith("Decoder: max_new_tokens 72, steps 12, block_length 24, temperature 0.0,")
    assert "testbed arithmetic accuracy 1.00 (0.34 to 1.00) 2 0 lists accuracy" in out
    assert "with its 95 % Wilson interval" in out


def test_what_is_unscored_is_counted_and_told(capsys, folder):
    """In no rate, with its reason; and figures that are no share stand below the table."""
    with Store(folder / "utility") as store:
        tasks = store.meta("tasks")
        for name in ("gsm8k", "wmt"):
            tasks[name] = {"headline": "exact_match,flexible-extract"}
        store.set_meta("tasks", tasks)
        store.set_meta(figures_name("testbed", "wmt"), {"wmt": {"bleu,none": 12.5}})
        one = Measurement("testbed", "gsm8k", "exact_match,strict-match", "0", 1.0)
        store.add_measurement(one)
        for case, value, reason in (("0", 1.0, ""), ("1", None, "it is too long")):
            headline = dataclasses.replace(
                one, metric="exact_match,flexible-extract", case=case, value=value, reason=reason
            )
            store.add_measurement(headline)
    status, out, _ = run(capsys, *COMMAND, "--tasks", "arithmetic,lists", "--out", str(folder))
    assert status == 0
    assert "gsm8k exact_match,flexible-extract 1.00 (0.21 to 1.00) 1 1 exact_match,strict" in out
    assert "testbed, gsm8k: 1 unscored: it is too long" in out
    assert "testbed, wmt: lm_eval gives no share of cases, but wmt bleu,none 12.5" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", ","], "no task is named"),
        (["--tasks", "lists", "--run_code"], "none of the tasks has code to run"),
        (["--tasks", "lists", "--steps", "6"], "with steps 12 and not 6"),
        (["--tasks", "lists", "--num_draws", "0"], "num_draws must be at least 1"),
        (["--tasks", "lists", "--fewshot", "3"], "see mosa utility --help"),
    ],
)
def test_mistakes_are_one_sentence(capsys, folder, words, message):
    status, _, err = run(capsys, *COMMAND, "--out", str(folder), *words)
    assert status == 2 and message in err and err.count("\n") == 1


def test_results_of_a_run_of_tasks_are_its_table(tmp_path, capsys):
    solved(tmp_path, {"m": {"sums": {"1": 1.0, "2": 0.0}}})
    assert cli.main(["results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "sums" in out and "0.50" in out
    assert cli.main(["results", str(tmp_path), "--matrix"]) == 2
    assert "useful tasks" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path)]) == 0
