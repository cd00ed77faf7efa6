"""Hostile input in numbers: README.md says how to run it.

A kind of attack is a module with

    FLOOR: int             how many attacks a long run makes at least
    LIMIT: float           seconds that an attack may take
    draw(random) -> dict   the input of one attack, in values that JSON has, so that it can be kept
    Attacker(folder)       prepares what is attacked, in a process of its own
      .attack(input)       makes one attack and returns how it ended, or raises

Whatever an attack raises is a failure: what may be raised by the package is caught, and judged,
within.
"""
