"""Unpacks a few bytes to more than there is memory for."""

import zlib

packer = zlib.compressobj(9)
packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(2048)) + packer.flush()
try:
    zlib.decompress(packed)
    print("escaped")
except MemoryError:
    print("held")
