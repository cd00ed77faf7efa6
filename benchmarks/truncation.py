"""Cuts real files within functions, and compares the truncation presets with parsers.

    python benchmarks/real_code.py build/truncation
    python benchmarks/truncation.py build/truncation

For each cut, the prompt is a file up to a random place in a function, in the middle of a word, a
string or a comment too, and the completion is what really follows. It is fed in pieces, as a model
writes it, and should be ended where the function ends by the language's own parser (parsers.py);
one in WHOLE is truncated at once, too, which must come to the same text. Files are read with any of
the language's line ends, with and without a byte-order mark.

Python's files are those of its standard library, unless there is a folder `python`. Differences go
to <folder>/differences-<language>.jsonl, counts to the file --out, and into a table of --pages.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import random
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from grammars import TreeSource
from parsers import PythonSource, Region, Source, UnreadableError
from real_code import SUFFIXES
from report import write_into

from paddlenlp_codegen_task.truncation import Truncator

CUTS = {language: 100_000 if language == "python" else 20_000 for language in SUFFIXES}
LONGEST_LINES = 150  # characters on average; minified files have longer ones
LARGEST_FILE = 60_000  # characters; each cut reads all before it, and larger ones are mostly tables
MOST_FILES = 2_000  # a language
BEHIND = 2_000  # characters that the completion goes on behind the function
WHOLE = 4
PIECES = (1, 40)  # characters fed at once
T, R = TypeVar("T"), TypeVar("R")
BOM = "\ufeff"


@dataclass(frozen=True)
class Variant:
    """How a file is written."""

    newline: str
    bom: bool

    def write(self, text: str) -> str:
        return BOM * self.bom + text.replace("\n", self.newline)

    def offset(self, text: str, cut: int) -> int:
        """Where a place in `text` is in `write(text)`."""
        return self.bom + cut + text.count("\n", 0, cut) * (len(self.newline) - 1)


def variants(language: str) -> list[Variant]:
    # What a carriage return alone is differs between the other languages.
    newlines = ["\n", "\r\n", "\r"] if language == "python" else ["\n", "\r\n"]
    return [Variant(newline, bom) for bom in (False, True) for newline in newlines]


@dataclass(frozen=True)
class Difference:
    """A completion that is not cut where the parser says.

    Attributes:
        offset: of the cut, in the file with line feeds.
        kind: see `kind_of`.
        expected, got: the end of the text that is kept, its last 200 characters.
        prompt, completion: the last lines of one, and the first of the other up to both ends.
    """

    language: str
    file: str
    offset: int
    newline: str
    bom: bool
    kind: str
    expected: str
    got: str
    prompt: str
    completion: str


@dataclass
class Counts:
    """What was found in some files.

    Attributes:
        files_left_out: too large, minified, or not taken by the parser.
        functions_left_out: those that the parser found errors in.
        behind: of each completion that was decided, how many characters behind the function that
            was known.
    """

    files: int = 0
    files_left_out: int = 0
    functions: int = 0
    functions_left_out: int = 0
    cuts: int = 0
    undecided: int = 0
    behind: Counter[int] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        self.files += other.files
        self.cuts += other.cuts
        self.undecided += other.undecided
        self.behind.update(other.behind)
        self.differences.extend(other.differences)


def read(language: str, text: str) -> Source:
    """Parse a file.

    Raises:
        UnreadableError: the parser does not take it.
    """
    return PythonSource(text) if language == "python" else TreeSource(language, text)


def load(path: Path) -> str:
    """Read a file with line feeds alone as line ends.

    Raises:
        UnreadableError: it is no text, or too large.
    """
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding if path.suffix == ".py" else "utf-8-sig")
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise UnreadableError(str(error)) from error
    if len(text) > LARGEST_FILE:
        raise UnreadableError("too large")
    if len(text) > LONGEST_LINES * (1 + text.count("\n") + text.count("\r")):
        raise UnreadableError("lines too long")
    return text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def count_functions(task: tuple[str, Path]) -> tuple[int, int] | None:
    """How many functions a file has, and how many more the parser does not understand."""
    language, path = task
    try:
        source = read(language, load(path))
    except UnreadableError:
        return None
    return len(source.functions), source.left_out


def check_file(task: tuple[str, Path, int, str]) -> Counts:
    """Cut a file at several places; for a pool of processes.

    Args:
        task: the language, the file, how many cuts, and a seed.
    """
    language, path, cuts, seed = task
    rng = random.Random(seed)
    source = read(language, load(path))
    found = Counts(files=1)
    for _ in range(cuts):
        function = rng.choice(source.functions)
        cut = rng.randrange(function.start + 1, function.end)
        checked = check(language, source, cut, rng.choice(variants(language)), rng)
        found.cuts += 1
        found.undecided += checked.decided_after is None
        if checked.decided_after is not None:
            found.behind[checked.decided_after] += 1
        if checked.kind is not None:
            found.differences.append(difference(language, path, source, cut, checked))
    return found


@dataclass(frozen=True)
class Checked:
    """What came of one cut.

    Attributes:
        kind: of the difference; None if there is none.
        kept: what is kept of the completion, with line feeds.
        decided_after: characters behind the function that were fed before it was decided; None if
            the completion ended before.
    """

    variant: Variant
    region: Region
    kept: str
    kind: str | None
    decided_after: int | None


def check(language: str, source: Source, cut: int, variant: Variant, rng: random.Random) -> Checked:
    """Truncate what follows a cut, at once and in pieces."""
    region = source.expected(cut)
    written = variant.write(source.text)
    at = variant.offset(source.text, cut)
    if variant.newline == "\r\n" and written[at : at + 1] == "\r":
        at += rng.randrange(2)  # a token may end within a line end
    function_end = variant.offset(source.text, max(region.ends))
    prompt, completion = written[:at], written[at : function_end + BEHIND]
    truncator = Truncator(language)
    scanner = truncator.scanner(prompt)
    fed, decided, settled = 0, None, ""
    while decided is None and fed < len(completion):
        piece = completion[fed : fed + rng.randint(*PIECES)]
        fed += len(piece)
        decided = scanner.feed(piece)
        settled = max(settled, scanner.settled, key=len)
    whole = decided is None or rng.randrange(WHOLE) == 0
    kept = truncator.truncate(completion, prompt) if whole else decided
    assert kept is not None

    kept_as_read = source.text[cut : len(lines_read(prompt + kept))].rstrip()
    kind = None
    if decided not in (None, kept) or not kept.startswith(settled.rstrip()):
        kind = "pieces: another text"
    elif not completion.startswith(kept):
        kind = "not the beginning of the completion"
    elif all(kept_as_read != source.text[cut:end].rstrip() for end in region.ends):
        kind = kind_of(source, cut, region, kept_as_read)
    behind = None if decided is None else max(0, at + fed - function_end)
    return Checked(variant, region, kept_as_read, kind, behind)


def lines_read(text: str) -> str:
    return text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def kind_of(source: Source, cut: int, region: Region, kept: str) -> str:
    """Tell differences apart by what explains them, if anything does."""
    prefix = "file that the parser finds errors in: " if source.damaged else ""
    for name, regions in source.others(cut).items():
        for other in regions:
            if any(kept == source.text[cut:end].rstrip() for end in other.ends):
                return prefix + name
    end = cut + len(kept)
    early = all(end < len(source.text[:one].rstrip()) for one in region.ends)
    rest = source.text[end:].lstrip()
    if early and rest.startswith("#"):
        return prefix + "early: before a comment"
    if not early and only_comments(source.text[max(region.ends) : end]):
        return prefix + "late: comments behind it"
    return prefix + ("early" if early else "late")


def only_comments(text: str) -> bool:
    return all(line.strip().startswith("#") for line in text.splitlines() if line.strip())


def difference(language: str, path: Path, source: Source, cut: int, checked: Checked) -> Difference:
    text, ends = source.text, checked.region.ends
    last = max(*ends, cut + len(checked.kept))
    expected = text[cut : min(ends)].rstrip()
    return Difference(
        language,
        str(path),
        cut,
        checked.variant.newline,
        checked.variant.bom,
        checked.kind or "",
        expected[-200:],
        checked.kept[-200:],
        "".join(text[:cut].splitlines(keepends=True)[-10:]),
        text[cut : last + 200],
    )


def files_of(language: str, folder: Path) -> list[Path]:
    root = folder / language
    if language == "python" and not root.exists():
        root = Path(sysconfig.get_path("stdlib"))
    found = [path for path in root.rglob("*") if path.suffix in SUFFIXES[language]]
    files = sorted(path for path in found if path.is_file() and "site-packages" not in path.parts)
    if not files:
        raise SystemExit(f"{root} holds no {' or '.join(SUFFIXES[language])} file")
    return files


def compare(language: str, folder: Path, cuts: int, seed: int, processes: int) -> Counts:
    """Spread `cuts` over the files by how many functions these have."""
    files = files_of(language, folder)
    if len(files) > MOST_FILES:
        files = random.Random(seed).sample(files, MOST_FILES)
    with Workers(processes) as workers:
        sizes = list(workers.run(count_functions, [(language, path) for path in files]))
        weights = [size[0] if size else 0 for size in sizes]
        if not any(weights):
            raise SystemExit(f"{folder}: no {language} file has a function")
        chosen = Counter(random.Random(seed).choices(range(len(files)), weights, k=cuts))
        tasks = [(language, files[n], chosen[n], f"{seed} {n}") for n in sorted(chosen)]
        found = Counts(
            files_left_out=sizes.count(None),
            functions=sum(weights),
            functions_left_out=sum(size[1] for size in sizes if size),
        )
        for counts in workers.run(check_file, tasks):
            found.add(counts)
    return found


class Workers:
    """A pool of processes, or this one alone."""

    def __init__(self, count: int) -> None:
        self._pool = multiprocessing.Pool(count) if count > 1 else None

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterable[R]:
        """Call the function for each task; the results are in their order."""
        return self._pool.imap(function, tasks, chunksize=4) if self._pool else map(function, tasks)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()


def summary(found: Counts, seconds: float) -> dict[str, Any]:
    kinds = Counter(difference.kind for difference in found.differences)
    behind = sorted(found.behind.elements())
    return {
        "cuts": found.cuts,
        "files": found.files,
        "files_left_out": found.files_left_out,
        "functions": found.functions,
        "functions_left_out": found.functions_left_out,
        "differences": sum(kinds.values()),
        "kinds": dict(kinds.most_common()),
        "decided": len(behind),
        "undecided": found.undecided,
        "characters_behind": {
            name: behind[int(part * (len(behind) - 1))] if behind else None
            for name, part in (("median", 0.5), ("99%", 0.99), ("most", 1.0))
        },
        "seconds": round(seconds, 1),
    }


def table(languages: dict[str, Any]) -> str:
    lines = [
        "| | cuts | files | differences | known after, characters: median | 99% |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for language, one in languages.items():
        known = one["characters_behind"]
        numbers = [one["cuts"], one["files"], one["differences"], known["median"], known["99%"]]
        cells = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| `{language}` | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with a folder for each language")
    parser.add_argument("--languages", nargs="*", choices=SUFFIXES, default=[*SUFFIXES])
    parser.add_argument("--cuts", type=int, help=f"a language; default: {CUTS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the counts, which may hold others")
    parser.add_argument("--pages", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    languages: dict[str, Any] = {}
    for language in options.languages:
        start = time.perf_counter()
        cuts = options.cuts or CUTS[language]
        found = compare(language, options.folder, cuts, options.seed, options.processes)
        languages[language] = one = summary(found, time.perf_counter() - start)
        target = options.folder / f"differences-{language}.jsonl"
        with target.open("w", encoding="utf-8") as file:
            for each in found.differences:
                file.write(json.dumps(asdict(each)) + "\n")
        print(f"{language}: {json.dumps(one)}", flush=True)
        if options.out is not None:
            date = datetime.now(UTC).date().isoformat()
            one |= {"date": date, "seed": options.seed, "python": platform.python_version()}
            languages = add_to(options.out, language, one)
    text = table(languages)
    print(text)
    for page in options.pages:
        write_into(page, text)


def add_to(target: Path, language: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write one language's results into a file that may hold others' already; return all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    languages = {**held.get("languages", {}), language: found}
    ordered = {name: languages[name] for name in SUFFIXES if name in languages}
    content = json.dumps({"languages": ordered}, indent=1) + "\n"
    target.write_text(content, encoding="utf-8")
    return ordered


if __name__ == "__main__":
    main()
