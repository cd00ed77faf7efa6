"""How holes of one line in held-out files are filled: does the file parse, is it the author's.

A hole is a whole line, its indentation included, of a function's body: one that holds code, and no
part of a docstring or another text of several lines. They are taken in the order of a hash of where
they stand, so no package and no kind of line is chosen.
"""

import ast
from dataclasses import dataclass
from typing import Any

from completions import parses
from sources import digest

from paddlenlp_codegen_task import CodeGenerator, Infill

GREEDY = {"decode_strategy": "greedy_search", "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Hole:
    """What stands before a line, the line, and what stands after it, from its newline on."""

    prefix: str
    line: str
    suffix: str

    def filled(self, text: str) -> str:
        return self.prefix + text + self.suffix


def lines_of_code(text: str) -> list[int]:
    """Indices of the lines of functions' bodies that hold code alone."""
    lines, tree = text.split("\n"), ast.parse(text)
    inside: set[int] = set()
    texts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update(range(node.body[0].lineno - 1, node.end_lineno or 0))
        is_text = isinstance(node, ast.JoinedStr | ast.Constant)
        if is_text and (node.end_lineno or 0) > node.lineno:
            texts.update(range(node.lineno - 1, node.end_lineno or 0))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.add(node.lineno - 1)
    return [n for n in sorted(inside - texts) if lines[n].strip() and lines[n].strip()[0] != "#"]


def without_line(text: str, index: int) -> Hole:
    """Take a line out of a text."""
    lines = text.split("\n")
    suffix = "".join("\n" + line for line in lines[index + 1 :])
    return Hole("".join(line + "\n" for line in lines[:index]), lines[index], suffix)


def holes(files: dict[str, str], count: int) -> list[Hole]:
    """Return `count` holes of `files`, path to text."""
    places = [(path, n) for path, text in files.items() for n in lines_of_code(text)]
    places.sort(key=lambda place: digest(f"{place[0]}:{place[1]}"))
    return [without_line(files[path], n) for path, n in places[:count]]


def judged(found: list[Hole], fills: list[str], ended: list[bool]) -> dict[str, int]:
    """Count how the holes were filled; `ended` says which fills came to an end."""
    pairs = list(zip(found, fills, strict=True))
    parse = [parses(hole.filled(fill)) for hole, fill in pairs]
    return {
        "parse": sum(parse),
        "parse_not_blank": sum(
            good and bool(fill.strip()) for good, fill in zip(parse, fills, strict=True)
        ),
        "exact": sum(fill == hole.line for hole, fill in pairs),
        "one_line": sum("\n" not in fill for fill in fills),
        "finished": sum(ended),
    }


def filled(generator: CodeGenerator, found: list[Hole], **options: Any) -> dict[str, int]:
    """Fill every hole once; of a file that is too long the model sees what is next to the hole."""
    wanted = [Infill(hole.prefix, hole.suffix) for hole in found]
    results = generator.generate(wanted, prompt_overflow="truncate_left", batch_size=32, **options)
    fills = [one for [one] in results]
    return judged(
        found, [one.text for one in fills], [one.finish_reason != "length" for one in fills]
    )


def infilling(
    generator: CodeGenerator, files: dict[str, str], count: int, seed: int
) -> dict[str, Any]:
    """Fill `count` holes by the package's defaults, greedily, and not at all."""
    found = holes(files, count)
    return {
        "holes": len(found),
        "sampled": filled(generator, found, seed=seed),
        "greedy": filled(generator, found, **GREEDY),
        "left_empty": judged(found, [""] * len(found), [True] * len(found)),
    }
