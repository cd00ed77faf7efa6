"""Unpacks a few bytes to more than there is memory for."""

import zlib

packer = zlib.compressobj(wbits=-15)
block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
try:
    zlib.decompress(2048 * block + packer.flush(), wbits=-15)
    print("escaped")
except MemoryError:
    print("held")
