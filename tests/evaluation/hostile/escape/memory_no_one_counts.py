"""Takes memory that is no part of its address space: memory files, shared memory, pipes."""

import ctypes
import os

libc = ctypes.CDLL(None)
made = []
try:
    made.append(os.memfd_create("memory"))
except OSError:
    pass
made += [n for n in range(3) if libc.shmget(0, 1 << 24, 0o1600) >= 0]
made += [n for n in range(3) if libc.msgget(0, 0o1600) >= 0]
try:
    os.mkdir("/dev/shm")
    made.append("/dev/shm")
except OSError:
    pass
print(f"escaped: {made}" if made else "held")
