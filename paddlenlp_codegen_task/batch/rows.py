"""What a batch is made of: rows, and what JSON lines come to."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.files import MOST_BYTES, parse_json
from paddlenlp_codegen_task.json_lines import lines
from paddlenlp_codegen_task.requests import Infill

Id = str | int

FIELDS = ("prompt", "prefix", "suffix", "id", "options")  # of a line
KNOWN = (
    "a line has prompt, or prefix and suffix, and, if wanted, id and options, which holds the "
    "fields of GenerationConfig"
)
_MOST_ID_BYTES = 4095  # Linux's PATH_MAX: a file's path is its id


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
    try:
        values = parse_json(line)
    except ValueError as error:
        return Refused(checks.line(f"the line {error}"), None, number)
    return row_of(values, number)


def row_of(values: Mapping[str, Any], number: int) -> Row | Refused:
    """The row that a line's or a table's values come to.

    Args:
        values: those of FIELDS that it has.
        number: of the line, or of the table's row, from 1.
    """
    given: Id | None = None
    try:
        given = checked_id(values.get("id"))
        for name in values:
            if name not in FIELDS:
                raise ValueError(f"unknown field {checks.shown(name)}: {KNOWN}")
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


def checked_id(value: Any) -> Id | None:
    """A row's id, or None if it has none.

    Raises:
        TypeError, ValueError: it cannot be one.
    """
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
