"""The inner side of the sandbox: a separate Python that shuts itself in and runs one program.

`code_sandbox.py` starts this file by its path, without site-packages and with an empty environment,
so nothing of mosa is imported here. Two ways to call it:

    enter FOLDER LIMITS   new namespaces (Linux): no network, no view of other processes, and no
                          files but Python's own, which can be read and not written, and a small
                          FOLDER in memory; in them it starts itself again with `run`
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
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR = 442  # the same on every architecture; Linux 5.12
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGKILL = 9
AF_UNIX = 1
READY = b"ready\n"
"""What is said when the program may come."""
INNER_USER = 1000  # not root, so that starting Python again gives up every capability
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
"""Where a system keeps its libraries."""

PROCESS_EVENTS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
PROCESS_EVENTS += ("subprocess.Popen", "os.kill", "os.killpg", "pty.spawn")
OWN_FILE_EVENTS = {
    "os.remove": (1, 1),
    "os.rmdir": (1, 1),
    "os.mkdir": (1, 2),
    "os.rename": (2, 2),
    "os.chmod": (1, 2),
    "os.utime": (1, 3),
    "os.truncate": (1, 2),
    "shutil.rmtree": (1, 2),
}
"""Changes that a program may make in its own folder: how many paths come first in the event, and
from where on the folders stand, as descriptors, that these start from."""
FILE_EVENTS = ("os.link", "os.symlink", "os.chown", "os.setxattr", "os.removexattr")
MOST_FOLDERS = 8
"""Of the program's, inside each other: whoever deletes them goes down into each."""
PATCHED_MODULES = ("_posixsubprocess", "_signal", "posix", "os", "signal")
"""Modules of which functions are taken; an import again would bring them back."""
NATIVE_MODULES = ("ctypes", "_ctypes", "_sqlite3", "_dbm", "_gdbm", "_posixshmem")
"""Modules that call other code, or change files, without an event."""


def enter(folder: str, limits: str) -> int:
    """Shut this process in, run the program inside, and return its exit status.

    Where the system does not allow it, says why and runs nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    python, this_file = os.path.realpath(sys.executable), os.path.realpath(__file__)

    def checked(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str | None, where: str, kind: bytes | None, flags: int, options: str) -> None:
        from_ = None if source is None else source.encode()
        done = libc.mount(from_, where.encode(), kind, ctypes.c_ulong(flags), options.encode())
        checked(done, where)

    try:
        checked(libc.unshare(NEW_NAMESPACES), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("gid_map", f"{INNER_USER} {group} 1"),
            ("uid_map", f"{INNER_USER} {user} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        mount(None, "/", None, MS_REC | MS_PRIVATE, "")
        # A root of its own, so that sockets, pipes and devices outside have no name in it.
        mount("tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
        for path in _shown(python, this_file):
            inside = folder + path
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            if os.path.islink(path):
                os.symlink(os.readlink(path), inside)
                continue
            if os.path.isdir(path):
                os.mkdir(inside)
            else:
                os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o600))
            mount(path, inside, None, MS_BIND | MS_REC, "")
        os.makedirs(folder + folder)
        os.chdir(folder)
        checked(libc.pivot_root(b".", b"."), "a root of its own")
        checked(libc.umount2(b".", MNT_DETACH), "the files outside")
        flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        wanted = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        made = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, wanted, size)
        checked(made, "read-only files")
        most = json.loads(limits)["folder_bytes"]
        options = f"size={most},mode=700"
        mount("tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
        os.chdir(folder)
    except OSError as error:
        print(error, flush=True)
        return 1
    inner = os.fork()  # the first process of the new process namespace; the others end with it
    if inner == 0:
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.execv(python, [python, "-I", "-S", "-B", this_file, "run", folder, limits])
    return os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])


def _shown(python: str, this_file: str) -> list[str]:
    """The files and folders that Python needs, none of them inside another."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        loaded = [line.split(maxsplit=5)[-1].rstrip("\n") for line in file]
    paths = [os.path.dirname(python), sys.base_prefix, os.path.dirname(os.__file__)]
    paths += [os.path.dirname(path) for path in loaded if path.startswith("/")]
    wanted = {*SYSTEM, *map(os.path.realpath, paths), this_file} - {"/"}
    shown: list[str] = []
    for path in sorted(wanted):
        inside = any(path.startswith(f"{other}/") for other in shown)
        if os.path.exists(path) and not inside:
            shown.append(path)
    return shown


class _Unread(io.StringIO):
    """Standard input, output and errors of the program: written to, and never read."""

    def read(self, *args: object) -> str:
        raise OSError("the sandbox has no standard input")

    readline = read

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
    for standard in (0, 1):
        os.dup2(2, standard)  # which is the null device; in its own root there is none
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

    def is_own(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.path.realpath(os.fsdecode(path))
        return name.startswith(f"{root}/") and name.count("/") - root.count("/") <= MOST_FOLDERS

    def check_opened(path: object, mode: object, flags: int) -> None:
        if isinstance(path, int):  # a file that is open already
            return
        if not isinstance(path, str | bytes | os.PathLike):
            raise PermissionError("the sandbox refuses to open what is no path")
        name = os.path.realpath(os.fsdecode(path))
        if f"{name}/".startswith("/proc/"):  # environments hold keys
            raise PermissionError("the sandbox refuses to read of other processes")
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        # A temporary file without a name is opened by its folder's.
        if writes and not (name == root or is_own(path)):
            raise PermissionError("the sandbox refuses to change files")

    def check_changed(event: str, args: tuple) -> None:
        num_paths, first_folder = OWN_FILE_EVENTS[event]
        starts_here = all(folder == -1 for folder in args[first_folder:])
        # A folder that moves takes along how deep it is.
        is_moved = event == "os.rename" and os.path.isdir(args[0])
        if not starts_here or is_moved or not all(map(is_own, args[:num_paths])):
            raise PermissionError("the sandbox refuses to change files")

    def hook(event: str, args: tuple) -> None:
        # A pair of sockets joined to each other, which asyncio wakes itself by, reaches no network.
        is_pair = event == "socket.__new__" and args[1] == AF_UNIX
        if event.startswith("socket.") and not is_pair:
            raise PermissionError("the sandbox refuses the network")
        if event in PROCESS_EVENTS:
            raise PermissionError("the sandbox refuses other processes")
        if event.startswith("ctypes."):
            raise PermissionError("the sandbox refuses ctypes")
        # A module in native code is found by the last part of its name.
        module = args[0].rpartition(".")[2] if event == "import" else ""
        if module in (*NATIVE_MODULES, *PATCHED_MODULES):
            raise PermissionError(f"the sandbox refuses {module}")
        # The file of a module in native code.
        file = args[1] if event == "import" else None
        if isinstance(file, str) and os.path.realpath(file).startswith(f"{root}/"):
            raise PermissionError("the sandbox refuses native code")
        if event == "open":
            check_opened(*args)
        if event in OWN_FILE_EVENTS:
            check_changed(event, args)
        if event in FILE_EVENTS:
            raise PermissionError("the sandbox refuses to change files")

    def refusing(what: str) -> Callable[..., None]:
        def refused(*args: object, **named: object) -> None:
            raise PermissionError(f"the sandbox refuses {what}")

        return refused

    open_plainly = os.open

    def open_without_folder(
        path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if dir_fd is not None:
            raise PermissionError("the sandbox refuses dir_fd")
        return open_plainly(path, flags, mode)

    # The event of os.open does not say from which folder a path starts.
    for module in (os, sys.modules["posix"]):
        vars(module)["open"] = open_without_folder
    os.supports_dir_fd.clear()  # so that shutil does without
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
