"""Two processes that call one another over a pair of pipes, with plain values.

Calls nest strictly: whoever waits for an answer answers the other's calls meanwhile. So a frame is
a call, an answer's value or an answer's exception, and needs no number.
"""

from __future__ import annotations

import builtins

from .plain import NotPlain, decode, encode, read_frame, write_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LONGEST = 500  # characters of an exception's message


class Broken(BaseException):
    """The other side is gone or talks nonsense; no `except Exception` of a test's stops it."""


class ProgramError(Exception):
    """An exception of the other side that is none of Python's own, or no Exception."""


def described(error: BaseException) -> tuple[str, str]:
    """An exception's type and message, whatever its `__str__` does."""
    try:
        message = str(error)
    except BaseException:  # of anybody's class
        message = ""
    return type(error).__name__, message[:_LONGEST]


def rebuilt(name: str, message: str) -> Exception:
    """The exception of Python's own that has this name; else a ProgramError that tells it."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message) if message else kind()
        except TypeError:  # UnicodeError's kin want five arguments
            pass
    return ProgramError(f"{name}: {message}" if message else name)


class Peer:
    """One of the two.

    Args:
        read, write: descriptors of its ends of the pipes.
        answer: what a call of the other side's gives; what it raises goes to the other side.
        other: see `plain.encode`.
        referent: see `plain.decode`.

    Attributes:
        broken: why there is nothing more to expect, once that is so.
        raised: the last exception of the other side's, and its text there (KeyError's, made anew,
            would be quoted twice).
    """

    def __init__(
        self,
        read: int,
        write: int,
        answer: Callable[[list[Any]], object],
        other: Callable[[object], object],
        referent: Callable[[int], object],
    ) -> None:
        self._read, self._write, self._answer = read, write, answer
        self._other, self._referent = other, referent
        self.broken: str | None = None
        self.raised: tuple[Exception, str] | None = None

    def ask(self, *call: object) -> Any:
        """Call the other side, and return or raise what it answers.

        Raises:
            Broken: it does not.
            NotPlain: an argument is not plain.
        """
        self._send("call", list(call))
        while True:
            answer = self._receive()
            if answer is not None:
                break
        kind, content = answer
        if kind == "value":
            return content
        error = rebuilt(*content)
        self.raised = error, ": ".join(filter(None, content))
        raise error

    def serve(self, first: BaseException | None = None) -> None:
        """Say that this side is ready (or what kept it from that), then answer until the end."""
        self._send(*(("value", None) if first is None else ("raised", described(first))))
        while True:
            try:
                self._receive()
            except Broken:
                return

    def wait(self) -> None:
        """Until the other side serves; raises what kept it from that, or Broken."""
        answer = self._receive()
        if answer is None:
            raise self._break("called before its beginning")
        if answer[0] == "raised":
            error = rebuilt(*answer[1])
            if isinstance(error, ProgramError):  # SystemExit is no Exception
                raise ProgramError(f"ended before its checks ({error})")
            raise error

    def _break(self, reason: str) -> Broken:
        self.broken = self.broken or reason
        return Broken(self.broken)

    def _send(self, kind: str, content: object) -> None:
        data = encode([kind, content], self._other)
        try:
            write_frame(self._write, data)
        except OSError as error:
            raise self._break("ended before its checks") from error

    def _receive(self) -> tuple[str, Any] | None:
        """The other's next answer; or None, having answered its call."""
        if self.broken is not None:
            raise Broken(self.broken)
        try:
            frame = decode(read_frame(self._read), self._referent)
        except (EOFError, OSError) as error:
            raise self._break("ended before its checks") from error
        except (ValueError, MemoryError, RecursionError) as error:
            raise self._break("answered with no plain value") from error
        match frame:
            case ["value", content]:
                return "value", content
            case ["raised", (str(), str()) as content]:
                return "raised", content
            case ["call", list(call)]:
                self._respond(call)
                return None
        raise self._break("answered with no plain value")

    def _respond(self, call: list[Any]) -> None:
        try:
            value = self._answer(call)
        except Broken:
            raise
        except BaseException as error:  # a SystemExit as well: it is the answer
            return self._send("raised", described(error))
        try:
            return self._send("value", value)
        except NotPlain as error:
            return self._send("raised", described(error))
