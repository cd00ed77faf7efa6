"""Small files: read within bounds, and written by rename, so that none is ever half there."""

from __future__ import annotations

import glob
import json
import math
import os
import secrets
import stat
from pathlib import Path
from typing import Any, NoReturn

# The largest that this package reads as JSON are tokenizers' settings, which have some 100 kB.
# What a parser makes of a file takes up to thirty times its size.
MOST_BYTES = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object that a regular file of at most MOST_BYTES holds.

    Numbers in it are finite; an integer may still have thousands of digits.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is anything else; the message is one line and begins with `path`.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def check_regular(path: Path) -> None:
    """Ask this before opening: a FIFO waits for a writer, and reading a device may never end.

    Raises:
        OSError: there is nothing at `path`.
        ValueError: it is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")


def parse_json(content: bytes) -> dict[str, Any]:
    """Read a JSON object of at most MOST_BYTES.

    Raises:
        ValueError: it is anything else; the message says what "is not" or "must" be.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"must not have more than {MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
        values = json.loads(text, parse_float=_finite, parse_constant=_not_a_number)
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("is not valid JSON: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("must hold a JSON object")
    return values


def is_file_name(name: object) -> bool:
    """Whether a file of a folder may be called so: a name out of a file may lead anywhere."""
    return (
        isinstance(name, str)
        and name.isprintable()  # which a null character, a line break or half a character is not
        and "\\" not in name
        and 0 < len(name.encode()) <= 255
        and Path(name).name == name != ".."
    )


def write_file(path: Path, content: bytes) -> None:
    """Make a file, or replace one, by a rename: readers see the old content or the new.

    What a symbolic link points to is replaced, not the link. A file that was there keeps its
    permissions, a new one has those that the user's mask leaves.

    Raises:
        OSError: it cannot be written; then nothing has changed.
        ValueError: there is something at `path` that is not a regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        mode: int | None = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file")
    # As mkstemp does, but with the mask's permissions: it would keep a new file from everyone
    # else, and the mask cannot be asked for without setting it for all threads.
    draft = target.with_name(f".{target.name[:50]}-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(draft, flags, 0o666 if mode is None else 0o600)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_drafts(path: Path) -> None:
    """Remove what processes that were killed amid `write_file` have left beside `path`.

    Nobody may be writing it.

    Raises:
        OSError: it cannot be removed.
    """
    pattern = f".{glob.escape(path.name[:50])}-{'[0-9a-f]' * 16}"
    for draft in path.parent.glob(pattern):
        draft.unlink(missing_ok=True)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any float")
    return value


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
