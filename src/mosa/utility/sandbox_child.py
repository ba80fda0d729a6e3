"""The inner side of the sandbox: a separate Python that shuts itself in and runs one program.

`code_sandbox.py` starts this file by its path, without site-packages and with an empty environment,
so nothing of mosa is imported here. Two ways to call it:

    enter FOLDER LIMITS   new namespaces (Linux): no network, no view of other processes, and files
                          that can be read and not written, but for a small FOLDER in memory; in
                          them it starts itself again with `run`
    run FOLDER LIMITS     limits of the kernel and refusals by Python; it says `ready` and then runs
                          the program that comes on standard input; how it ended goes to standard
                          output as JSON

The program runs as in HumanEval's published harness (github.com/openai/human-eval, execution.py):
`exec` in an empty namespace, so that `__name__` is not "__main__", there is no `__file__`, nothing
can be read from standard input, and what is printed is kept from everyone.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Mounts, interprocess communication, users, processes, network (sched.h)."""
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1, 2, 4, 16384, 1 << 18
SYS_MOUNT_SETATTR = 442  # the same on every architecture; Linux 5.12
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGKILL = 9
AF_UNIX = 1
READY = b"ready\n"
"""What is said when the program may come."""
INNER_USER = 1000  # not root, so that starting Python again gives up every capability
HIDDEN = ("/proc", "/run")
"""Information about other processes, and the sockets of services."""

PROCESS_EVENTS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
PROCESS_EVENTS += ("subprocess.Popen", "os.kill", "os.killpg", "pty.spawn")
FILE_EVENTS = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink")
FILE_EVENTS += ("os.chmod", "os.chown", "os.truncate", "os.utime", "os.setxattr")
NATIVE_MODULES = ("ctypes", "_ctypes", "_sqlite3", "_dbm", "_gdbm", "_posixshmem")
"""Modules that call other code, or change files, without an event."""


def enter(folder: str, limits: str) -> int:
    """Shut this process in, run the program inside, and return its exit status.

    Where the system does not allow it, says why and runs nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()

    def checked(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def mount(kind: bytes | None, where: str, flags: int, options: bytes | None = None) -> None:
        checked(libc.mount(kind, where.encode(), kind, ctypes.c_ulong(flags), options), where)

    try:
        checked(libc.unshare(NEW_NAMESPACES), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("gid_map", f"{INNER_USER} {group} 1"),
            ("uid_map", f"{INNER_USER} {user} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        mount(None, "/", MS_REC | MS_PRIVATE)
        read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(read_only))
        made = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, size)
        checked(made, "read-only files")
        for hidden in filter(os.path.isdir, HIDDEN):
            mount(b"tmpfs", hidden, MS_RDONLY | MS_NOSUID | MS_NODEV, b"size=4k")
        most = json.loads(limits)["folder_bytes"]
        mount(b"tmpfs", folder, MS_NOSUID | MS_NODEV, f"size={most},mode=700".encode())
        os.chdir(folder)
    except OSError as error:
        print(error, flush=True)
        return 1
    inner = os.fork()  # the first process of the new process namespace; the others end with it
    if inner == 0:
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        own = [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__)]
        os.execv(sys.executable, [*own, "run", folder, limits])
    return os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])


class _Unread(io.StringIO):
    """Standard input, output and errors of the program: written to, and never read."""

    def read(self, *args: object) -> str:
        raise OSError("the sandbox has no standard input")

    def readline(self, *args: object) -> str:
        raise OSError("the sandbox has no standard input")

    def readlines(self, *args: object) -> list[str]:
        raise OSError("the sandbox has no standard input")

    def readable(self) -> bool:
        return False


def run(folder: str, limits: str) -> int:
    """Run the program on standard input and say how it ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # end with who started this
    os.write(1, READY)
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    sys.argv = ["program.py"]
    sys.stdin = sys.stdout = sys.stderr = _Unread()
    _limit(json.loads(limits))
    _refuse(folder)
    passed, detail = False, ""
    try:
        # This file's own future statements are none of the program's.
        exec(compile(source, "<string>", "exec", dont_inherit=True), {})
        passed = True
    except MemoryError:
        detail = "MemoryError"
    except BaseException as error:  # anything that ends a program, an exit too, is its failure
        detail = f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace").decode()
    said.write(json.dumps({"passed": passed, "detail": detail.removesuffix(": ")}))
    said.flush()
    os._exit(0)  # do not wait for the program's threads and exit handlers


def _limit(limits: dict[str, int]) -> None:
    """Limits of the kernel on this process."""
    for kind, most in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))


def _refuse(folder: str) -> None:
    """Let Python refuse the network, other processes, native code, and files outside the folder.

    An audit hook cannot be removed. It stops what a program does by mistake; one that attacks
    Python itself is stopped only by the namespaces.
    """
    import _posixsubprocess

    root = os.path.realpath(folder)

    def may_write(path: object, mode: object) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        # Where os.open is used, the event has no mode, nor the folder that the path may start from.
        if mode is None or not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.dirname(os.path.realpath(os.fsdecode(path))) == root

    def hook(event: str, args: tuple) -> None:
        # A pair of sockets joined to each other, which asyncio wakes itself by, reaches no network.
        is_pair = event == "socket.__new__" and args[1] == AF_UNIX
        if event.startswith("socket.") and not is_pair:
            raise PermissionError("the sandbox refuses the network")
        if event in PROCESS_EVENTS:
            raise PermissionError("the sandbox refuses other processes")
        if event.startswith("ctypes."):
            raise PermissionError("the sandbox refuses ctypes")
        if event == "import" and args[0] in NATIVE_MODULES:
            raise PermissionError(f"the sandbox refuses {args[0]}")
        is_change = event in FILE_EVENTS
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            is_change = bool(writes) and not may_write(path, mode)
        if is_change:
            raise PermissionError("the sandbox refuses to change files")

    def refusing(what: str) -> Callable[..., None]:
        def refused(*args: object, **named: object) -> None:
            raise PermissionError(f"the sandbox refuses {what}")

        return refused

    # No audit event reports these.
    _posixsubprocess.fork_exec = refusing("other processes")
    for module in (signal, sys.modules["_signal"]):
        vars(module)["pidfd_send_signal"] = refusing("other processes")
    for module in (os, sys.modules["posix"]):
        for name in ("mkfifo", "mknod"):
            vars(module)[name] = refusing("to change files")
    for name in NATIVE_MODULES:
        sys.modules.pop(name, None)  # an import of a loaded module raises no event
    sys.addaudithook(hook)


if __name__ == "__main__":
    way, folder, limits = sys.argv[1:]
    sys.exit((enter if way == "enter" else run)(folder, limits))
