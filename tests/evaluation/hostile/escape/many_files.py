"""Makes files without end, of no size."""

made = 0
try:
    for made in range(20_000):
        open(f"/tmp/{made}", "w").close()
    print("escaped")
except OSError:
    print("held" if made < 2000 else "escaped")
