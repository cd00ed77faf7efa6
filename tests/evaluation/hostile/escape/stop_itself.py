"""Stops, so that whoever waits for it waits for ever.

Ends: held, timed out
"""

import os
import signal

os.kill(os.getpid(), signal.SIGSTOP)
print("held")
