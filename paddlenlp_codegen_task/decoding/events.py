"""What a scheduler's step tells of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddlenlp_codegen_task.decoding.request import FinishReason, Request, Row


@dataclass(frozen=True)
class Text:
    """Text of a row that nothing will take back; of streamed requests.

    Attributes:
        index: of the row.
        text: what is new; may be "" at the end.
        finish_reason: why the row ended; None if it goes on.
        log_probs: of the tokens generated since the last event, whether their text is settled or
            not: token to log-probability, the token itself first; if they were asked for.
    """

    request: Request
    index: int
    text: str
    finish_reason: FinishReason | None
    log_probs: Sequence[dict[int, float]] = ()


@dataclass(frozen=True)
class Finished:
    """All rows of a request have ended.

    Attributes:
        rows: in their order; those of a beam search are its hypotheses, the best first.
    """

    request: Request
    rows: list[Row]


@dataclass(frozen=True)
class Failed:
    """A request has ended with an error, which is of nobody else."""

    request: Request
    error: Exception


Event = Text | Finished | Failed


@dataclass(frozen=True)
class Forward:
    """One forward step, as hooks see it.

    Attributes:
        kind: "prefill", "decode" or "verify".
        tokens: how many new ones each row brought.
        seconds: that it took.
    """

    kind: str
    tokens: list[int]
    seconds: float
