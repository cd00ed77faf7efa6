"""Infilling as CodeGen2 was trained for it: the middle of a text, from what stands around it.

The prompt is what stands before, <mask_1>, what stands after, <|endoftext|>, <sep>, <mask_1>; the
middle ends at <eom>. See https://arxiv.org/abs/2305.02309 and the cards of Salesforce/codegen2-*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddlenlp_codegen_task.model.tokenizer import END_OF_TEXT, Tokenizer

MASK, SEPARATOR, END_OF_MIDDLE = "<mask_1>", "<sep>", "<eom>"


@dataclass(frozen=True)
class Infilling:
    """The ids of the tokens that infilling needs.

    Attributes:
        mask: stands for the middle.
        separator: stands between the text around it and the middle.
        end: ends the middle.
        end_of_text: ends the text.
    """

    mask: int
    separator: int
    end: int
    end_of_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Infilling | None:
        """Those of a model's tokenizer; None if it does not infill."""
        names = (MASK, SEPARATOR, END_OF_MIDDLE, END_OF_TEXT)
        ids = [found for name in names if (found := tokenizer.token_id(name)) is not None]
        return cls(*ids) if len(ids) == len(names) else None

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int], room: int) -> list[int] | None:
        """The prompt of a middle between two texts.

        Args:
            prefix: tokens before it.
            suffix: tokens after it.
            room: tokens that the prompt may have at most.

        Returns:
            The tokens; None if they are more than fit.
        """
        found = [*prefix, self.mask, *suffix, self.end_of_text, self.separator, self.mask]
        return found if len(found) <= room else None

    def cut(
        self, prefix: Sequence[int], suffix: Sequence[int], room: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """As much of two texts as fits a prompt, from the middle on: as much of both, if it can be.

        What one of them does not need is the other's.
        """
        room = max(room - 4, 0)
        after = min(len(suffix), max(room // 2, room - len(prefix)))
        before = min(len(prefix), room - after)
        return prefix[len(prefix) - before :], suffix[:after]
