"""The first code of a sandbox's process: makes the namespaces, then runs a role of `inside`.

The interpreter gets this file and those of `inside` on its standard input, compiled, with what to
do: so no path of the harness's is in the process, and no time goes into compiling. It needs nothing
but the standard library, and of that what is imported soon.

What it makes, where bubblewrap does not: new user, mount, pid, network, ipc, uts and cgroup
namespaces; a root in memory that holds the interpreter and its libraries, read-only, four devices
and an empty /tmp of bounded size. There is no /proc. The role is the pid namespace's first process,
so that the kernel ends all with it, and it ends with its parent, which is all that the harness
kills.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS, NEWCGROUP
_NAMESPACES = (1 << 28) | (1 << 17) | (1 << 29) | (1 << 30) | (1 << 27) | (1 << 26) | (1 << 25)
_RDONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_DETACH = 2
_ATTRIBUTE_RDONLY, _ATTRIBUTE_NOSUID, _ATTRIBUTE_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_USER = 1000  # who one is, inside
libc = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = tuple((n, ctypes.c_uint64) for n in ("set", "clear", "propagation", "user"))


def call(step: str, result: int) -> None:
    """A system call's result; a step that failed is named."""
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{step}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options))
    call(f"mount {target}", result)


def bind(source: str, target: str, numbers: dict[str, int], attributes: int) -> None:
    """Show a file or folder, with what is mounted below it, at a place of the new root."""
    folder = target if os.path.isdir(source) else os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    if folder != target:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(source, target, None, _BIND | _REC)
    read_only(target, numbers, attributes)


def read_only(target: str, numbers: dict[str, int], attributes: int, below: bool = True) -> None:
    """Let nothing be changed there, nor in what is mounted below."""
    wanted = MountAttributes(attributes, 0, 0, 0)
    result = libc.syscall(
        ctypes.c_long(numbers["mount_setattr"]), ctypes.c_int(_AT_FDCWD), os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if below else 0), ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )  # fmt: skip
    call("mount_setattr (of Linux 5.12)", result)


def enter(view: dict[str, Any]) -> None:
    """New namespaces, and a root that holds what `view` lists."""
    user, group = os.getuid(), os.getgid()
    call("unshare", libc.unshare(_NAMESPACES))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_USER} {user} 1"),
        ("gid_map", f"{_USER} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    libc.sethostname(b"sandbox", 7)
    enter_root(view)


def enter_root(view: dict[str, Any]) -> None:
    """A root in memory takes the place of the machine's."""
    mount("none", "/", None, _REC | _PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.chdir("/tmp")
    os.mkdir("host")
    number = ctypes.c_long(view["numbers"]["pivot_root"])
    call("pivot_root", libc.syscall(number, b".", b"host"))
    os.chdir("/")
    os.mkdir("/tmp")
    space = f"size={view['file_bytes']},nr_inodes={view['files']},mode=700"
    mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, space)
    fixed = _ATTRIBUTE_RDONLY | _ATTRIBUTE_NOSUID
    for source, target in view["shown"]:
        bind("/host" + source, target, view["numbers"], fixed | _ATTRIBUTE_NODEV)
    for target in view["hidden"]:
        mount("tmpfs", target, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k,nr_inodes=2")
    for device in view["devices"]:
        bind("/host" + device, device, view["numbers"], fixed)
    call("umount", libc.umount2(b"/host", _DETACH))
    os.rmdir("/host")
    read_only("/", view["numbers"], fixed, below=False)


def end_with_parent() -> None:
    """Be killed when the parent ends."""
    call("prctl", libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))


def end_if_closed(alive: int) -> None:
    """End if the other end of a pipe is closed, which only the parent held: it ended before."""
    poll = select.poll()
    poll.register(alive, 0)
    if poll.poll(0):
        os._exit(1)
    os.close(alive)


def fork(descriptors: list[int]) -> None:
    """Go on as the namespace's first process; the parent waits and ends with it."""
    alive, parents = os.pipe()
    child = os.fork()
    if child:
        for descriptor in (0, 1, alive, *descriptors):
            os.close(descriptor)
        os.waitpid(child, 0)
        os._exit(0)
    os.close(parents)
    end_with_parent()
    end_if_closed(alive)


def load_modules(modules: list[tuple[str, Any]]) -> dict[str, Any]:
    """The package `inside`, of its modules' names and code, each after those that it imports."""
    loaded = {}
    for name, code in [("", None), *modules]:
        full = f"inside.{name}" if name else "inside"
        module = sys.modules[full] = type(sys)(full)
        if name:
            module.__package__ = "inside"
            exec(code, module.__dict__)
        else:
            module.__path__ = []
        loaded[name] = module
    return loaded


def main(job: dict[str, Any]) -> None:
    """Do the job; what goes wrong before the role begins is told on standard error."""
    descriptors = [job[name] for name in ("read", "write", "result") if name in job]
    try:
        parent = job.pop("parent")
        if parent is not None:
            end_with_parent()
            if os.getppid() != parent:
                os._exit(1)
        if "view" in job:
            enter(job.pop("view"))
            end_with_parent()  # new credentials may have made the kernel forget it
            fork(descriptors)
        os.chdir(job["folder"])
        sys.path += job["packages"]
        modules = load_modules(job.pop("modules"))
        confine, role = modules["confine"], modules[job["role"]]
        os.environ.update(job["environment"])
        confine.limit(job["limits"])
        if job["confined"]:
            confine.drop_capabilities()
        if job["filter"] is not None:
            confine.filter_calls(job.pop("filter"))
    except Exception as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    confine.silence()
    role.main(job)
