"""One sequence being generated, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.runtime.base import StepOutput

if TYPE_CHECKING:
    from paddlenlp_codegen_task.decoding.speculation import Drafter

FinishReason = Literal["stop", "eos", "length"]


class Advancer(Protocol):
    """What a sequence asks of its sampler: `sampling.Sampler` has it, and `beams.BeamSampler`."""

    def advance(self, output: StepOutput, sequences: Rows[Sequence]) -> Rows[tuple[int, int]]:
        """Give each sequence its next token; row i of `output` belongs to sequences[i].

        Returns:
            Which sequences' KV to copy where, (source, target) as places in `sequences`, in any
            order: beams go on from one another.
        """


@dataclass(eq=False)
class Sequence:
    """A prompt and the tokens generated for it so far.

    Attributes:
        number: tells it from the others of a call.
        prompt_ids: the prompt's tokens, at least one. Several completions share one list.
        stop_checker: follows the text and says when it is decided.
        sampler: chooses its tokens.
        generator: the sequence's own source of randomness.
        seen: [vocab_size], whether a token occurs in the prompt or the completion.
        eos_token_id: the end-of-text token.
        max_length: most new tokens.
        drafter: guesses its next tokens when it runs alone; None for no speculation.
        token_ids: the new tokens, without the end-of-text token.
        log_probs: of each token chosen, if they were asked for, the end-of-text token included:
            what the model gave it, and the likeliest tokens with theirs.
        scores: of each token chosen, if they were asked for: its log-probability as PaddleNLP
            counts it (`Sampler`).
        finish_reason: "stop" (truncation matched), "eos" or "length"; None while it runs.
        drawn: random numbers that were looked at before their turn.
    """

    number: int
    prompt_ids: Rows[int]
    stop_checker: StopChecker
    sampler: Advancer
    generator: np.random.Generator
    seen: npt.NDArray[np.bool_]
    eos_token_id: int
    max_length: int
    drafter: Drafter | None = None
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    drawn: list[float] = field(default_factory=list)

    def draw(self) -> float:
        """Take the next random number, uniform in [0, 1)."""
        return self.drawn.pop(0) if self.drawn else self.generator.random()

    def next_draws(self, count: int) -> list[float]:
        """The numbers that the next `draw`s will give."""
        while len(self.drawn) < count:
            self.drawn.append(self.generator.random())
        return self.drawn[:count]

    def release(self) -> None:
        """Give up what only a running sequence needs: a call may have a million of them."""
        self.seen = np.zeros(0, bool)
        self.drafter = None

    def append(self, token_id: int) -> None:
        """Take the next token, and finish if that decides the text."""
        if token_id == self.eos_token_id:
            self.finish_reason = "eos"
            return
        self.token_ids.append(token_id)
        self.seen[token_id] = True
        if self.stop_checker.feed(token_id):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.max_length:
            self.finish_reason = "length"


def seen_tokens(prompt_ids: Rows[int], vocab_size: int) -> npt.NDArray[np.bool_]:
    """Whether each token occurs in a prompt, [vocab_size]."""
    seen = np.zeros(vocab_size, bool)
    seen[np.asarray(prompt_ids)] = True
    return seen


def random_generator(seed: int | None, sample: int) -> np.random.Generator:
    """The source of randomness of the `sample`-th completion of a prompt."""
    return np.random.default_rng(None if seed is None else [seed, sample])
