"""Programs that a model might write, kept in their place by each isolation."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from refusals import refuses

from mosa.utility import code_sandbox
from mosa.utility.code_sandbox import (
    CHILD,
    Isolation,
    Limits,
    best_isolation,
    run_program,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs on Linux alone")

QUICK = Limits(seconds=20.0, cpu_seconds=10, memory_bytes=2**29)


@pytest.fixture(params=get_args(Isolation))
def isolation(request) -> Isolation:
    if request.param == "namespaces" and best_isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    return request.param


def test_right_and_wrong_programs(isolation):
    assert run_program("assert 1 + 1 == 2\nprint('hi')", QUICK, isolation=isolation).passed
    wrong = run_program("assert 1 + 1 == 3, 'no'", QUICK, isolation=isolation)
    assert (wrong.passed, wrong.detail, wrong.isolation) == (False, "AssertionError: no", isolation)


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended without coming to its end"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('\\ud800')", "ValueError: ?"),
    ],
)
def test_a_program_that_ends_early_has_not_passed(isolation, program, detail):
    """An exit with status 0 would skip the tests behind it."""
    outcome = run_program(f"{program}\nassert False", QUICK, isolation=isolation)
    assert not outcome.passed and outcome.detail.startswith(detail)


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_an_endless_program_is_ended(isolation, program):
    outcome = run_program(program, Limits(seconds=1.0), isolation=isolation)
    assert (outcome.passed, outcome.detail) == (False, "out of time")


def test_processor_time_is_limited_too(isolation):
    limits = Limits(seconds=600.0, cpu_seconds=1)
    outcome = run_program("while True: pass", limits, isolation=isolation)
    assert not outcome.passed and outcome.detail != "out of time"


def test_memory_is_limited(isolation):
    program = "x = []\nwhile True: x.append(bytearray(10**7))"
    assert run_program(program, QUICK, isolation=isolation).detail == "MemoryError"
    assert run_program("x = bytearray(10**8)", QUICK, isolation=isolation).passed


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.getaddrinfo('localhost', 80)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_there_is_no_network(isolation, program):
    detail = run_program(program, QUICK, isolation=isolation).detail
    assert "the sandbox refuses the network" in detail


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0)",
    ],
)
def test_there_are_no_other_processes(isolation, program):
    detail = run_program(program, QUICK, isolation=isolation).detail
    assert detail == "PermissionError: the sandbox refuses other processes"


def test_files_outside_cannot_be_changed(isolation, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for change in (
        f"open({str(kept)!r}, 'w').write('changed')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, 'here')",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nopen('link/new', 'w')",
        f"import os\nd = os.open('/', os.O_RDONLY)\nos.unlink({str(kept)[1:]!r}, dir_fd=d)",
        f"import os\nd = os.open('/', os.O_RDONLY)\nos.open({str(kept)[1:]!r}, 65, dir_fd=d)",
        f"import os\nos.mkfifo({str(tmp_path / 'new')!r})",
        f"import posix\nposix.mknod({str(tmp_path / 'new')!r})",
        f"import os\nos.mkdir({str(tmp_path / 'new')!r})",
        f"import os\nopen('here', 'w')\nos.rename('here', {str(tmp_path / 'new')!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.open({str(kept)!r}, os.O_WRONLY | os.O_TRUNC)",
        f"import tempfile\ntempfile.mkstemp(dir={str(tmp_path)!r})",
    ):
        outcome = run_program(change, QUICK, isolation=isolation)
        assert not outcome.passed and "PermissionError" in outcome.detail, change
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"


def test_files_inside_are_small_and_gone_afterwards(isolation):
    here = "open('a', 'w').write('text')\nassert open('a').read() == 'text'"
    assert run_program(here, QUICK, isolation=isolation).passed
    large = "f = open('a', 'wb')\nwhile True: f.write(bytes(10**5))"
    assert "File too large" in run_program(large, QUICK, isolation=isolation).detail
    empty = "import os\nassert os.listdir() == [], os.listdir()"
    assert run_program(empty, QUICK, isolation=isolation).passed


@pytest.mark.parametrize(
    "program",
    [
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'a')",
        "import tempfile, os\nwith tempfile.NamedTemporaryFile('w') as f: f.write('a')\n"
        "assert not os.path.exists(f.name)",
        "import tempfile, os\nhandle, name = tempfile.mkstemp()\nos.close(handle)\nos.remove(name)",
        "import tempfile, os\nwith tempfile.TemporaryDirectory() as d:\n"
        "    os.mkdir(d + '/in')\n    open(d + '/in/a', 'w').write('a')\n"
        "assert not os.path.exists(d)",
        "from pathlib import Path\nPath('a').touch()\nPath('a').touch()\nPath('a').unlink()",
        "from pathlib import Path\nPath('a').write_text('a')\nPath('a').rename('b')\n"
        "assert Path('b').read_text() == 'a'",
        "import os\nos.makedirs('a/b/c', exist_ok=True)\nopen('a/b/c/d', 'w').write('x')\n"
        "os.remove('a/b/c/d')\nos.removedirs('a/b/c')",
        "import os, shutil\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\n"
        "shutil.copy('a/b/c', 'd')\nshutil.rmtree('a')\nassert os.listdir() == ['d']",
    ],
)
def test_a_program_may_do_in_its_own_folder_what_it_likes(isolation, program):
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.passed, outcome.detail


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.makedirs('a/' * 50)",
        "import os\nfor i in range(50):\n    os.mkdir('a')\n    os.chdir('a')",
        "import os\nos.mkdir('a')\nos.mkdir('b')\nos.rename('a', 'b/a')",
        "import os\nos.rmdir(os.getcwd())",
        "import os\nos.mkdir('../out')",
    ],
)
def test_folders_are_few_and_stay_where_they_are(isolation, program):
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.detail == "PermissionError: the sandbox refuses to change files"


def test_the_environment_is_empty(isolation, monkeypatch):
    monkeypatch.setenv("MOSA_API_KEY", "secret")
    program = "import os\nassert not set(os.environ) - {'LANG', 'LC_CTYPE'}, dict(os.environ)"
    assert run_program(program, QUICK, isolation=isolation).passed


@pytest.mark.parametrize(
    "reading",
    [
        "open(f'/proc/{os.getppid()}/environ', 'rb')",
        "open(f'/proc/{os.getppid()}/cmdline', 'rb')",
        "open('/proc/1/cmdline', 'rb')",
        "open(f'/usr/../proc/{os.getppid()}/environ', 'rb')",
        "open(f'/proc/self/root/proc/{os.getppid()}/environ', 'rb')",
        "os.open('environ', 0, dir_fd=os.open(f'/proc/{os.getppid()}', 0))",
        "os.open(f'proc/{os.getppid()}/environ', 0, dir_fd=os.open('/', 0))",
        "pathlib.Path(f'/proc/{os.getppid()}/environ').read_bytes()",
        "io.FileIO(f'/proc/{os.getppid()}/environ')",
    ],
)
def test_keys_of_other_processes_are_not_read(isolation, reading):
    program = f"import io, os, pathlib\nfound = {reading}\nraise ValueError('read')"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.detail.startswith(("PermissionError", "FileNotFoundError")), outcome.detail


def test_no_key_and_no_control_character_is_in_what_is_said_of_an_end(isolation, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_DUMMY_0123456789")
    program = "raise ValueError('hf_DUMMY_' + '0123456789\\x1b[31m\\nbehind')"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.detail == "ValueError: [key]\\x1b[31m behind"


@pytest.mark.parametrize("module", ["_posixsubprocess", "posix", "_signal"])
def test_what_was_taken_from_a_module_does_not_come_back(isolation, module):
    """With it, what a program starts could outlive it."""
    program = f"import sys\ndel sys.modules[{module!r}]\nimport {module}"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.detail == f"PermissionError: the sandbox refuses {module}"


def test_no_other_name_brings_back_what_was_taken(isolation):
    program = (
        "import sys, importlib.machinery, importlib.util, math\n"
        "found = importlib.machinery.PathFinder.find_spec('_posixsubprocess')\n"
        "assert found and found.origin not in (None, 'built-in'), 'built in'\n"
        "loader = importlib.machinery.ExtensionFileLoader('a._posixsubprocess', found.origin)\n"
        "spec = importlib.util.spec_from_loader('a._posixsubprocess', loader)\n"
        "importlib.util.module_from_spec(spec)"
    )
    detail = run_program(program, QUICK, isolation=isolation).detail
    refused = "PermissionError: the sandbox refuses _posixsubprocess"
    assert detail in (refused, "AssertionError: built in")


def test_native_code_is_not_called_by_another_way_in(isolation):
    """Where `_ctypes` is built into Python, importing it so raises no event."""
    program = "import importlib\nimportlib.import_module('_ctypes').dlopen(None, 0)"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.detail.startswith("PermissionError: the sandbox refuses")


@pytest.mark.parametrize("module", ["ctypes", "_ctypes", "sqlite3", "dbm.gnu"])
def test_python_itself_cannot_be_left(isolation, module):
    outcome = run_program(f"import {module}", QUICK, isolation=isolation)
    assert not outcome.passed


def test_what_solutions_import_is_there(isolation):
    modules = "math, re, heapq, itertools, collections, functools, typing, string, random, datetime"
    modules += ", copy, operator, bisect, cmath, hashlib, decimal, fractions, statistics, sys, os"
    assert run_program(f"import {modules}", QUICK, isolation=isolation).detail == ""


def test_a_flood_of_answers_is_not_read(isolation):
    """A program that writes where the sandbox answers is ended, and has not passed."""
    program = "import os\nwhile True: os.write(3, b'{}' * 1000)"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert not outcome.passed and outcome.detail != "out of time"


@pytest.mark.parametrize(
    "said",
    [
        b'{"passed": true}',
        b'{"passed": 17, "detail": ""}',
        b'{"passed": 1, "detail": ""}',
        b'{"passed": "x", "detail": ""}',
        b'{"passed": true, "detail": 3}',
        b'{"passed": true, "detail": "", "more": 1}',
        b'{"not_isolated": "text"}',
        b"the kernel refused",
        b"ready\n",
        b"true",
        b"17",
        b"\xff\xfe\xff",
        b"[" * 4096,
        b"9" * 4096,
    ],
)
def test_what_a_program_reports_is_a_yes_a_no_or_nothing(isolation, said):
    program = f"import os\nos.write(3, {said!r})\nos._exit(0)"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert outcome.passed is False and outcome.detail == "ended without coming to its end"


def test_a_report_can_be_written_down(isolation):
    """A program can claim how it ended (docs/utility.md), but in characters that UTF-8 has."""
    said = rb'{"passed": false, "detail": "\ud83d"}'
    program = f"import os\nos.write(3, {said!r})\nos._exit(0)"
    outcome = run_program(program, QUICK, isolation=isolation)
    assert (outcome.passed, outcome.detail) == (False, "?")


def test_sockets_that_reach_nobody_but_the_program_are_all_there_are(isolation):
    """asyncio wakes its loop by a pair of them."""
    pair = "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'"
    assert run_program(pair, QUICK, isolation=isolation).detail == ""
    for other in (
        "socket.socket(socket.AF_UNIX).connect('/run/x')",
        "socket.socket(socket.AF_UNIX).bind('x')",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '/run/x')",
        "socket.socket(socket.AF_INET)",
    ):
        detail = run_program(f"import socket\n{other}", QUICK, isolation=isolation).detail
        assert "the sandbox refuses the network" in detail, other


@pytest.fixture
def kernel_alone(tmp_path, monkeypatch) -> None:
    """The sandbox without Python's refusals: what is left is what the kernel does."""
    if best_isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    source = CHILD.read_text(encoding="utf-8")
    bare = source.replace("    _refuse(folder)\n", "")
    assert bare != source
    child = tmp_path / "child.py"
    child.write_text(bare, encoding="utf-8")
    monkeypatch.setattr(code_sandbox, "CHILD", child)


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", "Network is unreachable"),
        ("open('{}/new', 'w')", "Read-only file system"),
        ("import os\nos.remove('{}/child.py')", "Read-only file system"),
        ("import os\nos.kill(int(os.environ.get('P', '{pid}')), 0)", "No such process"),
        ("open('/proc/{pid}/environ')", "No such file"),
    ],
)
def test_the_kernel_keeps_a_program_apart(kernel_alone, tmp_path, program, detail):
    filled = program.replace("{}", str(tmp_path)).replace("{pid}", str(os.getpid()))
    assert detail in run_program(filled, QUICK, isolation="namespaces").detail


def test_sockets_pipes_and_devices_outside_have_no_name_inside(kernel_alone, tmp_path):
    socket_path, pipe, device = (str(tmp_path / name) for name in ("s", "p", "d"))
    os.mkfifo(pipe)
    with suppress(PermissionError):
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        for reaching in (
            f"import socket\nsocket.socket(socket.AF_UNIX).connect({socket_path!r})",
            f"open({pipe!r}, 'r+b', 0)",
            f"open({device!r}, 'r+b', 0)",
            "open('/dev/null', 'r+b', 0)",
            "open('/etc/passwd')",
        ):
            outcome = run_program(reaching, QUICK, isolation="namespaces")
            assert outcome.detail.startswith("FileNotFoundError"), outcome.detail


def brought() -> str:
    """A program that brings a module in native code."""
    import _ssl

    if not getattr(_ssl, "__file__", None):
        pytest.skip("this Python has its modules built in")
    return (
        "import importlib.machinery, importlib.util\n"
        f"open('brought.so', 'wb').write(open({_ssl.__file__!r}, 'rb').read())\n"
        "loader = importlib.machinery.ExtensionFileLoader('_ssl', './brought.so')\n"
        "importlib.util.module_from_spec(importlib.util.spec_from_loader('_ssl', loader))"
    )


def test_native_code_that_a_program_brings_is_not_loaded(kernel_alone):
    """Its folder holds texts and nothing that runs."""
    outcome = run_program(brought(), QUICK, isolation="namespaces")
    assert "failed to map segment" in outcome.detail, outcome.detail


def test_python_loads_no_native_code_that_a_program_brings(isolation):
    outcome = run_program(brought(), QUICK, isolation=isolation)
    assert outcome.detail == "PermissionError: the sandbox refuses native code"


def test_what_a_program_started_ends_with_it(kernel_alone):
    """Root may start processes in spite of the limit; they have left their group, and end."""
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)"
    run_program(program, QUICK, isolation="namespaces")
    mark = b"mosa-code-"
    deadline = time.monotonic() + 60
    while left := [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if mark in _bytes_of(path) and b"child.py" in _bytes_of(path)
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended meanwhile
        return b""


def test_elsewhere_than_on_linux_nothing_is_run(monkeypatch):
    monkeypatch.setattr(code_sandbox.sys, "platform", "darwin")
    best_isolation.cache_clear()
    try:
        with refuses("Linux", "--run_code"):
            run_program("assert True")
    finally:
        best_isolation.cache_clear()


def test_a_system_without_namespaces_falls_back_and_says_so(monkeypatch, tmp_path):
    """Where the kernel refuses, the isolation is Python's, in name too."""
    source = CHILD.read_text(encoding="utf-8")
    refusing = source.replace("libc.unshare(NEW_NAMESPACES)", "-1")
    assert refusing != source
    child = tmp_path / "child.py"
    child.write_text(refusing, encoding="utf-8")
    monkeypatch.setattr(code_sandbox, "CHILD", child)
    best_isolation.cache_clear()
    try:
        assert run_program("assert True", QUICK).isolation == "python"
        with refuses("unshare"):
            run_program("assert True", QUICK, isolation="namespaces")
    finally:
        best_isolation.cache_clear()
