"""How completions are sampled, and the seeds that make each repeat by itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from paddlenlp_codegen_task import checks


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Attributes:
        samples: of each problem, at each temperature.
        temperatures: each is a run of its own; 0 is greedy, and then one sample is all there is.
        top_p: as in GenerationConfig.
        max_length: most new tokens; None for what the benchmark says.
        seed: of everything.
    """

    samples: int
    temperatures: tuple[float, ...]
    top_p: float = 0.95
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TypeError, ValueError: one is not possible.
        """
        checks.integer("samples", self.samples, 1, 10_000)
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("temperature must be given, and none of them twice")
        for one in self.temperatures:
            checks.number("temperature", one, "from 0 to 10", lambda x: 0 <= x <= 10)
        checks.number("top_p", self.top_p, "in (0, 1]", lambda x: 0 < x <= 1)
        if self.max_length is not None:
            checks.integer("max_length", self.max_length, 1)
        checks.integer("seed", self.seed, 0)

    def of(self, temperature: float) -> int:
        """Samples at a temperature."""
        return self.samples if temperature else 1

    def options(self, temperature: float, *key: object) -> dict[str, Any]:
        """Options of a generator for what `key` tells from all else."""
        common = {
            "top_k": 0,
            "top_p": self.top_p,
            "repetition_penalty": 1.0,
            "prompt_overflow": "truncate_left",
            "prompt_lookup": False,
            "allow_special_tokens": False,
            "seed": self.seed_of(temperature, *key),
        }
        if temperature:
            return {**common, "decode_strategy": "sampling", "temperature": temperature}
        del common["top_p"], common["top_k"]
        return {**common, "decode_strategy": "greedy_search"}

    def seed_of(self, *key: object) -> int:
        """A seed that depends on `key` alone: not on what else is sampled, or was before."""
        text = "\0".join(map(str, (self.seed, *key)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
