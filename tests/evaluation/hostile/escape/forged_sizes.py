"""Answers with a frame that says it holds four thousand million elements.

Ends: failed: no plain value
"""

import os
import struct

content = b"l" + struct.pack("<I", 0xFFFFFFFF)
for descriptor in range(3, 1024):
    try:
        os.write(descriptor, struct.pack("<I", len(content)) + content)
    except OSError:
        pass
os._exit(0)
