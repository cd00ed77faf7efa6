"""Never answers, in the hope that no answer is no failure."""

import time


def add(a, b):
    time.sleep(1000)
