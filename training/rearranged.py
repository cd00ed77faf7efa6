"""Windows rearranged for infilling: after, before, then the middle, in the package's own format.

A window is cut into spans, none across the end of a document, and each becomes an infilling of its
own: text before a hole, text after it, and what was in the hole. A hole is mostly a line or a few,
as an editor asks for them; it begins and ends at characters. What is before it and the middle are
encoded each by itself in half of them, as `CodeGenerator.infill` encodes them, and together in the
others, as token healing makes it.

Not every token of it is learnt. Where the text was cut off, and the frame, are told to the model,
and a model that had learnt to predict them would write them into ordinary text. Nor is what stands
before the hole: nothing marks where it ends and the middle begins, and at every end of a line in it
a model would learn that the middle does not end there. The middle weighs more than the rest, for it
is a small part of all tokens.
"""

import numpy as np

from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

SHORTEST = 48  # tokens of a span, unless its document is shorter
FRAME = 3  # tokens of an infilling beside its three texts
ROOM = 24  # tokens that an infilling is worth making in; what is left of a window stays as it is
MIDDLE_WEIGHT = 3.0
# Kinds of hole and their shares.
LINES, END_OF_LINE, CHARACTERS, NOTHING = "lines", "end of line", "characters", "nothing"
KINDS = {LINES: 0.65, END_OF_LINE: 0.2, CHARACTERS: 0.14, NOTHING: 0.01}
COUNTS = {1: 0.7, 2: 0.2, 3: 0.1}  # of lines
LONGEST_RUN = 120  # characters of a hole that is any run of them


def hole_in(text: str, random: np.random.Generator) -> tuple[int, int]:
    """Choose a hole in `text`: the offsets where it begins and ends."""
    lines = text.split("\n")
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    written = [n for n, line in enumerate(lines) if line.strip()]
    kind = random.choice(list(KINDS), p=list(KINDS.values()))
    if kind == CHARACTERS or not written:
        begin = int(random.integers(len(text) + 1))
        return begin, min(len(text), begin + int(random.integers(LONGEST_RUN)))
    first = int(random.choice(written))
    begin, end = int(starts[first]), int(starts[first]) + len(lines[first])
    indented = begin + len(lines[first]) - len(lines[first].lstrip())
    if kind == NOTHING:
        begin = int(random.choice([begin, end]))
        return begin, begin
    if kind == END_OF_LINE:
        return int(random.integers(indented, end + 1)), end
    last = min(first + int(random.choice(list(COUNTS), p=list(COUNTS.values()))), len(lines)) - 1
    end = int(starts[last]) + len(lines[last])
    whole = random.random()
    if whole < 0.4:  # where an editor's cursor stands in a new line
        return indented, end
    return begin, min(end + (whole > 0.8), len(text))  # with or without its newline


class Rearranged:
    """Rearranges windows; `random` is the only thing in it that changes."""

    def __init__(self, tokenizer: Tokenizer, random: np.random.Generator) -> None:
        infilling = Infilling.of(tokenizer)
        if infilling is None or not infilling.suffix_first:
            raise ValueError("the tokenizer has no tokens for infilling: not of tokenizer.py")
        self.tokenizer, self.infilling, self.random = tokenizer, infilling, random

    def window(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rearrange a window: the tokens and how much each weighs when it is predicted.

        As many as came in; what the frames and the other boundaries need, the end of the window
        loses.
        """
        length = len(tokens)
        ids: list[int] = []
        weights: list[float] = []
        at = 0
        while (room := length - len(ids)) >= ROOM and at < length:
            ends = np.flatnonzero(tokens[at:] == self.infilling.end_of_text)
            document = tokens[at : at + int(ends[0])] if len(ends) else tokens[at:]
            span = document[: min(self.span_length(length), room - FRAME)]
            at += len(span) + (len(span) == len(document))
            ended = len(span) == len(document) and len(ends) > 0
            for part, weight in self.infill(span.tolist(), ended, room) if len(span) else ():
                ids += part
                weights += [weight] * len(part)
        ordinary = tokens[at : at + length - len(ids)].tolist()
        ids += ordinary + [self.infilling.end_of_text] * (length - len(ids) - len(ordinary))
        weights += [1.0] * len(ordinary)
        weights += [0.0] * (length - len(weights))
        return np.array(ids, np.int64), np.array(weights, np.float32)

    def span_length(self, length: int) -> int:
        """Draw a length: evenly by its logarithm, so that few windows are one long span."""
        low, high = np.log(min(SHORTEST, length)), np.log(length)
        return round(float(np.exp(self.random.uniform(low, high))))

    def infill(self, span: list[int], ended: bool, room: int) -> list[tuple[list[int], float]]:
        """Parts of an infilling of at most `room` tokens, each with its weight.

        Where the document goes on after the span, its last line was cut off: no hole is there, or
        a middle would learn to end anywhere.
        """
        text = self.tokenizer.decode(span)
        begin, end = hole_in(text if ended else text[: text.rfind("\n") + 1] or text, self.random)
        before, middle = self.encoded(text[:begin], text[begin:end])
        after = self.tokenizer.encode(text[end:], allow_special=False)
        middle = middle[: room - FRAME]  # only where a cut character was encoded anew
        found = self.infilling
        # What is too long loses what is furthest from the hole, as a prompt does.
        left, right = found.cut(before, after, room - len(middle) - 1)
        return [
            ([found.hole], 0.0),
            (list(right), 1.0),
            ([found.separator], 0.0),
            (list(left), 0.0),
            ([*middle, found.end], MIDDLE_WEIGHT),
        ]

    def encoded(self, before: str, middle: str) -> tuple[list[int], list[int]]:
        """Encode what is before a hole and what was in it, apart or, half of the time, together.

        A token that then reaches into the hole is of the middle.
        """
        if self.random.random() < 0.5:
            ids = self.tokenizer.encode(before + middle, allow_special=False)
            size, count = len(before.encode("utf-8")), 0
            for token in ids:
                size -= len(self.tokenizer.token_bytes(token))
                if size < 0:
                    break
                count += 1
            return ids[:count], ids[count:]
        ids, filled = (
            self.tokenizer.encode(part, allow_special=False) for part in (before, middle)
        )
        return ids, filled
