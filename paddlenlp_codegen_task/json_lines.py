"""Files of JSON lines that grow: what was written stays, whenever the process ends."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from paddlenlp_codegen_task.files import MOST_BYTES, parse_json


class JsonLines:
    """A file of JSON objects, one a line, to which one process at a time appends.

    A line that a process was killed in the middle of is taken back when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, or make it.

        Raises:
            OSError: it cannot be opened, or another process appends to it.
            ValueError: it is not a regular file.
        """
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path} is not a regular file")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"{path}: another process is writing to it") from None
            self._file: IO[bytes] = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 (kept)
        except BaseException:
            os.close(descriptor)
            raise
        self._end = _end_of_lines(self._file)
        self._file.truncate(self._end)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The objects that are there.

        Raises:
            ValueError: a line is none; the message begins with the file and the line's number.
        """
        with open(self.path, "rb") as file:
            for number, line in enumerate(lines(file, MOST_BYTES), 1):
                if not line.strip():
                    continue
                try:
                    yield parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number} {error}") from None

    def append(self, values: Iterable[dict[str, Any]]) -> None:
        """Write objects at the end, all of them or, where that fails, none.

        Raises:
            OSError: they cannot be written.
        """
        content = b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in values)
        self._file.seek(self._end)
        written = 0
        try:
            while written < len(content):
                written += self._file.write(content[written:]) or 0
        except BaseException as error:
            self._file.truncate(self._end)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.path)
            raise
        self._end += written

    def clear(self) -> None:
        """Take back all that is there."""
        self._file.truncate(0)
        self._end = 0

    def sync(self) -> None:
        """Have what was written outlive the machine, not the process alone."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others append."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def lines(file: IO[bytes], most: int) -> Iterator[bytes]:
    """Lines; of those that have more bytes than `most`, one more than that."""
    while line := file.readline(most + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(most)):
            pass


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        block = file.read(end - start)
        if (at := block.rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0
