"""Makes sockets of all families by system calls of its own."""

import ctypes

libc = ctypes.CDLL(None)
made = [family for family in range(46) if libc.socket(family, 3, 0) >= 0]
made += [family for family in range(46) if libc.socket(family, 1, 0) >= 0]
print(f"escaped: {made}" if made else "held")
