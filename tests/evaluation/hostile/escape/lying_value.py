"""Prints an object whose every method does something else than it says.

Ends: failed: SystemExit: 0
"""


class Value:
    def __getattr__(self, name):
        raise SystemExit(0)

    def __str__(self):
        raise SystemExit(0)


value = Value()
try:
    print(value)
except SystemExit:
    pass
