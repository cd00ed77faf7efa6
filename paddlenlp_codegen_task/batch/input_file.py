"""Files to read, on this machine or wherever pyarrow reads."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from paddlenlp_codegen_task.files import check_regular

BLOCK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class File:
    """A file to read.

    Attributes:
        where: its path; or its URI, of a filesystem that pyarrow reads.
    """

    where: Path | str

    @property
    def is_anywhere(self) -> bool:
        """Whether other machines can read it, too."""
        return isinstance(self.where, str)

    def absolute(self) -> File:
        """The same, for a process that is in another folder."""
        return File(self.where.absolute()) if isinstance(self.where, Path) else self

    def open(self) -> io.BufferedReader:
        """Open it.

        Raises:
            OSError: it is missing, or cannot be read.
            ValueError: it is not a regular file, or pyarrow does not know the filesystem.
        """
        if isinstance(self.where, Path):
            check_regular(self.where)
            return self.where.open("rb")
        from pyarrow import fs

        system, path = fs.FileSystem.from_uri(self.where)
        return io.BufferedReader(system.open_input_file(path), BLOCK)
