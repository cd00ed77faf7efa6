"""Infilling: the middle of a text, from what stands before it and after it.

A tokenizer's tokens tell which of two prompts its model was trained for. CodeGen2's is what stands
before, <mask_1>, what stands after, <|endoftext|>, <sep>, <mask_1>: see
https://arxiv.org/abs/2305.02309 and the cards of Salesforce/codegen2-*. Where there is a token
<suffix_first>, it is that, what stands after, <sep>, what stands before: the middle goes on from
what stands before it, as any text does ("SPM" of https://arxiv.org/abs/2207.14255). Either ends at
<eom>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddlenlp_codegen_task.model.tokenizer import END_OF_TEXT, Tokenizer

MASK, SUFFIX_FIRST = "<mask_1>", "<suffix_first>"
SEPARATOR, END_OF_MIDDLE = "<sep>", "<eom>"


@dataclass(frozen=True)
class Infilling:
    """The ids of the tokens that infilling needs, and the order of the prompt.

    Attributes:
        hole: CodeGen2's stands for the middle; that of `suffix_first` begins the prompt.
        separator: stands between what was given and what is to come.
        end: ends the middle.
        end_of_text: ends the text.
        suffix_first: whether the prompt begins with what stands after the middle.
    """

    hole: int
    separator: int
    end: int
    end_of_text: int
    suffix_first: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Infilling | None:
        """Those of a model's tokenizer; None if it does not infill."""
        for hole in (SUFFIX_FIRST, MASK):
            names = (hole, SEPARATOR, END_OF_MIDDLE, END_OF_TEXT)
            ids = [found for name in names if (found := tokenizer.token_id(name)) is not None]
            if len(ids) == len(names):
                hole_id, separator, end, end_of_text = ids
                return cls(hole_id, separator, end, end_of_text, hole == SUFFIX_FIRST)
        return None

    @property
    def frame(self) -> int:
        """Tokens of a prompt beside the two texts."""
        return 2 if self.suffix_first else 4

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int], room: int) -> list[int] | None:
        """The prompt of a middle between two texts.

        Args:
            prefix: tokens before it.
            suffix: tokens after it.
            room: tokens that the prompt may have at most.

        Returns:
            The tokens; None if they are more than fit.
        """
        if self.suffix_first:
            found = [self.hole, *suffix, self.separator, *prefix]
        else:
            found = [*prefix, self.hole, *suffix, self.end_of_text, self.separator, self.hole]
        return found if len(found) <= room else None

    def cut(
        self, prefix: Sequence[int], suffix: Sequence[int], room: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """As much of two texts as fits a prompt, from the middle on: as much of both, if it can be.

        What one of them does not need is the other's.
        """
        room = max(room - self.frame, 0)
        after = min(len(suffix), max(room // 2, room - len(prefix)))
        before = min(len(prefix), room - after)
        return prefix[len(prefix) - before :], suffix[:after]
