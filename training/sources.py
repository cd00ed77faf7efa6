"""Which files are worth learning: not tests' data, vendored or generated code, tables, copies."""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Tests are real Python, but most of it is assertions on constants: a model of this size would
# spend its capacity on them. Migrations and locales are tables; the others hold copies of packages.
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idle_test", "encodings", "pydoc_data", "__pycache__",
    "lib-dynload", "__phello__", "site-packages", "_vendor", "vendor", "vendored", "_vendored",
    "extern", "externals", "_extern", "third_party", "thirdparty", "_vendored_packages",
    "migrations", "locale", "locales", "locale_data", "unicode_codes", "data", "datasets",
    "lib2to3", "_generated", "generated", "node_modules", "smithy",
}  # fmt: skip
SKIPPED_FILES = re.compile(
    r"(^|/)(test_[^/]*|[^/]*_tests?|conftest|[^/]*_pb2(_grpc)?|_?version|_sysconfigdata[^/]*"
    r"|entities|stringprep|this|[^/]*parsetab|lextab|setup|unicodedata[^/]*)\.py$"
)
GENERATED = re.compile(
    r"(auto-?|automatically )generated|generated (by|from|automatically)|do not edit|@generated",
    re.I,
)
HEAD = 2000  # characters at the beginning, where a generated file says so
MAX_LINE = 200  # characters; a longer line is data, not something to learn to write
MIN_SIZE, MAX_SIZE = 150, 150_000  # characters
TABLE_LINES = 25  # a literal of more lines is a table
TABLE_SHARE = 0.3  # a file with more of its lines in tables is left out
ASCII_SHARE = 0.98


def digest(text: str) -> int:
    """A hash of `text` that is the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def library_files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (relative posix path, text) of the standard library's modules, sorted by path."""
    for file in sorted(root.rglob("*.py")):
        try:
            yield file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def table_lines(tree: ast.Module) -> int:
    """Lines inside long literals (dict, list, tuple, set) anywhere in the module."""
    lines, covered = 0, 0
    literals = (ast.Dict, ast.List, ast.Tuple, ast.Set)
    for node in ast.walk(tree):
        if isinstance(node, literals) and node.lineno > covered:
            length = node.end_lineno - node.lineno + 1
            if length > TABLE_LINES:
                lines, covered = lines + length, node.end_lineno
    return lines


class Filter:
    """Gives a file's text as it is to be learnt, or None; counts what was left out and why."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.left_out: Counter[str] = Counter()

    def text_of(self, path: str, text: str) -> str | None:
        why = self.reason(path, text)
        if why is None:
            text = text.expandtabs(8) if "\n\t" in text else text
            text = text.rstrip() + "\n"
            key = digest(text)
            why = "the same as another" if key in self.seen else None
            self.seen.add(key)
        if why is not None:
            self.left_out[why] += 1
            return None
        return text

    def reason(self, path: str, text: str) -> str | None:
        if SKIPPED_FOLDERS & set(path.split("/")[:-1]) or SKIPPED_FILES.search("/" + path):
            return "tests, vendored or generated, by its path"
        if not MIN_SIZE <= len(text) <= MAX_SIZE:
            return "too short or too long"
        if any(len(line) > MAX_LINE for line in text.split("\n")):
            return f"a line of more than {MAX_LINE} characters"
        if GENERATED.search(text[:HEAD]):
            return "says that it is generated"
        if sum(map(str.isascii, text)) < ASCII_SHARE * len(text):
            return "mostly not English"
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return "does not parse"
        if table_lines(tree) > TABLE_SHARE * text.count("\n"):
            return "mostly tables"
        return None
