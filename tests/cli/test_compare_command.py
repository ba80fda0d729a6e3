"""`mosa compare` as a user, or a CI job, types it."""

from __future__ import annotations

import pytest
from made_runs import attacked
from refusals import cli_refuses

from mosa import cli


@pytest.fixture
def folders(tmp_path):
    """An attack that succeeds on all four cases in A and on one in B, where one is unscored."""
    first = {"tap": dict.fromkeys("abcd", True)}
    second = {"tap": {"a": True, "b": False, "c": False, "d": None}}
    attacked(tmp_path / "old", {"m": first})
    attacked(tmp_path / "new", {"n": second})
    return str(tmp_path / "old"), str(tmp_path / "new")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(["compare", *argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_what_is_shown(capsys, folders):
    status, out, err = run(capsys, *folders, "--format", "md")
    assert (status, err) == (0, "")
    assert f"A: m in {folders[0]} (weights hash of m)" in out
    assert "Judge of attacks: truth/1/made-up" in out
    (row,) = [line for line in out.splitlines() if line.startswith("| tap |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "4"
    assert cells[2] == "1.00 (0.51 to 1.00, n=4)"
    assert cells[3] == "0.33 (0.06 to 0.79, n=3)"
    assert cells[4].startswith("-0.67 (") and cells[4].endswith("n=3)")
    assert cells[5:] == ["0.500", "0.500", "2, 0", "0, 1"]
    assert "Conditions" not in out


def test_attacks_on_the_alignment_data_are_marked_in_every_row(tmp_path, capsys):
    """All wrappings of aos were trained against; conditions go by the name without the mark."""
    outcomes = {"m": {"aos": {"a": True}, "prefill": {"a": False}}}
    attacked(tmp_path, outcomes, world_seed=0)
    folder = str(tmp_path)
    status, out, _ = run(capsys, folder, folder, "--fail-if", "asr:aos<1", "--format", "md")
    assert status == 0
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert {r"aos\*", "prefill", r"asr(\*)", r"worst_asr\*"} <= set(names)
    assert r"- worst_asr: aos\* in A, aos\* in B" in out and r"\* all" in out


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["asr<=0.3"], 0),
        (["asr>0.3"], 1),
        (["asr<=0.3", "asr_drop>0.6"], 1),
        (["asr<=0.3", "asr_rise>0"], 0),
    ],
)
def test_exit_status(capsys, folders, conditions, expected):
    options = [word for text in conditions for word in ("--fail-if", text)]
    status, out, _ = run(capsys, *folders, *options, "--max-unscored", "0.25")
    assert status == expected
    assert out.count("FAIL: ") == (1 if expected else 0)
    assert out.count("ok: ") == len(conditions) - (1 if expected else 0)


def test_unscored_cases_fail_loudly(capsys, folders):
    status, out, _ = run(capsys, *folders, "--fail-if", "asr>0.9")
    assert status == 1
    assert "FAIL: asr>0.9: not decided: 0.250 of the cases are without a score" in out


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (
            ["--fail-if", "asr>0.1", "--fail-if", "utility_drop>0.02"],
            ("utility", "utility_drop>0.02"),
        ),
        (["--fail-if", "asr:pap>0.1"], ("asr:pap", "asr:tap")),
        (["--fail-if", "asr"], ("asr",)),
        (["--max_unscored", "5"], ("--max_unscored",)),
        (["--subject_a", "x"], ("x", "m")),
        (["--judge", "x"], ("x",)),
    ],
)
def test_mistakes_are_told_before_anything_is_shown(capsys, folders, options, names):
    cli_refuses(capsys, ["compare", *folders, *options], *names)


def test_a_folder_without_a_run(capsys, folders, tmp_path):
    absent = str(tmp_path / "absent")
    cli_refuses(capsys, ["compare", folders[0], absent], absent)
