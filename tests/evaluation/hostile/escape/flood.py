"""Prints without end.

Ends: timed out
"""

while True:
    print("x" * 1_000_000)
