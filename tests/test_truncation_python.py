"""Where completions in Python end; see `marked_code` for the marks."""

import pytest
from marked_code import check, check_from_anywhere

from paddlenlp_codegen_task.truncation import Truncator

# The prompt begins an indented block.
OPEN = [
    "def add(a, b):«\n    return a + b»\nx = 1",
    "def add(a, b):  # sum\n«\n    # why\n\n\n    c = a\n\n\n    return c + b»\nx = 1",
    'def add(a, b):\n    """Add.\n«\nNot indented\n    """\n    return a + b»\nprint(add(1, 2))',
    "def f(\n    a,«\n    b,\n) -> int:\n    return g(\n1,\n)»\n# next\nx = 1",
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

# Comments, blank lines, form feeds and a byte-order mark have no indentation, a tab up to eight.
UNINDENTED = [
    "def f():\n    x = 1\n# why\n«    return x»\n\ndef g():\n    y",
    "def f():\n    x = 1\n  # why\n\n«    return x»\n\ndef g():\n    y",
    "class A:\n    def f(self):\n        x\n# why\n«        return x»\n\n    def g(self):",
    "def f():\n    x = 1\n«#    old = 2\n    return x»\n# next\n\ndef g():",
    "def f():«\n#    old = 2\n\n    # so\n    return x»\n\n# next\n# one\ndef g():",
    "class A:\n    def f(self):\n        x\n«  # so\n        y»\n    # next\n    z = 1",
    "def f():\n    return 1\n# The square.\n«def g(x):\n    return x * x»\ndef h():",
    "def f():\n    return 1\n\n# The square.«\ndef g(x):\n    return x * x»\ndef h():",
    "if a:\n    b\n# or\n«else:\n    c»\nx = 1",
    "# add«\ndef f():\n    x\n# in it\n    y»\n# next\nz = 1",
    "def f():«\n    x»\n\x0cdef g():\n    y",
    "\x0cdef f():«\n    x»\n    \x0cdef g():\n    y",
    "def f():\n  \x0c    x\n«    y»\nz = 1",
    "\ufeffdef f():«\n    x»\ndef g():",
    "\ufeff# f\n«def f():\n    x»\ndef g():",
    "«\ufeffdef f():\n    x»\ndef g():",
    "class A:\n    def f(self):\n\tx\n«\ty»\n    def g():",
    "class A:\n        def f(self):\n\t    x«\n\t    y»\n\tdef g():",
    "if a:\n   \tdef f():«\n\t\tx»\n        def g():",
    "def f():\n    \\\n  x\n«    y»\nz = 1",
]

# The prompt ends within a header.
HEADERS = [
    "ma«tch x:\n    case 1:\n        y\n    case _:\n        z»\nw = 1",
    "def f(x):\n    match« x:\n        case 1:\n            y\n    z»\nw = 1",
    "class A:\n    x = 1\n    wi«th b(c) as d, (\n  e\n    ):\n        f»\ng = 1",
    "wi«th open(\na) as b:\n    c»\nd = 1",
    "el«se:\n    c»\nd = 1",
    "match = «re.match(a)\nif match:\n    b»\n\n\nc",
    "match x«:\n    case 1: y\n    case _:\n        z»\nw = 1",
    "for x in y: «z(x)»\nw = 1",
    "async with a«() as b:\n    c»\nd = 1",
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


@pytest.mark.parametrize("marked", UNINDENTED)
def test_what_has_no_indentation_ends_nothing(marked: str):
    check("python", marked)


@pytest.mark.parametrize("marked", HEADERS)
def test_a_prompt_may_end_within_a_header(marked: str):
    check("python", marked)


def test_a_comment_at_the_end_is_kept_only_alone():
    truncator = Truncator("python")
    assert truncator.truncate("#    old = 2\n", "def f():\n    x = 1\n") == "#    old = 2"
    assert truncator.truncate("    return x\n# next", "def f():\n    x = 1\n") == "    return x"
