"""How completions of held-out headers read: do they parse, do they use only defined names."""

import ast
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus import digest
from cut import docstring_node

MAX_PROMPT = 2200  # characters; longer ones might not fit the context beside a completion
GREETING = re.compile(r"hello|hi\b|welcome|greet", re.I)


@dataclass(frozen=True)
class Header:
    """A held-out function: its header with docstring, and the body its author wrote."""

    prompt: str
    body: str


def headers_in(text: str) -> Iterator[tuple[bool, Header]]:
    """Yield (is a method, header) of functions with a docstring at a module's or class's level."""
    tree, lines = ast.parse(text), text.split("\n")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for parent in (tree, *classes):
        for node in parent.body:
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
                continue
            doc = docstring_node(node)
            if doc is None or doc.lineno == node.lineno:
                continue
            whole = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            at = doc.end_lineno - node.lineno + 1
            cut = whole.split("\n")
            prompt, body = "\n".join(cut[:at]), "\n" + "\n".join(cut[at:])
            if len(prompt) <= MAX_PROMPT and parses(whole) and parses(prompt):
                yield parent is not tree, Header(prompt, body)


def headers(files: list[str], count: int) -> list[Header]:
    """Return `count` headers: functions first and, once these are used up, methods.

    In the order of their hashes, so neither a package nor a kind is chosen.
    """
    found = {header.prompt: (method, header) for f in files for method, header in headers_in(f)}
    ordered = sorted(found.values(), key=lambda one: (one[0], digest(one[1].prompt)))
    return [header for _, header in ordered[:count]]


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def has_body(prompt: str, completion: str) -> bool:
    """Whether the prompt's function has more than its docstring, and it all parses."""
    return bool(completion.strip()) and parses(prompt + completion)


def undefined_names(pairs: list[tuple[str, str]]) -> list[set[str]]:
    """The names that each completion uses and nothing defines, by ruff's rule F821.

    `pairs` are prompts and completions that parse; what the prompt itself leaves undefined (types
    in its annotations) does not count.
    """
    out: list[set[str]] = [set() for _ in pairs]
    with tempfile.TemporaryDirectory() as folder:
        for n, (prompt, completion) in enumerate(pairs):
            Path(folder, f"{n}.py").write_text(prompt + completion, encoding="utf-8")
        command = ("-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821")
        ran = subprocess.run(
            [sys.executable, *command, "--output-format", "json", folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode not in (0, 1):
            raise RuntimeError(f"ruff: {ran.stderr}")
        for finding in json.loads(ran.stdout):
            n = int(Path(finding["filename"]).stem)
            line = finding["location"]["row"]
            if line > pairs[n][0].count("\n") + 1:
                out[n].add(re.findall("`([^`]*)`", finding["message"])[0])
    return out


def greets(prompt: str, completion: str) -> bool:
    """Whether `prompt + completion` parses and prints or returns a greeting."""
    if not has_body(prompt, completion):
        return False
    for node in ast.walk(ast.parse(prompt + completion)):
        said: list[ast.expr] = []
        if isinstance(node, ast.Return) and node.value is not None:
            said = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            said = node.args if node.func.id == "print" else []
        for part in said:
            for text in ast.walk(part):
                is_text = isinstance(text, ast.Constant) and isinstance(text.value, str)
                if is_text and GREETING.search(text.value):
                    return True
    return False
