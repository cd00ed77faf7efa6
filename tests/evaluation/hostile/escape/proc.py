"""Looks for other processes in /proc, and mounts that where it is not there."""

import ctypes
import os

libc = ctypes.CDLL(None)
os.mkdir("/tmp/proc")
libc.mount(b"proc", b"/tmp/proc", b"proc", 0, None)
seen = []
for path in (
    *(
        f"{proc}/{pid}/{name}"
        for proc in ("/proc", "/tmp/proc")
        for pid in (1, VICTIM, "self")
        for name in ("environ", "mem", "root", "cwd", "fd", "cmdline", "ns/user")
    ),
    "/sys/kernel",
    "/dev/kmsg",
    "/dev/mem",
):
    try:
        os.close(os.open(path, os.O_RDONLY))
        seen.append(path)
    except OSError:
        pass
print(f"escaped: {seen}" if seen else "held")
