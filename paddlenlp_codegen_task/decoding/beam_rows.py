"""Between a beam search, which knows scores, and the rows whose tokens it chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paddlenlp_codegen_task.decoding import sampling
from paddlenlp_codegen_task.decoding.beam_search import BeamSearch, processed
from paddlenlp_codegen_task.decoding.request import Request, Row
from paddlenlp_codegen_task.runtime.base import StepOutput


def search(request: Request) -> BeamSearch:
    """The search that a request asks for, before its first step."""
    assert request.beams is not None
    return BeamSearch(
        num_beams=request.samples,
        num_return_sequences=request.beams.num_return_sequences,
        length_penalty=request.beams.length_penalty,
        early_stopping=request.beams.early_stopping,
        ends=request.parameters.ends,
        max_length=request.max_length,
    )


def choose(
    found: BeamSearch, beams: Sequence[Row], output: StepOutput
) -> tuple[list[int], list[int]]:
    """Choose the next token of every beam; row i of `output` belongs to beams[i].

    Returns:
        The beams that go on, as their places, and the tokens that they go on with: see
        `BeamSearch.step`.
    """
    used = beams if beams[0].token_ids else beams[:1]  # at first all are alike
    contexts = [sampling.context(row) for row in used]
    scores = processed(output.logits()[: len(used)], contexts)
    spelling = [n for n, one in enumerate(contexts) if one.allowed is not None]
    count = beams[0].request.parameters.logprobs

    def note(parent: int, token_id: int) -> sampling.Note:
        return sampling.log_probs(output, parent, token_id, count or 0)

    return found.step(scores, None if count is None else note, spelling)


def finish(found: BeamSearch, beams: Sequence[Row]) -> list[Row]:
    """Give the first rows the hypotheses of a search that is done, the best first.

    Truncation does not change a search: it cuts the texts that come out of it.

    Returns:
        As many rows as are wanted; one that there is no hypothesis for has no tokens. The others
        have ended with nothing.
    """
    for row in beams:
        row.finish_reason = "length"
        row.token_ids, row.scores = [], [-math.inf]
    for row, hypothesis in zip(beams, found.hypotheses, strict=False):
        row.token_ids, row.scores = list(hypothesis.token_ids), [hypothesis.score]
        row.log_probs = [one.log_probs for one in hypothesis.notes]
        row.finish_reason = hypothesis.finish_reason
        for token_id in hypothesis.token_ids:
            if row.stops.feed(token_id):
                row.finish_reason = "stop"
    wanted = beams[0].request.beams
    assert wanted is not None
    return list(beams[: wanted.num_return_sequences])
