"""Where a batch's rows come from: a file, here or elsewhere, a folder, or a stream."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.input_file import BLOCK, File
from paddlenlp_codegen_task.batch.rows import Id, Refused, Row, checked_id, rows_of_lines
from paddlenlp_codegen_task.files import MOST_BYTES

PARQUET = ".parquet"
PIECE = 4096  # lines, or files, that are read as one


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
        """The rows of a file of JSON lines; of one in Parquet's format, or a folder of such, if the
        name ends so; or of another folder: each file's text is a prompt.

        Reads all of it once, to know it again.

        Raises:
            OSError: it is missing, or cannot be read.
            ValueError: it is neither a regular file nor a folder, or not what its name says.
        """
        if path.suffix == PARQUET:
            return cls._of_tables(_parts(path, path.iterdir) if path.is_dir() else [File(path)])
        if path.is_dir():
            identity, count = _of_folder(path)
            return cls(identity, count, partial(_pieces_of_folder, path.absolute()))
        return cls._of_lines(File(path))

    @classmethod
    def of_uri(cls, uri: str) -> Source:
        """The same, of a file (or a folder of Parquet's) wherever pyarrow reads: s3, gs, hdfs, file
        and so on. All machines can read it: one that file:// names is to be the same everywhere.

        Raises:
            OSError, ValueError: as `of_path` does.
        """
        from pyarrow import fs

        system, path = fs.FileSystem.from_uri(uri)
        is_folder = system.get_file_info(path).type == fs.FileType.Directory
        if not uri.endswith(PARQUET):
            return cls._of_lines(File(uri))
        if not is_folder:
            return cls._of_tables([File(uri)])

        def inside() -> Iterator[str]:
            for one in system.get_file_info(fs.FileSelector(path)):
                yield f"{uri}/{one.base_name}"

        return cls._of_tables(_parts(uri, inside))

    @classmethod
    def _of_lines(cls, file: File) -> Source:
        identity, count, starts = _of_lines(file)
        return cls(
            identity, count, partial(_pieces_of_lines, file.absolute(), starts), file.is_anywhere
        )

    @classmethod
    def _of_tables(cls, files: list[File]) -> Source:
        from paddlenlp_codegen_task.batch import tables  # pyarrow takes a while to import

        identity, pieces, count = tables.read(files)
        return cls(identity, count, partial(iter, pieces), files[0].is_anywhere)

    @classmethod
    def of_stream(cls, file: IO[bytes]) -> Source:
        """The rows of JSON lines that come one after another, when they come."""
        return cls(None, None, lambda: iter([partial(rows_of_lines, file)]))


def _parts(folder: Path | str, inside: Callable[[], Iterable[Path | str]]) -> list[File]:
    """The files in Parquet's format of a folder, in order.

    Raises:
        ValueError: it has none.
    """
    found = sorted(
        (one for one in inside() if str(one).endswith(PARQUET)), key=lambda one: str(one)
    )
    if not found:
        raise ValueError(f"{checks.line(str(folder), 200)} has no file that ends in {PARQUET}")
    return [File(one) for one in found]


def _of_lines(source: File) -> tuple[str, int, array[int]]:
    """A file's identity, how many lines are not blank, and where each PIECE of lines starts."""
    digest, count, begun, number, at = hashlib.sha256(), 0, False, 0, 0
    starts = array("Q", [0])
    with source.open() as file:
        while part := file.readline(BLOCK):
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


def _pieces_of_lines(source: File, starts: array[int]) -> Iterator[Piece]:
    for number, start in enumerate(starts):
        yield partial(_rows_of_lines, source, start, number * PIECE + 1)


def _rows_of_lines(source: File, start: int, first: int) -> Iterator[Row | Refused]:
    with source.open() as file:
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
        given = checked_id(name)
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
