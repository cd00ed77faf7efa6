"""The truncation rules that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from paddlenlp_codegen_task.truncation import languages
from paddlenlp_codegen_task.truncation.braces import BraceCut
from paddlenlp_codegen_task.truncation.indentation import IndentCut
from paddlenlp_codegen_task.truncation.patterns import pattern_rule


class Cut(Protocol):
    """Where one rule cuts one completion, which grows.

    Attributes:
        position: where the rule cuts, as far as is certain.
        earliest: the rule does not cut before this, however the text goes on.
    """

    position: int | None
    earliest: int

    def feed(self, text: str) -> None:
        """Look at all of the completion so far, which begins with what was fed before."""

    def end(self, text: str) -> int:
        """Where all of the completion is cut, its length if nowhere; the last call."""


Rule = Callable[[str], Cut]  # from the prompt


@dataclass(frozen=True)
class Preset:
    """Rules any of which cuts, and whether the right end is then stripped."""

    rules: tuple[Rule, ...]
    strip: bool = True


# `truncate` in jaxformer/hf/sample.py of https://github.com/salesforce/CodeGen, which is also
# CodeGenTokenizer.truncate in transformers 4.55. That cuts at the second print, then the second
# def, then the first pattern; as all begin a line or match within one, or are line breaks, the
# first of all is the same.
_SALESFORCE = (
    pattern_rule("(?m)^print", nth=2),
    pattern_rule("(?m)^def", nth=2),
    pattern_rule("(?m)^#|<\\|endoftext\\|>|^'''|^\"\"\"|\n\n\n"),
)

PRESETS = {
    "python": Preset((IndentCut,)),
    "java": Preset((partial(BraceCut, languages.JAVA),)),
    "javascript": Preset((partial(BraceCut, languages.JAVASCRIPT),)),
    "go": Preset((partial(BraceCut, languages.GO),)),
    "c": Preset((partial(BraceCut, languages.C),)),
    "cpp": Preset((partial(BraceCut, languages.CPP),)),
    "salesforce": Preset(_SALESFORCE, strip=False),
}
