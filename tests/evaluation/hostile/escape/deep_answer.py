"""Answers with containers in one another, more than the harness's stack is deep.

Ends: failed: no plain value
"""

import os
import struct

content = (b"l" + struct.pack("<I", 1)) * 100_000 + b"N"
for descriptor in range(3, 1024):
    try:
        os.write(descriptor, struct.pack("<I", len(content)) + content)
    except OSError:
        pass
os._exit(0)
