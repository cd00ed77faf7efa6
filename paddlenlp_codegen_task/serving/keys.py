"""Who may use the server: whoever sends one of its keys."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from paddlenlp_codegen_task import checks

VARIABLE = "PADDLENLP_CODEGEN_API_KEY"
LONGEST = 512  # characters of a key
LARGEST_FILE = 1 << 20  # bytes of a file of keys

# What needs none: probes ask for these, and the page asks for a key itself.
OPEN = frozenset({"/", "/health", "/version"})

Headers = Iterable[tuple[bytes, bytes]]


class Keys:
    """The keys that let a client in; none of them is kept, only their hashes."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Let in whoever has one of `keys`; without any, everybody."""
        self._digests = [_digest(key.encode()) for key in keys]

    def allow(self, method: str, path: str, headers: Headers) -> bool:
        """Whether a request to `path` with these headers, their names in lower case, may pass."""
        # A POST to `/` is no look at the page: some dialects complete there.
        if not self._digests or (path in OPEN and method in ("GET", "HEAD")):
            return True
        return sum(map(self._knows, _sent(headers))) > 0

    def _knows(self, key: bytes) -> bool:
        """Whether it is one of them; takes as long whichever it is, and if it is none."""
        sent = _digest(key)
        return sum(hmac.compare_digest(sent, digest) for digest in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _sent(headers: Headers) -> list[bytes]:
    """The keys that a request has sent: as OpenAI's clients do, and as Azure's."""
    found = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(key.strip())
        elif name == b"api-key":
            found.append(value.strip())
    return found


def collect(given: Iterable[str], file: Path | None, variable: str) -> tuple[str, ...]:
    """All keys: those given, those in a file, and those in the environment variable.

    Args:
        given: keys.
        file: with a key a line; lines that are empty or begin with # are none. None for no file.
        variable: the value of VARIABLE, keys apart by commas; "" for none.

    Raises:
        OSError: the file cannot be read.
        ValueError: one cannot be a key, or the file has none.
    """
    found = [_checked("--api-key", key) for key in given]
    if file is not None:
        lines = [line.strip() for line in _read(file).splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"--api-key-file: there is no key in {checks.shown(str(file))}")
        found += [_checked("--api-key-file", key) for key in keys]
    found += [_checked(VARIABLE, key.strip()) for key in variable.split(",") if key.strip()]
    return tuple(dict.fromkeys(found))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        where = checks.shown(str(file))
        raise OSError(f"--api-key-file: cannot read {where}: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ValueError(f"--api-key-file may have {LARGEST_FILE:,} bytes, and has more")
    return content.decode(errors="replace")  # what is no text can be no key, and is told below


def _checked(name: str, key: str) -> str:
    """Return what can be a key, or raise an error that does not show it: it may nearly be one."""
    if len(key) > LONGEST or not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"{name}: a key has 1 to {LONGEST} visible ASCII characters, and no space: one is "
            f"not so ({len(key)} characters)"
        )
    return key
