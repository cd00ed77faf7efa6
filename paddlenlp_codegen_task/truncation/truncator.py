"""Truncator: the rules of one `truncation` and `stop`, for whole texts and for growing ones."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from paddlenlp_codegen_task.truncation.cut import Cut, Rule
from paddlenlp_codegen_task.truncation.patterns import pattern_rule
from paddlenlp_codegen_task.truncation.presets import PRESETS, Preset
from paddlenlp_codegen_task.truncation.stop_strings import stop_rule

DEFAULT_TRUNCATION = "\nclass|\ndef|\n#|\n@|\nprint|\nif"


_MOST_CHARACTERS = 10_000  # of all regular expressions: each costs about 30 microseconds to compile
# What somebody may take for a language's name: "py", "C++", "objective-c".
_WORD = re.compile(r"[A-Za-z][\w+# -]{1,40}|C")


class Truncator:
    r"""Cuts a completion at the first place where one of its rules does.

    Args:
        truncation: the name of a preset (a key of `PRESETS`); or a regular expression of `re`, or
            several, any of which cuts before its first match; `None` cuts nothing and keeps
            trailing blanks. A word alone, which may be a preset misspelt, is no regular expression:
            `(?:word)` is.
        stop: a string, or several, any of which cuts before its first occurrence.

    Except with `None` and "salesforce", the right end of the text is stripped.

    Raises:
        TypeError: an argument is something else.
        ValueError: a regular expression does not compile, or one or a string is empty.
    """

    def __init__(
        self,
        truncation: str | Sequence[str] | None = DEFAULT_TRUNCATION,
        stop: str | Sequence[str] | None = (),
    ) -> None:
        preset = _preset(truncation)
        strings = _strings(() if stop is None else stop, "stop must be a string or a list of them")
        if not all(strings):
            raise ValueError("stop: holds an empty string, which would stop at once")
        self._strip = preset.strip
        self._rules: list[Rule] = [*preset.rules]
        if strings:
            self._rules.append(stop_rule(strings))

    @staticmethod
    def of(
        truncation: str | Sequence[str] | None, stop: str | Sequence[str] | None = ()
    ) -> Truncator:
        """Return `Truncator(truncation, stop)`, the same one for the same rules."""
        key = [tuple(one) if isinstance(one, list) else one for one in (truncation, stop)]
        try:
            hash(key[0]), hash(key[1])
        except TypeError:  # they are something else; it says what
            return Truncator(truncation, stop)
        return _truncator(*key)

    def truncate(self, text: str, prompt: str = "") -> str:
        """Return what is kept of the completion `text` of `prompt`, as if nothing followed it."""
        return self.scanner(prompt).end(text)

    def decided(self, text: str, prompt: str = "") -> str | None:
        """Return `truncate(text)` if it is `truncate(text + more)` for any `more`, else `None`.

        `None` may also mean that this could not be proved: see `Scanner`.
        """
        return self.scanner(prompt).feed(text)

    def scanner(self, prompt: str = "") -> Scanner:
        """Return a new scanner, for one completion of `prompt` that grows."""
        return Scanner([rule(prompt) for rule in self._rules], self._strip)


@lru_cache(maxsize=128)
def _truncator(truncation: Any, stop: Any) -> Truncator:
    return Truncator(truncation, stop)


class Scanner:
    """`Truncator.decided` for a text that comes piece by piece, each looked at about once.

    Attributes:
        text: all that has been fed.

    What cannot be proved is decided late, never wrongly: patterns with back references,
    conditionals, atomic groups, possessive repeats or unbounded lookahead are never decided.
    """

    def __init__(self, cuts: Sequence[Cut], strip: bool) -> None:
        self.text = ""
        self._cuts = cuts
        self._strip = strip

    def copy(self) -> Scanner:
        """Return another that goes on from here: for a further completion of the same prompt."""
        other = Scanner([cut.copy() for cut in self._cuts], self._strip)
        other.text = self.text
        return other

    def end(self, delta: str = "") -> str:
        """Append `delta`; return the truncated text if nothing follows. This is the last call."""
        self.text = text = self.text + delta
        return _cut(
            text, min((cut.end(text) for cut in self._cuts), default=len(text)), self._strip
        )

    def feed(self, delta: str) -> str | None:
        """Append `delta`; return the truncated text once no further text can change it."""
        self.text = text = self.text + delta
        for cut in self._cuts:
            cut.feed(text)
        known = [cut.position for cut in self._cuts if cut.position is not None]
        if not known:
            return None
        kept = _cut(text, min(known), self._strip)
        # Cuts that differ by blanks alone come to the same text.
        return kept if kept == self.settled else None

    @property
    def settled(self) -> str:
        """What the truncated text begins with, however the text goes on."""
        earliest = min((cut.earliest for cut in self._cuts), default=len(self.text))
        return _cut(self.text, earliest, self._strip)


def _cut(text: str, position: int, strip: bool) -> str:
    return text[:position].rstrip() if strip else text[:position]


def _preset(truncation: Any) -> Preset:
    if truncation is None:
        return Preset((), strip=False)
    if isinstance(truncation, str) and truncation in PRESETS:
        return PRESETS[truncation]
    names = ", ".join(PRESETS)
    regexes = _strings(
        truncation, f"truncation must be a preset ({names}), a regex, a list of regexes or None"
    )
    if not regexes or not all(regexes):
        raise ValueError("truncation: is empty, or holds an empty regex; None keeps the whole text")
    if sum(map(len, regexes)) > _MOST_CHARACTERS:
        raise ValueError(
            f"truncation: its regular expressions have more than {_MOST_CHARACTERS:,} characters; "
            "strings go to stop"
        )
    for regex in regexes:
        if _WORD.fullmatch(regex):
            raise ValueError(
                f"truncation: {regex!r} is no preset ({names}, not in a list); as a regular "
                f"expression it is written (?:{regex}), as a string it goes to stop"
            )
    return Preset(tuple(pattern_rule(regex) for regex in regexes))


def _strings(value: Any, expected: str) -> Sequence[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or any(not isinstance(s, str) for s in values):
        raise TypeError(f"{expected}, got {reprlib.repr(value)}")
    return values
