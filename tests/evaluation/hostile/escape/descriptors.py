"""Looks for what the harness has left open."""

import os
import stat

found = []
for descriptor in range(4096):
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        continue
    if stat.S_ISFIFO(mode):
        try:
            os.set_blocking(descriptor, False)
            os.read(descriptor, 1)
            found.append(descriptor)
        except OSError:
            pass  # an end that only writes: the answer's
    elif not stat.S_ISCHR(mode):
        found.append(descriptor)
print(f"escaped: {found}" if found else "held")
