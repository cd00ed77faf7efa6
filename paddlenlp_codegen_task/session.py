"""Multi-turn program synthesis, the CodeGen paper's own use of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from paddlenlp_codegen_task import checks
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
        """Write the turns to a JSON file; `CodeGenerator.session(path)` goes on from it."""
        path = Path(path)
        content = {
            "version": VERSION,
            "model": self._model,
            "turns": [asdict(turn) for turn in self.turns],
        }
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read_turns(path: str | os.PathLike[str], model: dict[str, Any]) -> list[Turn]:
    """Read the turns that `Session.save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no saved session, or one of another model than `model`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, saved = content["version"], content["model"]
        turns = [Turn(one["specification"], one["program"]) for one in content["turns"]]
        if not all(isinstance(text, str) for turn in turns for text in asdict(turn).values()):
            raise TypeError("a turn is not text")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: {os.fspath(path)} is not a saved session ({error!r})") from None
    if version != VERSION:
        raise ValueError(f"path: {os.fspath(path)} has format {version}, this package {VERSION}")
    if saved != model:
        names = [one.get("name") if isinstance(one, dict) else one for one in (saved, model)]
        other = f"{names[0]}; this is {names[1]}" if names[0] != names[1] else "of other sizes"
        raise ValueError(f"path: {os.fspath(path)} was saved with another model, {other}")
    return turns
