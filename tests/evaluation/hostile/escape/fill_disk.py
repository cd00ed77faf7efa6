"""Writes files until the disk is full."""

import os

written = 0
block = bytes(1 << 20)
try:
    for n in range(64):
        with open(f"/tmp/{n}", "wb") as file:
            for _ in range(8):
                file.write(block)
                file.flush()
                written += len(block)
    print("escaped")
except OSError:
    print("escaped" if written > 32 << 20 else "held")
