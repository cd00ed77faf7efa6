"""Makes system calls that have let programs out of sandboxes before."""

import ctypes
import errno
import platform

calls = {
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "open_by_handle_at": (304, 265),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "memfd_secret": (447, 447),
    "seccomp": (317, 277),
    "prctl": (157, 167),
    "syslog": (103, 116),
    "io_setup": (206, 0),
    "landlock": (444, 444),
}
libc = ctypes.CDLL(None, use_errno=True)
made = []
for name, numbers in calls.items():
    result = libc.syscall(numbers[platform.machine() != "x86_64"], 0, 0, 0, 0, 0)
    if result >= 0 or ctypes.get_errno() != errno.ENOSYS:
        made.append(name)
print(f"escaped: {made}" if made else "held")
