"""Token healing: the end of a prompt is taken back, and the first new tokens spell it again.

A prompt that ends within a word, or with the blank that most words' tokens begin with, ends in
tokens that no text goes on from: a model has hardly ever seen them there. Without them, and among
the tokens that the prompt's own characters allow, it finds those that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.spelling import Ids, Spelling

MOST_BLANKS = 64  # bytes of a run of blanks that is taken back: to spell them costs new tokens


def taken_back(token_ids: Sequence[int], token_bytes: Callable[[int], bytes]) -> int:
    """How many tokens at the end of a prompt are taken back.

    The last one; if that is of blanks, all that reach into the run of blanks, up to MOST_BLANKS.
    Never the first token, as a model goes on from something; and no special token, nor what is
    before one, as no characters say what it is.
    """
    count, text = 0, b""
    while count + 1 < len(token_ids):
        before = token_bytes(token_ids[-1 - count])
        if not before:
            break
        if count and not (text.isspace() and before[-1:].isspace()):
            break
        if count and len(before) + len(text) > MOST_BLANKS:
            break
        count, text = count + 1, before + text
    return count


class Healing:
    """The bytes that were taken back of one prompt, and which tokens may spell them.

    Attributes:
        count: how many tokens were taken back.
        text: their bytes, one at least.
    """

    def __init__(
        self,
        count: int,
        text: bytes,
        spelling: Spelling,
        token_bytes: Callable[[int], bytes],
        suppressed: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Have `text` spelled.

        Args:
            count: how many tokens were taken back.
            text: what they stand for.
            spelling: the vocabulary's.
            token_bytes: what each token stands for.
            suppressed: [vocab_size], tokens that may not come; None for none.
        """
        self.count, self.text = count, text
        self._spelling = spelling
        self._token_bytes = token_bytes
        self._suppressed = suppressed
        self._at: dict[int, Ids] = {}  # tokens that may come there
        # Whether all from there on can be spelled: found from the end, as each token leaves a rest.
        self._possible = [False] * len(text)
        for at in reversed(range(len(text))):
            self._possible[at] = any(len(ids) for ids in self._parts(at))

    @property
    def possible(self) -> bool:
        """Whether tokens can spell the text."""
        return self._possible[0]

    def ends_before(self, count: int) -> bool:
        """Whether so many new tokens surely have spelled the text, as each has a byte at least."""
        return count >= len(self.text)

    def allowed(self, token_ids: Sequence[int]) -> Ids | None:
        """The tokens that may follow these new ones, in order.

        None for all: the text is spelled, or, as after a wrong guess, something else is.
        """
        spelled = b"".join(map(self._token_bytes, token_ids))
        if len(spelled) >= len(self.text) or not self.text.startswith(spelled):
            return None
        at = len(spelled)
        if at not in self._at:
            parts = [ids for ids in self._parts(at) if len(ids)]
            self._at[at] = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
        return self._at[at]

    def _parts(self, at: int) -> Iterator[Ids]:
        """Tokens that may come at a place of the text: those that end within it, then others."""
        last = min(len(self.text), at + self._spelling.longest + 1)
        for end in range(at + 1, last):
            if self._possible[end]:
                yield self._free(self._spelling.of(self.text[at:end]))
        yield self._free(self._spelling.beginning_with(self.text[at:]))

    def _free(self, ids: Ids) -> Ids:
        return ids if self._suppressed is None else ids[~self._suppressed[ids]]
