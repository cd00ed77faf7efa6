"""Writes wherever an import or another program would find it."""

import os
import sys

written = []
for folder in ("/", "/dev", "/sandbox", "/sandbox/inside", "/usr/lib", "/lib", *sys.path, *HOMES):
    try:
        with open(os.path.join(folder, "written"), "w") as file:
            file.write("here")
        written.append(folder)
    except OSError:
        pass
print(f"escaped: {written}" if written else "held")
