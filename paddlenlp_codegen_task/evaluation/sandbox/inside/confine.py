"""What a process can no longer do, once it has said so of itself."""

from __future__ import annotations

import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES = 64  # more than there are
_CAPABILITY_VERSION_3 = 0x20080522
_OPEN_FILES = 128


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def limit(limits: dict[str, Any]) -> None:
    """Bound the processor's time, memory, files, and what the kernel keeps for the process."""
    seconds = int(limits["seconds"]) + 2
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def drop_capabilities() -> None:
    """Give up what the user namespace's first process may do in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails: no such one, or none left
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def filter_calls(program: bytes) -> None:
    """Refuse all system calls but those that the filter (BPF) allows, from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    text = ctypes.create_string_buffer(program, len(program))
    filled = _Program(len(program) // 8, ctypes.cast(text, ctypes.c_void_p))
    _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filled), 0, 0), "seccomp")


def _check(result: int, name: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def silence() -> None:
    """Nothing to read, and whatever is written is lost: to the interpreter's standard files."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
