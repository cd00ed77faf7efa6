"""Blocks of work on Ray's workers, what they come to in the order in which they end."""

from __future__ import annotations

import copy
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.annotations import RayDeprecationWarning

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.worker import Failure, Worker, table_of, values_of
from paddlenlp_codegen_task.generator import CodeGenerator

MOST = 32  # units of work in a block: of more, few workers would have to end the last ones
_BLOCKS = 8  # of each worker, at least, as long as they have more than a unit
_CALLS = 16  # blocks that run at once in a worker, at most

# A worker that has died so many times ends the run: Ray would start it again for ever, even where
# what it is given is what kills it.
MOST_DEATHS = 20

_LOOK = 0.2  # seconds, between two looks at whether to stop
_AHEAD = 64  # blocks that have ended, and wait for the driver


class Pieces(Datasource):
    """Makes blocks in tasks of Ray's, each of which makes some, one after another."""

    def __init__(self, pieces: Sequence[Callable[[], Iterator[Any]]], anywhere: bool) -> None:
        """Take what makes them.

        Args:
            pieces: each makes an iterator of blocks, the same ones every time.
            anywhere: whether any node can, or only the driver's.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._pieces, self._anywhere = pieces, anywhere

    @property
    def supports_distributed_reads(self) -> bool:
        """See Datasource."""
        return self._anywhere

    def estimate_inmemory_data_size(self) -> int | None:
        """See Datasource: nobody knows."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """See Datasource."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_tables, piece), unknown) for piece in self._pieces]


def _tables(piece: Callable[[], Iterator[Any]]) -> Iterator[pa.Table]:
    return map(table_of, piece())


@dataclass(frozen=True)
class Workers:
    """Workers of one kind, which take blocks of units of work, such as rows.

    Attributes:
        kind: their class.
        arguments: of its constructor, beside `load`.
        load: makes the generator of each.
        pool: how many there are.
        batch_size: of the generators.
    """

    kind: type[Worker]
    arguments: Mapping[str, Any]
    load: Callable[[], CodeGenerator]
    pool: Pool
    batch_size: int

    def block(self, count: int) -> int:
        """How many units a block is to have, of so many."""
        return max(1, min(MOST, count // (_BLOCKS * self.pool.most)))

    def run(
        self, pieces: Sequence[Callable[[], Iterator[Any]]], block: int, anywhere: bool
    ) -> Generator[Any, None, None]:
        """Complete the blocks of pieces.

        So many run at once in a worker that its places are taken while the longest completions of
        one of them end. A worker that dies is started again, MOST_DEATHS times, and so are the
        blocks that it had.

        Args:
            pieces: as in `Pieces`.
            block: how many units of work a block has.
            anywhere: as in `Pieces`.

        Returns:
            A generator of what the blocks come to, in the order in which they end.

        Raises:
            TypeError, ValueError: a worker says that an option is not possible.
            RuntimeError: one has failed.
        """
        calls = min(_CALLS, -(-2 * self.batch_size // block) + 1)
        # Each table has a row, and each row is a table's: so a block of work is one of Ray's.
        context = copy.copy(DataContext.get_current())
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a block may take hours, a node to come, too
        context.execution_options = copy.copy(context.execution_options)
        context.execution_options.preserve_order = False
        with DataContext.current(context), warnings.catch_warnings():
            # Two options below have no other place yet; the extra's upper bound knows of it.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = ray.data.read_datasource(
                Pieces(pieces, anywhere),
                num_cpus=0,
                override_num_blocks=len(pieces),
            ).map_batches(
                self.kind,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=self.pool.least,
                    max_size=self.pool.most,
                    max_tasks_in_flight_per_actor=calls + 1,
                    max_concurrent_calls_per_actor=calls,
                    enable_true_multi_threading=True,
                ),
                fn_constructor_kwargs={"load": self.load, **self.arguments},
                num_cpus=self.pool.cpus,
                num_gpus=self.pool.gpus,
                max_restarts=MOST_DEATHS,
                max_task_retries=-1,  # as many as it takes until the worker is there again
            )
            tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        try:
            for table in tables:
                for value in values_of(table):
                    if isinstance(value, Failure):
                        raise _error(value)
                    yield value
        except ray.exceptions.RayError as error:
            last = (str(error).splitlines() or [checks.kind(error)])[-1]  # of a traceback
            raise RuntimeError(f"Ray: {checks.line(last, 400)}") from error


def _error(failure: Failure) -> Exception:
    message = f"a worker at {failure.place}: {failure.message}"
    return ValueError(message) if failure.usage else RuntimeError(message)


class Stoppable:
    """An iterator that another thread reads ahead, and that can be stopped while it waits.

    Attributes:
        stopped: whether `stop` has ended it.
    """

    def __init__(self, values: Generator[Any, None, None]) -> None:
        self._values = values
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stopping = threading.Event()
        self.stopped = False

    def stop(self) -> None:
        """End the iteration soon; may be called from anywhere."""
        self._stopping.set()

    def __iter__(self) -> Generator[Any, None, None]:
        """The values.

        Raises:
            Exception: what the iterator has raised.
        """
        threading.Thread(target=self._feed, name="codegen-ray", daemon=True).start()
        try:
            while True:
                # What has come by the time of a stop is still given.
                self.stopped = self._stopping.is_set()
                try:
                    came, error = self._queue.get(not self.stopped, _LOOK)
                except queue.Empty:
                    if self.stopped:
                        return
                    continue
                if error is not None:
                    raise error
                if came is _END:
                    return
                yield came
        finally:
            self._stopping.set()

    def _feed(self) -> None:
        try:
            with closing(self._values) as values:
                for value in values:
                    self._put((value, None))
                    if self._stopping.is_set():
                        return
            self._put((_END, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, item: tuple[Any, BaseException | None]) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=_LOOK)
                return
            except queue.Full:
                continue


_END = object()
