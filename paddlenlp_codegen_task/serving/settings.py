"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.truncation import PRESETS


@dataclass(frozen=True)
class Settings:
    """What a server allows, and what it does where a request says nothing.

    Attributes:
        api_keys: any of them lets a client in; none: everybody may.
        overflow: of prompts that do not fit: an error, or their beginning is dropped.
        max_waiting: sequences that may wait beyond those that run.
        request_timeout: seconds that a request may take, waiting included; None for any.
        drain_seconds: that running requests have to end once the server is to stop.
        max_body_bytes: of a request.
        max_prompts: of a request.
        max_n: most `n` and `best_of`.
        cors_origins: pages that may call from a browser.
        truncation: the preset for requests that do not name one.
        truncations: presets that a request may name.
        token_healing: whether prompts are healed (see GenerationConfig) where a request does not
            say; not those of token ids, nor where log-probabilities are asked for.
        unread_seconds: that a client may leave what was sent unread before it is cut off.
    """

    api_keys: tuple[str, ...] = ()
    overflow: Literal["error", "truncate_left"] = "error"
    max_waiting: int = 256
    request_timeout: float | None = None
    drain_seconds: float = 30.0
    max_body_bytes: int = 4 << 20
    max_prompts: int = 256
    max_n: int = 64
    cors_origins: tuple[str, ...] = ()
    truncation: str | None = None
    truncations: tuple[str, ...] = field(default_factory=lambda: tuple(PRESETS))
    token_healing: bool = True
    unread_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what is not among its choices.

        Raises:
            TypeError, ValueError: says what would be right.
        """
        checks.boolean("token_healing", self.token_healing)
        checks.choice("overflow", self.overflow, ("error", "truncate_left"))
        if self.truncation is not None:
            checks.choice("truncation", self.truncation, self.truncations)
