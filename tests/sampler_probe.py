"""Looking into `sampling.choose`, which gives tokens and not the probabilities it drew them by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import logsumexp

from paddlenlp_codegen_task.decoding.request import (
    Batch,
    Context,
    Drafter,
    Parameters,
    Request,
    Row,
    new_row,
)
from paddlenlp_codegen_task.decoding.sampling import Choice, choose
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.truncation import Truncator


class NoText:
    """A tokenizer whose tokens stand for nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        return b""


GREEDY = GenerationConfig(decode_strategy="greedy_search", repetition_penalty=1.0)


def ends_of(eos_token_id: int | tuple[int, ...]) -> tuple[int, ...]:
    """One end-of-text token, or several."""
    return (eos_token_id,) if isinstance(eos_token_id, int) else eos_token_id


def request(
    vocab_size: int,
    prompt_ids: list[int],
    config: GenerationConfig = GREEDY,
    *,
    eos_token_id: int | tuple[int, ...] = (),
    max_length: int = 10**6,
    samples: int = 1,
    batch: Batch | None = None,
    drafters: Iterable[Drafter] = (),
    streamed: bool = False,
) -> Request:
    """A request whose text is never decided."""
    return Request(
        prompt_ids,
        Parameters.of(config, ends_of(eos_token_id), vocab_size),
        max_length,
        samples,
        batch or Batch(10**6),
        lambda: StopChecker(NoText(), Truncator(None).scanner()),
        lambda: list(drafters),
        vocab_size,
        None,
        config.seed,
        streamed,
    )


def row(
    vocab_size: int,
    prompt_ids: list[int],
    token_ids: Iterable[int] = (),
    config: GenerationConfig = GREEDY,
    eos_token_id: int | tuple[int, ...] = (),
) -> Row:
    """A row that has generated `token_ids`."""
    made = new_row(request(vocab_size, prompt_ids, config, eos_token_id=eos_token_id), 0, 0)
    for token_id in token_ids:
        made.token_ids.append(token_id)
        made.seen[token_id] = True
        if made.counts is not None:
            made.counts[token_id] += 1
    return made


def context(
    config: GenerationConfig,
    vocab_size: int,
    eos_token_id: int | tuple[int, ...],
    prompt_ids: Iterable[int],
    token_ids: Iterable[int] = (),
    draw: float = 0.0,
) -> Context:
    """What a token is chosen by after these."""
    one = row(vocab_size, list(prompt_ids), token_ids, config, eos_token_id)
    return Context(one.request.parameters, one.seen, one.counts, len(one.token_ids), draw)


class CountedLogits:
    """The whole rows of a step, counting how often they are fetched."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.fetched = 0

    def __call__(self) -> np.ndarray:
        self.fetched += 1
        return self.logits.copy()


def step_output(logits: np.ndarray, candidates: int = 64, seed: int = 0) -> StepOutput:
    """What a runtime hands back for rows of logits; equal ones are in no particular order."""
    ties = np.random.default_rng(seed).random(logits.shape)
    ids = np.lexsort((ties, -logits), axis=-1)[:, :candidates]
    top = np.take_along_axis(logits, ids, axis=1)
    total = logsumexp(logits.astype(np.float64), axis=1).astype(np.float32)
    return StepOutput(top, ids.astype(np.int64), total, CountedLogits(logits))


def tokens(choice: Choice) -> list[int]:
    """The tokens of a choice from logits that are numbers."""
    assert None not in choice.tokens
    return [int(token) for token in choice.tokens if token is not None]


def distribution(
    config: GenerationConfig,
    logits: np.ndarray,
    eos_token_id: int | tuple[int, ...],
    prompt_ids: list[int],
    token_ids: Iterable[int] = (),
    *,
    candidates: int = 64,
    resolution: int = 4000,
) -> np.ndarray:
    """The probability of each token after one row of logits, exact to 1 / resolution.

    A token is chosen for the draws in an interval as long as its probability, so the share of
    evenly spaced draws that give it is its probability but for the ends of the interval.
    """
    vocab_size = len(logits)
    rows = np.tile(logits.astype(np.float32), (resolution, 1))
    one = context(config, vocab_size, eos_token_id, prompt_ids, token_ids)
    draws = (np.arange(resolution) + 0.5) / resolution
    contexts = [one._replace(draw=float(draw)) for draw in draws]
    chosen = tokens(choose(step_output(rows, candidates), contexts))
    return np.bincount(chosen, minlength=vocab_size) / resolution
