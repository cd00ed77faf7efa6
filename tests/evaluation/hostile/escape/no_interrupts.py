"""Computes in one instruction of the interpreter's, which no exception of a timer's interrupts.

Ends: timed out
"""

print(10**10**8 % 7)
