"""A benchmark's completions by the workers of a Ray cluster; where they are judged does not change.

Each sample has a seed of its own, so the lines are those that one generator gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from functools import partial
from itertools import groupby

from paddlenlp_codegen_task.distributed.blocks import Stoppable, Workers
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.worker import SampleWorker
from paddlenlp_codegen_task.evaluation.benchmark import Benchmark, Key, Line
from paddlenlp_codegen_task.evaluation.run import Complete
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.generator import CodeGenerator

_BLOCKS = 64  # whose keys are sent as one


def completing(
    load: Callable[[], CodeGenerator],
    pool: Pool,
    batch_size: int,
    benchmark: Benchmark,
    sampling: Sampling,
) -> Complete:
    """What completes the samples of a benchmark, for `Run.keep`.

    Args:
        load: makes a worker's generator.
        pool: how many workers there are.
        batch_size: of the generators.
        benchmark: what is completed.
        sampling: how.
    """
    arguments = {"benchmark": benchmark, "sampling": sampling}
    workers = Workers(SampleWorker, arguments, load, pool, batch_size)

    def complete(done: Collection[Key]) -> Iterator[list[Line]]:
        left = [key for key in benchmark.keys(sampling) if key not in done]
        size = workers.block(len(left))
        blocks = list(_blocks(left, size))
        pieces = [
            partial(iter, blocks[start : start + _BLOCKS])
            for start in range(0, len(blocks), _BLOCKS)
        ]
        if pieces:
            with closing(iter(Stoppable(workers.run(pieces, size, anywhere=True)))) as lines:
                yield from lines

    return complete


def _blocks(keys: list[Key], size: int) -> Iterator[list[Key]]:
    """Keys in blocks of about a size. Those of one prompt, which differ in the sample's number
    alone, share its prefill, so they stay together.
    """
    block: list[Key] = []
    for _, same in groupby(keys, key=lambda key: key[:-1]):
        block += same
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block
