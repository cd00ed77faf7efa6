"""One sequence being generated, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding.stopping import StopChecker

FinishReason = Literal["stop", "eos", "length"]


@dataclass
class Sequence:
    """A prompt and the tokens generated for it so far.

    Attributes:
        number: tells it from the others of a run.
        prompt_ids: the prompt's tokens, at least one.
        stop_checker: follows the text and says when it is decided.
        generator: the sequence's own source of randomness.
        seen: [vocab_size], whether a token occurs in the prompt or the completion.
        token_ids: the new tokens, without the end-of-text token.
        finish_reason: "stop" (truncation matched), "eos" or "length"; None while it runs.
    """

    number: int
    prompt_ids: TokenIds[int]
    stop_checker: StopChecker
    generator: np.random.Generator
    seen: npt.NDArray[np.bool_]
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def append(self, token_id: int, eos_token_id: int, max_length: int) -> None:
        """Take the next token, and finish if that decides the text."""
        if token_id == eos_token_id:
            self.finish_reason = "eos"
            return
        self.token_ids.append(token_id)
        self.seen[token_id] = True
        if self.stop_checker.feed(token_id):
            self.finish_reason = "stop"
        elif len(self.token_ids) == max_length:
            self.finish_reason = "length"


def new_sequence(
    number: int,
    prompt_ids: TokenIds[int],
    stop_checker: StopChecker,
    vocab_size: int,
    seed: int | None,
    sample: int,
) -> Sequence:
    """Make the `sample`-th sequence of a prompt; the seed gives each sample its own randomness."""
    seen = np.zeros(vocab_size, bool)
    seen[np.asarray(prompt_ids)] = True
    generator = np.random.default_rng(None if seed is None else [seed, sample])
    return Sequence(number, prompt_ids, stop_checker, generator, seen)
