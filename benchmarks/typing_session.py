"""What somebody types into files of Python's standard library: the session of keystroke.py."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

# Short ones and long ones; of each, what stands before the cursor is about as long.
FILES = ("heapq.py", "textwrap.py", "configparser.py")
PAUSE = 0.08  # share of keys within a line at which the typist waits
MISTAKE = 0.04  # share of keys before which a wrong one is typed, and taken back
LINES_UP = 8  # how far above something is changed when a file is come back to
CHANGE = "new_"  # what is typed there


@dataclass(frozen=True)
class Key:
    """A keystroke.

    Attributes:
        prompt: what stands before the cursor then.
        whole: whether the typist waits for the completion.
    """

    prompt: str
    whole: bool


@dataclass(frozen=True)
class Visit:
    """Some keystrokes in one file, until another one is looked at.

    Attributes:
        file: its name.
        first: whether the file has just been opened.
        keys: in order.
    """

    file: str
    first: bool
    keys: list[Key]


class _Document:
    """A file, of which `text` stands before the cursor, and `rest` will be typed."""

    def __init__(self, name: str, tokenizer: Tokenizer, tokens: int) -> None:
        source = (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8")
        size = len(tokenizer.decode(tokenizer.encode(source)[:tokens]))
        start = source.index("\n", size) + 1
        self.name = name
        self.text, self.rest = source[:start], source[start:]

    def type(self, count: int, rng: random.Random) -> Iterator[Key]:
        """The next keys at the end of the text; a new line brings its blanks with it.

        After each line, after the last of the keys, and now and then, the typist waits.
        """
        for number in range(count):
            if rng.random() < MISTAKE:
                yield Key(self.text + rng.choice("aeiotnrs"), whole=False)
                yield Key(self.text, whole=False)
            size = 1
            if self.rest[0] == "\n":
                size += len(self.rest[1:]) - len(self.rest[1:].lstrip(" "))
            typed, self.rest = self.rest[:size], self.rest[size:]
            self.text += typed
            pause = rng.random() < PAUSE
            yield Key(self.text, pause or typed[0] == "\n" or number == count - 1)

    def change_above(self) -> Iterator[Key]:
        """Keys somewhat further up, where a word is made longer."""
        lines = self.text.split("\n")
        at = len("\n".join(lines[:-LINES_UP])) + 1
        at += len(self.text[at:]) - len(self.text[at:].lstrip())
        before, after = self.text[:at], self.text[at:]
        for end in range(1, len(CHANGE) + 1):
            yield Key(before + CHANGE[:end], whole=False)
        self.text = before + CHANGE + after


def session(
    tokenizer: Tokenizer, tokens: int, visits: int, keys: int, seed: int = 0
) -> list[Visit]:
    """The keystrokes of a session.

    Each file is visited in turn, `visits` times. Who comes back changes something above first.

    Args:
        tokenizer: counts.
        tokens: before the cursor at first, about, in each file.
        visits: of each file.
        keys: typed at the end of the file at each visit, mistakes not counted.
        seed: of the pauses and mistakes.
    """
    rng = random.Random(seed)
    documents = [_Document(name, tokenizer, tokens) for name in FILES]
    found = []
    for number in range(visits):
        for document in documents:
            above = list(document.change_above()) if number else []
            found.append(Visit(document.name, not number, [*above, *document.type(keys, rng)]))
    return found
