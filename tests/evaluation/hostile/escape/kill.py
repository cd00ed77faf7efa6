"""Signals a process of the harness's, those beside it, and all that there are."""

import os
import signal

reached = []
for pid in (VICTIM, -VICTIM):
    try:
        os.kill(pid, signal.SIGKILL)
        reached.append(pid)
    except OSError:
        pass
try:
    reached += [pid for pid in range(2, 5000) if pid != os.getpid() and os.kill(pid, 0) is None]
except OSError:
    pass
print(f"escaped: {reached}" if reached else "held")
