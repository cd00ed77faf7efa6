"""Truncator: the rules of one `truncation` and `stop`, for whole texts and for growing ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from paddlenlp_codegen_task.truncation.cut import Cut, Rule
from paddlenlp_codegen_task.truncation.patterns import pattern_rule
from paddlenlp_codegen_task.truncation.presets import PRESETS, Preset

DEFAULT_TRUNCATION = "\nclass|\ndef|\n#|\n@|\nprint|\nif"


class Truncator:
    r"""Cuts a completion at the first place where one of its rules does.

    Args:
        truncation: the name of a preset (a key of `PRESETS`; the regular expression `python` can
            be written `(?:python)`); or a regular expression of `re`, or several, any of which
            cuts before its first match; `None` cuts nothing and keeps trailing blanks.
        stop: a string, or several, any of which cuts before its first occurrence.

    Except with `None` and "salesforce", the right end of the text is stripped.

    Raises:
        TypeError: an argument is something else.
        ValueError: a regular expression does not compile, or one or a string is empty.
    """

    def __init__(
        self,
        truncation: str | Sequence[str] | None = DEFAULT_TRUNCATION,
        stop: str | Sequence[str] = (),
    ) -> None:
        preset = _preset(truncation)
        strings = _strings(stop, "stop must be a string or a list of them")
        if not all(strings):
            raise ValueError(f"stop: {stop!r} holds an empty string, which would stop at once")
        self._strip = preset.strip
        self._rules: list[Rule] = [*preset.rules]
        if strings:
            self._rules.append(pattern_rule("|".join(map(re.escape, strings))))

    def truncate(self, text: str, prompt: str = "") -> str:
        """Return what is kept of the completion `text` of `prompt`, as if nothing followed it."""
        cuts = (rule(prompt) for rule in self._rules)
        return _cut(text, min((cut.end(text) for cut in cuts), default=len(text)), self._strip)

    def decided(self, text: str, prompt: str = "") -> str | None:
        """Return `truncate(text)` if it is `truncate(text + more)` for any `more`, else `None`.

        `None` may also mean that this could not be proved: see `Scanner`.
        """
        return self.scanner(prompt).feed(text)

    def scanner(self, prompt: str = "") -> Scanner:
        """Return a new scanner, for one completion of `prompt` that grows."""
        return Scanner([rule(prompt) for rule in self._rules], self._strip)


class Scanner:
    """`Truncator.decided` for a text that comes piece by piece, each looked at about once.

    Attributes:
        text: all that has been fed.

    What cannot be proved is decided late, never wrongly: patterns with back references,
    conditionals, or unbounded lookahead, atomic groups or possessive repeats are never decided.
    """

    def __init__(self, cuts: Sequence[Cut], strip: bool) -> None:
        self.text = ""
        self._cuts = cuts
        self._strip = strip

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
        raise ValueError(f"truncation: {truncation!r} is empty; None keeps the whole text")
    return Preset(tuple(pattern_rule(regex) for regex in regexes))


def _strings(value: Any, expected: str) -> Sequence[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or any(not isinstance(s, str) for s in values):
        raise TypeError(f"{expected}, got {value!r}")
    return values
