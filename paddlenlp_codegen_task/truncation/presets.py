"""The truncation rules that have a name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from paddlenlp_codegen_task.truncation import languages
from paddlenlp_codegen_task.truncation.braces import BraceCut
from paddlenlp_codegen_task.truncation.cut import Rule
from paddlenlp_codegen_task.truncation.indentation import IndentCut
from paddlenlp_codegen_task.truncation.patterns import pattern_rule


@dataclass(frozen=True)
class Preset:
    """Rules any of which cuts, and whether the right end is then stripped."""

    rules: tuple[Rule, ...]
    strip: bool = True


# `truncate` in jaxformer/hf/sample.py of https://github.com/salesforce/CodeGen, which is also
# CodeGenTokenizer.truncate in transformers 4.55. Those cut at the second print, then what is left
# at the second def, then at the first match of a pattern. No match reaches across the beginning
# of a line with print or def, so this comes to the first of them all.
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
