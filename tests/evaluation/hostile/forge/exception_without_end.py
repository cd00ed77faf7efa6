"""Raises an exception whose text is never done."""


class Endless(Exception):
    def __str__(self):
        while True:
            pass


def add(a, b):
    raise Endless
