"""Prints a value that is larger than all that is read.

Ends: failed: NotPlain: a value of more than 8388608 bytes
"""

print("x" * (9 << 20))
