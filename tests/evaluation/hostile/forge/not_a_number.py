"""Gives the number that is neither more nor less than any other."""


def add(a, b):
    return float("nan")
