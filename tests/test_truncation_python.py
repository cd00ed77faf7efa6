"""Where completions in Python end; see `marked_code` for the marks."""

import pytest
from marked_code import check, check_from_anywhere

from paddlenlp_codegen_task.truncation import Truncator

# The prompt begins an indented block.
OPEN = [
    "def add(a, b):«\n    return a + b»\nx = 1",
    "def add(a, b):  # sum\n«\n    # why\n\n\n    c = a\n\n\n    return c + b»\nx = 1",
    'def add(a, b):\n    """Add.\n«\nNot indented\n    """\n    return a + b»\nprint(add(1, 2))',
    "def f(\n    a,«\n    b,\n) -> int:\n    return g(\n1,\n)»\n# next",
    "def f():\n    x = 1 + \\\n«2\n    s = 'it\\'s \\\nlong' + f\"{x}\" + ''»\n@cache\ndef g",
    # A method, to its own end.
    "class A:\n    def f(self):«\n        x\n\n        return x»\n\n    @property\n    def g():",
    "class A:\n    async def f():«\n        async with x:\n            y»\n    # next\n    z = 1",
    "class A:\n    def f(self): ...\n    def g(\n        self,\n    ):«\n        pass»\n    z = 1",
    "class A:\n    class B:\n        def f(self):«\n            return [\n1,\n    ]»\n    x = 1",
    "class A:\n\tdef f(self):«\n\t\tdef g():\n\t\t\tpass\n\t\treturn g»\n\n\tdef h(self):",
    "def f(x):\n    @wraps(x)\n    def g(*y):«\n        return x(*y)\n    return g»\n\n\n@f\ndef h",
    "if a:\n    def f():«\n        pass»\nelse:\n    f = None",
    "async def f():«\n    await g()\n    ...  # later»\nasync def g",
    "for x in y:«\n    print(x)»\nfor z in",
    "with a as b:«\n    c»\nwith d:",
    "@cache\ndef f(x):« return x»\n\nf(1)",
    "if x:«\n    a\n\nelif y:\n    b\nelse:\n    c»\n\nelse_ = 1",
    "try:«\n    a\nexcept A:\n    b\nelse:\n    c\nfinally:\n    d»\nwith e:",
    "while x:\n    a\nelse:«\n    b»\nelsewhere()",
    'def f():\n    """«"a" \'\'\' \\"""\nx\n    """\n    return "", ""»\nx = 1',
]

OTHERS = [
    # The prompt's block is over, or never began.
    "# add two numbers«\ndef add(a, b):\n    return a + b»\nadd(1, 2)",
    "# add two« numbers\nimport os\nfrom a import (\n    b,\n)\n\n\n# sum\ndef f():\n    x»\n\ny =",
    '# stacks«\n"""Stacks."""\n\n\nclass Stack:\n    pass»\n\n\nx = 1',
    '"""Stacks."""\n«\n\nclass Stack:\n    pass»\n\n\nx = 1',
    "import os\n«import sys\n\n\n@cache\n@other\ndef f():\n    pass»\n\nx = 1",
    "de«f f():\n    pass»\nx = 1",
    "if x: y = 1\n«z = 2\nasync def f():\n    pass»\nx = 1",
    "x =« 5\n\ny = 6\nfor z in y:\n    w»\n\n\nz = 1",
    "x =« 5\n\ny = 6  # six»\n\n# next\nz = 1",
    "x =« [\n\n\n\n# one\n1]\n# two\ny = 2»\n\n\nz",
    "def f():\n    return 1\n\n\n«def g():\n    return 2»\n\n\ndef h",
    "if x:\n    y\n\n«else:\n    z»\nx = 1",
    "def f():\n\n«»x = 1",
    "class A:«\n    def f(self):\n        pass\n\n    @property\n    def g():\n        ...»\nA()",
    "class A:\n    def f(self): ...\n«    x = 1\n\n    def g(self):\n        pass»\nA()",
    "class A:\n    def f(self):\n        x\n    y = 1\n«    def g():\n        z\n    z»\nA()",
    # After a blank line another method may begin.
    "class A:\n    def f(self):\n        x\n\n«        y»\n    def g():",
    "class A:\n    def f():\n        x\n\n«    @a\n    def g(self):\n        y»\n\n    def h():",
    "class A:\n    def f(self):\n        x\n\n«    y = 1\n\n    def g():\n        z»\n    w = 1",
    "class A:\n    def f(self):\n        x\n\n«    y = 1»\nz = 1",
    "class A:\n    def f(self):\n        x\n\n«class B:\n    def g():\n        y\n    z»\nA()",
    # No bracket holds a definition that is not indented: one was never closed.
    "def f():«\n    return g((1, [2)»\n\ndef h():",
    "def f(x=(«1:\n    pass»\nclass A:",
    "# a list (of\n# things«\ndef f():\n    return 1»\nf()",
    "Sum the list (of\n«def f():\n    return (\ndefault)»\nf()",
    "def f():«\n    x»\nelse:\n    y",
    "def f():\n    x\n#   y\n    z\n«    w»\nx = 1",
    "def f():\n    return 1\n«»x = 1",
    "def f():\n    x = 1«»\n\n\nx = 1",
    # Code whose beginning is not in the prompt.
    "«\n    return a»\nx = 1",
    "    x = 1\n«    return x»\nx = 1",
    "    b)\n«)\n    return x»\nx = 1",
    "def f():\n    x = («1\n]\n)\n    y»\nx = 1",
]


@pytest.mark.parametrize("marked", OPEN)
def test_ends_with_the_block_of_the_prompt(marked: str):
    check_from_anywhere("python", marked)


@pytest.mark.parametrize("marked", OTHERS)
def test_ends(marked: str):
    check("python", marked)


def test_is_decided_by_the_first_word_of_the_line():
    truncator = Truncator("python")
    prompt = "if a:\n    b\n"
    assert truncator.decided("    c\nelse", prompt) is None  # "elsewhere" may follow
    assert truncator.decided("    c\nelse:", prompt) is None
    assert truncator.decided("    c\nelsewhere.", prompt) == "    c"
    assert truncator.truncate("    c\nel", prompt) == "    c"
