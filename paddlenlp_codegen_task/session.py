"""Multi-turn program synthesis, the CodeGen paper's own use of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.files import MOST_BYTES, read_json, write_file
from paddlenlp_codegen_task.options import GenerationOptions
from paddlenlp_codegen_task.requests import PromptTooLong

VERSION = 1  # of the file's format


@dataclass(frozen=True)
class Turn:
    """What was asked for, as it stands in the text, and the program that followed."""

    specification: str
    program: str


class Session:
    """A program written turn by turn (https://arxiv.org/abs/2203.13474, section 4).

    Each turn appends a specification, such as a comment, and what the model makes of it; the next
    is completed with all of that before it. What a turn adds is all it computes: the generator's
    prefix cache keeps the rest.

    Attributes:
        turns: so far, in order.
    """

    def __init__(
        self, complete: Callable[..., str], model: dict[str, Any], turns: list[Turn]
    ) -> None:
        """Make a session; `CodeGenerator.session` is the way to get one.

        Args:
            complete: maps a prompt, and options of the generator, to its completion.
            model: says which model that is, in values that JSON has.
            turns: to begin with.
        """
        self._complete = complete
        self._model = model
        self.turns = turns

    @property
    def text(self) -> str:
        """Everything so far: specifications and programs."""
        return "".join(turn.specification + turn.program for turn in self.turns)

    def turn(self, specification: str, **options: Unpack[GenerationOptions]) -> str:
        """Append a specification, on a line of its own, and the program that completes it.

        Args:
            specification: what is wanted next: "# sort the list", "def total(items):", ...
            **options: fields of GenerationConfig; they must ask for one completion.

        Returns:
            The program. If it cannot be generated, the session stays as it was.

        Raises:
            TypeError, ValueError: as `CodeGenerator.generate` does; also when the session has
                outgrown the model's context.
        """
        if not isinstance(specification, str):
            raise TypeError(f"specification must be a str, got {type(specification).__name__}")
        if not specification.strip():
            raise ValueError("specification must not be empty")
        before = self.text
        if before and not before.endswith("\n"):
            specification = "\n" + specification
        try:
            program = self._complete(before + specification, **options)
        except PromptTooLong as error:
            raise ValueError(
                f"the session with this turn has {error.tokens} tokens, and with max_length "
                f"{error.max_length} only {error.room} fit the model's context: rewind it, lower "
                "max_length, or pass prompt_overflow='truncate_left'"
            ) from None
        self.turns.append(Turn(specification, program))
        return program

    def rewind(self, turns: int = 1) -> None:
        """Take back the last turns.

        Raises:
            ValueError: there are not so many.
        """
        checks.integer("turns", turns, 1)
        if turns > len(self.turns):
            raise ValueError(f"turns must be 1 to {len(self.turns)}, the turns so far, got {turns}")
        del self.turns[-turns:]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the turns to a JSON file; `CodeGenerator.session(path)` goes on from it.

        A file that is there is replaced by a rename, whole or not at all, and keeps its
        permissions; a symbolic link stays, and what it points to is replaced.

        Raises:
            OSError: the file cannot be written; one that is there stays as it was.
            TypeError, ValueError: `path` is no path, or of something other than a regular file.
        """
        file = _checked_path(path)
        turns = [asdict(turn) for turn in self.turns]
        content = {"version": VERSION, "model": self._model, "turns": turns}
        text = json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8")
        if len(text) > MOST_BYTES:
            raise ValueError(f"the session has {len(text):,} bytes, a file {MOST_BYTES:,} at most")
        try:
            write_file(file, text)
        except ValueError as error:
            raise ValueError(f"path: {error}") from None


def read_turns(path: str | os.PathLike[str], model: dict[str, Any]) -> list[Turn]:
    """Read the turns that `Session.save` wrote.

    Raises:
        OSError: the file cannot be read.
        TypeError: `path` is no path.
        ValueError: it is no saved session, or one of another model than `model`.
    """
    file = _checked_path(path)
    no_session = "path: not a saved session: "
    try:
        content = read_json(file)
    except ValueError as error:
        raise ValueError(no_session + str(error)) from None
    version, saved, listed = (content.get(key) for key in ("version", "model", "turns"))
    if type(version) is int and version != VERSION:
        raise ValueError(f"path: {file} has format {checks.shown(version)}, this package {VERSION}")
    if type(version) is not int or not isinstance(saved, dict) or not isinstance(listed, list):
        raise ValueError(f"{no_session}{file} lacks a version, a model or turns")
    turns = [_turn(one, f"{no_session}{file}: turn {n}") for n, one in enumerate(listed, 1)]
    if saved != model:
        name, ours = checks.shown(saved.get("name")), checks.shown(model["name"])
        other = f"{name}; this is {ours}" if name != ours else "of other sizes"
        raise ValueError(f"path: {file} was saved with another model, {other}")
    return turns


def _checked_path(path: object) -> Path:
    return checks.path("path", path, "a file's path")


def _turn(values: object, where: str) -> Turn:
    match values:
        case {"specification": str(specification), "program": str(program)}:
            try:
                (specification + program).encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds a lone surrogate, not valid Unicode") from None
            return Turn(specification, program)
    raise ValueError(f"{where} must have a specification and a program, which are texts")
