"""Runs the beams of one prompt as sequences side by side."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from paddlenlp_codegen_task.decoding.beam_search import BeamSearch, processed
from paddlenlp_codegen_task.decoding.sampling import NOT_NUMBERS
from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import StepOutput


class BeamSampler:
    """The sampler of num_beams sequences with one prompt: the beams of a search.

    When the search is done, its hypotheses are what the first sequences have generated, the best
    first, with their scores; the others are left as they are. Truncation does not change the
    search: it cuts the texts that come out of it.
    """

    def __init__(self, config: GenerationConfig, eos_token_id: int) -> None:
        self._config = config
        self._eos_token_id = eos_token_id
        self._steps = 0
        self._beams: list[Sequence] = []  # in the search's order; their slots may be in another
        self._search = BeamSearch(
            num_beams=config.num_beams,
            num_return_sequences=config.num_return_sequences,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            eos_token_id=eos_token_id,
            max_length=config.max_length,
        )

    def advance(self, output: StepOutput, sequences: Rows[Sequence]) -> Rows[tuple[int, int]]:
        """Give each beam its next token: see `sequence.Advancer`."""
        self._beams = self._beams or list(sequences)
        rows = [sequences.index(one) for one in self._beams]
        logits = output.logits()[rows[:1] if self._steps == 0 else rows]  # at first all are alike
        if np.isnan(logits).any():
            raise FloatingPointError(NOT_NUMBERS)
        scores = processed(
            logits,
            np.stack([one.seen for one in self._beams[: len(logits)]]),
            self._config.repetition_penalty,
            self._config.ignore_eos or self._steps < self._config.min_length,
            self._eos_token_id,
        )
        self._steps += 1
        parents, tokens = self._search.step(scores)
        if self._search.done:
            self._finish()
            return ()
        before = [(one.token_ids, one.seen) for one in self._beams]
        for one, parent, token_id in zip(self._beams, parents, tokens, strict=True):
            token_ids, seen = before[parent]
            one.token_ids, one.seen = [*token_ids, token_id], seen.copy()
            one.seen[token_id] = True
        return [(rows[parent], rows[n]) for n, parent in enumerate(parents) if parent != n]

    def _finish(self) -> None:
        for one in self._beams:
            one.finish_reason = "length"
        for one, found in zip(self._beams, self._search.hypotheses, strict=False):
            one.token_ids, one.scores = list(found.token_ids), [found.score]
            one.finish_reason = found.finish_reason
            for token_id in found.token_ids:
                if one.stop_checker.feed(token_id):
                    one.finish_reason = "stop"
