"""Leaves a grandchild in a session of its own, to go on when the program has ended."""

import os
import time

try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    print("escaped")
except OSError:
    print("held")
