"""Answers a byte at a time, for ever.

Ends: timed out
"""

import os
import time

while True:
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, b"\x00")
        except OSError:
            pass
    time.sleep(1)
