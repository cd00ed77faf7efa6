"""Traces a process of the harness's, and reads its memory."""

import ctypes

libc = ctypes.CDLL(None)
attach, seize = 16, 0x4206
buffer = ctypes.create_string_buffer(16)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
reached = [libc.ptrace(how, pid, 0, 0) for how in (attach, seize) for pid in (VICTIM, 1)]
reached += [libc.process_vm_readv(pid, vector, 1, vector, 1, 0) for pid in (VICTIM, 1)]
print("escaped" if any(result >= 0 for result in reached) else "held")
