"""Continuous batching: sequences join and leave at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Rows

from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, Runtime, StepOutput, decode, prefill

# Prompts are run together, up to a prefill chunk, if padding them to the longest adds at most this
# share of work, or if all with padding are few tokens: then a step costs reading the weights.
PADDING_SHARE = 0.25
SMALL_PREFILL = 64

ChooseTokens = Callable[[StepOutput, Rows[Sequence]], list[int]]
AppendToken = Callable[[Sequence, int], None]


def run(
    runtime: Runtime,
    sequences: Iterable[Sequence],
    batch_size: int,
    choose: ChooseTokens,
    append: AppendToken,
) -> Iterator[Sequence]:
    """Generate, and yield every sequence as it finishes.

    Running sequences occupy the slots 0, 1, ...; when one leaves, the last takes its slot, so that
    a step never runs an empty one.

    Args:
        runtime: what runs the steps; nothing else may use it meanwhile.
        sequences: what to generate; each is asked for when there is room for it.
        batch_size: most sequences to run at once.
        choose: picks the next token of each row of a step.
        append: gives a sequence its token, setting finish_reason if it is done.
    """
    runtime.reset(batch_size)
    waiting = _Waiting(sequences)
    running: list[Sequence] = []
    while waiting.first or running:
        while waiting.first and len(running) < batch_size:
            group = _next_group(waiting, batch_size - len(running))
            output = prefill(runtime, len(running), [one.prompt_ids for one in group])
            for sequence, token_id in zip(group, choose(output, group), strict=True):
                append(sequence, token_id)
            running += group
            yield from _retire(runtime, running)
        if running:
            output = decode(runtime, [sequence.token_ids[-1] for sequence in running])
            for sequence, token_id in zip(running, choose(output, running), strict=True):
                append(sequence, token_id)
            yield from _retire(runtime, running)


class _Waiting:
    """Sequences that have not started; only the first has been made yet."""

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self._rest = iter(sequences)
        self.first = next(self._rest, None)

    def pop(self) -> Sequence:
        assert self.first is not None
        popped, self.first = self.first, next(self._rest, None)
        return popped


def _next_group(waiting: _Waiting, room: int) -> list[Sequence]:
    """Take the sequences at the front whose prompts are worth running in one step."""
    group = [waiting.pop()]
    longest = total = len(group[0].prompt_ids)
    while waiting.first and len(group) < room:
        length = len(waiting.first.prompt_ids)
        longest, total = max(longest, length), total + length
        padded = longest * (len(group) + 1)
        worthwhile = padded <= max((1 + PADDING_SHARE) * total, SMALL_PREFILL)
        if not worthwhile or padded > PREFILL_CHUNK:
            break
        group.append(waiting.pop())
    return group


def _retire(runtime: Runtime, running: list[Sequence]) -> Iterator[Sequence]:
    """Take finished sequences out of `running`, closing the gaps they leave in the slots."""
    for slot in reversed(range(len(running))):
        sequence = running[slot]
        if sequence.finish_reason is None:
            continue
        last = running.pop()
        if last is not sequence:
            runtime.move(len(running), slot)
            running[slot] = last
        yield sequence
