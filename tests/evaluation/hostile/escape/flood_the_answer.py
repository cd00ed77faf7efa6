"""Writes without end to every descriptor that there is.

Ends: failed: no plain value
"""

import os

while True:
    for descriptor in range(3, 1024):
        try:
            os.write(descriptor, b"\xff" * 65536)
        except OSError:
            pass
