"""Takes memory without end."""

taken = []
try:
    while len(taken) < 2048:
        taken.append(bytearray(1 << 20))
    print("escaped")
except MemoryError:
    taken.clear()
    print("held")
