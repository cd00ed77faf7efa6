"""Ignores all signals and goes on for ever.

Ends: timed out
"""

import signal

for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("escaped")
while True:
    pass
