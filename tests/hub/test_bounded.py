"""The process that runs what others wrote: it is started again, and each request is by itself."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import threading

import pytest
from refusals import refuses

from mosa.hub import bounded_child
from mosa.hub.bounded import _CHILD, _Child, ask


def said(letters: str) -> dict:
    return ask("render", template="{{ letters }}", context={"letters": letters}, most=100)


def test_a_request_after_one_that_ended_the_process_is_answered():
    assert "error" in ask("match", pattern="((x+)+)+y", names=["x" * 40])
    assert said("a") == {"value": "a"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_meanwhile_is_started_again(number):
    assert said("a") == {"value": "a"}
    before = _CHILD._process
    assert before is not None
    before.send_signal(number)
    before.wait()
    assert said("b") == {"value": "b"}
    assert _CHILD._process is not before


def test_signals_of_the_terminal_do_not_reach_it():
    said("a")
    assert _CHILD._process is not None
    assert os.getsid(_CHILD._process.pid) != os.getsid(0)


def test_threads_get_their_own_answers():
    found: dict[int, list[dict]] = {}

    def work(number: int) -> None:
        found[number] = [said(f"{number}-{i}") for i in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in found.items():
        assert answers == [{"value": f"{number}-{i}"} for i in range(20)]


def test_nothing_of_mosa_is_within_reach_of_a_template():
    for template in (
        "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'] }}{{ lipsum.__globals__['os'].environ }}",
        "{{ namespace.__init__.__globals__ }}{{ raise_exception.__globals__.sys }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__.sys.modules }}",
        "{{ dict.mro() }}{{ dict.__call__.__globals__ }}",
    ):
        outcome = ask("render", template=template, context={}, most=1000)
        assert "error" in outcome or not outcome["value"].strip("{}[]()"), outcome


@pytest.mark.parametrize("path", ["", "/no/such/python", "/etc/passwd"])
def test_without_a_python_to_start_it_is_one_sentence(monkeypatch, path):
    monkeypatch.setattr(sys, "executable", path)
    with refuses("sys.executable"):
        _Child().ask({"task": "render"})


def test_a_process_that_ends_by_itself_is_no_lack_of_time(monkeypatch, tmp_path):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    outcome = _Child().ask({"task": "render"})
    assert "status 3" in outcome["error"]


@pytest.mark.parametrize("error", [ValueError("limit"), OSError("limit")])
def test_a_system_without_the_limit_of_addresses_renders_as_well(monkeypatch, capsys, error):
    def setrlimit(kind: int, most: object) -> None:
        if kind == resource.RLIMIT_AS:
            raise error

    monkeypatch.setattr(bounded_child.resource, "setrlimit", setrlimit)
    request = {"task": "render", "template": "{{ a }}", "context": {"a": "x"}, "most": 9}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))
    bounded_child.main()
    assert json.loads(capsys.readouterr().out) == {"value": "x"}
