"""Blocks of work on Ray's workers, what they come to in the order in which they end."""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.worker import Failure, Worker, table_of, values_of

# A block whose worker has died so many times is the reason, and not its victim.
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
class Job:
    """Work for workers.

    Attributes:
        worker: their class.
        arguments: of its constructor.
        pool: how many there are.
        calls: blocks that run at once in each; further ones wait beside it.
    """

    worker: type[Worker]
    arguments: Mapping[str, Any]
    pool: Pool
    calls: int

    def run(self, pieces: Sequence[Callable[[], Iterator[Any]]], anywhere: bool) -> Iterator[Any]:
        """Complete the blocks of pieces.

        A worker that dies is started again, and its blocks with it, MOST_DEATHS times.

        Args:
            pieces: as in `Pieces`.
            anywhere: as there.

        Returns:
            An iterator of what the blocks come to, in the order in which they end.

        Raises:
            TypeError, ValueError: a worker says that an option is not possible.
            RuntimeError: one has failed.
        """
        # Each table has a row, and each row is a table's: so a block of work is one of Ray's.
        context = copy.copy(DataContext.get_current())
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with DataContext.current(context):
            dataset = ray.data.read_datasource(
                Pieces(pieces, anywhere),
                num_cpus=0,
                override_num_blocks=len(pieces),
            ).map_batches(
                self.worker,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=self.pool.least,
                    max_size=self.pool.most,
                    max_tasks_in_flight_per_actor=self.calls + 1,
                    max_concurrent_calls_per_actor=self.calls,
                    enable_true_multi_threading=True,
                ),
                fn_constructor_kwargs=dict(self.arguments),
                num_cpus=self.pool.cpus,
                num_gpus=self.pool.gpus,
                max_restarts=MOST_DEATHS,
                max_task_retries=MOST_DEATHS,
            )
            tables = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        try:
            for table in tables:
                for value in values_of(table):
                    if isinstance(value, Failure):
                        raise _error(value)
                    yield value
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray: {checks.line(str(error), 400)}") from error


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

    def __iter__(self) -> Iterator[Any]:
        """The values.

        Raises:
            Exception: what the iterator has raised.
        """
        threading.Thread(target=self._feed, name="codegen-ray", daemon=True).start()
        try:
            while True:
                if self._stopping.is_set():
                    self.stopped = True
                    return
                try:
                    came, error = self._queue.get(timeout=_LOOK)
                except queue.Empty:
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
