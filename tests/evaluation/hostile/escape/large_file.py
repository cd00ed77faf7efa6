"""Makes one file of any size, by leaving it empty and by asking for room."""

import os
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = os.open("/tmp/large", os.O_CREAT | os.O_RDWR)
made = []
for act in (
    lambda: os.truncate("/tmp/large", 1 << 40),
    lambda: os.posix_fallocate(file, 0, 1 << 30),
    lambda: os.pwrite(file, b"x", 1 << 40),
):
    try:
        act()
        made.append(act)
    except OSError:
        pass
print("escaped" if made else "held")
