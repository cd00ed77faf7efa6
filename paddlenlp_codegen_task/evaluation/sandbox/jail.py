"""A sandbox: processes that are started in it, watched by the clock and ended as a whole.

What holds, unless it is `unsafe`. A program has namespaces of its own: it sees no other process, no
network, and no file but the interpreter's and its libraries', read-only, and a /tmp in memory. It
has no capabilities and makes only the system calls that seccomp.py lists, so it is one process of
one thread all its life; that is why the limit of addresses bounds its memory, and why nothing
outlives it. It has no descriptor, environment variable or path of the harness's but the pipes that
it answers on. It is killed with its pid namespace, when its time is up and when the harness ends,
however that ends. What does not hold: a fault of the kernel's lets it out, as it does of any
sandbox without a virtual machine; and it may take its share of processor and memory bandwidth.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.evaluation.sandbox import bubblewrap, seccomp
from paddlenlp_codegen_task.evaluation.sandbox.inside import plain
from paddlenlp_codegen_task.evaluation.sandbox.limits import Limits
from paddlenlp_codegen_task.evaluation.sandbox.view import View, view

_HERE = Path(__file__).resolve().parent
# What each role consists of, in the order of imports.
_ROLES = {
    "checker": ("confine", "plain", "peer", "program", "checker"),
    "printing": ("confine", "plain", "peer", "program", "printing"),
    "program": ("confine", "plain", "peer", "program"),
}
# The first code: the rest comes compiled, by the same interpreter, on standard input.
_START = """
import marshal
with open(0, "rb", closefd=False) as file: boot, job = marshal.load(file)
names = {}
exec(boot, names)
names["main"](job)
"""
WAYS = ("bubblewrap", "namespaces")  # the first that works is taken
_EXTRA = "pip install 'paddlenlp_codegen_task[evaluate]'"
# Sets come in the same order each time, or a verdict might not repeat; libraries make no threads.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "ARROW", "NUMEXPR")},
}
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
_PROBE_SECONDS = 20.0
_MOST_ERRORS = 4096  # bytes of a launcher's error that are read


class SandboxUnavailable(OSError):
    """This machine makes no sandbox; one line says what is missing."""


class Running:
    """A process in the sandbox; ends with the `with` block that it is used in."""

    def __init__(self, process: subprocess.Popen[bytes], errors: int, folder: str | None) -> None:
        self._process, self._errors, self._folder = process, errors, folder

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        os.close(self._errors)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # the program may have changed modes

    def kill(self) -> None:
        """End it and all that it may have started."""
        # Unsafe, it leads a session; it was not waited for, so the number is still its own.
        if self._folder is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def check_started(self) -> None:
        """Raise SandboxUnavailable if it ended before the program began, which tells why."""
        os.set_blocking(self._errors, False)
        with contextlib.suppress(BlockingIOError):
            told = os.read(self._errors, _MOST_ERRORS)
            if told:
                raise SandboxUnavailable(checks.line(told.decode("utf-8", "replace")))


class Sandbox:
    """Starts processes for untrusted programs. May be used by several threads at once.

    Args:
        limits: of each process.
        unsafe: no namespaces, only limits of the process's own: for a machine that has nothing
            better, and programs that one trusts.
        way: "bubblewrap" or "namespaces"; None for the first that works.

    Raises:
        SandboxUnavailable: the machine cannot make it.
    """

    def __init__(
        self, limits: Limits | None = None, unsafe: bool = False, way: str | None = None
    ) -> None:
        if way is not None and way not in WAYS:
            raise ValueError(f"way must be one of {', '.join(WAYS)}, not {checks.shown(way)}")
        self.limits, self.unsafe = limits or Limits(), unsafe
        self._boot = _compiled(_HERE / "boot.py")
        needed = {name for names in _ROLES.values() for name in names}
        self._modules = {name: _compiled(_HERE / "inside" / f"{name}.py") for name in needed}
        self._view = view()
        self._filter: bytes | None = None
        self.way: str | None = None
        if unsafe:
            return
        if sys.platform != "linux":
            raise SandboxUnavailable(_refusal("it is made of Linux namespaces"))
        try:
            self._filter = seccomp.compiled()
            self._numbers = {n: seccomp.number(n) for n in ("pivot_root", "mount_setattr")}
        except (ImportError, RuntimeError, OSError) as error:
            reason = f"{_EXTRA}, and libseccomp.so.2 ({error})"
            raise SandboxUnavailable(_refusal(reason)) from error
        self.way = self._working_way([way] if way else WAYS)

    def _working_way(self, ways: Iterator[str] | tuple[str, ...] | list[str]) -> str:
        reasons = []
        for way in ways:
            if way == "bubblewrap" and shutil.which(bubblewrap.NAME) is None:
                reasons.append("bubblewrap is not installed")
                continue
            self.way = way
            try:
                self._probe()
                return way
            except OSError as error:
                reasons.append(f"{way}: {error}")
        raise SandboxUnavailable(_refusal("; ".join([*reasons, *_switches()])))

    def _probe(self) -> None:
        """Run a program that does nothing but answer."""
        reading, writing = os.pipe()
        try:
            job = {"source": "print(6 * 7)"}
            with self.start("printing", job, result=writing) as running:
                os.close(writing)
                writing = -1
                try:
                    frame = read_frame(reading, time.monotonic() + _PROBE_SECONDS)
                except (EOFError, TimeoutError, ValueError) as error:
                    running.kill()
                    running.check_started()
                    raise SandboxUnavailable(f"a process ended or hung: {error}") from error
                if plain.decode(frame) != [True, 42, ""]:
                    raise SandboxUnavailable("a program that prints 42 did not")
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def start(self, role: str, job: Mapping[str, Any], **descriptors: int) -> Running:
        """Start a process in a sandbox of its own.

        Args:
            role: the module of `inside` that runs in it.
            job: what that reads, of values that marshal knows.
            descriptors: read, write and result, those that the role has; they are not closed here.
        """
        inside: dict[str, Any] = {
            **job, **descriptors,
            "role": role,
            "parent": None if self.way == "bubblewrap" else os.getpid(),
            "limits": asdict(self.limits),
            "packages": list(self._view.packages),
            "environment": _ENVIRONMENT,
            "confined": not self.unsafe,
            "filter": self._filter,
            "modules": [(name, self._modules[name]) for name in _ROLES[role]],
            "folder": "/tmp",
        }  # fmt: skip
        command = [self._view.python, *FLAGS, "-c", _START]
        passed = list(descriptors.values())
        with contextlib.ExitStack() as stack:
            folder = None
            if self.unsafe:
                folder = inside["folder"] = tempfile.mkdtemp(prefix="unsafe-")
            elif self.way == "bubblewrap":
                options = b"\0".join(
                    os.fsencode(o) for o in bubblewrap.arguments(self._view, self.limits)
                )
                told = stack.enter_context(_memory_file(options))
                command = [
                    str(shutil.which(bubblewrap.NAME)), "--args", str(told), "--", *command,
                ]  # fmt: skip
                passed.append(told)
            else:
                inside["view"] = self._described(self._view)
            work = stack.enter_context(_memory_file(marshal.dumps((self._boot, inside))))
            errors, writing = os.pipe()
            try:
                process = subprocess.Popen(
                    command, stdin=work, stdout=subprocess.DEVNULL, stderr=writing,
                    env=_ENVIRONMENT, cwd="/", pass_fds=passed, start_new_session=True,
                )  # fmt: skip
            except BaseException:
                os.close(errors)
                if folder is not None:
                    os.rmdir(folder)
                raise
            finally:
                os.close(writing)
        return Running(process, errors, folder)

    def _described(self, view: View) -> dict[str, Any]:
        return {
            "shown": [list(pair) for pair in view.shown],
            "hidden": list(view.hidden),
            "devices": list(view.devices),
            "numbers": self._numbers,
            "file_bytes": self.limits.file_bytes,
            "files": self.limits.files,
        }


def read_frame(descriptor: int, deadline: float, most_bytes: int = plain.MOST_TOLD + 4096) -> bytes:
    """What `plain.write_frame` wrote, read until a time of the monotonic clock.

    Raises:
        EOFError: the writer ended before.
        TimeoutError: the time is up.
        ValueError: it is larger than may be.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)

    def exactly(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise TimeoutError("timed out")
            part = os.read(descriptor, count - len(found))
            if not part:
                raise EOFError("ended early")
            found += part
        return bytes(found)

    return exactly(plain.frame_length(exactly(4), most_bytes))


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A descriptor from which all of this can be read; writing it waits for no reader."""
    descriptor = os.memfd_create("job")
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _compiled(path: Path) -> CodeType:
    """A module's code, which does not say where it was."""
    return compile(path.read_text("utf-8"), f"<{path.stem}>", "exec", dont_inherit=True)


def _refusal(reason: str) -> str:
    return checks.line(f"no sandbox, for which {reason}; --unsafe runs programs without one", 600)


def _switches() -> Iterator[str]:
    """What this machine has turned off."""
    for name, value in (
        ("user.max_user_namespaces", "0"),
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ):
        try:
            found = Path("/proc/sys", *name.split(".")).read_text("ascii").strip()
        except OSError:
            continue
        if found == value:
            yield f"user namespaces are off by sysctl {name}={value}"
