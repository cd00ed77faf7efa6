"""Raises its limits and its priority."""

import os
import resource

raised = []
for act in (
    lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 45, 1 << 45)),
    lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)),
    lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 45, 1 << 45)),
    lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    lambda: os.sched_setaffinity(0, range(os.cpu_count())),
    lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
):
    try:
        act()
        raised.append(act)
    except (OSError, ValueError):
        pass
print("escaped" if raised else "held")
