"""The sandbox itself: what it refuses, what it leaves behind, and that it ends with the harness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sandboxes import ADD, CHECK_ADD, sandbox

from paddlenlp_codegen_task.evaluation.sandbox import (
    Limits,
    Running,
    Sandbox,
    SandboxUnavailable,
    jail,
    seccomp,
    view,
)
from paddlenlp_codegen_task.evaluation.sandbox.inside import checker
from paddlenlp_codegen_task.evaluation.sandbox.jail import WAYS
from paddlenlp_codegen_task.evaluation.verdict import check_function, last_printed

ENDLESS = "while True: pass"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parents() -> dict[int, int]:
    """The parent of each process of the machine that has not ended."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                found[int(folder.name)] = int(fields[1])
    return found


def family(first: int, least: int) -> set[int]:
    """A process and those that it has started and these, once there are as many."""
    deadline = time.monotonic() + 20
    found = {first}
    while time.monotonic() < deadline:
        living = parents()
        found = {first}
        while more := {pid for pid, parent in living.items() if parent in found} - found:
            found |= more
        if len(found) >= least:
            break
        time.sleep(0.01)
    assert len(found) >= least
    return found


def ended(pids: set[int]) -> bool:
    """Whether these processes end before long."""
    deadline = time.monotonic() + 20
    while pids & parents().keys() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not pids & parents().keys()


def test_all_of_it_is_killed(way: str) -> None:
    reading, writing = os.pipe()
    with sandbox(way).start("printing", {"source": ENDLESS}, result=writing) as running:
        # The launcher and the program; bubblewrap's init stands between.
        pids = family(running._process.pid, 3 if way == "bubblewrap" else 2)
    assert ended(pids)
    os.close(reading)
    os.close(writing)


HARNESS = """
import os, sys, time
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
reading, writing = os.pipe()
box = Sandbox(way=sys.argv[1])
with box.start("printing", {"source": "while True: pass"}, result=writing) as running:
    print(running._process.pid, flush=True)
    time.sleep(600)
"""


def test_a_harness_that_has_ended_meanwhile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the kernel was asked to tell: the parent is then another process."""
    box = sandbox("namespaces")
    monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    assert last_printed(box, "print(1)").result == "failed: ended before its end"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_harness(way: str, number: int) -> None:
    sandbox(way)
    command = [sys.executable, "-c", HARNESS, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        pids = family(int(harness.stdout.readline()), 3 if way == "bubblewrap" else 2)
        harness.send_signal(number)
    assert ended(pids)


OPENED = """
import gc, os, sys
from concurrent.futures import ThreadPoolExecutor
from sandboxes import ADD, CHECK_ADD, sandbox
from paddlenlp_codegen_task.evaluation.verdict import check_function, last_printed

def opened():
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))

box = sandbox(sys.argv[1], seconds=10.0)
last_printed(box, "print(1)")
before = opened()
programs = [ADD + body for body in ("    return a + b", "    exit()", sys.argv[2])] * 2
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda program: check_function(box, program, "add", CHECK_ADD, ADD), programs))
last_printed(box, "1 / 0")
assert opened() == before
"""


def test_nothing_is_left_open(way: str) -> None:
    """In a process of its own: in this one, other tests' threads open and close files as well."""
    sandbox(way)
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", OPENED, way, ENDLESS[:4]]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": folders}, check=True)


@pytest.mark.parametrize(
    "limits",
    [
        {"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"seconds": float("inf")},
        {"memory_bytes": 0}, {"memory_bytes": 1 << 20}, {"memory_bytes": 1 << 60},
        {"file_bytes": 0}, {"files": 0},
    ],
)  # fmt: skip
def test_limits_out_of_range(limits: dict[str, Any]) -> None:
    [name] = limits
    with pytest.raises(ValueError, match=f"^{name} must lie in [^\n]+$"):
        Limits(**limits)


@pytest.mark.parametrize(
    "limits",
    [{"seconds": "5"}, {"seconds": True}, {"seconds": None}, {"memory_bytes": 1e9}, {"files": "1"}],
)
def test_limits_of_another_type(limits: dict[str, Any]) -> None:
    [name] = limits
    with pytest.raises(TypeError, match=f"^{name} must be an? [^\n]+$"):
        Limits(**limits)


def test_limits_are_kept(way: str) -> None:
    program = (
        "import resource as r\nprint([r.getrlimit(k)[1] for k in (r.RLIMIT_AS, r.RLIMIT_CPU)])"
    )
    box = sandbox(way, memory_bytes=256 << 20, seconds=7.5)
    assert last_printed(box, program).value == [256 << 20, 9]
    program = "import os\ns = os.statvfs('/tmp')\nprint(s.f_blocks * s.f_frsize)"
    assert last_printed(sandbox(way, file_bytes=1 << 20), program).value == 1 << 20


def test_files_of_its_own_can_be_used(way: str) -> None:
    program = """
import os, shutil, tempfile
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "file")
    open(path, "w").write("text")
    shutil.copyfile(path, path + "2")
    os.rename(path + "2", path + "3")
    print([os.getcwd(), open(path + "3").read(), sorted(os.listdir(folder))])
"""
    assert last_printed(sandbox(way), program).value == ["/tmp", "text", ["file", "file3"]]


def test_libraries_that_wait_and_calculate_work(way: str) -> None:
    program = """
import asyncio, datetime, decimal, hashlib, json, random, re, select, signal, sqlite3, time, zlib

async def one(n):
    await asyncio.sleep(0.01)
    return n

async def both():
    return await asyncio.gather(one(1), one(2))

signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.05)
print([asyncio.run(both()), sqlite3.connect(":memory:").execute("select 3").fetchone()[0]])
"""
    assert last_printed(sandbox(way), program).value == [[1, 2], 3]


def test_it_says_what_is_missing_without_pyseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(SandboxUnavailable, match=r"^no sandbox.+\[evaluate\].+--unsafe[^\n]+$"):
        Sandbox()


REFUSED = "import os\nos.write(2, b'PermissionError: unshare: no\\nmore')\n"


def test_it_says_what_is_missing_without_namespaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where the kernel refuses them, and bubblewrap fails for the same reason."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(jail, "_START", REFUSED)
    with pytest.raises(SandboxUnavailable) as raised:
        Sandbox()
    message = str(raised.value)
    assert "bubblewrap: bwrap: No permissions to create a namespace" in message
    assert "namespaces: PermissionError: unshare: no" in message
    assert message.endswith("--unsafe runs programs without one")
    assert message.isprintable()


def test_a_kernel_that_refuses_is_quoted() -> None:
    """A process that may make no namespaces: one in a sandbox with nothing but that taken away."""
    program = """
import ctypes, errno, os, sys
import pyseccomp
box = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
box.add_rule(pyseccomp.ERRNO(errno.EPERM), "unshare")
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
box.load()
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox, SandboxUnavailable
try:
    Sandbox(way="namespaces")
except SandboxUnavailable as error:
    print(error)
"""
    pytest.importorskip("pyseccomp")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert "namespaces: PermissionError: [Errno 1] unshare: Operation not permitted" in ran.stdout
    assert ran.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["user.max_user_namespaces", "kernel.unprivileged_userns_clone"])
def test_the_switch_that_is_off_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(Path("/proc/sys", *name.split(".")))
    read = Path.read_text

    def reads(self: Path, *arguments: Any) -> str:
        return "0\n" if str(self) == path else read(self, *arguments)

    monkeypatch.setattr(Path, "read_text", reads)
    assert f"user namespaces are off by sysctl {name}=0" in list(jail._switches())


def test_a_launcher_that_fails_later_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without room for a process says nothing about a program."""
    box = Sandbox(way="namespaces", limits=sandbox("namespaces").limits)
    monkeypatch.setattr(jail, "_START", REFUSED)
    with pytest.raises(SandboxUnavailable, match="PermissionError: unshare: no"):
        check_function(box, ADD + "    return a + b\n", "add", CHECK_ADD, ADD)
    with pytest.raises(SandboxUnavailable, match="PermissionError: unshare: no"):
        last_printed(box, "print(1)")


def test_a_programs_launcher_that_fails_alone_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checks run, and find nobody to ask."""
    box = Sandbox(way="namespaces", limits=sandbox("namespaces").limits)
    start = box.start

    def starts(role: str, *arguments: Any, **descriptors: int) -> Running:
        with monkeypatch.context() as patched:
            if role == "program":
                patched.setattr(jail, "_START", REFUSED)
            return start(role, *arguments, **descriptors)

    monkeypatch.setattr(box, "start", starts)
    with pytest.raises(SandboxUnavailable, match="PermissionError: unshare: no"):
        check_function(box, ADD + "    return a + b\n", "add", CHECK_ADD, ADD)


def test_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="way must be one of bubblewrap, namespaces, not 'chroot'"):
        Sandbox(way="chroot")


def test_unsafe_is_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    box = Sandbox(Limits(seconds=2.0), unsafe=True)
    assert check_function(box, ADD + "    return a + b\n", "add", CHECK_ADD, ADD).passed
    assert not check_function(box, ADD + "    exit()\n", "add", CHECK_ADD, ADD).passed
    assert last_printed(box, ENDLESS).result == "timed out"
    assert last_printed(box, "try: bytearray(1 << 40)\nexcept MemoryError: print(1)").value == 1


def test_unsafe_kills_what_a_program_has_started() -> None:
    reading, writing = os.pipe()
    program = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(600)"
    with Sandbox(unsafe=True).start("printing", {"source": program}, result=writing) as running:
        pids = family(running._process.pid, 8)
    assert ended(pids)
    os.close(reading)
    os.close(writing)


def test_nothing_of_a_home_is_shown() -> None:
    """But the interpreter and the packages, wherever they are."""
    shown = view.view()
    home = str(Path.home())
    ours = (sys.base_prefix, sys.prefix)
    for path, _ in shown.shown:
        real = tuple(os.path.realpath(prefix) for prefix in ours)
        assert not path.startswith(home) or path.startswith(real)


DANGEROUS = """
clone clone3 fork vfork execve execveat ptrace mount umount2 unshare setns pivot_root chroot socket
connect bind bpf keyctl io_uring_setup memfd_create shmget process_vm_readv chmod fchmod fchmodat
chown mknod prctl perf_event_open userfaultfd open_by_handle_at
"""


def test_the_filter_allows_no_way_out() -> None:
    """Names that must not get into the list by mistake; see hostile/ for what it does."""
    listed = set(seccomp._CALLS.split())
    assert listed.isdisjoint(DANGEROUS.split())
    assert all(seccomp.number(name) is not None for name in ("read", "write", "exit_group"))
    assert seccomp.number("no_such_call") is None


@pytest.mark.parametrize("prompt", ["def f(:\n", "def f(x):\n  '''", "x = (\n"])
def test_a_prompt_that_is_no_programs_beginning(prompt: str) -> None:
    with pytest.raises(SyntaxError):
        checker.parsed(prompt)
    program = ADD + "    return a + b\n"
    verdict = check_function(sandbox(), program, "add", CHECK_ADD, prompt)
    assert verdict.result.startswith("failed: the prompt is no program's beginning")
