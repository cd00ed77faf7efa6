"""Collect the training text: Python's standard library, as the running interpreter ships it.

Writes two files of JSON lines, `train.jsonl` and `valid.jsonl`; a line is one document:
`{"path": str, "kind": "module" | "function" | "class", "text": str}`.

Besides whole modules there are functions, methods and small classes cut out by `ast` and dedented
to the top level: a user's prompt is a bare `def f(x):` far more often than the head of a module.
Some of them follow the imports they use, as in `import os\\n\\ndef list_files(path):`.
"""

import argparse
import ast
import hashlib
import json
import random
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

# Tests are real Python, but most of their 15 MB is assertEqual with constants: a model of this size
# would spend its capacity on them. The other names are generated tables, or not the library.
SKIPPED_FOLDERS = {
    "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__",
    "lib-dynload", "__phello__",
}  # fmt: skip
SKIPPED_FILES = {"html/entities.py", "stringprep.py", "this.py"}
SKIPPED_PREFIXES = ("_sysconfigdata",)
MAX_LINE = 300  # characters; a longer line is data, not something to learn to write
VALID_SHARE = 16  # one top-level module in so many is held out
MAX_UNIT_LINES = 80  # a longer function or class is seen in its module only
MIN_UNIT_LINES = 2


def digest(text: str) -> int:
    """A hash of `text` that is the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def is_held_out(path: str) -> bool:
    """Whether the module or package that `path` (relative, posix) lies in is validation text."""
    return digest(path.split("/")[0].removesuffix(".py")) % VALID_SHARE == 0


def source_files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (relative posix path, source text) of the modules worth learning, sorted by path."""
    seen: set[int] = set()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if SKIPPED_FOLDERS & set(path.split("/")[:-1]) or path in SKIPPED_FILES:
            continue
        if file.name.startswith(SKIPPED_PREFIXES):
            continue
        try:
            text = file.read_text(encoding="utf-8")
            ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue  # a few library files are templates or in an old encoding
        if len(text) < 100 or any(len(line) > MAX_LINE for line in text.splitlines()):
            continue
        key = digest(text)
        if key not in seen:
            seen.add(key)
            yield path, text


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Map each name that a module-level import binds to the statement that imports it alone."""
    bound = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                statement = ast.unparse(ast.Import(names=[alias]))
                bound[alias.asname or alias.name.split(".")[0]] = statement
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                single = ast.ImportFrom(module=node.module, names=[alias], level=0)
                bound[alias.asname or alias.name] = ast.unparse(single)
    return bound


def with_imports(text: str, node: ast.AST, bound: dict[str, str]) -> str:
    """`text` after the imports its names need; unchanged for three in four (by hash) of them."""
    used = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    needed = sorted({bound[name] for name in used & bound.keys()})
    if not needed or len(needed) > 4 or digest(text) % 4:
        return text
    return "\n".join(needed) + "\n\n" * (1 + digest(text) // 4 % 2) + text


def units(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of the functions, methods and small classes in a module's source.

    Decorators are left out, and what does not parse after dedenting (a multi-line string that
    starts further left, say) is skipped.
    """
    tree = ast.parse(text)
    lines = text.split("\n")
    bound = imports_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not MIN_UNIT_LINES <= node.end_lineno - node.lineno + 1 <= MAX_UNIT_LINES:
            continue
        unit = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip() + "\n"
        try:
            ast.parse(unit)
        except SyntaxError:
            continue
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        yield kind, with_imports(unit, node, bound)


def documents(path: str, text: str) -> Iterator[dict[str, str]]:
    """Yield the documents made from one module: itself, then its units."""
    text = text.expandtabs(8) if "\n\t" in text else text
    yield {"path": path, "kind": "module", "text": text}
    for kind, unit in units(text):
        yield {"path": path, "kind": kind, "text": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for train.jsonl and valid.jsonl")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--seed", type=int, default=0, help="for the order of the documents")
    options = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # the library's own invalid escapes

    splits: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    seen: set[int] = set()
    for path, text in source_files(options.stdlib):
        split = splits["valid" if is_held_out(path) else "train"]
        for document in documents(path, text):
            key = digest(document["text"])
            if key not in seen:
                seen.add(key)
                split.append(document)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        random.Random(options.seed).shuffle(split)
        with open(options.out / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for document in split:
                file.write(json.dumps(document) + "\n")
        for kind in ("module", "function", "class"):
            texts = [document["text"] for document in split if document["kind"] == kind]
            size = sum(len(text.encode("utf-8")) for text in texts)
            print(f"{name}: {len(texts)} of kind {kind}, {size / 1e6:.2f} MB")
    held_out = {d["path"] for d in splits["valid"] if d["kind"] == "module"}
    print("held out:", *sorted(held_out))


if __name__ == "__main__":
    main()
