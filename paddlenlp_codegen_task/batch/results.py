"""Where a batch's rows end up: OUT.jsonl, OUT.errors.jsonl, and in OUT.meta.json what they are of.

A row is in one of the first two files once it has ended, and never twice; so what is there says
where to go on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.completing import Completed, Outcome
from paddlenlp_codegen_task.batch.finished import Keys, key_of
from paddlenlp_codegen_task.batch.rows import Id, Refused
from paddlenlp_codegen_task.files import check_regular, read_json, remove_drafts, write_file
from paddlenlp_codegen_task.json_lines import JsonLines, lines
from paddlenlp_codegen_task.requests import Completion

logger = logging.getLogger(__name__)

_VERSION = 1  # of the files
_BEGINNING = '{"id": '  # of a line of OUT.jsonl, whatever follows the id
_LONGEST_ID = 6 * 4095 + 2  # bytes that an id's JSON may have
_MINUS_INFINITY = -9999.0  # JSON knows no infinity; OpenAI's API and vLLM write this


class Results(Protocol):
    """Where outcomes go.

    Attributes:
        finished: the keys of rows that have ended before.
        completed: how many rows have been completed, those before included.
        refused: how many have been refused.
    """

    finished: Keys
    completed: int
    refused: int

    def write(self, outcome: Outcome) -> None:
        """Keep what a row has come to."""

    def close(self) -> None:
        """Let go of everything."""


class Files:
    """Results in files, which an earlier run may have begun; see `Results`."""

    def __init__(self, path: Path, made_of: dict[str, Any], overwrite: bool) -> None:
        """Begin, or go on.

        Args:
            path: OUT.jsonl.
            made_of: what the results depend on, as JSON has it: the input, the model, the options.
            overwrite: whether to do away with what is there.

        Raises:
            OSError: a file cannot be opened, or another process writes to it.
            ValueError: what is there is of something else.
        """
        self.path, self.errors, meta = paths(path)
        made_of = json.loads(json.dumps({"version": _VERSION, **made_of}))
        self.finished, self.completed, self.refused = Keys(), 0, 0
        with ExitStack() as opened:
            if not overwrite:  # before opening, which cuts off a line that has no end
                _check(path, self.errors, meta, made_of)
            self._completed = opened.enter_context(JsonLines(path))
            self._refused = opened.enter_context(JsonLines(self.errors))
            if overwrite:
                # First of all: killed on the way, the rest is no result of anything.
                meta.unlink(missing_ok=True)
                self._completed.clear()
                self._refused.clear()
            else:  # now that nobody else writes
                _check(path, self.errors, meta, made_of)
            remove_drafts(meta)
            if not _hold_any(path, self.errors):
                write_file(meta, json.dumps(made_of, indent=2, ensure_ascii=False).encode() + b"\n")
            self._read()
            self._opened = opened.pop_all()

    def write(self, outcome: Outcome) -> None:
        """See Results.

        Raises:
            OSError: it cannot be written; then the file is as before.
        """
        if isinstance(outcome, Completed):
            self._completed.append([as_json(outcome)])
            self.completed += 1
        else:
            self._refused.append([as_json(outcome)])
            self.refused += 1

    def close(self) -> None:
        """See Results."""
        with self._opened:
            self._completed.sync()
            self._refused.sync()

    def _read(self) -> None:
        """What has ended before."""
        for row_id in _ids(self.path):
            if not self.finished.add(("id", row_id)):
                raise ValueError(f"{self.path} has id {checks.shown(row_id)} twice")
        self.completed = len(self.finished)
        for one in self._refused:
            if "error" not in one:
                raise ValueError(f"{self.errors} holds a line that is no error of a batch")
            self.finished.add(key_of(Refused("", one.get("id"), one.get("line"))))
            self.refused += 1


class Stream:
    """Results on standard output; a row that is refused is told by a warning. See `Results`."""

    def __init__(self) -> None:
        self.finished, self.completed, self.refused = Keys(), 0, 0

    def write(self, outcome: Outcome) -> None:
        """See Results."""
        if isinstance(outcome, Completed):
            line = json.dumps(as_json(outcome), ensure_ascii=False).encode() + b"\n"
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            self.completed += 1
        else:
            self.refused += 1
            logger.warning("%s: %s", outcome.place, outcome.reason)

    def close(self) -> None:
        """See Results."""


def paths(path: Path) -> tuple[Path, Path, Path]:
    """The files of results: OUT.jsonl, OUT.errors.jsonl and OUT.meta.json.

    Raises:
        ValueError: the first is not called so, and another's might be called as these are.
    """
    name = path.name.removesuffix(".jsonl")
    if name in ("", path.name):
        raise ValueError(f"out: {checks.line(str(path), 200)} must be a file's path with .jsonl")
    return path, path.with_name(f"{name}.errors.jsonl"), path.with_name(f"{name}.meta.json")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The object that a line holds."""
    if isinstance(outcome, Completed):
        return {"id": outcome.row.id, "completions": list(map(_completion, outcome.completions))}
    found: dict[str, Any] = {} if outcome.line is None else {"line": outcome.line}
    if outcome.id is not None:
        found["id"] = outcome.id
    return {**found, "error": outcome.reason}


def _completion(one: Completion) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": one.text,
        "finish_reason": one.finish_reason,
        "tokens": len(one.token_ids),
    }
    if one.score is not None:
        found["score"] = max(one.score, _MINUS_INFINITY)
    for name in ("logprobs", "prompt_logprobs"):
        if (tokens := getattr(one, name)) is not None:
            found[name] = [
                tops and {str(token): max(value, _MINUS_INFINITY) for token, value in tops.items()}
                for tops in tokens
            ]
    return found


def _ids(path: Path) -> Iterator[Id]:
    """The ids of the lines that are there: a line may be far longer than JSON is read of."""
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        for number, line in enumerate(lines(file, len(_BEGINNING) + _LONGEST_ID), 1):
            text = line.decode(errors="replace")
            try:
                if not text.startswith(_BEGINNING):
                    raise ValueError
                row_id, _ = decoder.raw_decode(text, len(_BEGINNING))
                if type(row_id) not in (str, int):
                    raise ValueError
            except ValueError:
                raise ValueError(f"{path}, line {number} is no result of a batch") from None
            yield row_id


def _check(path: Path, errors: Path, meta: Path, made_of: dict[str, Any]) -> None:
    """Raise a ValueError unless the results that are there, if any are, are of the same."""
    instead = "choose another file, or begin anew with overwrite=True"
    if not _hold_any(path, errors):
        return
    if not meta.exists():
        raise ValueError(f"{path}: it or {errors.name} is there, without {meta.name}: {instead}")
    there = read_json(meta)
    for part in made_of:
        if there.get(part) != made_of[part]:
            what = _difference(there.get(part), made_of[part])
            raise ValueError(f"{path} is of {_OTHER[part]}{what}: {instead}")


def _hold_any(*files: Path) -> bool:
    """Whether there is anything in these files."""
    there = [file for file in files if file.exists()]
    for file in there:
        check_regular(file)
    return any(file.stat().st_size for file in there)


_OTHER = {
    "version": "another version of this package",
    "input": "another input",
    "model": "another model or precision",
    "options": "other options",
}


def _difference(there: Any, wanted: Any) -> str:
    """What is other, in a few words."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for name, value in wanted.items():
            if there.get(name) != value:
                return f" ({name} {checks.shown(there.get(name))}, not {checks.shown(value)})"
    return ""
