"""Makes a system call as 32-bit programs do, whose numbers are others.

Ends: held, failed: ended before its end
"""

import ctypes
import mmap
import platform

if platform.machine() == "x86_64":
    # mov eax, 20 (getpid); int 0x80; ret
    code = bytes.fromhex("b814000000 cd80 c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    print("escaped" if ctypes.CFUNCTYPE(ctypes.c_long)(address)() > 0 else "held")
else:
    print("held")
