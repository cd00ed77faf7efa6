"""Runs other programs, and itself anew."""

import os
import subprocess
import sys

ran = []
for act in (
    lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
    lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
    lambda: os.popen("true").read() or 1 / (os.system("true") == 0),
    lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
):
    try:
        act()
        ran.append(act)
    except (OSError, ZeroDivisionError):
        pass
print("escaped" if ran else "held")
