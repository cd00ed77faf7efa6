"""Cut functions and small classes out of a module, in the form that prompts have.

A prompt is the beginning of a file or a bare `def f(x):`, with or without a docstring, and its
completion ends where the next top-level statement begins. So a document is one unit, or a few of
one module with blank lines between them, at times after the imports they use. Long docstrings are
cut to their first paragraph, and some are left out: the model has to learn bodies.
"""

import ast
import random
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

MIN_LINES, MAX_LINES = 2, 45
MAX_CHARACTERS = 2400
LONG_DOCSTRING = 6  # lines; a longer one is cut to its first paragraph, mostly
SHORT_BODY = 160  # characters of a body: a completion has room for it, and it can be got right
SHORT_CHARACTERS = 2600  # of a short function, docstring and all
GROUP = 4  # units in a document at most
GROUP_CHARACTERS = 2800


@dataclass(frozen=True)
class Unit:
    text: str
    imports: tuple[str, ...]  # statements that bind the names it uses


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Map each name that a module-level import binds to the statement that imports it alone."""
    bound = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                statement = ast.unparse(ast.Import(names=[alias]))
                bound[alias.asname or alias.name.split(".")[0]] = statement
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__":
            for alias in node.names:
                single = ast.ImportFrom(module=node.module, names=[alias], level=0)
                bound[alias.asname or alias.name] = ast.unparse(single)
    return bound


def docstring_node(node: ast.AST) -> ast.Expr | None:
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None


def shortened(lines: list[str], text: str) -> list[str]:
    """The lines of a docstring statement, cut to the first paragraph of `text` if it is long."""
    paragraph = text.strip().split("\n\n")[0].rstrip()
    if len(lines) <= LONG_DOCSTRING or not paragraph or "\\" in text or '"""' in text:
        return lines
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    words = [part.strip() for part in paragraph.split("\n")]
    if len(words) > LONG_DOCSTRING:
        return lines
    if len(words) == 1:
        return [f'{indent}"""{words[0]}"""']
    return [f'{indent}"""{words[0]}', *(indent + word for word in words[1:]), f'{indent}"""']


def without_self(lines: list[str], node: ast.AST) -> list[str] | None:
    """A method that does not use `self` is a function; None if it is none."""
    used = any(isinstance(child, ast.Name) and child.id == "self" for child in ast.walk(node))
    if used:
        return None
    head = re.sub(r"^(\s*(?:async )?def \w+\()self(?:, )?", r"\1", lines[0])
    return [head, *lines[1:]]


def units_of(text: str) -> Iterator[Unit]:
    """Yield the functions, methods and small classes of a module, dedented, in their order.

    Decorators are left out. Methods that use `self` are kept one in three: they outnumber the
    functions, and a prompt is a function more often.
    """
    tree = ast.parse(text)
    lines = text.split("\n")
    bound = imports_of(tree)
    chance = random.Random(len(text))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = sorted((n for n in ast.walk(tree) if isinstance(n, kinds)), key=lambda n: n.lineno)
    covered = 0  # last line of a class that was cut whole: its methods are in it
    for node in found:
        if node.lineno <= covered:
            continue
        part = lines[node.lineno - 1 : node.end_lineno]
        is_class = isinstance(node, ast.ClassDef)
        if not is_class and node.args.args and node.args.args[0].arg in ("self", "cls"):
            bare = without_self(part, node) if node.args.args[0].arg == "self" else None
            if bare is None and chance.random() > 0.33:
                continue
            part = bare or part
        doc = docstring_node(node)
        if doc is not None and len(node.body) > 1:
            first, last = doc.lineno - node.lineno, doc.end_lineno - node.lineno
            before, after = part[:first], part[last + 1 :]
            roll = chance.random()
            if first > 0 and roll < 0.12:  # no docstring: as a user's prompt has none
                part = before + after
            elif first > 0 and roll < 0.85:
                part = before + shortened(part[first : last + 1], doc.value.value) + after
        if not MIN_LINES <= len(part) <= MAX_LINES:
            continue
        unit = textwrap.dedent("\n".join(part)).rstrip() + "\n"
        if len(unit) > MAX_CHARACTERS or is_stub(node):
            continue
        try:
            ast.parse(unit)
        except SyntaxError:
            continue  # a multi-line string that starts further left, say
        covered = node.end_lineno if is_class else covered
        used = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        yield Unit(unit, tuple(sorted({bound[name] for name in used & bound.keys()})))


def is_stub(node: ast.AST) -> bool:
    """Whether nothing follows the docstring but `pass`, `...` or a raise: nothing to learn."""
    rest = node.body[1:] if docstring_node(node) else node.body
    return all(
        isinstance(child, ast.Pass | ast.Raise)
        or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
        for child in rest
    )


def short_functions(text: str) -> Iterator[str]:
    """Yield the functions and methods of a module whose body is short, dedented, each whole.

    Whole docstrings, as held-out headers have them, and bodies that end within a completion.
    """
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or is_stub(node):
            continue
        has_docstring = docstring_node(node) is not None
        body = lines[node.body[has_docstring].lineno - 1 : node.end_lineno]
        unit = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip() + "\n"
        if len(textwrap.dedent("\n".join(body))) > SHORT_BODY or len(unit) > SHORT_CHARACTERS:
            continue
        try:
            ast.parse(unit)
        except SyntaxError:
            continue  # a multi-line string that starts further left, say
        yield unit


def documents_of(units: list[Unit], chance: random.Random) -> Iterator[str]:
    """Yield documents of one unit (half of the time) or a few neighbours."""
    n = 0
    while n < len(units):
        count = 1 if chance.random() < 0.5 else chance.randint(2, GROUP)
        group, size = [], 0
        while n < len(units) and len(group) < count:
            size += len(units[n].text)
            if group and size > GROUP_CHARACTERS:
                break
            group.append(units[n])
            n += 1
        needed = sorted({line for unit in group for line in unit.imports})
        body = "\n\n".join(unit.text for unit in group)
        if needed and len(needed) <= 5 and chance.random() < 0.3:
            body = "\n".join(needed) + "\n\n" * chance.randint(1, 2) + body
        yield body


def normal_form(text: str) -> str:
    """The text less its blanks and comments, to compare functions by."""
    return re.sub(r"\s+|#[^\n]*", "", text)
