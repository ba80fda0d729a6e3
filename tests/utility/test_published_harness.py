"""Programs of every shape, scored as HumanEval's published harness scores them.

`published` follows `unsafe_execute` and `check_correctness` of github.com/openai/human-eval
(execution.py; the copy in Hugging Face's `code_eval`, which MBPP is scored by, does the same): a
process of its own runs `exec(program, {})` with what it prints thrown away, nothing to read, and
the functions that could do harm taken out.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mosa.utility.code_sandbox import Isolation, Limits, best_isolation, run_program

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs on Linux alone"),
]

SECONDS = 8.0
LIMITS = Limits(seconds=2 * SECONDS, cpu_seconds=int(SECONDS))

REFERENCE = """
import builtins, contextlib, io, os, shutil, subprocess, sys
program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
class WriteOnly(io.StringIO):
    def read(self, *args): raise OSError
    def readline(self, *args): raise OSError
    def readlines(self, *args): raise OSError
    def readable(self, *args): return False
class redirect_stdin(contextlib._RedirectStream):
    _stream = "stdin"
answer = os.dup(1)
builtins.exit = builtins.quit = None
for name in ("kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename "
             "renames truncate replace unlink fchmod fchown chmod chown chroot").split():
    setattr(os, name, None)
shutil.rmtree = shutil.move = shutil.chown = subprocess.Popen = None
sys.argv = ["program.py"]
passed = False
try:
    stream = WriteOnly()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        with redirect_stdin(stream):
            exec(program, {})
    passed = True
except BaseException:
    pass
os.write(answer, b"passed" if passed else b"failed")
os._exit(0)
"""


def published(program: str, folder: str) -> bool:
    """Whether HumanEval's harness passes a program."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", REFERENCE],
            input=program.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=SECONDS,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.stdout == b"passed"


ADD = "def add(a, b):\n    return a + b\n"
CHECK = "\nassert add(1, 2) == 3\n"
THREAD = "import threading\nr = []\nt = threading.Thread(target=lambda: r.append(3))\nt.start()\n"

PROGRAMS = {
    # Functions and their tests
    "right": ADD + CHECK,
    "wrong": ADD.replace("+", "-") + CHECK,
    "syntax": "def add(a, b)\n    return a + b\n" + CHECK,
    "indentation": "def add(a, b):\n  x = 1\n    return a + b\n" + CHECK,
    "missing function": "x = 1\n" + CHECK,
    "empty": "",
    "other name": ADD.replace("add", "plus") + CHECK,
    "humaneval": ADD + "\ndef check(f):\n    assert f(1, 2) == 3\n\ncheck(add)",
    "humaneval wrong": ADD + "\ndef check(f):\n    assert f(1, 2) == 4\n\ncheck(add)",
    "test raises": ADD + "\nassert add(1, '2') == 3\n",
    "lambda": "add = lambda a, b: a + b\n" + CHECK,
    "recursion": "def add(a, b):\n    return a if not b else add(a + 1, b - 1)\n" + CHECK,
    "endless recursion": "def add(a, b):\n    return add(a, b)\n" + CHECK,
    "generator": "def f():\n    yield from range(3)\nassert list(f()) == [0, 1, 2]",
    "closure": "def f(n):\n    def g(x): return x + n\n    return g\nassert f(1)(2) == 3",
    "class": "class A:\n    def add(self, a, b): return a + b\nadd = A().add\n" + CHECK,
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "assert P(1) == P(1)",
    "enum": "from enum import Enum\nclass C(Enum):\n    A = 1\nassert C(1) is C.A",
    "named tuple": "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n"
    "assert P(1).x == 1",
    "match": "def f(x):\n    match x:\n        case [a, *_]: return a\nassert f([1, 2]) == 1",
    "walrus": "assert (n := 3) == 3",
    "cache": "import functools\n@functools.cache\n"
    "def f(n): return n if n < 2 else f(n-1) + f(n-2)\nassert f(30) == 832040",
    "global": "n = 0\ndef f():\n    global n\n    n += 1\nf()\nassert n == 1",
    "future": "from __future__ import annotations\ndef f(x: nothing): pass\n",
    "no future": "def f(x: nothing): pass\n",
    "annotations are values": "def f(x: int): pass\nassert f.__annotations__ == {'x': int}",
    "late future": "x = 1\nfrom __future__ import annotations\n",
    # What a program does when it is run and not imported
    "main reads": ADD + "\nif __name__ == '__main__':\n    a = int(input())\n" + CHECK,
    "main reads argv": ADD + "\nimport sys\nif __name__ == '__main__':\n    int(sys.argv[1])\n"
    "" + CHECK,
    "main unittest": ADD + "\nimport unittest\nif __name__ == '__main__':\n    unittest.main()\n"
    "" + CHECK,
    "main doctest": ADD + "\nimport doctest\nif __name__ == '__main__':\n    doctest.testmod()\n"
    "" + CHECK,
    "main defines": "if __name__ == '__main__':\n    def add(a, b): return a + b\n" + CHECK,
    "main is wrong": ADD + "\nif __name__ == '__main__':\n    assert False\n" + CHECK,
    "name": "assert __name__ != '__main__'",
    "name is builtins": "assert __name__ == 'builtins'",
    "file": "print(__file__)",
    "unittest at once": ADD + "\nimport unittest\nunittest.main()\n" + CHECK,
    "class of a module": "class A: pass\nassert A.__module__ == 'builtins'",
    "pickle": "import pickle\nclass A: pass\npickle.dumps(A())",
    "source of itself": "import inspect\ndef f(): pass\ninspect.getsource(f)",
    # Input and output
    "input": "input()",
    "input caught": "try:\n    input()\nexcept EOFError:\n    pass",
    "input caught widely": "try:\n    x = input()\nexcept Exception:\n    x = '1'\nassert x == '1'",
    "stdin read": "import sys\nsys.stdin.read()",
    "stdin lines": "import sys\nfor line in sys.stdin: pass",
    "print": "print('hi')\nimport sys\nprint('x', file=sys.stderr)\nsys.stdout.flush()",
    "print much": "for i in range(10**5): print(i)",
    "stdout number": "import sys\nsys.stdout.fileno()",
    "stdout bytes": "import sys\nsys.stdout.buffer.write(b'x')",
    "argv": "import sys\nassert len(sys.argv) == 1",
    "file of its own": "open('a', 'w').write('x')\nassert open('a').read() == 'x'",
    "no file": "open('nothing')",
    "captured": "import io, contextlib\nb = io.StringIO()\n"
    "with contextlib.redirect_stdout(b): print('x')\nassert b.getvalue() == 'x\\n'",
    # Ends
    "exit": "import sys\nsys.exit(0)",
    "exit by name": "exit()",
    "exit in check": ADD + "\ntry:\n    raise SystemExit\nexcept SystemExit:\n    pass\n" + CHECK,
    "exit at once": "import os\nos._exit(0)\n" + CHECK,
    "atexit": "import atexit\natexit.register(lambda: 1 / 0)",
    "keyboard": "raise KeyboardInterrupt",
    "own error": "class E(BaseException): pass\nraise E",
    "assertion caught": "try:\n    assert False\nexcept AssertionError:\n    pass",
    "abort": "import os\nos.abort()",
    "endless": "while True: pass",
    "warning": "import warnings\nwarnings.warn('x')",
    "deleted error": "del x",
    # Threads and event loops
    "thread": THREAD + "t.join()\nassert r == [3]",
    "thread left": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,)).start()",
    "thread raises": "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\n"
    "t.join()",
    "pool": "from concurrent.futures import ThreadPoolExecutor as P\n"
    "with P(4) as p: assert sum(p.map(abs, [-1, 2])) == 3",
    "timer": "import threading\nt = threading.Timer(0.01, lambda: None)\nt.start()\nt.join()",
    "queue": "import queue, threading\nq = queue.Queue()\n"
    "threading.Thread(target=q.put, args=(1,)).start()\nassert q.get() == 1",
    "asyncio": "import asyncio\nasync def f(): return 3\nassert asyncio.run(f()) == 3",
    "asyncio sleep": "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n"
    "    return 3\nassert asyncio.run(f()) == 3",
    "asyncio gather": "import asyncio\nasync def f(n): return n\n"
    "async def g(): return await asyncio.gather(f(1), f(2))\nassert asyncio.run(g()) == [1, 2]",
    "asyncio thread": "import asyncio\nasync def f(): return await asyncio.to_thread(abs, -3)\n"
    "assert asyncio.run(f()) == 3",
    # Other processes
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "system": "import os\nos.system('true')",
    "fork": "import os\nos.fork()",
    # Odd texts
    "crlf": "x = 1\r\nassert x == 1\r\n",
    "tabs": "if True:\n\tx = 1\nassert x == 1",
    "mixed tabs": "if True:\n\tx = 1\n        y = 2\n",
    "nul": "x = 1\0",
    "bom": "\ufeffx = 1",
    "half a character": "x = '\ud800'",
    "umlauts": "größe = 'ü'\nassert len(größe) == 1",
    "cookie": "# -*- coding: latin-1 -*-\nassert len('ü') == 1",
    "form feed": "x = 1\n\f\nassert x == 1",
    "no last newline": "assert True",
    "markdown": "Here is the code:\n\nx = 1",
    "fence": "```python\nx = 1\n```",
    "type hints": "from typing import List, Optional\n"
    "def f(x: Optional[List[int]]) -> int: return len(x or [])\nassert f(None) == 0",
    "imports": "import math, re, collections, itertools, heapq, string, random, json, datetime",
    "not installed": "import a_module_that_is_nowhere",
    "star": "from math import *\nassert floor(1.5) == 1",
    "nested functions with exec": "d = {}\nexec('x = 1', d)\nassert d['x'] == 1",
    "builtins": "import builtins\nbuiltins.added = 1\nassert added == 1",
    "big numbers": "assert len(str(2**10000)) == 3011",
    "too big numbers": "str(10**5000)",
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bool]:
    folder = tmp_path_factory.mktemp("published")

    def of(name: str) -> bool:
        own = folder / name.replace(" ", "_")
        own.mkdir()
        return published(PROGRAMS[name], str(own))

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(PROGRAMS, pool.map(of, PROGRAMS), strict=True))


def test_the_programs_are_of_both_kinds(expected):
    assert len(expected) >= 60
    assert min(sum(expected.values()), sum(not p for p in expected.values())) >= 25


@pytest.mark.parametrize(
    "isolation", ["namespaces", pytest.param("python", marks=pytest.mark.slow)]
)
def test_every_program_is_scored_as_published(expected, isolation: Isolation):
    if isolation == "namespaces" and best_isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    with ThreadPoolExecutor(4) as pool:
        ended = pool.map(lambda p: run_program(p, LIMITS, isolation=isolation), PROGRAMS.values())
        found = dict(zip(PROGRAMS, ended, strict=True))
    differing = {name: r.detail for name, r in found.items() if r.passed != expected[name]}
    assert differing == {}


@pytest.mark.parametrize("isolation", ["namespaces", "python"])
def test_threads_are_there_for_every_user(isolation: Isolation):
    """The kernel counts threads as a user's processes, and root is exempt: no limit of ours may be
    on them, or the score depends on who runs mosa."""
    if isolation == "namespaces" and best_isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    outside = resource.getrlimit(resource.RLIMIT_NPROC)
    program = "import resource\nfound = resource.getrlimit(resource.RLIMIT_NPROC)\n"
    program += f"assert found == {outside}, found"
    assert run_program(program, LIMITS, isolation=isolation).detail == ""
