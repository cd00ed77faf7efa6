"""A batch: rows from a file or a folder, their completions into a file, from where it was left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.completing import Completed, Completing, Outcome
from paddlenlp_codegen_task.batch.finished import unfinished
from paddlenlp_codegen_task.batch.results import Files, Results, Stream, paths
from paddlenlp_codegen_task.batch.rows import Refused, Row
from paddlenlp_codegen_task.batch.source import Source
from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.loading import Described
from paddlenlp_codegen_task.options import GenerationOptions
from paddlenlp_codegen_task.progress import Bar


@dataclass(frozen=True)
class Summary:
    """What a batch has come to.

    Attributes:
        completed: rows that have been completed, by this run or by those before.
        refused: rows that could not be.
        before: how many of both there were when this run began.
        tokens: that this run has generated.
        seconds: that it took.
        stopped: whether `Batch.stop` ended it.
    """

    completed: int
    refused: int
    before: int
    tokens: int
    seconds: float
    stopped: bool

    def __str__(self) -> str:
        """The same on one line."""
        total = self.completed + self.refused
        earlier = f" ({self.before} of {total} before)" if self.before else ""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        rows = "row" if self.completed == 1 else "rows"
        ended = f"{self.completed} {rows} completed, {self.refused} refused{earlier}"
        return f"{ended}; {rate:.0f} tokens/s"


class Batch:
    """Completes the rows of a source; each ends up once in the results, however often it is run."""

    def __init__(
        self,
        generator: CodeGenerator,
        source: Source,
        out: Path | None,
        overwrite: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> None:
        """Open the results, begun by an earlier run or not.

        Args:
            generator: completes rows.
            source: where they come from.
            out: the file of JSON lines for completions; beside it will be those of rows that could
                not be completed, OUT.errors.jsonl, and OUT.meta.json. None for standard output.
            overwrite: whether to do away with earlier results.
            **options: fields of GenerationConfig, for rows without such of their own.

        Raises:
            TypeError, ValueError: an option is not possible, or the results that are there are of
                another input, model or precision, or of other options.
            OSError: the results cannot be written, or another process is at it.
        """
        self._source = source
        self._completing = Completing(generator, self._rows(), **options)
        self._results: Results = Stream()
        if out is not None:
            config = self._completing.config
            self._results = Files(out, made_of(source, generator, config), overwrite)
            if source.identity is None and len(self._results.finished):
                self._results.close()
                raise ValueError(
                    f"{out} is there, and of rows that come only once, as by standard input, "
                    "nothing can be gone on with: choose another file, or begin anew with "
                    "overwrite=True"
                )

    def run(self, progress: bool | None = None) -> Summary:
        """Complete what is left, and close the results.

        Args:
            progress: whether to show a bar; None for where standard error is a terminal.

        Raises:
            OSError: the input cannot be read, or a result not be written.
            RuntimeError: the model has failed.
        """
        # Closed at once where a result cannot be written: what runs is given up.
        with closing(iter(self._completing)) as outcomes:
            summary = keep(outcomes, self._results, self._source.count, progress)
        return replace(summary, stopped=self._completing.stopped)

    def stop(self) -> None:
        """Have `run` end once what has finished is written; may be called from anywhere."""
        self._completing.stop()

    def _rows(self) -> Iterator[Row | Refused]:
        yield from unfinished(self._source.rows(), self._results.finished)


def keep(
    outcomes: Iterable[Outcome], results: Results, count: int | None, progress: bool | None
) -> Summary:
    """Write what rows come to, as it comes, and close the results.

    Args:
        outcomes: of rows that had not ended before.
        results: where they go.
        count: how many rows there are, those included that had ended; None where nobody knows.
        progress: whether to show a bar; None for where standard error is a terminal.

    Raises:
        OSError: a result cannot be written.
    """
    tokens, start, before = 0, time.perf_counter(), len(results.finished)
    try:
        with Bar(count, progress, before) as bar:
            for outcome in outcomes:
                results.write(outcome)
                new = 0
                if isinstance(outcome, Completed):
                    new = sum(len(one.token_ids) for one in outcome.completions)
                tokens += new
                bar.update(new)
    finally:
        results.close()
    seconds = time.perf_counter() - start
    return Summary(results.completed, results.refused, before, tokens, seconds, stopped=False)


def complete_batch(
    generator: CodeGenerator,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Unpack[GenerationOptions],
) -> Summary:
    """Complete the rows of a file of JSON lines, or the files of a folder.

    What has been completed stays, however this ends; called again, it goes on from there.

    Args:
        generator: completes them.
        source: the file, or the folder.
        out: see `Batch`, as for what follows.
        overwrite: whether to do away with earlier results.
        progress: whether to show a bar; None for where standard error is a terminal.
        **options: fields of GenerationConfig, for rows without such of their own.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as `Batch` does, and its `run`.
    """
    source = checks.path("source", source, "a file's or a folder's path")
    out = checks.path("out", out, "a file's path")
    check_apart(source, out)
    overwrite = checks.boolean("overwrite", overwrite)
    batch = Batch(generator, Source.of_path(source), out, overwrite, **options)
    return batch.run(progress)


def check_apart(source: Path, out: Path) -> None:
    """Raise an error unless results can be written to `out` without touching what is read."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {checks.line(str(out.parent), 200)}")
    for path in paths(out):
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"out: {path} would be written, and is what is read")
        if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"out: {path} must not be in the folder that is read")


def made_of(source: Source, found: Described, config: GenerationConfig) -> dict[str, Any]:
    """What the results depend on. A model is told by its weights: its name may be another's."""
    model = {"name": found.name, "precision": found.precision}
    try:
        made_from = store.read_manifest(found.folder)["made_from"]
        parts = ("engine", "kv_precision", "weights", "files")
        model |= {part: made_from.get(part) for part in parts}
    except store.ExportError:  # without a static graph
        model["folder"] = str(found.folder.resolve())
    return {
        "input": {"sha256": source.identity, "rows": source.count},
        "model": model,
        "options": asdict(config),
    }
