"""Prints a dict that takes hours to build.

Ends: failed: no plain value
"""

import os
import struct

prime = (1 << 61) - 1
keys = [(prime * n).to_bytes(10, "little") for n in range(50_000)]
content = b"d" + struct.pack("<I", len(keys))
content += b"".join(b"I" + struct.pack("<I", 10) + key + b"N" for key in keys)
content = b"l" + struct.pack("<I", 3) + b"T" + content + b"S" + struct.pack("<I", 0)
for descriptor in range(3, 1024):
    try:
        os.write(descriptor, struct.pack("<I", len(content)) + content)
    except OSError:
        pass
os._exit(0)
