"""Changes, renames and removes what the interpreter consists of."""

import os
import sys

changed = []
for act in (
    lambda: os.remove(os.__file__),
    lambda: os.rename(os.__file__, os.__file__ + "x"),
    lambda: open(os.__file__, "a").close(),
    lambda: os.truncate(sys.executable, 0),
    lambda: os.link(os.__file__, "/tmp/os.py"),
):
    try:
        act()
        changed.append(act)
    except OSError:
        pass
print("escaped" if changed else "held")
