"""Short functions, which the end of training shows."""

from __future__ import annotations

import textwrap

from cut import SHORT_BODY, short_functions

MODULE = f"""
class Stack:
    def push(self, item):
        \'\'\'Put an item on top.

        A second paragraph stays.
        \'\'\'
        self.items.append(item)

    def size(self): return len(self.items)

    def stub(self):
        raise NotImplementedError

def long(x):
    \'\'\'Too long a body.\'\'\'
    return {" + ".join(["x"] * SHORT_BODY)}

@cache
def twice(x):
    return 2 * x
"""


def test_functions_and_methods_with_short_bodies_each_whole_and_dedented():
    push = """\
        def push(self, item):
            \'\'\'Put an item on top.

            A second paragraph stays.
            \'\'\'
            self.items.append(item)
        """
    assert sorted(short_functions(MODULE)) == [
        textwrap.dedent(push),
        "def size(self): return len(self.items)\n",
        "def twice(x):\n    return 2 * x\n",
    ]
