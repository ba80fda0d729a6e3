"""What a launcher has set, and what a system sets without one."""

from __future__ import annotations

import pytest
from refusals import cli_refuses, refuses

from mosa.runs.processes import ALONE, Processes, launched

LAUNCH = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)


def test_a_launch_is_read_from_the_environment(monkeypatch):
    assert launched() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == ALONE
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(1, 4)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"MASTER_ADDR": None}, ("WORLD_SIZE", "MASTER_ADDR")),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, ("WORLD_SIZE", "MASTER_ADDR")),
        ({"RANK": None}, ("WORLD_SIZE", "RANK")),
        ({"RANK": "4"}, ("WORLD_SIZE", "RANK 4")),
        ({"RANK": "-1"}, ("RANK",)),
        ({"WORLD_SIZE": "four"}, ("WORLD_SIZE",)),
        ({"WORLD_SIZE": "9" * 5000}, ("WORLD_SIZE",)),
    ],
)
def test_several_processes_need_a_launcher(monkeypatch, capsys, changes, names):
    for name, value in {**LAUNCH, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with refuses(*names):
        launched()
    cli_refuses(capsys, ["status", "runs/none"], *names)
