"""What runs in a worker: one generator, which several blocks of work share at a time."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import ray

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.completing import Completed, Completing, Outcome
from paddlenlp_codegen_task.batch.rows import Row
from paddlenlp_codegen_task.evaluation.benchmark import Benchmark, Key, Line
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.generator import CodeGenerator

COLUMN = "block"  # the only one of Ray's tables here: a block of work, or what it has come to


@dataclass(frozen=True)
class Failure:
    """An error that ends the run, where Ray would only know that something was raised.

    Attributes:
        place: the address of the worker's node.
        message: what has failed, on one line.
        usage: whether an option is not possible, rather than something gone wrong.
    """

    place: str
    message: str
    usage: bool


def table_of(value: Any) -> pa.Table:
    """A table with one row, which holds anything that can be pickled: Arrow has no lone surrogates,
    nor ids of which some are strings and some are integers.
    """
    return pa.table({COLUMN: pa.array([pickle.dumps(value)], pa.large_binary())})


def values_of(table: pa.Table) -> list[Any]:
    """What `table_of` put into tables."""
    return [pickle.loads(one.as_buffer()) for one in table[COLUMN]]


class Worker:
    """Completes blocks of work. Calls come from several threads at once."""

    def __init__(self, load: Callable[[], CodeGenerator]) -> None:
        """Load a generator; if that fails, each call gives the Failure."""
        self._failure: Failure | None = None
        try:
            self.generator = load()
        except Exception as error:
            self._failure = _failure("cannot load the model: ", error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Complete a block, which is the table's only row."""
        [block] = values_of(table)
        if self._failure is not None:
            return table_of(self._failure)
        try:
            return table_of(self.complete(block))
        except Exception as error:
            return table_of(_failure("", error))

    def complete(self, block: Any) -> Any:
        """What a block comes to: the same, in the same order, if it is done again."""
        raise NotImplementedError


class RowWorker(Worker):
    """Completes rows of a batch."""

    def __init__(self, load: Callable[[], CodeGenerator], options: Mapping[str, Any]) -> None:
        """Load a generator.

        Args:
            load: what loads it.
            options: fields of GenerationConfig, for rows without such of their own.
        """
        super().__init__(load)
        self._options = options

    def complete(self, block: list[Row]) -> list[Outcome]:
        """What rows come to, in their order."""
        places = {row.id: place for place, row in enumerate(block)}
        found: dict[int, Outcome] = {}
        for outcome in Completing(self.generator, block, **self._options):
            row_id = outcome.row.id if isinstance(outcome, Completed) else outcome.id
            assert row_id is not None, "rows have ids"
            found[places[row_id]] = outcome
        return [found[place] for place in range(len(block))]


class SampleWorker(Worker):
    """Completes samples of a benchmark."""

    def __init__(
        self, load: Callable[[], CodeGenerator], benchmark: Benchmark, sampling: Sampling
    ) -> None:
        """Load a generator.

        Args:
            load: what loads it.
            benchmark: what is completed.
            sampling: how.
        """
        super().__init__(load)
        self._benchmark, self._sampling = benchmark, sampling

    def complete(self, block: list[Key]) -> list[Line]:
        """The lines of samples, in their order."""
        others = _AllBut(block)
        lines = chain.from_iterable(
            self._benchmark.complete(self.generator, self._sampling, others)
        )
        found = {self._benchmark.key_of(line): line for line in lines}
        return [found[key] for key in block]


class _AllBut:
    """All keys but some."""

    def __init__(self, some: Iterable[Key]) -> None:
        self._some = set(some)

    def __contains__(self, key: object) -> bool:
        return key not in self._some


def _failure(what: str, error: Exception) -> Failure:
    message = checks.line(str(error)) or checks.kind(error)
    usage = isinstance(error, (TypeError, ValueError))
    place: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return Failure(place, what + message, usage)
