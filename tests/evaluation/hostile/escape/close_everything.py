"""Closes the pipe that it should answer on, and goes on.

Ends: failed: ended before its end
"""

import os
import time

os.closerange(0, 4096)
time.sleep(60)
