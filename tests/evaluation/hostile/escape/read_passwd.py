"""Reads the machine's list of users."""

for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/fstab"):
    try:
        print("escaped: " + open(path).read())
        break
    except OSError:
        pass
else:
    print("held")
