"""Makes processes by system calls of its own: clone, vfork, clone3."""

import ctypes
import platform

numbers = (56, 57, 58, 435) if platform.machine() == "x86_64" else (220, 435)
libc = ctypes.CDLL(None)
made = []
for number in numbers:
    result = libc.syscall(number, 17, 0, 0, 0, 0)
    if result == 0:
        libc._exit(0)
    if result > 0:
        made.append(number)
print(f"escaped: {made}" if made else "held")
