"""The system calls that a program in the sandbox may make: those listed, no others.

Others fail with ENOSYS, by which libraries know to do without. What is not here on purpose: new
processes and threads (fork, clone), programs (execve), sockets but for pairs, tracing and other
processes' memory, namespaces and mounts, keys, memory that no limit counts (memfd, System V's), and
the modes and owners of files, which may be the machine's own devices.
"""

from __future__ import annotations

import errno
import tempfile

_CALLS = """
access brk clock_getres clock_gettime clock_nanosleep close close_range copy_file_range dup dup2
dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 exit exit_group faccessat
faccessat2 fadvise64 fallocate fchdir fcntl fdatasync flock fstat fstatfs fsync ftruncate futex
getcwd getdents64 getegid geteuid getgid getgroups getitimer getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid
lseek lstat madvise mincore mkdir mkdirat mmap mprotect mremap msync munmap nanosleep newfstatat
open openat pause pipe pipe2 poll ppoll pread64 preadv pselect6 pwrite64 pwritev read readlink
readlinkat readv recvfrom recvmsg rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
sched_getaffinity sched_yield select sendfile sendmsg sendto set_robust_list set_tid_address
setitimer setrlimit shutdown sigaltstack stat statfs statx symlink symlinkat sysinfo tgkill kill
time times truncate umask uname unlink unlinkat write writev arch_prctl alarm getcpu prlimit64
"""
_AF_UNIX = 1
# Of ioctl: TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TIOCGWINSZ, which Python and libc ask.
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451, 0x5413)


def compiled() -> bytes:
    """The filter as the kernel takes it.

    Raises:
        ImportError: pyseccomp, or the library that it needs, is not there.
    """
    import pyseccomp  # with libseccomp.so.2; raises RuntimeError without

    allow = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    known = [name for name in _CALLS.split() if number(name) is not None]
    for name in known:
        allow.add_rule(pyseccomp.ALLOW, name)
    pair = pyseccomp.Arg(0, pyseccomp.EQ, _AF_UNIX)
    allow.add_rule(pyseccomp.ALLOW, "socketpair", pair)
    for request in _IOCTLS:
        allow.add_rule(pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, request))
    with tempfile.TemporaryFile() as file:
        allow.export_bpf(file)
        file.seek(0)
        return file.read()


def number(name: str) -> int | None:
    """A system call's number on this machine, if it has one."""
    import pyseccomp

    try:
        found = int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))
    except ValueError:
        return None
    return found if found >= 0 else None
