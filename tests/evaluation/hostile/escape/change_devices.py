"""Changes who may use the machine's devices, which stand in the sandbox too."""

import os

changed = []
for act in (
    lambda: os.chmod("/dev/null", 0o600),
    lambda: os.chown("/dev/null", 1000, 1000),
    lambda: os.utime("/dev/null", (0, 0)),
    lambda: os.remove("/dev/null"),
    lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)),
    lambda: os.setxattr("/dev/null", "user.a", b"b"),
):
    try:
        act()
        changed.append(act)
    except OSError:
        pass
print("escaped" if changed else "held")
