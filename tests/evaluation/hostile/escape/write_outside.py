"""Writes wherever an import or another program would find it."""

import os
import sys

written = []
for folder in ("/", "/dev", "/sandbox", "/sandbox/inside", "/usr/lib", "/lib", *sys.path, *HOMES):
    try:
        with open(os.path.join(folder, "written"), "w") as file:
            file.write("here")
        # Its own /tmp may have a folder of this name, where packages are shown that lie in one: the
        # test looks at the folder itself.
        if not folder.startswith("/tmp/"):
            written.append(folder)
    except OSError:
        pass
print(f"escaped: {written}" if written else "held")
