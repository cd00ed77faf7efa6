"""What a batch is made of: rows of JSON lines, or the files of a folder."""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.files import MOST_BYTES, check_regular, parse_json
from paddlenlp_codegen_task.json_lines import lines
from paddlenlp_codegen_task.requests import Infill

Id = str | int

FIELDS = ("prompt", "prefix", "suffix", "id", "options")  # of a line
_MOST_ID_BYTES = 4095  # Linux's PATH_MAX: a file's path is its id
_BLOCK = 1 << 20
PIECE = 4096  # rows, or lines, that are read as one


@dataclass(frozen=True)
class Row:
    """A prompt to complete.

    Attributes:
        id: tells it from the others.
        prompt: what to complete; an `Infill` where the middle is wanted.
        options: fields of GenerationConfig that are its own.
        line: its number, from 1, if it comes from a line.
    """

    id: Id
    prompt: str | Infill
    options: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True)
class Refused:
    """A row that is not completed.

    Attributes:
        reason: why not, on one line.
        id: its id, if that much is known.
        line: its number, from 1, if it comes from a line.
    """

    reason: str
    id: Id | None = None
    line: int | None = None

    @property
    def place(self) -> str:
        """How a message calls it."""
        return f"line {self.line}" if self.line is not None else checks.shown(self.id)


# Makes an iterator of rows that follow one another. Unless they pass once it can be pickled, and
# then called wherever what it reads is to be had.
Piece = Callable[[], Iterator[Row | Refused]]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        identity: of their content, the same as long as that is; None where it passes once.
        count: how many there are; None where that is not known.
        pieces: makes an iterator of what all of them come in, the same pieces every time.
        anywhere: whether other machines can read the pieces, too.
    """

    identity: str | None
    count: int | None
    pieces: Callable[[], Iterator[Piece]]
    anywhere: bool = False

    def rows(self) -> Iterator[Row | Refused]:
        """All of them, from the first on."""
        return chain.from_iterable(piece() for piece in self.pieces())

    @classmethod
    def of_path(cls, path: Path) -> Source:
        """The rows of a file of JSON lines, or those of a folder: each file's text is a prompt.

        Reads all of it once, to know it again.

        Raises:
            OSError: it is missing, or cannot be read.
            ValueError: it is neither a regular file nor a folder.
        """
        if path.is_dir():
            identity, count = _of_folder(path)
            return cls(identity, count, partial(_pieces_of_folder, path))
        check_regular(path)
        identity, count, starts = _of_file(path)
        return cls(identity, count, partial(_pieces_of_file, path, starts))

    @classmethod
    def of_stream(cls, file: IO[bytes]) -> Source:
        """The rows of JSON lines that come one after another, when they come."""
        return cls(None, None, lambda: iter([partial(rows_of_lines, file)]))


def rows_of_lines(
    file: IO[bytes], first: int = 1, most: int | None = None
) -> Iterator[Row | Refused]:
    """The rows of JSON lines; blank ones only count.

    Args:
        file: at the beginning of a line.
        first: the number of that line.
        most: how many lines are read; None for all.
    """
    for number, line in enumerate(islice(lines(file, MOST_BYTES), most), first):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield _row_of_line(line, number)


def row_seed(seed: int, row_id: Id) -> int:
    """The seed of a row of a batch that has one: whatever else there is, in whatever order.

    The first 16 bytes of the SHA-256 of "seed:id", a big-endian number; an id that is a string has
    quotation marks around it.
    """
    name = f'"{row_id}"' if isinstance(row_id, str) else str(row_id)
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "big")


def _row_of_line(line: bytes, number: int) -> Row | Refused:
    given: Id | None = None
    try:
        try:
            values = parse_json(line)
        except ValueError as error:
            raise ValueError(f"the line {error}") from None
        given = _checked_id(values.get("id"))
        for name in values:
            if name not in FIELDS:
                raise ValueError(
                    f"unknown field {checks.shown(name)}: a line has prompt, or prefix and suffix, "
                    "and, if wanted, id and options, which holds the fields of GenerationConfig"
                )
        prompt, options = _checked_prompt(values), _checked_options(values.get("options"))
        return Row(number if given is None else given, prompt, options, number)
    except (TypeError, ValueError) as error:
        return Refused(checks.line(str(error)), given, number)


def _checked_prompt(values: Mapping[str, Any]) -> str | Infill:
    names = ("prefix", "suffix") if "prefix" in values or "suffix" in values else ("prompt",)
    if len(names) == 2 and "prompt" in values:
        raise ValueError("prompt does not go with prefix and suffix")
    for name in names:
        if name not in values:
            raise ValueError(f"{name} is missing")
        if not isinstance(values[name], str):
            raise TypeError(f"{name} must be a string, got {checks.shown(values[name])}")
    return Infill(values["prefix"], values["suffix"]) if len(names) == 2 else values["prompt"]


def _checked_id(value: Any) -> Id | None:
    if value is None:
        return None
    if not isinstance(value, str):
        try:
            return checks.integer("id", value, -checks.LARGEST)
        except TypeError:
            message = f"id must be a string or an integer, got {checks.shown(value)}"
        raise TypeError(message)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        reason = "holds a lone surrogate, not valid Unicode"
        raise ValueError(f"id: {checks.shown(value)} {reason}") from None
    if not 0 < size <= _MOST_ID_BYTES:
        raise ValueError(f"id must have 1 to {_MOST_ID_BYTES} bytes, and has {size}")
    return value


def _checked_options(value: Any) -> dict[str, Any]:
    """What a line's options come to; whether they are possible is GenerationConfig's to say."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"options must be an object, got {checks.shown(value)}")
    bias = value.get("logit_bias")
    if isinstance(bias, dict):  # the names of a JSON object are strings
        return {**value, "logit_bias": {_token_id(one): bias[one] for one in bias}}
    return value


def _token_id(name: str) -> int | str:
    return int(name) if name.isascii() and name.isdigit() and len(name) < 19 else name


# Files and folders.


def _of_file(path: Path) -> tuple[str, int, array[int]]:
    """A file's identity, how many lines are not blank, and where each PIECE of lines starts."""
    digest, count, begun, number, at = hashlib.sha256(), 0, False, 0, 0
    starts = array("Q", [0])
    with path.open("rb") as file:
        while part := file.readline(_BLOCK):
            digest.update(part)
            at += len(part)
            begun = begun or bool(part.strip())
            if part.endswith(b"\n"):
                count += begun
                begun = False
                number += 1
                if number % PIECE == 0:
                    starts.append(at)
    return digest.hexdigest(), count + begun, starts


def _pieces_of_file(path: Path, starts: array[int]) -> Iterator[Piece]:
    for number, start in enumerate(starts):
        yield partial(_rows_of_file, path, start, number * PIECE + 1)


def _rows_of_file(path: Path, start: int, first: int) -> Iterator[Row | Refused]:
    with path.open("rb") as file:
        file.seek(start)
        yield from rows_of_lines(file, first, PIECE)


def _of_folder(folder: Path) -> tuple[str, int]:
    """A folder's identity, and how many files it has."""
    digest, count = hashlib.sha256(), 0
    for name in _names(folder):
        found = _row_of_file(folder, name)
        content = (found.reason, None) if isinstance(found, Refused) else (None, found.prompt)
        digest.update(hashlib.sha256(repr((name, content)).encode()).digest())
        count += 1
    return digest.hexdigest(), count


def _pieces_of_folder(folder: Path) -> Iterator[Piece]:
    names = _names(folder)
    while some := list(islice(names, PIECE)):
        yield partial(_rows_of_folder, folder, some)


def _rows_of_folder(folder: Path, names: list[str]) -> Iterator[Row | Refused]:
    return (_row_of_file(folder, name) for name in names)


def _names(folder: Path) -> Iterator[str]:
    """The paths of a folder's files from there, in order, without those that are hidden."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder)


def _row_of_file(folder: Path, name: str) -> Row | Refused:
    given: Id | None = None
    try:
        given = _checked_id(name)
        assert given is not None, "a file has a name"
        return Row(given, _text(folder / name))
    except OSError as error:
        return Refused(f"the file cannot be read: {error.strerror}", given)
    except ValueError as error:
        # Where its name is no text, it is told apart by how Python shows it.
        return Refused(checks.line(str(error)), given or ascii(name))


def _text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO waits for a writer
        raise ValueError("the file is not a regular one")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"the file must not have more than {MOST_BYTES:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8: {error}") from None
