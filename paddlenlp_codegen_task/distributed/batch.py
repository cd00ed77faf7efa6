"""A batch on a Ray cluster: the driver plans and writes, Ray Data runs what is left to do.

The results are those of `batch.run.Batch`, so either may go on with what the other has begun. Ray
Data's own checkpoints are not used: they hold only where Ray writes the output, in files of its
own, and they are beta. Here a row is done once the driver has written it, as without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.batch.completing import Outcome
from paddlenlp_codegen_task.batch.finished import Unfinished
from paddlenlp_codegen_task.batch.results import Files, Results
from paddlenlp_codegen_task.batch.rows import Refused, Row
from paddlenlp_codegen_task.batch.run import Summary, keep, made_of
from paddlenlp_codegen_task.batch.source import Piece, Source
from paddlenlp_codegen_task.distributed.blocks import Stoppable, Workers
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.model import loading
from paddlenlp_codegen_task.distributed.worker import RowWorker
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.options import Settings


@dataclass(frozen=True)
class Part:
    """What is left to do of a piece of the input; calling it makes blocks of rows.

    Attributes:
        piece: makes its rows.
        left: for each of them, whether it is left to do; None for all.
        rows: of a block.
    """

    piece: Piece
    left: bytes | None
    rows: int

    def __call__(self) -> Iterator[list[Row | Refused]]:
        """Make them."""
        rows = self.piece()
        if self.left is not None:
            rows = compress(rows, self.left)
        while block := list(islice(rows, self.rows)):
            yield block


class RayBatch:
    """Completes the rows of a source on workers; each ends up once in the results."""

    def __init__(
        self,
        load: Callable[[], CodeGenerator],
        pool: Pool,
        batch_size: int,
        source: Source,
        results: Results,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare to complete rows.

        Args:
            load: makes a worker's generator.
            pool: how many workers there are.
            batch_size: of the generators.
            source: where rows come from; not a stream.
            results: where they end up.
            options: fields of GenerationConfig, for rows without such of their own; None for the
                generators' defaults.
        """
        arguments = {"options": options or {}}
        self._workers = Workers(RowWorker, arguments, load, pool, batch_size)
        self._source, self._results = source, results
        self._outcomes = Stoppable(self._complete())

    @classmethod
    def of(
        cls,
        model: str | Path | None,
        source: Source,
        out: Path,
        overwrite: bool = False,
        workers: str | int | None = None,
        **options: Any,
    ) -> RayBatch:
        """Find the model, and open the results, begun by an earlier run or not.

        Args:
            model: name or folder, as for `CodeGenerator.from_pretrained`, or an export.
            source: where rows come from; not a stream.
            out: see `batch.run.Batch`.
            overwrite: whether to do away with earlier results.
            workers: how many there are, N or MIN:MAX; None for as many as there is room for.
            **options: of `CodeGenerator.from_pretrained`.

        Raises:
            TypeError, ValueError: an option is not possible, or the results that are there are of
                another input, model or precision, or of other options.
            OSError, ExportError: the model cannot be found or exported, or the results cannot be
                written.
        """
        if source.identity is None:
            raise ValueError("IN: rows that come only once, as by standard input, go without Ray")
        found, load = loading(model, workers, options)
        settings = Settings.of(options)
        results = Files(out, made_of(source, found, settings.defaults), overwrite)
        return cls(load, load.pool, settings.batch_size, source, results)

    def run(self, progress: bool | None = None) -> Summary:
        """Complete what is left, and close the results.

        Args:
            progress: whether to show a bar; None for where standard error is a terminal.

        Raises:
            TypeError, ValueError: an option is not possible with this model.
            OSError: the input cannot be read, or a result not be written.
            RuntimeError: the model has failed, or Ray has.
        """
        with closing(iter(self._outcomes)) as outcomes:
            summary = keep(outcomes, self._results, self._source.count, progress)
        return replace(summary, stopped=self._outcomes.stopped)

    def stop(self) -> None:
        """Have `run` end once what has finished is written; may be called from anywhere."""
        self._outcomes.stop()

    def _complete(self) -> Generator[Outcome, None, None]:
        """What rows come to: first those that are refused here, of which no worker hears."""
        unfinished = Unfinished(self._results.finished)
        left_of: list[tuple[Piece, bytes | None]] = []
        count = 0
        for piece in self._source.pieces():
            flags = bytearray()
            for one in piece():
                row = unfinished.left(one)
                flags.append(isinstance(row, Row))
                if isinstance(row, Refused):
                    yield row
            if any(flags):
                count += sum(flags)
                left_of.append((piece, None if all(flags) else bytes(flags)))
        rows = self._workers.block(count)
        parts = [Part(piece, left, rows) for piece, left in left_of]
        if parts:
            for outcomes in self._workers.run(parts, rows, self._source.anywhere):
                yield from outcomes
