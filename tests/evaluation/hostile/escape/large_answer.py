"""Prints a value that is larger than all that is read.

Ends: failed: NotPlain: a value of more than 1048576 bytes
"""

print("x" * (2 << 20))
