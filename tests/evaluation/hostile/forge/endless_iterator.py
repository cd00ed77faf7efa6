"""Gives an iterator that never ends, and a truth of all that is in it."""

import itertools


def add(a, b):
    return itertools.repeat(True)
