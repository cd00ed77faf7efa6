"""Looking into a Sampler, which gives tokens and not the probabilities it drew them by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.sequence import (
    Advancer,
    Sequence,
    random_generator,
    seen_tokens,
)
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.truncation import Truncator


class NoText:
    """A tokenizer whose tokens stand for nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        return b""


class Draws:
    """In place of a sequence's generator: gives the draws it is told to."""

    def __init__(self, draws: Iterable[float]) -> None:
        self._draws = iter(draws)

    def random(self) -> float:
        return next(self._draws)


class NoSampler:
    """In place of a sampler that is not asked."""

    def advance(self, output: StepOutput, sequences: object) -> list[tuple[int, int]]:
        raise AssertionError


def sequence(
    vocab_size: int,
    prompt_ids: list[int],
    token_ids: Iterable[int] = (),
    generator: object = None,
    sampler: Advancer | None = None,
    eos_token_id: int = -1,
    max_length: int = -1,
) -> Sequence:
    """A sequence that has generated `token_ids` and will draw from `generator`."""
    made = Sequence(
        0,
        prompt_ids,
        StopChecker(NoText(), Truncator(None)),
        sampler or NoSampler(),
        random_generator(0, 0),
        seen_tokens(prompt_ids, vocab_size),
        eos_token_id,
        max_length,
    )
    for token_id in token_ids:
        made.append(token_id)
    made.generator = generator  # type: ignore[assignment]
    return made


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
    return StepOutput(top, ids.astype(np.int64), CountedLogits(logits))


def distribution(
    config: GenerationConfig,
    logits: np.ndarray,
    eos_token_id: int,
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
    one = sequence(
        vocab_size, prompt_ids, token_ids, Draws((np.arange(resolution) + 0.5) / resolution)
    )
    sampler = Sampler(config, eos_token_id, vocab_size)
    chosen = sampler.choose(step_output(rows, candidates), [one] * resolution)
    return np.bincount(chosen, minlength=vocab_size) / resolution
